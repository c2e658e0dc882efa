import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["bench.ours", "bench.steps"])
def test_it_says_how_threads_wait_before_torch_is_there(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    env = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0
