"""The commands that end: check, db, models without a server, and starts that must not happen."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.disks import sealed_folder
from tests.integration.process.conftest import run_gateway

BROKEN = {
    "GATEWAY_PORT": "http",
    "GATEWAY_LOG_LEVEL": "loud",
    "GATEWAY_PROT": "80",
    "OLLAMA_HOST": "ftp://nowhere",
}


@pytest.mark.parametrize("command", ["check", "serve"])
def test_every_mistake_is_named_at_once_and_the_exit_is_2(
    environment: dict[str, str], command: str
) -> None:
    done = run_gateway(environment | BROKEN, command)
    assert done.returncode == 2
    for name in BROKEN:
        assert len(re.findall(rf"^gateway: {name} ", done.stderr, flags=re.MULTILINE)) == 1
    assert "Traceback" not in done.stderr


def test_an_unknown_provider_is_a_mistake_that_lists_the_known(environment: dict[str, str]) -> None:
    done = run_gateway(environment | {"GATEWAY_PROVIDERS": "ollama,olama"}, "check")
    assert done.returncode == 2
    assert "huggingface, ollama" in done.stderr


@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_device_that_is_not_there_is_a_mistake_that_lists_those_that_are(
    environment: dict[str, str], command: str
) -> None:
    done = run_gateway(environment | {"GATEWAY_HF_DEVICE": "cuda:99"}, command)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("gateway: GATEWAY_HF_DEVICE: There is no device cuda:99")
    assert " it has cpu" in line


def test_a_device_matters_to_no_command_that_runs_no_model(environment: dict[str, str]) -> None:
    elsewhere = {"GATEWAY_HF_DEVICE": "cuda:99"}
    assert run_gateway(environment | elsewhere, "db", "revision").returncode == 0
    served = elsewhere | {"GATEWAY_PROVIDERS": "ollama"}
    assert run_gateway(environment | served, "check").returncode == 0


def test_right_settings_are_said_to_be_right(environment: dict[str, str]) -> None:
    done = run_gateway(environment, "check")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_database_goes_up_and_down_and_tells_where_it_is(environment: dict[str, str]) -> None:
    assert "newest" in run_gateway(environment, "db", "revision").stdout
    assert run_gateway(environment, "db", "upgrade").returncode == 0
    shown = run_gateway(environment, "db", "revision").stdout
    assert len(set(re.findall(r": +(\S+)", shown))) == 1
    assert run_gateway(environment, "db", "downgrade", "base", "--yes").returncode == 0
    refused = (
        run_gateway(environment, "db", "upgrade"),
        run_gateway(environment, "db", "downgrade", "base"),
    )
    assert [done.returncode for done in refused] == [0, 1]
    assert run_gateway(environment, "db", "downgrade", "base", "--yes").returncode == 0
    assert "None" in run_gateway(environment, "db", "revision").stdout


def test_a_server_refuses_a_wrong_revision_and_says_the_command(
    environment: dict[str, str],
) -> None:
    done = run_gateway(environment, "serve")
    assert done.returncode == 1
    assert "gateway db upgrade" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_without_its_database_says_so(environment: dict[str, str]) -> None:
    url = "postgresql://user:hunter2@127.0.0.1:9/gone"
    done = run_gateway(environment | {"GATEWAY_DATABASE_URL": url}, "serve")
    assert done.returncode == 1
    assert "database at 127.0.0.1:9/gone" in done.stderr
    assert "hunter2" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_start_that_fails_half_way_is_a_sentence(
    environment: dict[str, str], tmp_path: Path
) -> None:
    run_gateway(environment, "db", "upgrade")
    short = tmp_path / "short-key"
    short.write_text("short")
    short.chmod(0o600)
    done = run_gateway(environment | {"GATEWAY_SECRET_KEY_FILE": str(short)}, "serve")
    assert done.returncode == 2
    assert str(short) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_said(environment: dict[str, str]) -> None:
    run_gateway(environment, "db", "upgrade")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run_gateway(environment | {"GATEWAY_PORT": port}, "serve")
    assert done.returncode == 2
    assert "GATEWAY_PORT" in done.stderr
    assert "Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_listing_models_without_a_gateway_says_how_to_start_one(
    environment: dict[str, str],
) -> None:
    done = run_gateway(environment | {"GATEWAY_PORT": "9"}, "models", "list")
    assert done.returncode == 1
    assert "gateway serve" in done.stderr


def test_help_imports_none_of_the_heavy_libraries(environment: dict[str, str]) -> None:
    code = (
        "import sys; from gateway.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'sqlalchemy', 'starlette', 'strawberry', 'aiohttp'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)


def test_serving_starts_without_waiting_for_torch(environment: dict[str, str]) -> None:
    code = (
        "import sys, gateway.bootstrap\n"
        "assert not {'torch', 'transformers', 'alembic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)


def test_an_unusable_data_folder_is_a_mistake_and_no_traceback(
    environment: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for command in (["db", "upgrade"], ["serve"], ["check"]):
        done = run_gateway(environment | {"GATEWAY_DATA_DIR": str(file)}, *command)
        assert done.returncode == 2
        assert "GATEWAY_DATA_DIR" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_data_folder_that_cannot_be_written_to_is_a_mistake_and_no_traceback(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with sealed_folder(tmp_path / "sealed") as folder:
        for command in (["db", "upgrade"], ["serve"], ["check"]):
            done = run_gateway(environment | {"GATEWAY_DATA_DIR": str(folder)}, *command)
            assert done.returncode == 2
            assert f"GATEWAY_DATA_DIR: the folder {folder} cannot be written to" in done.stderr
            assert "Traceback" not in done.stderr
