"""How the gateway listens, whom it lets in, and what it says."""

import ipaddress
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr, field_validator

from gateway.settings.values import Folder, Group, Names, parse_collector


class ServerSettings(Group):
    """The server and its doors."""

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
    traces_endpoint: Annotated[str, AfterValidator(parse_collector)] = Field(
        "",
        description="URL of an OpenTelemetry collector (OTLP over HTTP), as http://host:4318; "
        "empty: no traces.",
    )
    traces_headers: SecretStr = Field(
        SecretStr(""), description="Headers that it wants, as name=value, comma-separated."
    )
    traces_sample: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the requests that is traced, of those whose callers do not trace.",
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

    @field_validator("key_pepper", "secret_key")
    @classmethod
    def _check_peppers(cls, value: SecretStr) -> SecretStr:
        given = value.get_secret_value()
        if given and min(map(len, given.replace(",", " ").split()), default=0) < 32:
            raise ValueError("each has 32 characters or more")
        return value

    @field_validator("traces_headers")
    @classmethod
    def _check_headers(cls, value: SecretStr) -> SecretStr:
        for pair in filter(None, value.get_secret_value().split(",")):
            if not re.fullmatch(r"\s*[!#$%&'*+.^_`|~\w-]+=[\x20-\x7e]+", pair, re.ASCII):
                raise ValueError("they are not of the form name=value,name=value")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin not in ("*", "null") and not re.fullmatch(r"https?://[^/\s]+", origin):
                raise ValueError(f"'{origin}' is not of the form http://host:port")
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not re.fullmatch(r"\*|[\w.-]+", name):
                raise ValueError(f"'{name}' is not the plain name of a host: no scheme, no port")
        return tuple(name.lower().removesuffix(".") for name in value)

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "*" in value and len(value) > 1:
            raise ValueError("'*' is any address: it stands alone")
        for proxy in value:
            try:
                ipaddress.ip_network(proxy if proxy != "*" else "0.0.0.0")
            except ValueError:
                raise ValueError(f"'{proxy}' is neither an address nor a network") from None
        return value
