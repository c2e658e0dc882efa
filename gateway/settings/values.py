"""What settings are made of: kinds of values, and how each is read from text."""

import json
import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from gateway.core.rotation import RotationOrder
from gateway.core.virtual import VirtualModel
from gateway.servers import OpenAIServer


def parse_ollama_host(value: str) -> str:
    """Return the base URL that OLLAMA_HOST means, read as Ollama's own client reads it.

    A scheme, a port (11434; 80 and 443 with a scheme) and a host may each be missing; an address
    to listen on (0.0.0.0, ::) becomes the loopback address that reaches it.
    """
    text = value.strip().strip("\"'") or "127.0.0.1:11434"
    if re.search(r"\s", text):
        raise ValueError(f"'{text}' holds a space")
    has_scheme = "://" in text
    parts = urlsplit(text if has_scheme else f"http://{text}")
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"the scheme '{parts.scheme}' is neither http nor https")
    default_port = {"http": 80, "https": 443}[parts.scheme] if has_scheme else 11434
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


def parse_collector(value: str) -> str:
    """Return the base URL of a collector without the slash at its end; "" stays what it is."""
    text = value.strip().rstrip("/")
    parts = urlsplit(text)
    if text and not (parts.scheme in ("http", "https") and parts.hostname):
        raise ValueError("it is not of the form http://host:port")
    return text.removesuffix("/v1/traces")


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
            if "version" in fields:
                raise TypeError("there is no such field as 'version'")
            candidates = [
                each if isinstance(each, dict) else {"model": each} for each in fields["candidates"]
            ]
            rules[name] = msgspec.convert(
                {**fields, "name": name, "candidates": candidates}, VirtualModel
            )
        except (KeyError, TypeError, msgspec.ValidationError) as error:
            raise ValueError(f"'{name}': {error}") from error
    return rules


def _parse_rotations(value: dict[str, Any]) -> dict[str, RotationOrder]:
    """Return what stands under [rotations]: a name, its models, and when the next one's turn is."""
    orders = {}
    for name, order in value.items():
        fields = {"models": order} if isinstance(order, list) else order
        try:
            orders[name] = msgspec.convert(fields, RotationOrder)
        except msgspec.ValidationError as error:
            raise ValueError(f"'{name}': {error}") from error
    return orders


Aliases = Annotated[dict[str, str], BeforeValidator(_parse_object)]
OpenAIServers = Annotated[dict[str, OpenAIServer], BeforeValidator(_parse_object)]
VirtualModels = Annotated[
    dict[str, Any], BeforeValidator(_parse_object), AfterValidator(_parse_rules)
]

Rotations = Annotated[
    dict[str, Any], BeforeValidator(_parse_object), AfterValidator(_parse_rotations)
]


class Group(BaseModel):
    """Settings of one subject."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
