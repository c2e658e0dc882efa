"""What every resolver is handed: the services and the caller, and nothing of HTTP."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import strawberry

from gateway.core.keys import Caller
from gateway.core.messages import GenerateRequest
from gateway.services.gateway import Gateway

ReadBody: TypeAlias = Callable[[dict[str, Any], str], GenerateRequest]
"""Reads what a native body asks for out of its values and the id of the request; raises
InvalidRequest and its kind. There is one such reader, the native face's."""


@dataclass(frozen=True)
class Context:
    """The context of one operation."""

    gateway: Gateway
    caller: Caller
    read_body: ReadBody


Info: TypeAlias = strawberry.Info[Context, None]
