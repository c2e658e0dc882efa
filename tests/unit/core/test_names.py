"""Names of models: equal forms meet, resolution has one order, hostile names go nowhere."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.catalogue import Catalogue
from gateway.core.errors import AmbiguousModel, GatewayError, InvalidRequest, ModelNotFound
from gateway.core.models import ModelInfo
from gateway.core.names import (
    MAX_NAME_LENGTH,
    ModelRef,
    nearest_names,
    normalise_ollama_name,
    parse_ref,
)
from gateway.core.routing import resolve_name

PROVIDERS = ("huggingface", "ollama")

LLAMA = ModelRef("ollama", "llama3.2:latest")
QWEN = ModelRef("ollama", "qwen3:8b")
SMOL = ModelRef("huggingface", "HuggingFaceTB/SmolLM2-135M")
DEMO = ModelRef("huggingface", "demo")
CATALOGUE = (LLAMA, QWEN, SMOL, DEMO)

parts = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,12}", fullmatch=True)
namespaces = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,12}", fullmatch=True)
hosts = st.from_regex(r"[a-z][a-z0-9.-]{0,12}(:[0-9]{1,5})?", fullmatch=True)
ollama_names = st.one_of(
    parts,
    st.builds("{}:{}".format, parts, parts),
    st.builds("{}/{}:{}".format, namespaces, parts, parts),
    st.builds("{}/{}/{}".format, hosts, namespaces, parts),
    st.builds("{}/{}/{}:{}".format, hosts, namespaces, parts, parts),
)


def resolve(name: str, known: Iterable[ModelRef] = CATALOGUE, **fields: object) -> ModelRef:
    catalogue = Catalogue(map(ModelInfo, known))
    settings = {"providers": PROVIDERS, "catalogue": catalogue, "aliases": {}, **fields}
    return resolve_name(name, **settings)  # type: ignore[arg-type]


@given(ollama_names)
def test_a_normalised_name_stays_as_it_is(name: str) -> None:
    once = normalise_ollama_name(name)
    assert normalise_ollama_name(once) == once
    assert ":" in once.rpartition("/")[2]


@given(parts, st.none() | parts)
def test_all_spellings_of_one_model_are_one_name(model: str, tag: str | None) -> None:
    """T15"""
    short = model if tag is None else f"{model}:{tag}"
    expected = f"{model}:{tag or 'latest'}"
    for prefix in ("", "library/", "Library/", "registry.ollama.ai/library/"):
        assert normalise_ollama_name(prefix + short) == expected


@pytest.mark.parametrize(
    "name, normal",
    [
        ("bob/x", "bob/x:latest"),
        ("registry.ollama.ai/bob/x:7b", "bob/x:7b"),
        ("hf.co/bob/x-GGUF:Q4_K_M", "hf.co/bob/x-GGUF:Q4_K_M"),
        ("localhost:5000/library/x", "localhost:5000/library/x:latest"),
        ("LLAMA3.2", "LLAMA3.2:latest"),
        ("x" * 80, "x" * 80 + ":latest"),
    ],
)
def test_normal_forms(name: str, normal: str) -> None:
    assert normalise_ollama_name(name) == normal


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ":",
        ":tag",
        "llama3:",
        "llama3:a:b",
        "/llama3",
        "library//llama3",
        "a/b/c/d",
        "../llama3",
        "../../etc/passwd",
        "-llama3",
        ".hidden",
        "llama3 ",
        "llama3\n",
        "llama3:latest\n",
        "lla\x00ma",
        "llämä",
        "name.space/llama3",
        "x" * 81,
        "llama3:" + "x" * 81,
        "h" * 351 + "/a/b",
        "\ud800",
    ],
)
def test_names_that_ollama_would_refuse(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        normalise_ollama_name(name)
    assert caught.value.param == "model"
    assert caught.value.message.isprintable()


@given(st.text(max_size=60))
def test_any_text_is_a_name_or_an_invalid_request(name: str) -> None:
    for provider in PROVIDERS:
        try:
            ref = parse_ref(provider, name)
        except InvalidRequest as error:
            assert error.message.isprintable()
        else:
            assert parse_ref(provider, str(ref).removeprefix(f"{provider}/")) == ref
            assert ref.model.isprintable()
            assert not {"", ".", ".."} & set(ref.model.split("/"))


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "a/../../b",
        "a//b",
        "/etc/passwd",
        "a/",
        ".",
        "..",
        "a\x00b",
        "a\nb",
        "a/b@../../x",
        "a/b@refs//x",
        "a/b@\x1b[0m",
        "@main",
        "\ud800",
    ],
)
def test_hostile_hub_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_ref("huggingface", name)
    with pytest.raises(InvalidRequest):
        resolve(f"huggingface/{name}")


@pytest.mark.parametrize(
    "ref", [*CATALOGUE, ModelRef("huggingface", "o/n", "refs/pr/1"), ModelRef("ollama", "b/x:1")]
)
def test_a_printed_ref_resolves_to_itself(ref: ModelRef) -> None:
    assert resolve(str(ref)) == ref
    assert resolve(str(ref), known=()) == ref


@pytest.mark.parametrize(
    "name, expected",
    [
        ("llama3.2", LLAMA),
        ("llama3.2:latest", LLAMA),
        ("LLAMA3.2", LLAMA),
        ("registry.ollama.ai/library/llama3.2", LLAMA),
        ("qwen3:8b", QWEN),
        ("demo", DEMO),
        ("HuggingFaceTB/SmolLM2-135M", SMOL),
        ("owner/unknown", ModelRef("huggingface", "owner/unknown")),
        ("owner/unknown@v1", ModelRef("huggingface", "owner/unknown", "v1")),
        ("owner/unknown:7b", ModelRef("ollama", "owner/unknown:7b")),
        ("unknown", ModelRef("ollama", "unknown:latest")),
        ("ollama/unknown", ModelRef("ollama", "unknown:latest")),
    ],
)
def test_what_a_name_means(name: str, expected: ModelRef) -> None:
    assert resolve(name) == expected


def test_an_alias_comes_before_the_catalogue_and_a_provider_before_both() -> None:
    aliases = {"demo": "qwen3:8b", "ollama/llama3.2": "demo"}
    assert resolve("demo", aliases=aliases) == QWEN
    assert resolve("ollama/llama3.2", aliases=aliases) == LLAMA


def test_an_alias_of_an_alias_is_no_endless_chase() -> None:
    assert resolve("a", aliases={"a": "b", "b": "a"}) == ModelRef("ollama", "b:latest")
    assert resolve("a", aliases={"a": "a"}) == ModelRef("ollama", "a:latest")


def test_a_name_that_several_have_is_ambiguous_and_the_full_names_are_told() -> None:
    twin = ModelRef("ollama", "demo:latest")
    with pytest.raises(AmbiguousModel) as caught:
        resolve("demo", known=(*CATALOGUE, twin))
    assert caught.value.candidates == ("huggingface/demo", "ollama/demo:latest")
    for full in caught.value.candidates:
        assert str(resolve(full, known=(*CATALOGUE, twin))) == full


def test_a_revision_settles_which_of_two_is_meant() -> None:
    old, new = ModelRef("huggingface", "o/n", "v1"), ModelRef("huggingface", "o/n", "v2")
    assert resolve("o/n@v2", known=(old, new)) == new
    with pytest.raises(AmbiguousModel):
        resolve("o/n", known=(old, new))


def test_without_the_provider_a_name_is_unknown() -> None:
    with pytest.raises(ModelNotFound):
        resolve("unknown", providers=("huggingface",))
    with pytest.raises(ModelNotFound):
        resolve("owner/unknown:x y", providers=PROVIDERS)


@pytest.mark.parametrize("name", ["", "x" * (MAX_NAME_LENGTH + 1)])
def test_the_length_of_names_is_bounded(name: str) -> None:
    with pytest.raises(InvalidRequest):
        resolve(name)


@given(st.text(max_size=80) | ollama_names)
def test_resolving_gives_a_ref_or_one_of_our_errors(name: str) -> None:
    try:
        ref = resolve(name, aliases={"a": "../x"})
    except GatewayError:
        return
    assert ref.provider in PROVIDERS
    assert resolve(str(ref)) == ref or Catalogue(map(ModelInfo, CATALOGUE)).find(ref)


def test_a_slip_finds_the_nearest_names() -> None:
    with pytest.raises(ModelNotFound) as caught:
        resolve("quen3:8b", providers=("huggingface",))
    assert caught.value.nearest == ("ollama/qwen3:8b",)
    assert caught.value.hint == "Did you mean ollama/qwen3:8b?"
    assert nearest_names("SMOLLM2-135m", CATALOGUE) == [str(SMOL)]
    assert nearest_names("zzzzzz", CATALOGUE) == []


def test_nearest_names_hold_both_of_two_alike_and_no_more_than_asked() -> None:
    twins = (ModelRef("a", "model"), ModelRef("b", "model"), ModelRef("c", "model"))
    assert sorted(nearest_names("modle", twins)) == ["a/model", "b/model", "c/model"]
    assert len(nearest_names("modle", twins, limit=2)) == 2


def test_only_ollama_ignores_case() -> None:
    catalogue = Catalogue(map(ModelInfo, CATALOGUE))
    assert catalogue.find(ModelRef("ollama", "LLama3.2:LATEST")) == ModelInfo(LLAMA)
    assert catalogue.find(ModelRef("huggingface", "DEMO")) is None
    assert catalogue.find(ModelRef("huggingface", "llama3.2:latest")) is None
