import subprocess
import sys


def test_the_worker_says_how_threads_wait_before_torch_is_there() -> None:
    code = "import sys, bench.ours; sys.exit('torch' in sys.modules)"
    env = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0
