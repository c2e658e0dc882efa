"""What peers need beside our own environment: made once under .data/bench, then found."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / ".data" / "bench"
ENVIRONMENTS = DATA / "environments"
REQUIREMENTS = {
    "transformers": ("transformers[serving]", "torch"),
    # gguf writes the file that llama.cpp reads.
    "llama-cpp": ("llama-cpp-python==0.3.36", "gguf==0.19.0"),
    "litellm": ("litellm[proxy]==1.106.2",),
    "lm-proxy": ("lm-proxy==3.3.2",),
    "mlflow": ("mlflow[genai]==3.17.2",),
    "smg": ("smg==1.13.0",),
    # Of the tests alone: its server, and what writes the model that it serves.
    "llama-cpp-server": ("llama-cpp-python[server]==0.3.36", "gguf==0.19.0", "safetensors"),
}
OUR_VERSIONS = frozenset({"transformers", "llama-cpp", "llama-cpp-server"})
"""Those with the versions of torch and of everything else that we pin ourselves."""
NODE_PACKAGES = {
    "portkey": {
        "dependencies": {"@portkey-ai/gateway": "1.15.2"},
        # With the newest that it accepts its streams end in status 500 on Node.js 20.
        "overrides": {"@hono/node-server": "1.13.8", "hono": "4.9.7"},
    },
}
NGINX = "nginx"


def ensure_environment(name: str) -> Path:
    """Return the bin folder of a peer's Python environment; making it takes minutes.

    It has the Python that runs this, and is made anew when what goes into it changed. Raises
    CalledProcessError, pip's words are on stderr.
    """
    constraints = ROOT / "constraints.txt"
    options = ["--constraint", str(constraints)] if name in OUR_VERSIONS else []

    def install(folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "pip"), "install", "-qq", *options]
        subprocess.run([*pip, *REQUIREMENTS[name]], check=True, stdout=sys.stderr)

    pinned = [constraints.read_text()] if options else []
    python = f"{sys.base_prefix} {sys.version}"
    return _ensure(name, "\n".join([python, *REQUIREMENTS[name], *pinned]), install) / "bin"


def ensure_node_packages(name: str) -> Path:
    """Return the folder of a peer's npm packages. Raises CalledProcessError."""
    wanted = json.dumps(NODE_PACKAGES[name])

    def install(folder: Path) -> None:
        (folder / "package.json").write_text(wanted)
        npm = ["npm", "install", "--silent", "--no-fund", "--no-audit"]
        subprocess.run(npm, cwd=folder, check=True, stdout=sys.stderr)

    return _ensure(name, wanted, install) / "node_modules"


def ensure_nginx() -> Path:
    """Return nginx's program: the system's, or Debian's package unpacked. Raises
    CalledProcessError."""
    if found := shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"):
        return Path(found)

    def install(folder: Path) -> None:
        subprocess.run(["apt-get", "download", NGINX], cwd=folder, check=True, stdout=sys.stderr)
        (package,) = folder.glob("nginx_*.deb")
        subprocess.run(["dpkg-deb", "--extract", str(package), str(folder)], check=True)

    return _ensure(NGINX, NGINX, install) / "usr" / "sbin" / "nginx"


def _ensure(name: str, wanted: str, install: Callable[[Path], None]) -> Path:
    """Return the environment's folder, filled by `install` unless that was done for `wanted`."""
    folder = ENVIRONMENTS / name
    stamp = folder / "installed.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        sys.stderr.write(f"installing {name} into {folder}\n")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        install(folder)
        stamp.write_text(wanted)
    return folder
