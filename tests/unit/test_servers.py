"""OpenAI-compatible servers as the operator names them: URLs, keys, names."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.core.errors import Misconfigured
from gateway.preflight import find_mistakes
from gateway.servers import parse_base_url
from gateway.settings import Settings, load_settings

KEY = "sk-very-secret"


def load(
    tmp_path: Path, servers: dict[str, Any], environ: dict[str, str] | None = None, toml: str = ""
) -> Settings:
    (tmp_path / "a.toml").write_text(toml)
    given = {"GATEWAY_OPENAI": json.dumps(servers)} if servers else {}
    return load_settings(
        {**given, **(environ or {}), "GATEWAY_DATA_DIR": str(tmp_path)},
        config_dir=tmp_path,
        dotenv=tmp_path / ".env",
        find_mistakes=find_mistakes,
    )


def mistake(tmp_path: Path, servers: dict[str, Any], environ: dict[str, str] | None = None) -> str:
    with pytest.raises(Misconfigured) as caught:
        load(tmp_path, servers, environ)
    [found] = caught.value.mistakes
    assert found.startswith("GATEWAY_OPENAI")
    assert KEY not in found
    return found


@pytest.mark.parametrize(
    "url, base",
    [
        ("http://gpu:8000", "http://gpu:8000/v1"),
        ("http://gpu:8000/", "http://gpu:8000/v1"),
        ("http://gpu:8000/v1/", "http://gpu:8000/v1"),
        (" https://api.groq.com/openai/v1 ", "https://api.groq.com/openai/v1"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
    ],
)
def test_a_url_without_a_path_means_v1(url: str, base: str) -> None:
    assert parse_base_url(url) == base


@pytest.mark.parametrize(
    "url",
    ["gpu:8000", "ftp://gpu", "http://", "http://a b", "http://gpu:x", "http://gpu/v1?key=3"],
)
def test_what_is_no_base_url(url: str) -> None:
    with pytest.raises(ValueError):
        parse_base_url(url)


def test_a_url_that_holds_a_secret_is_refused_without_showing_it(tmp_path: Path) -> None:
    found = mistake(tmp_path, {"lab": {"urls": [f"http://user:{KEY}@gpu/v1"]}})
    assert "lab.urls.0" in found


def test_servers_stand_in_toml_as_tables(tmp_path: Path) -> None:
    toml = f"""
[openai.vllm]
urls = ["http://a:8000", "http://b:8000/v1"]
key = "{KEY}"
models = ["Qwen/*"]
idle_timeout_s = 5
"""
    settings = load(tmp_path, {}, toml=toml)
    server = settings.openai["vllm"]
    assert server.urls == ("http://a:8000/v1", "http://b:8000/v1")
    assert server.key.get_secret_value() == KEY
    assert (server.models, server.idle_timeout_s) == (("Qwen/*",), 5.0)
    assert KEY not in repr(settings)


def test_servers_are_providers_of_their_own_names(tmp_path: Path) -> None:
    server = {"urls": ["http://gpu:8000"]}
    settings = load(tmp_path, {"vllm": server, "openai": server})
    assert settings.provider_kinds == {
        "huggingface": "huggingface",
        "ollama": "ollama",
        "vllm": "openai",
        "openai": "openai",
    }


def test_a_key_may_be_in_a_variable_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    (tmp_path / ".env").write_text("FROM_DOTENV=from-dotenv\n")
    urls = ["http://gpu:8000"]
    settings = load(
        tmp_path,
        {
            "one": {"urls": urls, "key_env": "THE_KEY"},
            "two": {"urls": urls, "key_file": str(tmp_path / "key")},
            "three": {"urls": urls, "key_env": "FROM_DOTENV"},
        },
        {"THE_KEY": KEY},
    )
    keys = {name: server.key.get_secret_value() for name, server in settings.openai.items()}
    assert keys == {"one": KEY, "two": KEY, "three": "from-dotenv"}


@pytest.mark.parametrize(
    "server, word",
    [
        ({}, "lab.urls"),
        ({"urls": []}, "lab.urls"),
        ({"urls": ["http://a", "http://a/v1"]}, "twice"),
        ({"urls": ["http://a"], "url": "http://b"}, "lab.url"),
        ({"urls": ["http://a"], "key": KEY, "key_env": "X"}, "is enough"),
        ({"urls": ["http://a"], "key_env": "NOT_THERE"}, "NOT_THERE is not set"),
        ({"urls": ["http://a"], "key_file": "/nonexistent/key"}, "cannot be read"),
        ({"urls": ["http://a"], "key_file": "/dev/null"}, "is empty"),
        ({"urls": ["http://a"], "key": f"{KEY}\r\nHost: x"}, "one word"),
        ({"urls": ["http://a"], "idle_timeout_s": 0}, "idle_timeout_s"),
        (3, "lab"),
    ],
)
def test_what_can_never_work_is_a_mistake(tmp_path: Path, server: Any, word: str) -> None:
    assert word in mistake(tmp_path, {"lab": server})


@pytest.mark.parametrize("name", ["", "a/b", "a b", ".hidden", "ä", "a" * 65])
def test_names_that_cannot_stand_before_a_slash(tmp_path: Path, name: str) -> None:
    assert "is no name" in mistake(tmp_path, {name: {"urls": ["http://a"]}})


@pytest.mark.parametrize("aliases", ['{"lab": "ollama/x"}', '{"lab/x": "ollama/x"}'])
def test_a_name_that_an_alias_has_is_a_mistake(tmp_path: Path, aliases: str) -> None:
    environ = {"GATEWAY_ALIASES": aliases}
    assert "already means" in mistake(tmp_path, {"lab": {"urls": ["http://a"]}}, environ)


def test_a_name_of_another_provider_is_a_mistake_even_if_that_is_off(tmp_path: Path) -> None:
    server = {"urls": ["http://a"]}
    assert "already means" in mistake(tmp_path, {"ollama": server})
    environ = {"GATEWAY_PROVIDERS": "huggingface"}
    assert "another kind" in mistake(tmp_path, {"ollama": server}, environ)


@pytest.mark.parametrize("name", ["virtual", "rotation"])
def test_a_name_that_listings_have_for_no_provider_is_a_mistake(tmp_path: Path, name: str) -> None:
    said = mistake(tmp_path, {name: {"urls": ["http://a"]}})
    assert f"'{name}' stands in listings for what is no provider" in said


def test_a_virtual_model_may_not_hide_a_servers_models(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="already means"):
        load(
            tmp_path,
            {"lab": {"urls": ["http://a"]}},
            {"GATEWAY_VIRTUAL_MODELS": '{"lab/x": ["ollama/y"]}'},
        )


def test_openai_is_no_provider_without_a_server(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="GATEWAY_OPENAI"):
        load(tmp_path, {}, {"GATEWAY_PROVIDERS": "openai"})
