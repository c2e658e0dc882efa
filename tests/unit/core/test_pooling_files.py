"""What sentence-transformers writes beside a model, and what is made of it."""

from typing import Any

import pytest

from gateway.core.errors import ModelLoadFailed
from gateway.core.pooling import (
    Modules,
    Step,
    has_pooling,
    read_max_length,
    read_modules,
    read_pooling,
)

OLD, NEW = "sentence_transformers.models.", "sentence_transformers.base.modules.transformer."


def entry(kind: str, path: str = "") -> dict[str, Any]:
    return {"idx": 0, "name": "0", "path": path, "type": kind}


TRANSFORMER, POOLING = entry(OLD + "Transformer"), entry(OLD + "Pooling", "1_Pooling")


def test_a_transformer_and_its_pooling_make_vectors() -> None:
    assert has_pooling([TRANSFORMER, POOLING])
    assert has_pooling([entry(NEW + "Transformer"), POOLING])


@pytest.mark.parametrize(
    "modules",
    [
        None,
        {},
        [],
        ["Pooling"],
        [TRANSFORMER],
        [POOLING],
        [entry(OLD + "Transformer", "0_Transformer"), POOLING],
        [entry(OLD + "CLIPModel"), POOLING],
        [entry("sentence_transformers.sparse_encoder.models.MLMTransformer"), POOLING],
    ],
)
def test_anything_else_does_not(modules: object) -> None:
    assert not has_pooling(modules)
    with pytest.raises(ModelLoadFailed):
        read_modules(modules)


def test_what_follows_the_pooling_keeps_its_order() -> None:
    tail = [entry(OLD + "Dense", "2_Dense"), entry(OLD + "Normalize", "3_Normalize")]
    assert read_modules([TRANSFORMER, POOLING, entry(OLD + "Dropout", "x"), *tail]) == Modules(
        "1_Pooling", (Step("Dense", "2_Dense"), Step("Normalize", "3_Normalize"))
    )


@pytest.mark.parametrize(
    "modules",
    [
        [TRANSFORMER, POOLING, entry(OLD + "LayerNorm", "2_LayerNorm")],
        [TRANSFORMER, POOLING, POOLING],
        [TRANSFORMER, entry(OLD + "Dense", "1_Dense"), POOLING],
        [TRANSFORMER, entry(OLD + "Pooling", "../other")],
        [TRANSFORMER, entry(OLD + "Pooling", "/etc")],
    ],
)
def test_a_module_that_is_not_known_is_refused_and_never_skipped(modules: object) -> None:
    with pytest.raises(ModelLoadFailed):
        read_modules(modules)


def test_modes_are_read_from_flags_and_from_names() -> None:
    flags = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}
    assert read_pooling({**flags, "pooling_mode_max_tokens": False}) == ("cls", "mean")
    assert read_pooling({"pooling_mode": "lasttoken"}) == ("lasttoken",)
    assert read_pooling({"pooling_mode": ["max", "cls"]}) == ("max", "cls")
    assert read_pooling({}) == ("mean",)


@pytest.mark.parametrize("mode", ["attention", ["mean", 3], [], 7])
def test_an_unknown_mode_is_refused(mode: object) -> None:
    with pytest.raises(ModelLoadFailed):
        read_pooling({"pooling_mode": mode})


def test_a_length_is_a_positive_number() -> None:
    assert read_max_length({"max_seq_length": 256}) == 256
    assert [read_max_length({"max_seq_length": bad}) for bad in (None, 0, "9")] == [None] * 3
