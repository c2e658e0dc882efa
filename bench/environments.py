"""The Python environments of the peers: made once under .data/bench, with our versions of torch
and of everything else that we pin ourselves."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / ".data" / "bench"
REQUIREMENTS = {
    "transformers": ("transformers[serving]", "torch"),
    # gguf writes the file that llama.cpp reads.
    "llama-cpp": ("llama-cpp-python==0.3.36", "gguf==0.19.0"),
}


def ensure_environment(name: str) -> Path:
    """Return the bin folder of a peer's environment; making it takes minutes, finding it none.

    It is made anew when what goes into it changed. Raises CalledProcessError, pip's words are on
    stderr.
    """
    folder = DATA / "environments" / name
    constraints = ROOT / "constraints.txt"
    wanted = "\n".join([*REQUIREMENTS[name], constraints.read_text()])
    stamp = folder / "installed.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        sys.stderr.write(f"installing {', '.join(REQUIREMENTS[name])} into {folder}\n")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--constraint", str(constraints)]
        subprocess.run([*pip, *REQUIREMENTS[name]], check=True, stdout=sys.stderr)
        stamp.write_text(wanted)
    return folder / "bin"
