"""What the operator says of a server that speaks the OpenAI API. Reads keys; asks nobody."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

ENVIRON = "environ"
"""Under this name the validation context holds the environment, which `key_env` names a part of."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_KEY = re.compile(r"[\x21-\x7e]{1,4096}")
_WAYS = ("key", "key_env", "key_file")


def parse_base_url(value: str) -> str:
    """Return the URL under which the routes lie: one without a path means `/v1`.

    Raises ValueError for what is no such URL, or holds a secret or a query.
    """
    text = value.strip()
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"\s", text):
        raise ValueError("it is not of the form http://host:port/v1")
    if "@" in parts.netloc:
        raise ValueError("it holds a user or a password; give the key as `key`")
    if parts.query or parts.fragment:
        raise ValueError("it holds a query or a fragment")
    try:
        _ = parts.port
    except ValueError:
        raise ValueError("it has no valid port") from None
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"


Url = Annotated[str, AfterValidator(parse_base_url)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Continuation = Literal["no", "assistant", "continue_final_message", "prefix"]
"""How a server goes on with a last message of the assistant: in no way, told by nothing but the
message, by vLLM's fields, or by those of DeepSeek and Mistral."""


class OpenAIServer(BaseModel):
    """One server, or several at `urls` that serve alike.

    `key` goes to those URLs and nowhere else; `key_env` and `key_file` tell where it is instead.
    `models` are the names that may be asked for, `*` and `?` as in file names; empty: all.
    `continues` is how it is told to go on with an answer that broke.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    urls: tuple[Url, ...]
    key: SecretStr = SecretStr("")
    key_env: str = ""
    key_file: Path | None = None
    models: tuple[str, ...] = ()
    continues: Continuation = "no"
    connect_timeout_s: Seconds = 2.0
    first_byte_timeout_s: Seconds = 300.0
    idle_timeout_s: Seconds = 60.0
    control_timeout_s: Seconds = 0.7

    @model_validator(mode="before")
    @classmethod
    def _read_key(cls, given: Any, info: ValidationInfo) -> Any:
        if not isinstance(given, dict):
            return given
        ways = [way for way in _WAYS if given.get(way)]
        if len(ways) > 1:
            raise ValueError(f"one of {', '.join(ways)} is enough")
        if ways == ["key_env"]:
            environ: Mapping[str, str] = (info.context or {}).get(ENVIRON, {})
            key = environ.get(str(given["key_env"]), "")
            if not key:
                raise ValueError(f"the variable {given['key_env']} is not set")
            return {**given, "key": key.strip()}
        if ways == ["key_file"]:
            return {**given, "key": _read_file(Path(str(given["key_file"])).expanduser())}
        return given

    @field_validator("key")
    @classmethod
    def _check_key(cls, value: SecretStr) -> SecretStr:
        key = value.get_secret_value()
        if key and not _KEY.fullmatch(key):
            raise ValueError("a key is one word of printable ASCII characters")
        return value

    @field_validator("urls")
    @classmethod
    def _check_urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("it names no URL")
        if len(set(value)) < len(value):
            raise ValueError("it names a URL twice")
        return value


def check_names(
    servers: Mapping[str, OpenAIServer],
    *,
    providers: tuple[str, ...],
    aliases: Mapping[str, str],
    reserved: tuple[str, ...] = (),
) -> None:
    """Raise ValueError for a server whose name cannot stand before its models' names: no name, one
    that others have, or one of those that listings have for what is no provider (`reserved`)."""
    for name in servers:
        if not _NAME.fullmatch(name):
            raise ValueError(f"'{name}' is no name: letters, digits, '_', '.' and '-' are allowed")
        if name in reserved:
            raise ValueError(f"'{name}' stands in listings for what is no provider: take another")
        taken = [alias for alias in aliases if alias.partition("/")[0] == name]
        if name in providers or taken:
            raise ValueError(f"'{taken[0] if taken else name}' already means something else")


def _read_file(file: Path) -> str:
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ValueError(f"the key file {file} cannot be read: {reason}") from None
    if not key:
        raise ValueError(f"the key file {file} is empty")
    return key
