"""ModelRouterService: one `generate`, one `answer`, one `embed` over unlike providers."""

import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import anyio

from gateway.core.continuation import (
    Relay,
    can_continue,
    count_continuations,
    may_continue,
    may_recover,
)
from gateway.core.embeddings import Embeddings, EmbedRequest
from gateway.core.errors import GatewayError, IncompleteStream, ModelNotFound, ProviderUnavailable
from gateway.core.events import Collector, Event, Finished, Generation, Routed, Waiting
from gateway.core.known_plans import KnownPlans
from gateway.core.messages import GenerateRequest, Said
from gateway.core.names import nearest_names
from gateway.core.plan import Plan, find_listed_state, plan_routes
from gateway.core.ports import Continuer, Eager, Provider, RouteMeter, StateTeller
from gateway.core.retry import RetryBudget, helps_elsewhere, retry_in_s
from gateway.core.routing import Route, describe_guess
from gateway.core.states import ModelState
from gateway.core.telling import Over, Rest, Tell, Wait, tell_one
from gateway.core.trail import Trail
from gateway.core.virtual import VirtualModel
from gateway.services.catalog import Catalog, Listing
from gateway.services.health import Attempt, HealthBoard
from gateway.services.images import ImagePolicy
from gateway.services.tries import Tries
from gateway.telemetry.meter import Meter

AnyRequest = GenerateRequest | EmbedRequest


