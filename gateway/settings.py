"""Every setting, its default and its limits; the only reader of the environment and of config/.

Precedence: `config/*.toml` (default.toml first, then by name) < `.env` < environment. A setting
`x_y` is `x_y` in TOML and `GATEWAY_X_Y` in the environment; the names in VENDOR_NAMES are the
vendors' own.
"""

import ipaddress
import json
import os
import re
import socket
import tomllib
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from gateway.core.errors import InvalidRequest, Misconfigured
from gateway.core.virtual import VirtualModel, check_rules
from gateway.servers import ENVIRON, OpenAIServer, check_names

PREFIX = "GATEWAY_"
CONFIG_DIR = PREFIX + "CONFIG_DIR"
RESERVED = frozenset({CONFIG_DIR})
OUR_PREFIXES = (PREFIX, "OLLAMA_", "HF_", "HUGGING_FACE_")
VENDOR_NAMES = {
    "ollama_host": "OLLAMA_HOST",
    "hf_model_path": "HF_MODEL_PATH",
    "hf_home": "HF_HOME",
    "hf_hub_cache": "HF_HUB_CACHE",
    "hf_token": "HF_TOKEN",
    "hf_hub_offline": "HF_HUB_OFFLINE",
}


def parse_ollama_host(value: str) -> str:
    """Return the base URL that OLLAMA_HOST means, read as Ollama's own client reads it.

    A scheme, a port (11434; 80 and 443 with a scheme) and a host may each be missing; an address
    to listen on (0.0.0.0, ::) becomes the loopback address that reaches it.
    """
    text = value.strip().strip("\"'") or "127.0.0.1:11434"
    if re.search(r"\s", text):
        raise ValueError(f"'{text}' holds a space")
    scheme, separator, _ = text.partition("://")
    parts = urlsplit(text if separator else f"http://{text}")
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"the scheme '{parts.scheme}' is neither http nor https")
    default_port = {"http": 80, "https": 443}[scheme] if separator else 11434
    try:
        port = parts.port or default_port
    except ValueError:
        raise ValueError(f"'{text}' has no valid port") from None
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(
        parts.hostname or "", parts.hostname or ""
    )
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}:{port}{parts.path.rstrip('/')}"


def parse_hub_endpoint(value: str) -> str:
    """Return the base URL of a Hub without the slash at its end; it has no user and no query."""
    text = value.strip().rstrip("/")
    parts = urlsplit(text)
    is_plain = not (parts.query or parts.fragment or parts.username or parts.password)
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_plain:
        raise ValueError("it is not of the form https://host or https://host/path")
    return text


def _split_list(value: Any) -> Any:
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


