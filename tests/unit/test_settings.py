import re
from pathlib import Path

import pytest

from gateway.core.errors import Misconfigured
from gateway.preflight import find_mistakes
from gateway.settings import (
    Settings,
    default_config_dir,
    environment_name,
    load_settings,
    parse_ollama_host,
)

ROOT = Path(__file__).parents[2]


def load(tmp_path: Path, environ: dict[str, str] | None = None, dotenv: str = "") -> Settings:
    (tmp_path / ".env").write_text(dotenv)
    return load_settings(environ or {}, config_dir=tmp_path, dotenv=tmp_path / ".env")


def mistakes(tmp_path: Path, environ: dict[str, str]) -> list[str]:
    with pytest.raises(Misconfigured) as caught:
        load(tmp_path, environ)
    return list(caught.value.mistakes)


def test_every_mistake_is_reported_at_once_with_the_name_of_its_setting(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("max_streams = 0\nunheard_of = 1\n")
    (tmp_path / "b.toml").write_text("not toml")
    found = mistakes(
        tmp_path,
        {
            "GATEWAY_PORT": "eighty",
            "GATEWAY_LOG_LEVEL": "loud",
            "GATEWAY_XYZZY": "80",
            "OLLAMA_HOST": "ftp://there",
            "GATEWAY_DATABASE_URL": "mysql://u:hunter2@h/d",
            "GATEWAY_SEND_TIMEOUT_S": "nan",
            "GATEWAY_ALIASES": "{",
        },
    )
    for name in (
        "GATEWAY_PORT",
        "GATEWAY_LOG_LEVEL",
        "GATEWAY_XYZZY",
        "OLLAMA_HOST",
        "GATEWAY_DATABASE_URL",
        "GATEWAY_SEND_TIMEOUT_S",
        "GATEWAY_ALIASES",
        "max_streams in",
        "unheard_of in",
        "b.toml",
    ):
        assert sum(name in mistake for mistake in found) == 1, name
    assert len(found) == 10
    assert not any("hunter2" in mistake for mistake in found)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("GATEWAY_PROT", "; did you mean GATEWAY_PORT?"),
        ("GATEWAY_MAX_STREAM", "; did you mean GATEWAY_MAX_STREAMS?"),
        ("GATEWAY_OLLAMA_HOST", "; did you mean OLLAMA_HOST?"),
        ("GATEWAY_XYZZY", ""),
    ],
)
def test_a_name_that_is_no_settings_is_told_with_the_nearest(
    tmp_path: Path, name: str, meant: str
) -> None:
    (tmp_path / "a.toml").write_text("max_body_byte = 1\n")
    with pytest.raises(Misconfigured) as error:
        load(tmp_path, {name: "1"}, f"{name}=1\n")
    said = f"there is no such setting{meant}"
    assert list(error.value.mistakes) == [
        f"max_body_byte in {tmp_path}/a.toml: there is no such setting; "
        "did you mean max_body_bytes?",
        f"{name} in {tmp_path}/.env: {said}",
        f"{name} in the environment: {said}",
    ]


def test_the_environment_wins_over_dotenv_and_dotenv_over_toml(tmp_path: Path) -> None:
    (tmp_path / "default.toml").write_text("port = 1\nmax_streams = 1\nlog_level = 'error'\n")
    (tmp_path / "a.toml").write_text("log_level = 'debug'\n")
    settings = load(tmp_path, {"GATEWAY_PORT": "3"}, "GATEWAY_PORT=2\nGATEWAY_MAX_STREAMS=2\n")
    assert (settings.port, settings.max_streams, settings.log_level) == (3, 2, "debug")


def test_an_empty_variable_is_an_unset_one(tmp_path: Path) -> None:
    assert load(tmp_path, {"GATEWAY_PORT": "", "HF_MODEL_PATH": ""}).port == 8420


def test_the_vendors_own_names_are_honoured(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        {
            "OLLAMA_HOST": "gpu:1234",
            "HF_MODEL_PATH": "/models",
            "HF_HOME": "/hf",
            "HF_TOKEN": "hf_secret",
            "HF_HUB_OFFLINE": "1",
        },
    )
    assert settings.ollama_host == "http://gpu:1234"
    assert settings.resolved_model_path == Path("/models")
    assert settings.resolved_hub_cache == Path("/hf/hub")
    assert settings.hf_hub_offline is True
    assert "hf_secret" not in repr(settings)


def test_the_hub_cache_of_its_own_wins_over_the_home(tmp_path: Path) -> None:
    settings = load(tmp_path, {"HF_HOME": "/hf", "HF_HUB_CACHE": "/cache"})
    assert settings.resolved_hub_cache == Path("/cache")