class ModelRouterService:
    """Finds the provider that a request means, and has it answer.

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
        max_continuations: int = 3,
        asked: Callable[[str], None] | None = None,
        meter: RouteMeter | None = None,
        draw: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """`rules` may change meanwhile; `asked` is told of each request the rotation that it goes
        to, by its full name, and must not block. `max_continuations` is how often an answer that
        may go on after a failure does."""
        self._providers = providers
        self._eager = {
            name: provider for name, provider in providers.items() if isinstance(provider, Eager)
        }
        self._catalog = catalog
        self._aliases = aliases
        self._images = images
        self.health = HealthBoard(providers, clock)
        self._rules = {} if rules is None else rules
        self._asked = asked
        self._max_continuations = max_continuations
        self._clock = clock
        self._budget = RetryBudget()
        self._meter = meter or Meter()
        self._draw = draw
        self._sleep = sleep
        self._known_plans = KnownPlans(aliases=self._aliases, rules=self._rules)

    async def generate(self, request: GenerateRequest) -> Generation:
        """Return the whole answer; raises what `answer` raises."""
        collector = Collector()
        await self.answer(request, collector.add_all)
        return collector.whole()

    async def explain(self, request: AnyRequest) -> Plan:
        """Return what would be decided now, with its error where nobody could serve the request.
        Nobody is asked to answer, and nothing is counted."""
        plan = self._draft(request, await self._catalog.known())
        if isinstance(plan.error, ModelNotFound):
            # It may have come since the last look.
            plan = self._draft(request, await self._catalog.listing())
        return plan

    async def answer(
        self, request: GenerateRequest, tell: Tell, trail: Trail | None = None
    ) -> None:
        """Tell the grammar of `core.events`, with exactly one Finished at the end.

        Who fails before he said anything is asked again, or the next candidate is, as
        `core.retry` has it; after that nothing is repeated. An answer that breaks later is gone on
        with where the caller, or the rule of the name, wants that (`core.continuation`).

        Raises a GatewayError before the first event for a request that nobody can serve, and at
        any later point for a provider that fails; a stream that just stops is IncompleteStream.
        Being cancelled stops the model within a token. What happens is noted in `trail`.
        """
        trail = trail or Trail(self._clock)
        await self._images.check(request)
        plan = await self._plan(request, trail)
        self._budget.earn()
        await self._walk(_Course(request, tell, trail, Tries(plan.routes), self._relay(request)))

    def begin(
        self, request: GenerateRequest, tell: Tell, trail: Trail, over: Over
    ) -> Callable[[], None] | None:
        """Begin to do as `answer`, and return what cancels it; see `core.ports.Eager`. None where
        the first candidate's provider cannot, or something is to be looked into first."""
        listing = self._catalog.latest
        if listing is None or request.has_images:
            return None
        plan = self._draft(request, listing)
        if plan.error is not None:
            return None
        ref = plan.routes[0].ref
        provider = self._eager.get(ref.provider)
        if provider is None or not self.health.is_well(ref):
            return None
        relay = self._relay(request)
        part = _Part(_Course(request, tell, trail, Tries(plan.routes), relay))
        part.attempt = self.health.attempt(ref)
        asked = request if relay is None else relay.begin()
        cancel = provider.begin(asked, ref, part.hear, partial(self._note_end, part, over))
        if cancel is not None:
            self._note(plan, trail)
            self._budget.earn()
            trail.ask(0)
            tell((Routed(ref),))  # nobody reads it: there is nothing to wait for
        return cancel

    def _note_end(self, part: "_Part", over: Over, rest: Rest | None) -> None:
        """A part that began without a task came as far as a provider takes it."""
        if rest is None and part.is_over:
            over(None)
        else:
            over(partial(self._walk, part.course, part, rest or _nothing))

    async def _walk(
        self, course: "_Course", part: "_Part | None" = None, rest: Rest | None = None
    ) -> None:
        """Ask one candidate after the other until the answer is whole. With `part` the first of
        them is asked already, and `rest` is what is left of that."""
        relay, tries = course.relay, course.tries
        while True:
            if part is None:
                if relay is not None and relay.is_full:
                    await tell_one(course.tell, relay.end())
                    return
                course.trail.ask(tries.place)
                await tell_one(course.tell, Routed(tries.route.ref, tries.after))
                part = _Part(course)
            try:
                await self._ask(course, part, rest)
                return
            except GatewayError as error:
                if part.is_over:
                    return
                course.trail.fail(error)
                if not part.has_begun:
                    is_taken_on = await self._goes_on(tries, error)
                else:
                    is_taken_on = relay is not None and self._goes_over(relay, tries, error)
                if is_taken_on:
                    part = rest = None
                    continue
                described = await self._in_words(course.request, tries.route, error)
                if described is error:
                    raise
                raise described from error

    async def _ask(self, course: "_Course", part: "_Part", rest: Rest | None) -> None:
        """Have one provider say its part, or the `rest` of it; keep in mind whether it works."""
        ref = course.tries.route.ref
        provider = self._providers[ref.provider]
        if rest is None:
            relay = course.relay
            asked = course.request if relay is None else relay.begin()
            part.attempt = self.health.attempt(ref)
            rest = partial(provider.answer, asked, ref, part.hear)
        with part.attempt:
            try:
                await rest()
            except _Enough:
                return
            if not part.is_over:
                raise IncompleteStream(provider.name, f"{provider.name} stopped without an end.")

    async def embed(self, request: EmbedRequest, trail: Trail | None = None) -> Embeddings:
        """Return one vector for each input; being cancelled stops the model.

        Raises a GatewayError for a request that nobody can serve and for a provider that fails.
        What happens is noted in `trail`.
        """
        trail = trail or Trail(self._clock)
        plan = await self._plan(request, trail)
        self._budget.earn()
        tries = Tries(plan.routes)
        while True:
            ref = tries.route.ref
            trail.ask(tries.place)
            try:
                with self.health.attempt(ref) as attempt:
                    embeddings = await self._providers[ref.provider].embed(request, ref)
                    attempt.answered()
                    return embeddings
            except GatewayError as error:
                trail.fail(error)
                if await self._goes_on(tries, error):
                    continue
                described = await self._in_words(request, tries.route, error)
                if described is error:
                    raise
                raise described from error

    async def _goes_on(self, tries: Tries, error: GatewayError) -> bool:
        """Turn to the same candidate again or to the next one; False: it ends with the error."""
        tries.after, provider = error.code, tries.route.ref.provider
        wait_s = retry_in_s(error, tries.count, self._draw)
        if wait_s is not None and self._budget.spend():
            self._meter.retried(provider, error.code)
            await self._sleep(wait_s)
            tries.count += 1
            return True
        if not (helps_elsewhere(error) and tries.turn()):
            return False
        self._meter.fell_back(provider, error.code)
        return True

    def _relay(self, request: GenerateRequest) -> Relay | None:
        most = count_continuations(request, self._rules.get(request.model), self._max_continuations)
        return Relay(request, most) if most else None

    def _goes_over(self, relay: Relay, tries: Tries, error: GatewayError) -> bool:
        """Turn to whoever may go on with an answer that broke; False: it ends with the error.

        The other candidates come first. To ask the one again that broke is a repetition, and paid
        for as one where nobody else is left.
        """
        if not (relay.left and may_continue(error)):
            return False
        said = relay.said
        able = [route for route in tries.others if self._can_continue(relay.request, said, route)]
        again = may_recover(error) and self._can_continue(relay.request, said, tries.route)
        if again and (able or self._budget.spend()):
            able.append(tries.route)
        if not able and not relay.is_full:
            return False
        relay.break_off(error.code)
        tries.restart(able, error.code)
        return True

    def _can_continue(self, request: GenerateRequest, said: Said, route: Route) -> bool:
        provider = self._providers[route.ref.provider]
        takes_text = isinstance(provider, Continuer) and provider.continues(request, route.ref)
        return can_continue(request, said, route.ref, takes_text=takes_text)

    async def _plan(self, request: AnyRequest, trail: Trail) -> Plan:
        """Return a plan with a route; raises the error of one without."""
        trail.plan = plan = await self.explain(request)
        if plan.error is not None:
            raise plan.error.renewed()  # the plan is kept, and must not keep what is raised
        self._note(plan, trail)
        return plan

    def _note(self, plan: Plan, trail: Trail) -> None:
        """A request goes by this plan."""
        trail.plan = plan
        if plan.rotation is not None and self._asked is not None:
            self._asked(plan.rotation)

    def _draft(self, request: AnyRequest, listing: Listing) -> Plan:
        known = self._known_plans.find(request, listing.catalogue)
        if known is not None:
            return known
        plan = plan_routes(
            request,
            providers=self._providers,
            catalogue=listing.catalogue,
            aliases=self._aliases,
            rules=self._rules,
            health=self.health.view(),
            state_of=self._find_state,
            draw=self._draw,
        )
        self._known_plans.keep(plan, listing.catalogue)
        return plan

    def _find_state(self, route: Route) -> ModelState | None:
        """Return whether a model is in memory now, as far as that is known without asking."""
        provider = self._providers.get(route.ref.provider)
        known = provider.state_of(route.ref) if isinstance(provider, StateTeller) else None
        return known or find_listed_state(route)

    async def _in_words(
        self, request: AnyRequest, route: Route, error: GatewayError
    ) -> GatewayError:
        """Return the error as it helps the caller most."""
        if isinstance(error, ModelNotFound):
            return await self._not_found(request, error)
        if isinstance(error, ProviderUnavailable):
            listing = await self._catalog.known()
            return describe_guess(request.model, route, error, listing.catalogue)
        return error

    async def _not_found(self, request: AnyRequest, error: ModelNotFound) -> ModelNotFound:
        """Return the error in the caller's own words, with the nearest names of all providers."""
        listing = await self._catalog.listing()
        nearest = nearest_names(request.model, listing.catalogue.refs)
        return ModelNotFound(request.model, nearest or error.nearest)


