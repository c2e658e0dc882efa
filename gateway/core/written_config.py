"""The config of a model as it is written: in replies and in the file of an export. Pure."""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from gateway.core.loading import ModelConfig
from gateway.core.messages import Options

_Struct = TypeVar("_Struct", bound=msgspec.Struct)

_KEEP_ALIVE, _STOP_IDS = ("keep_alive", "keep_alive_s"), ("stop_token_ids", "stop_ids")
"""Names in writing, and those that a config has here."""


def describe_config(config: ModelConfig) -> dict[str, Any]:
    """Return a config in the terms of the API, as `read_config` and `PUT /config` take it."""
    return {
        "load": msgspec.structs.asdict(config.load),
        "defaults": describe_options(config.defaults),
        "keep_alive": config.keep_alive_s,
        "pinned": config.pinned,
    }


def describe_options(options: Options) -> dict[str, Any]:
    """Return options in the terms of the API, without those that say nothing."""
    described = msgspec.structs.asdict(options)
    described["stop_token_ids"] = described.pop("stop_ids")
    described["logit_bias"] = {str(token): bias for token, bias in options.logit_bias}
    return {name: value for name, value in described.items() if value not in (None, (), {})}


def read_config(written: Mapping[str, Any]) -> ModelConfig:
    """Return the config that `describe_config` wrote, or a gateway before that was written.

    Raises msgspec.ValidationError for anything else, and for names that nobody gave.
    """
    given = _renamed(written, *_KEEP_ALIVE)
    defaults = given.get("defaults")
    if isinstance(defaults, dict):
        options = _renamed(defaults, *_STOP_IDS)
        if isinstance(bias := options.get("logit_bias"), dict):
            options["logit_bias"] = [(_to_token(key), value) for key, value in bias.items()]
        given["defaults"] = _convert(options, Options)
    return _convert(given, ModelConfig)


def _renamed(written: Mapping[str, Any], name: str, here: str) -> dict[str, Any]:
    if name in written and here in written:
        raise msgspec.ValidationError(f"`{name}` and `{here}` are one thing")
    return {here if key == name else key: value for key, value in written.items()}


def _to_token(key: str) -> int | str:
    return int(key) if key.isascii() and key.isdigit() and len(key) < 10 else key


def _convert(given: dict[str, Any], kind: type[_Struct]) -> _Struct:
    unknown = given.keys() - set(kind.__struct_fields__)
    if unknown:
        raise msgspec.ValidationError(f"Object contains unknown field `{min(unknown)}`")
    return msgspec.convert(given, kind)