def test_the_data_folder_holds_database_and_models_unless_told_otherwise(tmp_path: Path) -> None:
    settings = load(tmp_path, {"GATEWAY_DATA_DIR": "/data"})
    assert settings.resolved_database_url == "sqlite:////data/gateway.db"
    assert settings.resolved_model_path == Path("/data/models")


def test_lists_and_objects_are_read_from_the_environment(tmp_path: Path) -> None:
    settings = load(
        tmp_path, {"GATEWAY_PROVIDERS": "ollama", "GATEWAY_ALIASES": '{"fast": "ollama/x"}'}
    )
    assert settings.providers == ("ollama",)
    assert settings.aliases == {"fast": "ollama/x"}


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("gpu", "http://gpu:11434"),
        ("gpu:99", "http://gpu:99"),
        (":99", "http://127.0.0.1:99"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("http://gpu", "http://gpu:80"),
        ("https://gpu", "https://gpu:443"),
        ("HTTPS://gpu", "https://gpu:443"),
        ("https://gpu:8443/ollama/", "https://gpu:8443/ollama"),
        ("[::1]:99", "http://[::1]:99"),
        ("http://[::]:99", "http://[::1]:99"),
        ('"gpu"', "http://gpu:11434"),
    ],
)
def test_ollama_host_is_read_as_ollama_reads_it(host: str, url: str) -> None:
    assert parse_ollama_host(host) == url


def test_the_shipped_configuration_is_right() -> None:
    settings = load_settings({}, config_dir=default_config_dir(), dotenv=Path("/nonexistent"))
    assert settings.aliases == {"demo": "huggingface/demo"}


def test_env_example_lists_every_setting_with_its_default() -> None:
    text = (ROOT / ".env.example").read_text()
    listed = dict(re.findall(r"^# ?([A-Z_]+)=(.*)$", text, flags=re.MULTILINE))
    assert set(listed) == {environment_name(name) for name in Settings.model_fields} | {
        "GATEWAY_CONFIG_DIR"
    }


def test_env_example_is_accepted_as_it_stands_and_changes_nothing(tmp_path: Path) -> None:
    text = (ROOT / ".env.example").read_text()
    uncommented = re.sub(r"^# ?([A-Z_]+=)", r"\1", text, flags=re.MULTILINE)
    assert load(tmp_path, dotenv=uncommented) == load(tmp_path)


def test_the_documentation_describes_every_setting() -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    for name, field in Settings.model_fields.items():
        assert f"| `{environment_name(name)}` |" in text, name
        assert field.description and field.description in text, name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GATEWAY_CORS_ORIGINS", "example.com"),
        ("GATEWAY_CORS_ORIGINS", "http://localhost:3000/"),
        ("GATEWAY_PROVIDERS", ","),
        ("GATEWAY_ALIASES", '{"a": "b", "b": "ollama/c"}'),
        ("GATEWAY_ALIASES", '{"a": 1}'),
        ("OLLAMA_HOST", "my host"),
        ("GATEWAY_CONFIG_DIR", "/nonexistent"),
    ],
)
def test_what_could_never_work_is_a_mistake(tmp_path: Path, name: str, value: str) -> None:
    (tmp_path / ".env").write_text("")
    with pytest.raises(Misconfigured) as caught:
        load_settings({name: value}, dotenv=tmp_path / ".env")
    [mistake] = caught.value.mistakes
    assert mistake.startswith(name)


def test_a_line_of_dotenv_that_means_nothing_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("GATEWAY_PORT=1\n= what\n")
    with pytest.raises(Misconfigured, match="line 2"):
        load_settings({}, config_dir=tmp_path, dotenv=tmp_path / ".env")


def test_the_hosters_name_for_postgresql_is_understood(tmp_path: Path) -> None:
    settings = load(tmp_path, {"GATEWAY_DATABASE_URL": "postgres://u:p@h/d"})
    assert settings.resolved_database_url == "postgresql://u:p@h/d"


