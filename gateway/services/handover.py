"""What a rotation's step does to models at this gateway: looks, loads, waits, unloads."""

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress

import anyio

from gateway.core.errors import GatewayError, UnsupportedCapability
from gateway.core.loading import LoadPlan
from gateway.core.names import ModelRef
from gateway.core.ports import Provider
from gateway.core.rotation_step import (
    AwaitQuiet,
    Drain,
    Load,
    Move,
    Outlook,
    Skip,
    Survey,
    Switch,
    Unload,
)
from gateway.core.routing import Route, resolve_route
from gateway.core.states import ModelState
from gateway.services.catalog import Catalog, Listing
from gateway.services.control import ModelControlService
from gateway.services.embeddings import EmbeddingService
from gateway.services.router import ModelRouterService
from gateway.services.streams import StreamService

logger = logging.getLogger(__name__)

LOAD_S = 1800.0
"""How long a load is waited for; it may go on by itself after."""
UNLOAD_S = 120.0
LOOK_S = 0.1
"""How often it is looked whether streams have ended."""


class Handover:
    """Performs the moves of steps, but for those that are of the step itself: Switch and Skip."""

    def __init__(
        self,
        providers: Mapping[str, Provider],
        catalog: Catalog,
        router: ModelRouterService,
        control: ModelControlService,
        streams: StreamService,
        embeddings: EmbeddingService,
        *,
        aliases: Mapping[str, str],
        elsewhere: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """`elsewhere` are the providers whose models are loaded and unloaded by others."""
        self._providers = providers
        self._catalog = catalog
        self._router = router
        self._control = control
        self._streams = streams
        self._embeddings = embeddings
        self._aliases = aliases
        self._elsewhere = elsewhere
        self._clock = clock
        self._sleep = sleep

    async def perform(self, move: Move, *, now: float, kept: Collection[str]) -> object:
        """Do a move and return its outcome. `now` is the database's time, `kept` the models that
        answer for rotations, which are not unloaded."""
        match move:
            case AwaitQuiet(busy_streams, deadline):
                await self._await_quiet(busy_streams, deadline - now)
            case Survey(model, beside):
                return await self._survey(model, beside)
            case Load(model):
                return await self._load(model)
            case Drain(model, within_s):
                return await self._drain(model, within_s)
            case Unload(model):
                return await self._unload(model, kept)
            case Switch() | Skip():
                raise AssertionError("whose step it is does that")
        return None

    async def find_same(self, model: str, others: Collection[str]) -> str | None:
        """Return the first of the others that means the same model, however it is written.

        Raises what a request for the model would: ModelNotFound, AmbiguousModel, InvalidRequest.
        """
        wanted, _ = await self._resolve(model)
        for other in others:
            with suppress(GatewayError):
                route, _ = await self._resolve(other)
                if route.ref == wanted.ref:
                    return other
        return None

    async def _await_quiet(self, busy_streams: int, within_s: float) -> None:
        deadline = self._clock() + within_s
        while self._count_requests() > busy_streams and self._clock() < deadline:
            await self._sleep(LOOK_S)

    def _count_requests(self) -> int:
        return self._streams.live_count + self._embeddings.open_count

    async def _survey(self, model: str, beside: str) -> Outlook:
        try:
            route, listing = await self._resolve(model)
            if (objection := self._object(route, listing)) is not None:
                return Outlook(objection)
            if route.ref.provider in self._elsewhere:
                return Outlook()
            plan = await self._control.plan(model)
        except GatewayError as error:
            return Outlook(error.message)
        if plan.is_too_large and not plan.already_loaded:
            return Outlook(plan.reason or f"{plan.ref} does not fit.")
        if plan.fits is False:
            return Outlook(has_room=False)
        return Outlook(has_room=not plan.evictions or not await self._evicts(plan, beside))

    async def _evicts(self, plan: LoadPlan, model: str) -> bool:
        """Tell whether the load would push the model out."""
        try:
            return (await self._control.status(model)).ref in plan.evictions
        except GatewayError:
            return False

    def _object(self, route: Route, listing: Listing) -> str | None:
        for fault in listing.faults:
            if fault.provider == route.ref.provider:
                return fault.error.message
        if route.ref.provider in self._elsewhere and route.info is None:
            return f"{route.ref.provider} has no model '{route.ref.model}'."
        return self._router.health.view().objection(route.ref)

    async def _load(self, model: str) -> str | None:
        try:
            with anyio.fail_after(LOAD_S):
                if not await self._is_elsewhere(model):
                    await self._control.load(model, wait=True)
        except GatewayError as error:
            return error.message
        except TimeoutError:
            return f"It was not loaded within {LOAD_S:g} s."
        return None

    async def _drain(self, model: str, within_s: float) -> bool:
        try:
            route, _ = await self._resolve(model)
        except GatewayError:
            return True  # nobody can use what is not there
        if route.ref.provider in self._elsewhere:
            return True

        deadline = self._clock() + within_s
        while not await self._is_idle(model, route.ref):
            if self._clock() >= deadline:
                return False
            await self._sleep(LOOK_S)
        return True

    async def _is_idle(self, model: str, ref: ModelRef) -> bool:
        """Tell whether nobody uses it, as far as this gateway and the provider know."""
        if self._streams.count_of(ref):
            return False
        try:
            status = await self._control.status(model)
        except GatewayError as error:
            logger.info("whether %s is idle its provider does not tell: %s", ref, error.message)
            return True
        return not (status.leases or status.queued)

    async def _unload(self, model: str, kept: Collection[str]) -> str | None:
        """Unload a model that is loaded and idle; others, and pinned ones, stay as they are."""
        try:
            if await self._is_elsewhere(model) or await self.find_same(model, kept) is not None:
                return None
            status = await self._control.status(model)
            if status.state is not ModelState.LOADED:
                return None  # gone, or wanted again by somebody who waits for it
            if status.pinned:
                return "it is pinned."
            with anyio.fail_after(UNLOAD_S):
                await self._control.unload(model, wait=True)
        except UnsupportedCapability:
            return None
        except GatewayError as error:
            return error.message
        except TimeoutError:
            return f"it was not gone within {UNLOAD_S:g} s."
        return None

    async def _is_elsewhere(self, model: str) -> bool:
        route, _ = await self._resolve(model)
        return route.ref.provider in self._elsewhere

    async def _resolve(self, model: str) -> tuple[Route, Listing]:
        listing = await self._catalog.listing()
        route = resolve_route(
            model,
            providers=self._providers,
            catalogue=listing.catalogue,
            aliases=self._aliases,
        )
        return route, listing
