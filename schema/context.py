"""What every resolver is handed: the services and the caller, and nothing of HTTP."""

from dataclasses import dataclass
from typing import TypeAlias

import strawberry

from gateway.core.keys import Caller
from gateway.services.gateway import Gateway


@dataclass(frozen=True)
class Context:
    """The context of one operation."""

    gateway: Gateway
    caller: Caller


Info: TypeAlias = strawberry.Info[Context, None]