def test_what_the_parts_say_is_among_the_mistakes_of_the_settings(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("")
    with pytest.raises(Misconfigured) as caught:
        load_settings(
            {"GATEWAY_PORT": "x", "GATEWAY_PROVIDERS": "nope", "HF_MODEL_PATH": "/etc/passwd"},
            config_dir=tmp_path,
            dotenv=tmp_path / ".env",
            find_mistakes=find_mistakes,
        )
    named = {mistake.split()[0].rstrip(":") for mistake in caught.value.mistakes}
    assert named == {"GATEWAY_PORT", "GATEWAY_PROVIDERS", "HF_MODEL_PATH"}


@pytest.mark.parametrize("device", ["auto", "cpu", "mps", "cuda", "cuda:0", "cuda:1"])
def test_a_device_is_a_kind_and_maybe_a_number(tmp_path: Path, device: str) -> None:
    assert load(tmp_path, {"GATEWAY_HF_DEVICE": device}).hf_device == device


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:1", "cuda:1\n", " cuda:1"])
def test_what_is_no_device_is_a_mistake(tmp_path: Path, device: str) -> None:
    [mistake] = mistakes(tmp_path, {"GATEWAY_HF_DEVICE": device})
    assert "GATEWAY_HF_DEVICE" in mistake


def test_proxies_are_addresses_or_networks(tmp_path: Path) -> None:
    given = "10.0.0.0/8,::1"
    settings = load(tmp_path, {"GATEWAY_TRUSTED_PROXIES": given})
    assert settings.trusted_proxies == ("10.0.0.0/8", "::1")
    [mistake] = mistakes(tmp_path, {"GATEWAY_TRUSTED_PROXIES": "10.0.0.1,proxy.example"})
    assert "'proxy.example' is neither an address nor a network" in mistake
    [mistake] = mistakes(tmp_path, {"GATEWAY_TRUSTED_PROXIES": "10.0.0.1,*"})
    assert "stands alone" in mistake


def test_names_of_this_gateway_are_plain_and_in_any_case(tmp_path: Path) -> None:
    assert load(tmp_path, {"GATEWAY_ALLOWED_HOSTS": "GPU.Lan.,*"}).allowed_hosts == ("gpu.lan", "*")
    [mistake] = mistakes(tmp_path, {"GATEWAY_ALLOWED_HOSTS": "gpu:8000"})
    assert "no port" in mistake


def test_rotations_are_read_from_toml_and_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        '[rotations]\nplain = ["a/1", "b/2"]\n[rotations.timed]\nmodels = ["a/1", "b/2"]\n'
        'cron = "0 8 * * *"\ntimezone = "Europe/Berlin"\n'
    )
    rotations = load(tmp_path).rotations
    assert rotations["plain"].models == ("a/1", "b/2")
    assert rotations["timed"].timezone == "Europe/Berlin"
    environ = {"GATEWAY_ROTATIONS": '{"r": {"models": ["a", "b"], "requests": 5}}'}
    assert load(tmp_path, environ).rotations["r"].requests == 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GATEWAY_ROTATIONS", "["),
        ("GATEWAY_ROTATIONS", '{"r": ["a"]}'),
        ("GATEWAY_ROTATIONS", '{"r": {"models": ["a", "b"], "cron": "x"}}'),
        ("GATEWAY_ROTATIONS", '{"r": {"models": ["a", "b"], "every": 5}}'),
        ("GATEWAY_ROTATIONS", '{"r": {"models": ["a", "b"], "interval_s": "x"}}'),
        ("GATEWAY_ROTATIONS", '{"r": 5}'),
        ("GATEWAY_VIRTUAL_MODELS", '{"rotation/r": ["a"]}'),
        ("GATEWAY_OPENAI", '{"rotation": {"urls": ["http://x/v1"]}}'),
    ],
)
def test_rotations_that_cannot_work_are_a_mistake(tmp_path: Path, name: str, value: str) -> None:
    assert len(mistakes(tmp_path, {name: value})) == 1


@pytest.mark.parametrize(
    ("host", "said", "shares"),
    [
        ("127.0.0.1:11434", "auto", True),
        ("0.0.0.0", "auto", True),
        ("localhost", "auto", True),
        ("gpu:1234", "auto", False),
        ("gpu:1234", "yes", True),
        ("localhost", "no", False),
    ],
)
def test_ollama_shares_the_memory_where_it_is_on_this_machine_or_is_said_to(
    host: str, said: str, shares: bool, tmp_path: Path
) -> None:
    environ = {"OLLAMA_HOST": host, "GATEWAY_OLLAMA_SHARES_MEMORY": said}
    assert load(tmp_path, environ).ollama_is_neighbour is shares


def test_code_is_trusted_by_name_and_commit(tmp_path: Path) -> None:
    name = "GATEWAY_HF_TRUSTED_REPOSITORIES"
    commit = "a" * 40
    rules = load(tmp_path, {name: f"o/n@{commit},smol"}).trust_rules
    assert rules.of("o/n", commit).code and rules.of("smol", None).code
    assert not rules.of("o/n", "b" * 40).code and not rules.of("o/n", None).pickle
    for wrong in ("*", "o/n@main", f"@{commit}"):
        with pytest.raises(Misconfigured, match=name):
            load(tmp_path, {name: wrong})
