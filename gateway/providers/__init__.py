"""Finds kinds of providers by name. Holds none itself: one module of this package is one kind.

A module whose name ends in `_wire` belongs to a neighbour and is no kind of its own, and neither is
the HTTP client that kinds share. Of most kinds there is one provider, of the same name; of a kind
that is told of several servers there are as many, by the servers' names.
"""

import importlib
import pkgutil
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

import anyio.lowlevel
import msgspec
from anyio.abc import TaskGroup

from gateway.core.errors import Misconfigured
from gateway.core.models import LocalModel
from gateway.core.ports import ModelLibrary, ModelObserver, Provider
from gateway.engine.memory.budget import DeviceBudgets
from gateway.engine.memory.ledger import MemoryLedger
from gateway.engine.weights.runtime import default_budget

if TYPE_CHECKING:
    from gateway.settings import Settings


_CLIENT = "http1"


class ProviderContext(msgspec.Struct, frozen=True):
    """What a provider may use of the gateway; `clock` is monotonic seconds.

    `used` is told of the library's models as they are loaded and asked. `name` stands before the
    names of its models; a kind of which there is one has its own. What models hold of this
    machine's memory is in the `ledger`. `configured` returns once what was decided for models
    before is decided again: nothing is to be loaded by itself until then.
    """

    library: ModelLibrary
    observe: ModelObserver
    task_group: TaskGroup
    clock: Callable[[], float]
    used: Callable[[LocalModel], None] = lambda model: None
    name: str = ""
    ledger: MemoryLedger = msgspec.field(
        default_factory=lambda: MemoryLedger(DeviceBudgets(default_budget))
    )
    configured: Callable[[], Awaitable[object]] = anyio.lowlevel.checkpoint


class ProviderFactory(Protocol):
    """Builds a provider; called on the event loop that the provider will run on."""

    def __call__(self, settings: "Settings", context: ProviderContext) -> Provider: ...


def known_kinds() -> list[str]:
    """Return the kinds that `load` accepts, sorted."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in names if not name.endswith("_wire") and name != _CLIENT)


def load(kind: str) -> ProviderFactory:
    """Return the factory of the providers of that kind.

    Raises Misconfigured, naming the known kinds, for any other.
    """
    if kind not in known_kinds():
        known = ", ".join(known_kinds())
        raise Misconfigured([f"There is no provider kind '{kind}'; known are: {known}."])
    factory: ProviderFactory = importlib.import_module(f"{__name__}.{kind}").create
    return factory
