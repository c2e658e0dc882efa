"""Load tests in a real child process: what is bad kills the child, and says nothing to anybody."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from gateway.core.errors import ModelRefused, ModelTooLarge, ProviderTimeout
from gateway.core.library import ShelvedModel
from gateway.hub.cache import FileLibrary
from gateway.hub.trial import ChildLoadTester
from gateway.settings import child_environment
from tests.tiny_models import build_encoder, build_model

Shelve = Callable[[str], ShelvedModel]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    build_model(folder / "good")
    build_encoder(folder / "encoder", pooling={"pooling_mode_mean_tokens": True})
    return folder


@pytest.fixture(scope="module")
def shelve(folder: Path) -> Shelve:
    library = FileLibrary(folder, folder / "none")

    def find(name: str) -> ShelvedModel:
        found = library.find_shelved(name)
        assert found is not None
        return found

    return find


def make_trial(**limits: float) -> ChildLoadTester:
    return ChildLoadTester(environment=child_environment(), threads=1, **limits)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["good", "encoder"])
async def test_a_model_that_computes_has_no_fault(shelve: Shelve, name: str) -> None:
    assert await make_trial()(shelve(name)) is None


async def test_a_model_that_cannot_be_loaded_says_why(folder: Path, shelve: Shelve) -> None:
    config = json.loads((build_model(folder / "odd") / "config.json").read_text())
    (folder / "odd/config.json").write_text(json.dumps({**config, "hidden_size": 48}))
    said = await make_trial()(shelve("odd"))
    assert said is not None and "could not be loaded" in said


async def test_its_own_code_is_not_run(folder: Path, shelve: Shelve, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    build_model(folder / "code")
    config = json.loads((folder / "code/config.json").read_text())
    own = {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"},
    }
    (folder / "code/config.json").write_text(json.dumps({**config, **own}))
    (folder / "code/evil.py").write_text(f"open({str(canary)!r}, 'w')")
    with pytest.raises(ModelRefused):
        await make_trial()(shelve("code"))
    assert not canary.exists()


async def test_limits_say_nothing_of_the_model(shelve: Shelve) -> None:
    with pytest.raises(ModelTooLarge, match="memory"):
        await make_trial(memory_bytes=2**20)(shelve("good"))
    with pytest.raises(ProviderTimeout):
        await make_trial(timeout_s=0.05)(shelve("good"))


async def test_a_child_ends_with_who_asked_for_it(shelve: Shelve) -> None:
    def children() -> list[str]:
        task = f"/proc/{os.getpid()}/task/{os.getpid()}/children"
        return Path(task).read_text().split()

    before = children()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(make_trial(), shelve("good"))
        while children() == before:
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert children() == before


@pytest.mark.parametrize(
    ("does", "ends_in"),
    [
        ("socket.create_connection(('127.0.0.1', {port}), 2)", "Loading it asks for the network."),
        ("socket.getaddrinfo('localhost', 80)", "Loading it asks for the network."),
        (
            "sys.addaudithook(trial._refuse_pickle); pickle.loads(b'cos\\nsystem\\n.')",
            "Loading it reads a pickle.",
        ),
    ],
)
def test_the_child_reaches_nobody_and_reads_no_pickle(does: str, ends_in: str) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        does = does.format(port=server.getsockname()[1])
        code = (
            "import pickle, socket, sys; from gateway.hub import trial; "
            f"trial._leave_the_network(); {does}"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
        )
    assert done.returncode == 1 and ends_in in done.stderr