class _Enough(Exception):
    """The answer is whole, whatever its provider would still say."""


class _Course:
    """A request on its way through its plan."""

    __slots__ = ("relay", "request", "tell", "trail", "tries")

    def __init__(
        self, request: GenerateRequest, tell: Tell, trail: Trail, tries: Tries, relay: Relay | None
    ) -> None:
        self.request = request
        self.tell = tell
        self.trail = trail
        self.tries = tries
        self.relay = relay


class _Part:
    """What one provider says, on its way to who asked."""

    __slots__ = ("_relay", "_tell", "attempt", "course", "has_begun", "is_over")

    attempt: Attempt

    def __init__(self, course: _Course) -> None:
        self.course = course
        self.has_begun = False
        """Whether there was more than waiting."""
        self.is_over = False
        self._tell = course.tell
        self._relay = course.relay

    def hear(self, events: Sequence[Event]) -> Wait | None:
        if self.is_over:
            raise _Enough
        if not self.has_begun and any(not isinstance(event, Waiting) for event in events):
            self.has_begun = True
            self.attempt.answered()
        if self._relay is not None:
            return self._hear_by(self._relay, events)
        self.is_over = type(events[-1]) is Finished
        return self._tell(events)

    def _hear_by(self, relay: Relay, events: Sequence[Event]) -> Wait | None:
        told: list[Event] = []
        for event in events:
            told += relay.tell(event)
            if told and type(told[-1]) is Finished:
                self.is_over = True
                break
        wait = self._tell(told) if told else None
        if self.is_over and type(events[-1]) is not Finished:
            return partial(_stop_after, wait)
        return wait


async def _nothing() -> None:
    """What is left of an answer that just stopped."""


async def _stop_after(wait: Wait | None) -> None:
    if wait is not None:
        await wait()
    raise _Enough