def _parse_object(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return json.loads(value or "{}")
        except ValueError:
            raise ValueError("it is not a JSON object") from None
    return value


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Folder = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
Names = Annotated[tuple[str, ...], BeforeValidator(_split_list)]


def _parse_rules(value: dict[str, Any]) -> dict[str, VirtualModel]:
    """Return what stands under [virtual_models]: a name, its candidates, and their order."""
    rules = {}
    for name, rule in value.items():
        fields = {"candidates": rule} if isinstance(rule, list) else rule
        try:
            candidates = [
                each if isinstance(each, dict) else {"model": each} for each in fields["candidates"]
            ]
            rules[name] = msgspec.convert(
                {**fields, "name": name, "candidates": candidates}, VirtualModel
            )
        except (KeyError, TypeError, msgspec.ValidationError) as error:
            raise ValueError(f"'{name}': {error}") from error
    return rules


Aliases = Annotated[dict[str, str], BeforeValidator(_parse_object)]
OpenAIServers = Annotated[dict[str, OpenAIServer], BeforeValidator(_parse_object)]
VirtualModels = Annotated[
    dict[str, Any], BeforeValidator(_parse_object), AfterValidator(_parse_rules)
]


class Settings(BaseModel):
    """What the operator decided. Frozen; passed in, never looked up."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    # Server
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8420, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    environment: Literal["development", "production"] = Field(
        "development", description="development serves GraphiQL at /graphql."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Log level."
    )
    log_format: Literal["text", "json"] = Field("text", description="One line or one JSON object.")
    stall_warn_s: float = Field(
        0.05,
        ge=0,
        le=60,
        allow_inf_nan=False,
        description="Seconds the event loop may stand still before that is logged; 0: not watched.",
    )
    cors_origins: Names = Field(
        (), description="Origins of web pages that may call, as http://host:port; * is any."
    )
    allowed_hosts: Names = Field(
        (),
        description="Names that the gateway answers to beside addresses and localhost; empty: "
        "none on loopback, any elsewhere.",
    )
    trusted_proxies: Names = Field(
        ("127.0.0.1", "::1"),
        description="Addresses and networks of proxies whose X-Forwarded-For is believed; * is "
        "any.",
    )
    wrong_keys_per_minute: int = Field(
        60, ge=0, description="Wrong keys that one address may try in a minute; 0: no limit."
    )
    key_pepper: SecretStr = Field(
        SecretStr(""),
        description="Secret that API keys are stored with, 32 characters or more; several, "
        "comma-separated, while it is being changed, the new one first.",
    )
    key_pepper_file: Folder | None = Field(
        None,
        description="File that holds it instead; default: key-pepper in the data folder, made at "
        "the first start.",
    )
    api_key: SecretStr = Field(
        SecretStr(""), description="Key that `gateway models` sends to the running gateway."
    )

    secret_key: SecretStr = Field(
        SecretStr(""),
        description="Secret that stored tokens are encrypted with, 32 characters or more; several, "
        "comma-separated, while it is being changed, the new one first.",
    )
    secret_key_file: Folder | None = Field(
        None,
        description="File that holds it instead; default: secret-key in the data folder, made at "
        "the first start.",
    )

    # State
    data_dir: Folder = Field(Path(".data"), description="Folder of the database, caches and keys.")
    database_url: SecretStr = Field(
        SecretStr(""),
        description="sqlite:///path or postgresql://user:password@host/name; empty: SQLite in "
        "the data folder.",
    )
    node: str = Field(
        "", max_length=128, description="Name of this gateway; empty: host name and port."
    )
    journal_dir: Folder | None = Field(
        None,
        description="Folder of records that the database does not take; empty: journal in the "
        "data folder.",
    )
    journal_max_bytes: int = Field(
        256 * 2**20, ge=2**20, description="Most bytes of such records on the disk."
    )
    records_keep_days: int = Field(
        0, ge=0, le=36_500, description="Days that records of streams are kept; 0: for ever."
    )
    records_purge_batch: int = Field(
        1000, ge=1, le=10_000, description="Records that are deleted in one transaction."
    )
    lease_s: float = Field(
        60.0,
        ge=2,
        allow_inf_nan=False,
        description="Seconds without a sign of life until others close what a gateway left open.",
    )

    # Providers
    providers: Names = Field(("huggingface", "ollama"), description="Providers, comma-separated.")
    aliases: Aliases = Field(
        {},
        description="Other names for models, as a JSON object: alias to provider/model.",
    )
    openai: OpenAIServers = Field(
        {},
        description="OpenAI-compatible servers by name, as a JSON object; see docs/providers.md.",
    )
    virtual_models: VirtualModels = Field(
        {},
        description="Names that stand for several models, as a JSON object; see docs/routing.md.",
    )
    catalog_timeout_s: Positive = Field(0.8, description="Seconds a listing waits for a provider.")
    catalog_ttl_s: float = Field(1.0, ge=0, description="Seconds a listing is reused.")
    reconcile_interval_s: Positive = Field(15.0, description="Seconds between looks at providers.")

    # Ollama
    ollama_host: Annotated[str, AfterValidator(parse_ollama_host)] = Field(
        "http://127.0.0.1:11434", description="URL of the Ollama server."
    )
    ollama_num_ctx: int = Field(
        0, ge=0, description="Context length asked of Ollama with every request; 0: Ollama decides."
    )
    ollama_connect_timeout_s: Positive = Field(2.0, description="Seconds to connect.")
    ollama_first_byte_timeout_s: Positive = Field(
        300.0, description="Seconds to the first byte of an answer; covers a model load."
    )
    ollama_idle_timeout_s: Positive = Field(60.0, description="Seconds between two tokens.")
    ollama_control_timeout_s: Positive = Field(0.7, description="Seconds for list, ps and show.")

    # Hugging Face
    hf_model_path: Folder | None = Field(
        None, description="Folder of models: `smol` in it is huggingface/smol."
    )
    hf_home: Folder | None = Field(None, description="Hugging Face home; default: theirs.")
    hf_hub_cache: Folder | None = Field(None, description="Hub cache; default: hub in HF_HOME.")
    hf_token: SecretStr | None = Field(
        None, description="Token for gated repositories; one that is stored wins over it."
    )
    hub_endpoint: Annotated[str, AfterValidator(parse_hub_endpoint)] = Field(
        "https://huggingface.co", description="URL of the Hub, or of a mirror."
    )
    hub_timeout_s: Positive = Field(10.0, description="Seconds the Hub may take to answer.")
    hub_cache_s: float = Field(
        300.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds an answer of the Hub is used again without asking.",
    )
    hub_recommended: Names = Field((), description="Models to begin with, comma-separated.")
    hub_require_token_for_downloads: bool = Field(
        False, description="Refuse downloads without a token, but for those to begin with."
    )
    hf_hub_offline: bool = Field(False, description="Never ask the Hub.")
    downloads_at_once: int = Field(2, ge=1, le=64, description="Downloads that run at once.")
    download_connections: int = Field(
        4, ge=1, le=64, description="Files of one download that are fetched at once."
    )
    download_reserve_bytes: int = Field(
        2**30, ge=0, description="Bytes of the disk that downloads leave free."
    )
    hf_device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Device.")
    hf_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Number format of the weights; auto: as they are stored."
    )
    hf_isolation: Literal["thread", "process"] = Field(
        "thread", description="Where a model runs: in the gateway, or in a process of its own."
    )
    hf_child_memory_bytes: int = Field(
        0, ge=0, description="Bytes that the process of a model may have for itself; 0: no limit."
    )
    hf_threads: int = Field(0, ge=0, description="Compute threads; 0: as many as cores.")
    hf_preload: Names = Field((), description="Models to load at the start, comma-separated.")
    hf_keep_alive_s: float = Field(
        -1.0,
        allow_inf_nan=False,
        description="Seconds an idle model stays in memory; negative: until its room is needed.",
    )
    hf_max_models: int = Field(3, ge=1, description="Models in memory at once, on each device.")
    hf_memory_budget_bytes: int = Field(
        0,
        ge=0,
        description="Bytes for models on a device; 0: 60 % of this machine's memory, 90 % of a "
        "GPU's.",
    )
    hf_place_wait_s: float = Field(
        30.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds a load waits for models in use to make room.",
    )
    hf_max_active: int = Field(16, ge=1, description="Streams that one model serves at once.")
    hf_max_queue: int = Field(64, ge=0, description="Requests that may wait for one model.")
    hf_prompt_cache_bytes: int = Field(
        256 * 2**20, ge=0, description="Bytes that one model may keep of past prompts."
    )
    hf_verify_memory_bytes: int = Field(
        0,
        ge=0,
        description="Bytes that a load test may have; 0: three times the weights and 4 GiB.",
    )
    hf_verify_timeout_s: Positive = Field(300.0, description="Seconds a load test may take.")
    gguf_max_active: int = Field(4, ge=1, description="Streams that one GGUF model serves at once.")
    gguf_context_length: int = Field(
        4096,
        ge=256,
        le=2**20,
        description="Most tokens of a stream of a GGUF model; set aside for each stream at once.",
    )

    # Limits
    max_body_bytes: int = Field(32 * 2**20, ge=1024, description="Largest request body.")
    max_image_bytes: int = Field(16 * 2**20, ge=1, description="Largest image, encoded.")
    max_image_pixels: int = Field(50_000_000, ge=1, description="Most pixels of an image.")
    max_peer_connections: int = Field(
        2048,
        ge=0,
        description="Connections that one address may have, but this machine; 0: no limit.",
    )
    head_timeout_s: Positive = Field(
        10.0, description="Seconds for the head of a request to arrive on its connection."
    )
    max_streams: int = Field(2048, ge=1, description="Streams open at once; above it: 503.")
    max_subscriptions: int = Field(
        1024, ge=1, description="GraphQL subscriptions at once, and as many WebSockets."
    )
    stream_buffer_events: int = Field(256, ge=1, description="Events held for a slow reader.")
    stream_replay_events: int = Field(
        4096, ge=1, description="Events of a stream held for a reader that comes back."
    )
    stream_replay_bytes: int = Field(
        2**20, ge=1024, description="Bytes that the events of one stream may take, about."
    )
    stream_kept_bytes: int = Field(
        64 * 2**20, ge=0, description="Bytes that all streams may take once they ended, about."
    )
    stream_resume_s: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds a stream goes on without its reader; 0: it is cancelled at once.",
    )
    stream_detached_s: Positive = Field(
        300.0, description="Seconds a detached stream goes on, or is kept, without a reader."
    )
    stream_keep_s: float = Field(
        60.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds a stream can still be read after its end.",
    )
    stream_token_s: float = Field(
        600.0, ge=1, le=86400, description="Seconds the token of a stream lets readers in."
    )
    max_embeds: int = Field(256, ge=1, description="Embedding requests at once; above it: 503.")
    max_embed_inputs: int = Field(2048, ge=1, description="Inputs of one embedding request.")
    send_timeout_s: Positive = Field(30.0, description="Seconds until a stalled reader is cut.")
    ping_interval_s: Positive = Field(15.0, description="Seconds between pings of a stream.")
    drain_grace_s: float = Field(7.0, ge=0, description="Seconds streams may go on at shutdown.")

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, value: SecretStr) -> SecretStr:
        scheme = value.get_secret_value().partition(":")[0].partition("+")[0]
        if scheme not in ("", "sqlite", "postgresql"):
            raise ValueError("it must begin with sqlite:/// or postgresql://")
        return value

    @field_validator("database_url", mode="before")
    @classmethod
    def _rename_scheme(cls, value: Any) -> Any:
        """Take the scheme that many hosters write for what it means."""
        if isinstance(value, str) and value.startswith("postgres://"):
            return value.replace("postgres", "postgresql", 1)
        return value

    @field_validator("key_pepper", "secret_key")
    @classmethod
    def _check_peppers(cls, value: SecretStr) -> SecretStr:
        given = value.get_secret_value()
        if given and min(map(len, given.replace(",", " ").split()), default=0) < 32:
            raise ValueError("each has 32 characters or more")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin not in ("*", "null") and not re.fullmatch(r"https?://[^/\s]+", origin):
                raise ValueError(f"'{origin}' is not of the form http://host:port")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in value:
            try:
                ipaddress.ip_network(proxy if proxy != "*" else "0.0.0.0")
            except ValueError:
                raise ValueError(f"'{proxy}' is neither an address nor a network") from None
        return value

    @field_validator("providers")
    @classmethod
    def _require_provider(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("it names no provider")
        return value

    @field_validator("aliases")
    @classmethod
    def _check_aliases(cls, value: dict[str, str]) -> dict[str, str]:
        for alias, name in value.items():
            if name in value:
                raise ValueError(f"'{alias}' leads to another alias, '{name}'")
        return value

    @field_validator("openai")
    @classmethod
    def _check_servers(
        cls, value: dict[str, OpenAIServer], info: ValidationInfo
    ) -> dict[str, OpenAIServer]:
        known = info.data.get("providers", ()), info.data.get("aliases", {})
        check_names(value, providers=known[0], aliases=known[1])
        return value

    @field_validator("virtual_models")
    @classmethod
    def _check_rules(
        cls, value: dict[str, VirtualModel], info: ValidationInfo
    ) -> dict[str, VirtualModel]:
        try:
            providers = (*info.data.get("providers", ()), *info.data.get("openai", ()))
            check_rules(value, providers=providers, aliases=info.data.get("aliases", ()))
        except InvalidRequest as error:
            raise ValueError(error.message) from error
        return value

    @cached_property
    def provider_kinds(self) -> dict[str, str]:
        """The kind of each provider, by the name that stands before its models' names."""
        return {name: name for name in self.providers} | dict.fromkeys(self.openai, "openai")

    @cached_property
    def resolved_database_url(self) -> str:
        """The database to use; holds a password, so never show it."""
        return self.database_url.get_secret_value() or f"sqlite:///{self.data_dir / 'gateway.db'}"

    @cached_property
    def resolved_journal_dir(self) -> Path:
        return self.journal_dir or self.data_dir / "journal"

    @cached_property
    def resolved_pepper_file(self) -> Path:
        return self.key_pepper_file or self.data_dir / "key-pepper"

    @cached_property
    def resolved_secret_key_file(self) -> Path:
        return self.secret_key_file or self.data_dir / "secret-key"

    @cached_property
    def resolved_model_path(self) -> Path:
        return self.hf_model_path or self.data_dir / "models"

    @cached_property
    def resolved_hub_cache(self) -> Path:
        home = self.hf_home or Path("~/.cache/huggingface").expanduser()
        return self.hf_hub_cache or home / "hub"

    @cached_property
    def resolved_node(self) -> str:
        return self.node or f"{socket.gethostname()}:{self.port}"


def environment_name(setting: str) -> str:
    """Return the environment variable of a setting."""
    return VENDOR_NAMES.get(setting, PREFIX + setting.upper())


def load_settings(
    environ: Mapping[str, str] | None = None,
    *,
    config_dir: Path | None = None,
    dotenv: Path = Path(".env"),
    find_mistakes: Callable[["Settings"], list[str]] = lambda _: [],
) -> Settings:
    """Return the settings of this machine.

    Raises Misconfigured with every mistake at once: each names the setting and where it was set.
    What `find_mistakes` says of the settings that are right by themselves is among them.
    """
    sources = _Sources()
    environ = dict(os.environ if environ is None else environ)
    file_values = {k: v for k, v in dotenv_values(dotenv).items() if v is not None}
    named_dir = environ.get(CONFIG_DIR) or file_values.get(CONFIG_DIR)
    sources.check_dotenv(dotenv)
    if named_dir and not Path(named_dir).is_dir():
        sources.add_mistake(f"{CONFIG_DIR}: {named_dir} is not a folder")
    for file in _toml_files(config_dir or Path(named_dir or default_config_dir())):
        sources.add_toml(file)
    sources.add_environment(file_values, str(dotenv))
    sources.add_environment(environ, "the environment")
    return sources.validate(find_mistakes)


def child_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for our own children: without what configures the gateway.

    They are told what they need, and what they need not know are its secrets.
    """
    source = os.environ if environ is None else environ
    return {name: value for name, value in source.items() if not name.startswith(OUR_PREFIXES)}


def default_config_dir() -> Path:
    """Return `config/` of the source tree, or the copy inside the installed package."""
    package = Path(__file__).parent
    packaged = package / "_config"
    return packaged if packaged.is_dir() else package.parent / "config"


class _Sources:
    """Values, where each came from, and the mistakes found on the way."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._labels: dict[str, str] = {}
        self._environ: dict[str, str] = {}
        self._mistakes: list[str] = []

    def add_toml(self, file: Path) -> None:
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            self._mistakes.append(f"{file}: it cannot be read as TOML: {error}")
            return
        for name, value in values.items():
            if name in Settings.model_fields:
                self._set(name, value, f"{name} in {file}")
            else:
                self._mistakes.append(f"{name} in {file}: there is no such setting")

    def add_environment(self, environ: Mapping[str, str], origin: str) -> None:
        self._environ |= environ
        by_name = {environment_name(setting): setting for setting in Settings.model_fields}
        for name, value in environ.items():
            if value == "":
                continue  # compose files pass unset variables as empty strings
            if name in by_name:
                self._set(by_name[name], value, f"{name} in {origin}")
            elif name.startswith(PREFIX) and name not in RESERVED:
                self._mistakes.append(f"{name} in {origin}: there is no such setting")

    def add_mistake(self, mistake: str) -> None:
        self._mistakes.append(mistake)

    def check_dotenv(self, file: Path) -> None:
        """Take note of lines that mean nothing; the parser leaves them out."""
        if file.is_file():
            with file.open(encoding="utf-8", errors="replace") as stream:
                for binding in parse_stream(stream):
                    if binding.error:
                        self.add_mistake(f"{file}: line {binding.original.line} cannot be read")

    def validate(self, find_mistakes: Callable[[Settings], list[str]]) -> Settings:
        settings, wrong = self._try()
        if settings is None:
            # What is right by itself may still not work: that is said in the same breath.
            kept = {name: value for name, value in self._values.items() if name not in wrong}
            found = find_mistakes(self._build(kept))
            wrong_names = {environment_name(name) for name in wrong}
            self._mistakes += [text for text in found if text.partition(":")[0] not in wrong_names]
        else:
            self._mistakes += find_mistakes(settings)
        if settings is None or self._mistakes:
            raise Misconfigured(self._mistakes)
        return settings

    def _try(self) -> tuple[Settings | None, set[str]]:
        """Return the settings, or None and the names of the wrong ones; notes their mistakes."""
        try:
            return self._build(self._values), set()
        except ValidationError as error:
            wrong = set()
            for item in error.errors(include_url=False, include_input=False):
                name, *inner = map(str, item["loc"])
                label = self._labels.get(name, environment_name(name))
                place = f" (at {'.'.join(inner)})" if inner else ""
                message = item["msg"].removeprefix("Value error, ")
                self.add_mistake(f"{label}{place}: {message}")
                wrong.add(name)
            return None, wrong

    def _build(self, values: dict[str, Any]) -> Settings:
        return Settings.model_validate(values, context={ENVIRON: self._environ})

    def _set(self, name: str, value: Any, label: str) -> None:
        self._values[name] = value
        self._labels[name] = label


def _toml_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.toml"))
    return sorted(files, key=lambda file: file.name != "default.toml")
