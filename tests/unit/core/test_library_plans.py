"""What a clean-up removes, and what an import does: decided without a disk or a database."""

import json

import msgspec
import pytest

from gateway.core.collections import (
    MAX_COLLECTION_NAME,
    VERSION,
    Bundle,
    Collection,
    CollectionOrder,
    SavedConfig,
    describe_bundle,
    plan_import,
    read_bundle,
)
from gateway.core.errors import InvalidRequest
from gateway.core.library import (
    Check,
    CleanPlan,
    CleanRule,
    ModelFile,
    ShelvedModel,
    Verdict,
    Verification,
    plan_cleanup,
)
from gateway.core.loading import LoadConfig, ModelConfig
from gateway.core.messages import Options
from gateway.core.models import LocalModel
from gateway.core.rules import RuleDraft


def shelved(name: str, updated_at: float, **files: int) -> ShelvedModel:
    listed = tuple(ModelFile(path, path, size) for path, size in files.items())
    model = LocalModel(name=name, path=f"/{name}", size_bytes=0, source="hub")
    return ShelvedModel(model=model, stamp="", updated_at=updated_at, files=listed)


OLD, MIDDLE, NEW = shelved("old", 10, a=100), shelved("mid", 20, b=50), shelved("new", 30, c=10)
ALL = [NEW, OLD, MIDDLE]


def plan(
    rule: CleanRule,
    models: list[ShelvedModel] = ALL,
    used: dict[str, float] | None = None,
    in_use: frozenset[str] = frozenset(),
) -> CleanPlan:
    return plan_cleanup(models, rule, last_used=used or {}, in_use=in_use)


def removed(plan: CleanPlan) -> list[tuple[str, str, int]]:
    return [(each.name, each.reason, each.frees_bytes) for each in plan.removals]


def test_without_a_reason_nothing_goes() -> None:
    assert plan(CleanRule()) == CleanPlan((), 160, 160)


def test_what_nobody_used_since_goes() -> None:
    found = plan(CleanRule(unused_since=25))
    assert removed(found) == [("old", "age", 100), ("mid", "age", 50)]
    assert (found.before_bytes, found.after_bytes) == (160, 10)
    assert removed(plan(CleanRule(unused_since=25), used={"/old": 26})) == [("mid", "age", 50)]


def test_the_least_recently_used_go_until_the_rest_is_small_enough() -> None:
    assert removed(plan(CleanRule(max_bytes=160))) == []
    assert removed(plan(CleanRule(max_bytes=60))) == [("old", "size", 100)]
    assert [name for name, *_ in removed(plan(CleanRule(max_bytes=0)))] == ["old", "mid", "new"]
    used = {"/old": 40.0}
    assert removed(plan(CleanRule(max_bytes=110), used=used)) == [("mid", "size", 50)]


def test_age_and_size_add_up() -> None:
    found = plan(CleanRule(unused_since=15, max_bytes=10))
    assert removed(found) == [("old", "age", 100), ("mid", "size", 50)]


def test_what_is_in_use_stays_and_is_said() -> None:
    found = plan(CleanRule(max_bytes=60), in_use=frozenset({"old"}))
    assert removed(found) == [("mid", "size", 50), ("new", "size", 10)]
    assert (found.kept, found.after_bytes) == (("old",), 100)


def test_files_that_are_shared_go_with_the_last_of_their_models() -> None:
    models = [shelved("one", 1, a=100, x=7), shelved("two", 2, a=100, y=5)]
    found = plan(CleanRule(max_bytes=0), models)
    assert removed(found) == [("one", "size", 7), ("two", "size", 105)]
    assert (found.before_bytes, found.after_bytes) == (112, 0)


@pytest.mark.parametrize(
    ("verdict", "went", "stamp", "check", "covers"),
    [
        (Verdict.OK, Check.CHECKSUMS, "s", Check.HEADERS, True),
        (Verdict.OK, Check.CHECKSUMS, "s", Check.CHECKSUMS, True),
        (Verdict.OK, Check.CHECKSUMS, "s", Check.LOAD, False),
        (Verdict.CORRUPT, Check.HEADERS, "s", Check.LOAD, True),
        (Verdict.OK, Check.LOAD, "other", Check.HEADERS, False),
    ],
)
def test_a_verdict_stands_for_the_same_files_and_no_more(
    verdict: Verdict, went: Check, stamp: str, check: Check, covers: bool
) -> None:
    assert Verification(verdict, went, "s", 1.0).covers(stamp, check) is covers


CONFIG = ModelConfig(
    LoadConfig(dtype="float32"),
    Options(temperature=0.5, stop=("x",), stop_ids=(7, 9), logit_bias=((3, -1.5),)),
    keep_alive_s=60.0,
)
TWO_SPELLINGS = {"keep_alive": 1, "keep_alive_s": 1}


def bundle(**parts: object) -> bytes:
    return json.dumps({"version": VERSION, "collections": [], **parts}).encode()


