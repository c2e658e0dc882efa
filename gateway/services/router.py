"""ModelRouterService: one `generate`, one `stream`, one `embed` over unlike providers."""

import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing

import anyio

from gateway.core.embeddings import Embeddings, EmbedRequest
from gateway.core.errors import GatewayError, IncompleteStream, ModelNotFound, ProviderUnavailable
from gateway.core.events import Event, Finished, Generation, Routed, Waiting, collect
from gateway.core.messages import GenerateRequest
from gateway.core.names import nearest_names
from gateway.core.plan import Plan, plan_routes
from gateway.core.ports import Provider
from gateway.core.retry import RetryBudget, helps_elsewhere, retry_in_s
from gateway.core.routing import Route
from gateway.core.virtual import VirtualModel
from gateway.services.catalog import Catalog, Listing
from gateway.services.health import HealthBoard
from gateway.services.images import ImagePolicy

AnyRequest = GenerateRequest | EmbedRequest


class ModelRouterService:
    """Finds the provider that a request means and streams from it.

    Admission and records belong to `services.streams`.
    """

    def __init__(
        self,
        providers: Mapping[str, Provider],
        catalog: Catalog,
        *,
        aliases: Mapping[str, str],
        images: ImagePolicy,
        rules: Mapping[str, VirtualModel] | None = None,
        draw: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._providers = providers
        self._catalog = catalog
        self._aliases = aliases
        self._images = images
        self.health = HealthBoard(providers, clock)
        self._rules = rules or {}
        self._budget = RetryBudget()
        self._draw = draw
        self._sleep = sleep

    async def generate(self, request: GenerateRequest) -> Generation:
        """Return the whole answer; raises what `stream` raises."""
        async with aclosing(self.stream(request)) as events:
            return await collect(events)

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Yield `(Routed Waiting*)+ Started Delta* Finished`, with exactly one Finished at the end.

        Who fails before he said anything is asked again, or the next candidate is, as
        `core.retry` has it; after that nothing is repeated.

        Raises a GatewayError before the first event for a request that nobody can serve, and at
        any later point for a provider that fails; a stream that just stops is IncompleteStream.
        Closing the generator stops the model within a token.
        """
        await self._images.check(request)
        plan = await self._plan(request)
        self._budget.earn()
        tries = _Tries(plan)
        while True:
            route = tries.route
            yield Routed(route.ref, tries.after)
            has_begun = False
            try:
                async with aclosing(self._ask(request, route)) as events:
                    async for event in events:
                        has_begun = has_begun or not isinstance(event, Waiting)
                        yield event
                        if isinstance(event, Finished):
                            return
            except GatewayError as error:
                if not has_begun and await self._goes_on(tries, error):
                    continue
                described = await self._in_words(request, route, error)
                if described is error:
                    raise
                raise described from error

    async def _ask(self, request: GenerateRequest, route: Route) -> AsyncGenerator[Event, None]:
        """Yield what one provider says, and keep in mind whether it works."""
        provider = self._providers[route.ref.provider]
        with self.health.attempt(route.ref) as attempt:
            async with aclosing(provider.stream(request, route.ref)) as events:
                async for event in events:
                    if not isinstance(event, Waiting):
                        attempt.answered()
                    yield event
                    if isinstance(event, Finished):
                        return
            raise IncompleteStream(provider.name, f"{provider.name} stopped without an end.")

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Return one vector for each input; being cancelled stops the model.

        Raises a GatewayError for a request that nobody can serve and for a provider that fails.
        """
        plan = await self._plan(request)
        self._budget.earn()
        tries = _Tries(plan)
        while True:
            ref = tries.route.ref
            try:
                with self.health.attempt(ref) as attempt:
                    embeddings = await self._providers[ref.provider].embed(request, ref)
                    attempt.answered()
                    return embeddings
            except GatewayError as error:
                if await self._goes_on(tries, error):
                    continue
                described = await self._in_words(request, tries.route, error)
                if described is error:
                    raise
                raise described from error

    async def _goes_on(self, tries: "_Tries", error: GatewayError) -> bool:
        """Turn to the same candidate again or to the next one; False: it ends with the error."""
        tries.after = error.code
        wait_s = retry_in_s(error, tries.count, self._draw)
        if wait_s is not None and self._budget.spend():
            await self._sleep(wait_s)
            tries.count += 1
            return True
        return helps_elsewhere(error) and tries.turn()

    async def _plan(self, request: AnyRequest) -> Plan:
        try:
            return self._choose(request, await self._catalog.known())
        except ModelNotFound:
            # It may have come since the last look.
            return self._choose(request, await self._catalog.listing())

    def _choose(self, request: AnyRequest, listing: Listing) -> Plan:
        return plan_routes(
            request,
            providers=self._providers,
            catalogue=listing.catalogue,
            aliases=self._aliases,
            rules=self._rules,
            health=self.health.view(),
            draw=self._draw,
        )

    async def _in_words(
        self, request: AnyRequest, route: Route, error: GatewayError
    ) -> GatewayError:
        """Return the error as it helps the caller most."""
        if isinstance(error, ModelNotFound):
            return await self._not_found(request, error)
        if isinstance(error, ProviderUnavailable):
            return await self._unless_guessed(request, route, error)
        return error

    async def _not_found(self, request: AnyRequest, error: ModelNotFound) -> ModelNotFound:
        """Return the error in the caller's own words, with the nearest names of all providers."""
        listing = await self._catalog.listing()
        nearest = nearest_names(request.model, listing.catalogue.refs)
        return ModelNotFound(request.model, nearest or error.nearest)

    async def _unless_guessed(
        self, request: AnyRequest, route: Route, error: ProviderUnavailable
    ) -> ProviderUnavailable:
        """Return the error; for a bare name that nobody is known to have, say so first."""
        if route.info is not None or request.model.startswith(f"{error.provider}/"):
            return error
        listing = await self._catalog.known()
        nearest = nearest_names(request.model, listing.catalogue.refs)
        guess = f"Did you mean {' or '.join(nearest)}? " if nearest else ""
        return ProviderUnavailable(
            error.provider,
            f"No model '{request.model}' is known here, and {error.provider}, which might have "
            f"it, is away: {error.message}",
            hint=f"{guess}Models are named provider/name; GET /v1/models lists them.",
        )


class _Tries:
    """Where a request is in its plan."""

    def __init__(self, plan: Plan) -> None:
        self._routes = iter(plan.routes)
        self.route = next(self._routes)
        self.count = 1
        self.after: str | None = None

    def turn(self) -> bool:
        """Go on to the next candidate; False when there is none."""
        route = next(self._routes, None)
        if route is None:
            return False
        self.route, self.count = route, 1
        return True
