"""What the files of a model may do: pickles and code of their own, allowed and not."""

import pickle
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from gateway.core.embeddings import EmbedRequest
from gateway.core.errors import GatewayError, ModelRefused
from gateway.core.names import ModelRef
from gateway.hub.cache import FileLibrary
from gateway.hub.trial import ChildLoadTester
from gateway.providers import ProviderContext, load
from gateway.providers.huggingface import HuggingFaceService
from gateway.settings import Settings, child_environment
from tests.integration.engine.conftest import ask
from tests.tiny_code import Harmful, build_coded, change_config, pickle_weights
from tests.tiny_models import build_encoder, build_model
from tests.told import collect, stream_of

COMMIT, OTHER = "a" * 40, "b" * 40
M = ModelRef("huggingface", "m")


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where transformers copies the code that it runs."""
    import transformers.dynamic_module_utils as dynamic

    folder = tmp_path / "home/modules"
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(folder))
    monkeypatch.syspath_prepend(str(folder))
    # The package of copies that an earlier test has imported is elsewhere.
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)
    return folder


class Canary:
    """A file that is there once harmful code ran."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def sang(self) -> bool:
        return self.path.exists()


@pytest.fixture
def canary(tmp_path: Path) -> Canary:
    return Canary(tmp_path / "canary")


@asynccontextmanager
async def serving(folder: Path, **values: object) -> AsyncIterator[HuggingFaceService]:
    settings = Settings(hf_device="cpu", hf_home=folder / "home", **values)  # type: ignore[arg-type]
    library = FileLibrary(folder / "models", folder / "hub", trust=settings.trust_rules)
    async with anyio.create_task_group() as tasks:
        context = ProviderContext(
            library=library,
            observe=lambda change: None,
            task_group=tasks,
            clock=anyio.current_time,
        )
        service = load("huggingface")(settings, context)
        assert isinstance(service, HuggingFaceService)
        yield service
        await service.aclose()


async def run(folder: Path, ref: ModelRef = M, **values: object) -> int:
    """Return how many tokens the model said."""
    async with serving(folder, **values) as service:
        try:
            return (
                await collect(stream_of(service, ask(max_tokens=3), ref))
            ).usage.completion_tokens
        except GatewayError as error:
            refusal = error
    raise refusal


@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_its_own_code_runs_only_where_it_is_listed(
    tmp_path: Path, canary: Canary, isolation: str
) -> None:
    build_coded(tmp_path / "models/m", canary.path)
    for trusted in ((), ("other/model",), (f"m@{COMMIT}",)):
        with pytest.raises(ModelRefused) as refused:
            await run(tmp_path, hf_isolation=isolation, hf_trusted_repositories=trusted)
        assert "GATEWAY_HF_TRUSTED_REPOSITORIES" in (refused.value.hint or "")
        assert not canary.sang
    assert await run(tmp_path, hf_isolation=isolation, hf_trusted_repositories=("m",)) == 3
    assert canary.sang
    copied = tmp_path / "home/modules/transformers_modules"
    assert list(copied.rglob("modeling_canary.py"))  # and not in the user's own folder


