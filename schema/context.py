"""What every resolver is handed: the services, and nothing of HTTP."""

from dataclasses import dataclass
from typing import TypeAlias

import strawberry

from gateway.services.gateway import Gateway


@dataclass(frozen=True)
class Context:
    """The context of one operation."""

    gateway: Gateway


Info: TypeAlias = strawberry.Info[Context, None]
