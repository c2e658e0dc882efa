import json
import os
from pathlib import Path

import pytest

from gateway.hub.cache import FileLibrary

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "max_position_embeddings": 128,
    "dtype": "bfloat16",
}


def put_model(folder: Path, *, config: object = CONFIG, weights: int = 10) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if weights:
        (folder / "model.safetensors").write_bytes(b"x" * weights)
    return folder


def put_snapshot(cache: Path, repository: str, commit: str, branch: str | None = None) -> Path:
    root = cache / repository
    if branch:
        (root / "refs").mkdir(parents=True, exist_ok=True)
        (root / "refs" / branch).write_text(commit)
    return put_model(root / "snapshots" / commit)


@pytest.fixture
def library(tmp_path: Path) -> FileLibrary:
    builtin = put_model(tmp_path / "builtin")
    return FileLibrary(tmp_path / "models", tmp_path / "hub", {"demo": builtin})


def names(library: FileLibrary) -> list[str]:
    return sorted(model.name for model in library.scan())


def test_missing_folders_hold_nothing_but_what_is_built_in(library: FileLibrary) -> None:
    assert names(library) == ["demo"]
    assert library.find("nope") is None


def test_a_folder_below_the_models_folder_is_a_model(library: FileLibrary, tmp_path: Path) -> None:
    put_model(tmp_path / "models/smol", weights=7)
    put_model(tmp_path / "models/org/deep")
    found = library.find("smol")
    assert found is not None
    assert (found.size_bytes, found.source, found.revision) == (7, "local", None)
    assert found.card.context_length == 128
    assert found.card.dtype == "bfloat16"
    assert names(library) == ["demo", "org/deep", "smol"]
    assert library.find("org/deep") is not None


def test_the_models_folder_wins_over_what_is_built_in(library: FileLibrary, tmp_path: Path) -> None:
    put_model(tmp_path / "models/demo")
    assert [model.source for model in library.scan()] == ["local"]
    found = library.find("demo")
    assert found is not None and found.source == "local"


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("models--org--name", "org/name"),
        ("models--org--name--with--dashes", "org/name--with--dashes"),
        ("models--gpt2", "gpt2"),
    ],
)
def test_a_cached_snapshot_is_named_as_on_the_hub(
    library: FileLibrary, tmp_path: Path, folder: str, name: str
) -> None:
    put_snapshot(tmp_path / "hub", folder, "c0ffee", "main")
    assert name in names(library)
    found = library.find(name)
    assert found is not None
    assert (found.revision, found.source) == ("c0ffee", "hub")


def test_a_revision_pins_a_commit_or_a_branch(library: FileLibrary, tmp_path: Path) -> None:
    put_snapshot(tmp_path / "hub", "models--o--n", "aaa", "main")
    put_snapshot(tmp_path / "hub", "models--o--n", "bbb", "next")
    assert [
        getattr(library.find("o/n", rev), "revision", None) for rev in (None, "next", "bbb")
    ] == [
        "aaa",
        "bbb",
        "bbb",
    ]
    assert library.find("o/n", "ccc") is None


def test_without_a_main_branch_the_newest_snapshot_counts(
    library: FileLibrary, tmp_path: Path
) -> None:
    old = put_snapshot(tmp_path / "hub", "models--o--n", "old")
    put_snapshot(tmp_path / "hub", "models--o--n", "new")
    os.utime(old, (1, 1))
    found = library.find("o/n")
    assert found is not None and found.revision == "new"


def test_what_is_broken_or_no_text_model_is_left_out(library: FileLibrary, tmp_path: Path) -> None:
    models = tmp_path / "models"
    put_model(models / "empty", weights=0)
    put_model(models / "bert", config={"architectures": ["BertForMaskedLM"]})
    put_model(models / "list", config=[1])
    put_model(models / "odd", config={"architectures": "LlamaForCausalLM"})
    put_model(models / "torn").joinpath("config.json").write_text("{")
    (tmp_path / "hub/models--x--y/snapshots/abc").mkdir(parents=True)
    (tmp_path / "hub/models--x--z").write_text("a file")
    (tmp_path / "hub/version.txt").write_text("1")
    assert names(library) == ["demo"]


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "/etc", "x" * 300, "link"])
def test_no_name_and_no_link_leads_out_of_the_folders(
    library: FileLibrary, tmp_path: Path, name: str
) -> None:
    put_model(tmp_path / "secret")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/link").symlink_to(tmp_path / "secret")
    assert library.find(name) is None
    assert names(library) == ["demo"]


