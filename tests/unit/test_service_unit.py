"""The unit for systemd: that systemd reads it, and that it names what the gateway has."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.bootstrap.lifetime import DECISIONS_S, FLUSH_S
from gateway.bootstrap.server import CLOSE_S
from gateway.cli import EXIT_MISCONFIGURED, main
from gateway.settings import Settings, environment_name

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "model-gateway.service"
TEXT = UNIT.read_text(encoding="utf-8")
COMMAND = "/opt/model-gateway/.venv/bin/gateway"


def value(name: str) -> str:
    [found] = re.findall(rf"^{name}=(.*)$", TEXT, re.MULTILINE)
    return str(found)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd")
def test_systemd_has_nothing_to_say_of_it(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(TEXT.replace(COMMAND, sys.executable))  # a command that is there
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    said = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert (done.returncode, said) == (0, [])


def test_its_settings_and_commands_are_the_gateway_s() -> None:
    known = {environment_name(name) for name in Settings.model_fields}
    given = re.findall(
        r"(\w+)=\S+", " ".join(re.findall(r"^Environment=(.*)$", TEXT, re.MULTILINE))
    )
    assert given and set(given) <= known
    assert value("ExecStart") == f"{COMMAND} serve" and "serve" in main.commands
    assert value("ExecStartPre") == f"{COMMAND} db upgrade"
    assert int(value("RestartPreventExitStatus")) == EXIT_MISCONFIGURED


def test_it_has_time_to_stop() -> None:
    grace_s = Settings.model_fields["drain_grace_s"].default
    assert int(value("TimeoutStopSec")) > grace_s + CLOSE_S + FLUSH_S + DECISIONS_S
