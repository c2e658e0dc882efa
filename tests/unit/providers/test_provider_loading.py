"""Providers are found by name; whatever else lies beside them is not one."""

import pytest

from gateway import providers
from gateway.core.errors import Misconfigured


def test_a_kind_is_the_module_of_its_name() -> None:
    from gateway.providers import ollama

    assert providers.load("ollama") is ollama.create


def test_wire_modules_are_no_kinds() -> None:
    assert providers.known_kinds() == ["huggingface", "ollama", "openai"]


@pytest.mark.parametrize(
    "kind", ["", "nope", "ollama_request_wire", "http1", "os", "..core", "ollama.create"]
)
def test_an_unknown_kind_is_refused_with_the_known_ones(kind: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        providers.load(kind)
    assert "ollama" in caught.value.mistakes[0]
    assert f"'{kind}'" in caught.value.mistakes[0]
