"""ModelRouterService: one `generate`, one `stream`, one `embed` over unlike providers."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from gateway.core.embeddings import Embeddings, EmbedRequest
from gateway.core.errors import IncompleteStream, ModelNotFound, ProviderUnavailable
from gateway.core.events import Event, Finished, Generation, Routed, collect
from gateway.core.messages import GenerateRequest
from gateway.core.names import nearest_names
from gateway.core.ports import Provider
from gateway.core.routing import Route, choose_route
from gateway.services.catalog import Catalog, Listing
from gateway.services.images import ImagePolicy

AnyRequest = GenerateRequest | EmbedRequest


class ModelRouterService:
    """Finds the provider that a request means and streams from it.

    Keeps no state of its own: admission and records belong to `services.streams`.
    """

    def __init__(
        self,
        providers: Mapping[str, Provider],
        catalog: Catalog,
        *,
        aliases: Mapping[str, str],
        images: ImagePolicy,
    ) -> None:
        self._providers = providers
        self._catalog = catalog
        self._aliases = aliases
        self._images = images

    async def generate(self, request: GenerateRequest) -> Generation:
        """Return the whole answer; raises what `stream` raises."""
        async with aclosing(self.stream(request)) as events:
            return await collect(events)

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Yield `Routed Waiting* Started Delta* Finished`, with exactly one Finished at the end.

        Raises a GatewayError before the first event for a request that nobody can serve, and at
        any later point for a provider that fails; a stream that just stops is IncompleteStream.
        Closing the generator stops the model within a token.
        """
        await self._images.check(request)
        route = await self._route(request)
        yield Routed(route.ref)
        provider = self._providers[route.ref.provider]
        async with aclosing(provider.stream(request, route.ref)) as events:
            try:
                async for event in events:
                    yield event
                    if isinstance(event, Finished):
                        return
            except ModelNotFound as error:
                raise await self._not_found(request, error) from error
            except ProviderUnavailable as error:
                raise await self._unless_guessed(request, route, error) from error
        raise IncompleteStream(provider.name, f"{provider.name} stopped without an end.")

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Return one vector for each input; being cancelled stops the model.

        Raises a GatewayError for a request that nobody can serve and for a provider that fails.
        """
        route = await self._route(request)
        try:
            return await self._providers[route.ref.provider].embed(request, route.ref)
        except ModelNotFound as error:
            raise await self._not_found(request, error) from error
        except ProviderUnavailable as error:
            raise await self._unless_guessed(request, route, error) from error

    async def _route(self, request: AnyRequest) -> Route:
        try:
            return self._choose(request, await self._catalog.known())
        except ModelNotFound:
            # It may have come since the last look.
            return self._choose(request, await self._catalog.listing())

    def _choose(self, request: AnyRequest, listing: Listing) -> Route:
        return choose_route(
            request,
            providers=self._providers,
            catalogue=listing.catalogue,
            aliases=self._aliases,
        )

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