async def test_a_commit_is_trusted_alone(tmp_path: Path, canary: Canary) -> None:
    built = build_coded(tmp_path / "built", canary.path)
    repository = tmp_path / "hub/models--own--m"
    for commit in (COMMIT, OTHER):
        shutil.copytree(built, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(OTHER)
    rules = {"hf_trusted_repositories": (f"own/m@{COMMIT}",)}
    with pytest.raises(ModelRefused):
        await run(tmp_path, ModelRef("huggingface", "own/m"), **rules)
    assert not canary.sang
    assert await run(tmp_path, ModelRef("huggingface", "own/m", COMMIT), **rules) == 3


@pytest.mark.parametrize("prefix", ["other/repository--", "/elsewhere/", "../"])
async def test_code_that_is_not_its_own_is_not_run(
    tmp_path: Path, canary: Canary, prefix: str
) -> None:
    build_coded(tmp_path / "models/m", canary.path, prefix=prefix)
    with pytest.raises(ModelRefused, match="not in its own files"):
        await run(tmp_path, hf_trusted_repositories=("m",))
    assert not canary.sang


async def test_a_known_model_runs_without_the_code_it_brings(
    tmp_path: Path, canary: Canary
) -> None:
    folder = build_coded(tmp_path / "models/m", canary.path)
    change_config(folder, model_type="llama", architectures=["LlamaForCausalLM"])
    assert await run(tmp_path) == 3
    assert not canary.sang


async def test_pickles_are_read_only_where_they_are_allowed(tmp_path: Path) -> None:
    pickle_weights(build_model(tmp_path / "models/m"))
    async with serving(tmp_path) as service:
        assert await service.models() == []
        with pytest.raises(ModelRefused) as refused:
            await service.load(M)
    assert "GATEWAY_HF_ALLOW_PICKLE" in (refused.value.hint or "")
    for allowed in ("m", "*"):
        async with serving(tmp_path, hf_allow_pickle=(allowed,)) as service:
            [listed] = await service.models()
            assert dict(listed.metadata)["format"] == "pickle"
            said = await collect(stream_of(service, ask(max_tokens=3), M))
            assert said.usage.completion_tokens == 3


async def test_a_pickle_says_what_the_same_weights_in_safetensors_say(tmp_path: Path) -> None:
    build_model(tmp_path / "models/safe")
    pickle_weights(build_model(tmp_path / "models/m"))
    texts = []
    async with serving(tmp_path, hf_allow_pickle=("*",)) as service:
        for name in ("safe", "m"):
            ref = ModelRef("huggingface", name)
            texts.append((await collect(stream_of(service, ask(max_tokens=8), ref))).text)
    assert texts[0] == texts[1]


@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_a_pickle_never_runs_anything(tmp_path: Path, canary: Canary, isolation: str) -> None:
    pickled = pickle_weights(build_model(tmp_path / "models/m"))
    pickled.write_bytes(pickle.dumps({"weight": Harmful(canary.path)}, protocol=2))
    with pytest.raises(ModelRefused, match="more than tensors"):
        await run(tmp_path, hf_allow_pickle=("m",), hf_isolation=isolation)
    assert not canary.sang
    pickle.loads(pickled.read_bytes())  # which is no empty threat
    assert canary.sang


async def test_an_encoder_in_a_pickle_embeds_where_it_is_allowed(tmp_path: Path) -> None:
    pickle_weights(build_encoder(tmp_path / "models/m", pooling={"pooling_mode_mean_tokens": True}))
    request = EmbedRequest(id="1", model="m", inputs=("a model",))
    async with serving(tmp_path) as service:
        with pytest.raises(ModelRefused):
            await service.embed(request, M)
    async with serving(tmp_path, hf_allow_pickle=("m",)) as service:
        assert len((await service.embed(request, M)).vectors) == 1


async def test_a_load_test_goes_by_the_same_leave(tmp_path: Path, canary: Canary) -> None:
    build_coded(tmp_path / "models/coded", canary.path)
    pickle_weights(build_model(tmp_path / "models/pickled"))
    test_load = ChildLoadTester(
        environment=child_environment() | {"HF_MODULES_CACHE": str(tmp_path / "home/modules")},
        threads=1,
    )
    found = {}
    for names in ((), ("coded", "pickled")):
        settings = Settings(hf_allow_pickle=names, hf_trusted_repositories=names)
        library = FileLibrary(tmp_path / "models", tmp_path / "hub", trust=settings.trust_rules)
        for name in ("coded", "pickled"):
            shelved = library.find_shelved(name)
            assert shelved is not None
            try:
                found[name, bool(names)] = await test_load(shelved)
            except ModelRefused as error:
                found[name, bool(names)] = error.message
        assert canary.sang is bool(names)
    for name in ("coded", "pickled"):
        assert "does not allow" in str(found[name, False])
        assert found[name, True] is None
