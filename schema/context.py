"""What every resolver is handed: the services and the caller, and nothing of HTTP."""

from dataclasses import dataclass
from typing import TypeAlias

import strawberry
from starlette.types import Scope

from gateway.services.gateway import Gateway


@dataclass(frozen=True)
class Context:
    """The context of one operation."""

    gateway: Gateway
    caller: str = ""
    """Whose operation it is; empty for those who do not say."""


def caller_of(scope: Scope) -> str:
    """Return the caller of a request or a WebSocket, as whoever serves this application found."""
    caller: str = scope.get("state", {}).get("caller", "")
    return caller


Info: TypeAlias = strawberry.Info[Context, None]