def test_a_revision_leads_nowhere_else(library: FileLibrary, tmp_path: Path) -> None:
    put_snapshot(tmp_path / "hub", "models--o--n", "aaa", "main")
    put_model(tmp_path / "hub/secret")
    assert library.find("o/n", "../../secret") is None


def test_a_chat_template_in_either_place_is_seen(library: FileLibrary, tmp_path: Path) -> None:
    plain = put_model(tmp_path / "models/plain")
    file = put_model(tmp_path / "models/file")
    (file / "chat_template.jinja").write_text("x")
    inside = put_model(tmp_path / "models/inside")
    (inside / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    seen = {model.name: model.card.has_chat_template for model in library.scan()}
    assert (seen[plain.name], seen[file.name], seen[inside.name]) == (False, True, True)


def test_what_a_model_can_be_asked_for_is_read_from_its_files(
    library: FileLibrary, tmp_path: Path
) -> None:
    template = "{% if tools %}{% endif %}<tool_call></tool_call><think>"
    for name in ("file", "named", "beside"):
        put_model(tmp_path / "models" / name)
    (tmp_path / "models/file/chat_template.jinja").write_text(template)
    (tmp_path / "models/file/tokenizer.json").write_text("{}")
    listed = [{"name": "default", "template": "x"}, {"name": "tool_use", "template": template}]
    config = tmp_path / "models/named/tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": listed}))
    (tmp_path / "models/beside/additional_chat_templates").mkdir()
    (tmp_path / "models/beside/additional_chat_templates/tool_use.jinja").write_text(template)
    cards = {model.name: model.card for model in library.scan()}
    for name in ("file", "named", "beside"):
        assert cards[name].dialect.calls and cards[name].dialect.reasoning, name
    assert cards["file"].can_constrain and not cards["named"].can_constrain
    assert not cards["demo"].dialect.calls


@pytest.mark.parametrize(
    "config", ['{"chat_template": 1}', '{"chat_template": [1, {"template": null}]}', "[", "{}"]
)
def test_templates_that_are_none_are_no_templates(
    library: FileLibrary, tmp_path: Path, config: str
) -> None:
    (put_model(tmp_path / "models/odd") / "tokenizer_config.json").write_text(config)
    found = library.find("odd")
    assert found is not None and not found.card.has_chat_template


def test_folders_whose_names_cannot_be_sent_are_left_out(
    library: FileLibrary, tmp_path: Path
) -> None:
    put_model(Path(os.fsdecode(os.fsencode(tmp_path / "models") + b"/z\xff")))
    put_model(tmp_path / "models/.hidden")
    assert names(library) == ["demo"]


def test_a_model_that_embeds_is_found_with_what_its_other_files_say(
    library: FileLibrary, tmp_path: Path
) -> None:
    config = {"architectures": ["BertModel"], "model_type": "bert", "max_position_embeddings": 512}
    put_model(tmp_path / "models/bare", config=config)
    put_model(tmp_path / "models/ranker", config={**config, "architectures": ["BertForRanking"]})
    pooled = put_model(tmp_path / "models/pooled", config={**CONFIG})
    kinds = (("Transformer", ""), ("Pooling", "1_Pooling"))
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": p} for kind, p in kinds]
    (pooled / "modules.json").write_text(json.dumps(modules))
    (pooled / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64}))
    found = {model.name: model.card for model in library.scan()}
    assert {name for name, card in found.items() if card.embeds} == {"bare", "pooled"}
    assert set(found) == {"bare", "pooled", "demo"}
    assert (found["bare"].context_length, found["pooled"].context_length) == (512, 64)


@pytest.mark.parametrize("processor", ["processor_config.json", "preprocessor_config.json"])
def test_a_model_of_images_and_text_is_one_that_comes_with_a_processor(
    library: FileLibrary, tmp_path: Path, processor: str
) -> None:
    config = {"architectures": ["LlavaForConditionalGeneration"], "vision_config": {}}
    folder = put_model(tmp_path / "models/eyes", config=config)
    assert names(library) == ["demo"]
    (folder / processor).write_text("{}")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "x"}))
    assert names(library) == ["demo", "eyes"]
    found = library.find("eyes")
    assert found is not None and found.card.sees_images and found.card.has_chat_template
