"""A command imports what it needs: who asks for a token does not wait for a server to be read."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module", ["gateway.cli", "gateway.bootstrap.hub", "gateway.services.keys"]
)
def test_what_commands_import_has_no_server_in_it(module: str) -> None:
    servers = {"starlette", "strawberry", "torch", "transformers", "uvicorn"}
    code = f"import sys, {module}; print(sorted({servers} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