def test_a_file_is_read() -> None:
    data = bundle(
        collections=[{"name": "a", "models": ["o/n"]}],
        configs=[{"model": "huggingface/m", "config": {"pinned": True}}],
    )
    saved = SavedConfig("huggingface/m", ModelConfig(pinned=True))
    order = CollectionOrder("a", models=("o/n",))
    assert read_bundle(data) == Bundle(VERSION, (order,), (saved,))
    routes = bundle(routes=[{"name": "r", "model": "o/n"}])
    assert read_bundle(routes).routes == (RuleDraft("r", "o/n"),)
    assert read_bundle(b'{"version": 1, "collections": []}').routes == ()


def test_a_file_spells_configs_as_the_api_does_and_is_read_again() -> None:
    written = Bundle(VERSION, (), (SavedConfig("huggingface/m", CONFIG),), (RuleDraft("r", "o/n"),))
    described = describe_bundle(written)
    assert described["configs"] == [
        {
            "model": "huggingface/m",
            "config": {
                "load": {
                    "device": "auto",
                    "dtype": "float32",
                    "quantization": "none",
                    "context_length": None,
                },
                "defaults": {
                    "temperature": 0.5,
                    "stop": ("x",),
                    "stop_token_ids": (7, 9),
                    "logit_bias": {"3": -1.5},
                },
                "keep_alive": 60.0,
                "pinned": False,
            },
        }
    ]
    assert read_bundle(json.dumps(described).encode()) == written


def test_a_file_that_spells_configs_as_older_gateways_did_is_read() -> None:
    config = json.loads(msgspec.json.encode(CONFIG))
    assert {"keep_alive_s", "stop_ids"} <= {*config, *config["defaults"]}
    data = bundle(version=2, configs=[{"model": "huggingface/m", "config": config}])
    assert read_bundle(data).configs == (SavedConfig("huggingface/m", CONFIG),)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no export"),
        (b"\xff", "no export"),
        (b"[" * 10_000, "no export"),
        (b"[]", "no export"),
        (b"{}", "no export"),
        (b'{"version": 4, "everything": "else"}', "has version 4; this gateway reads 1 to 3"),
        (b'{"version": 0, "everything": "else"}', "has version 0"),
        (bundle(routes=[{"name": "a", "model": "m"}] * 2), "'a' twice"),
        (bundle(routes=[{"name": "a"}]), "either 'model' or 'candidates'"),
        (bundle(routes=[{"name": "a", "model": "m", "more": 1}]), "no export"),
        (bundle(surprise=1), "no export"),
        (bundle(collections=[{"name": ""}]), r"collections\[0\].name"),
        (bundle(collections=[{"name": "x" * (MAX_COLLECTION_NAME + 1)}]), "characters"),
        (bundle(collections=[{"name": "a\0"}]), "NUL"),
        (bundle(collections=[{"name": "a"}, {"name": "a"}]), "'a' twice"),
        (bundle(collections=[{"name": "a", "models": ["m", "m"]}]), "'m' twice"),
        (bundle(collections=[{"name": "a", "models": [1]}]), "no export"),
        (bundle(configs=[{"model": "m", "config": {"load": {"device": "x"}}}]), "no export"),
        (bundle(configs=[{"model": "m", "config": {"defaults": {"top_p": 7}}}]), "'top_p' is 7"),
        (bundle(configs=[{"model": "m", "config": {"keepalive": 7}}]), "unknown field `keepalive`"),
        (bundle(configs=[{"model": "m", "config": {"defaults": {"tmp": 7}}}]), "field `tmp`"),
        (bundle(configs=[{"model": "m", "config": {"defaults": 7}}]), "no export"),
        (bundle(configs=[{"model": "m", "config": {"keep_alive": "x"}}]), "no export"),
        (bundle(configs=[{"model": "m", "config": TWO_SPELLINGS}]), "are one thing"),
        (
            bundle(configs=[{"model": "m", "config": {"defaults": {"logit_bias": {"a": 1}}}}]),
            "no export",
        ),
    ],
)
def test_a_file_that_is_not_as_it_must_be_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        read_bundle(data)


def test_an_import_leaves_alone_what_it_does_not_name_and_what_is_the_same() -> None:
    def there(name: str, *models: str) -> Collection:
        return Collection(name, name, "", "", models, 1.0, 1.0)

    orders = (
        CollectionOrder("new"),
        CollectionOrder("same", models=("a",)),
        CollectionOrder("x", models=("b",)),
    )
    configs = (SavedConfig("h/a", ModelConfig()), SavedConfig("h/b", ModelConfig(pinned=True)))
    routes = RuleDraft("new", "o/n"), RuleDraft("same", "o/n"), RuleDraft("other", "o/n")
    plan = plan_import(
        Bundle(VERSION, orders, configs, routes),
        [there("same", "a"), there("x", "a"), there("other")],
        {"h/a": ModelConfig(), "h/b": ModelConfig(), "h/c": ModelConfig()},
        [RuleDraft("same", "o/n"), RuleDraft("other", "o/m")],
    )
    assert (plan.creates, plan.replaces, plan.unchanged) == (("new",), ("x",), ("same",))
    assert (plan.configures, plan.routes) == (("h/b",), ("new", "other"))
