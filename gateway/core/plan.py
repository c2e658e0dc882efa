"""Who may answer a request, in which order, and why. A pure function of plain data."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Literal

import msgspec

from gateway.core.catalogue import Catalogue
from gateway.core.embeddings import EmbedRequest
from gateway.core.errors import GatewayError, ModelNotFound, UnsupportedCapability
from gateway.core.messages import GenerateRequest
from gateway.core.names import ModelRef, nearest_names
from gateway.core.routing import Route, require_capabilities, resolve_route
from gateway.core.states import ModelState
from gateway.core.virtual import Candidate, VirtualModel

CHARACTERS_A_TOKEN = 8
"""No tokenizer in use makes fewer tokens of ordinary text: a prompt is surely longer than that."""

Verdict = Literal["chosen", "next", "skipped"]


class Considered(msgspec.Struct, frozen=True):
    """What became of one candidate, and why, in words for a person."""

    model: str
    verdict: Verdict
    reason: str


class Plan(msgspec.Struct, frozen=True):
    """The routes to try, in their order, and how each candidate came to its place."""

    asked: str
    rule: str
    routes: tuple[Route, ...]
    considered: tuple[Considered, ...]


class Health(msgspec.Struct, frozen=True):
    """Who is not asked now: the sentence why, by provider and by model."""

    providers: Mapping[str, str] = {}
    models: Mapping[ModelRef, str] = {}

    def objection(self, ref: ModelRef) -> str | None:
        return self.providers.get(ref.provider) or self.models.get(ref)


WELL = Health()


def plan_routes(
    request: GenerateRequest | EmbedRequest,
    *,
    providers: Collection[str],
    catalogue: Catalogue,
    aliases: Mapping[str, str],
    rules: Mapping[str, VirtualModel],
    health: Health = WELL,
    draw: Callable[[], float],
) -> Plan:
    """Return who may answer `request`, best first; there is at least one.

    `draw` returns a number from 0 to 1, and is asked only where weights decide. Whoever is not
    well is asked last: better a slow error than none that was tried.

    Raises what `resolve_route` does, and UnsupportedCapability when no candidate can do what is
    asked.
    """
    resolve = partial(resolve_route, providers=providers, catalogue=catalogue, aliases=aliases)
    rule = rules.get(request.model)
    if rule is not None:
        return _plan_rule(request, rule, resolve, catalogue, health, draw)
    route = resolve(request.model)
    if route.info is not None:
        require_capabilities(request, route.info)
    reason = "It is the model that the name means."
    considered = (Considered(str(route.ref), "chosen", reason),)
    return Plan(request.model, "name", (route,), considered)


def _plan_rule(
    request: GenerateRequest | EmbedRequest,
    rule: VirtualModel,
    resolve: Callable[[str], Route],
    catalogue: Catalogue,
    health: Health,
    draw: Callable[[], float],
) -> Plan:
    able: list[tuple[Candidate, Route]] = []
    skipped: list[Considered] = []
    errors: list[GatewayError] = []
    for candidate in rule.candidates:
        try:
            route = resolve(candidate.model)
            _require(request, route)
        except GatewayError as error:
            errors.append(error)
            skipped.append(Considered(candidate.model, "skipped", error.message))
        else:
            able.append((candidate, route))
    if not able:
        raise _none_is_able(rule, errors, catalogue)
    well = [pair for pair in able if health.objection(pair[1].ref) is None]
    ill = [pair for pair in able if health.objection(pair[1].ref) is not None]
    first, reason = _first(rule, well, draw)
    ordered = [*([first] if first else []), *(pair for pair in well if pair is not first), *ill]
    considered = []
    for place, (_, route) in enumerate(ordered):
        said = health.objection(route.ref) or (reason if place == 0 else "It can do what is asked.")
        considered.append(Considered(str(route.ref), "next" if place else "chosen", said))
    routes = tuple(route for _, route in ordered)
    return Plan(request.model, rule.order, routes, (*considered, *skipped))


def _require(request: GenerateRequest | EmbedRequest, route: Route) -> None:
    info = route.info
    if info is None:
        return
    require_capabilities(request, info)
    if isinstance(request, GenerateRequest) and info.context_length:
        least = request.text_length // CHARACTERS_A_TOKEN
        if least > info.context_length:
            raise UnsupportedCapability(
                f"The prompt has more than {least:,} tokens; {info.id} has room for "
                f"{info.context_length:,}."
            )


def _first(
    rule: VirtualModel,
    well: list[tuple[Candidate, Route]],
    draw: Callable[[], float],
) -> tuple[tuple[Candidate, Route] | None, str]:
    if not well:
        return None, ""
    if rule.order == "weighted":
        total = sum(candidate.weight for candidate, _ in well)
        if total > 0:
            return _by_lot(well, draw() * total), "Drawn by its weight."
    if rule.order == "warm_first":
        for state, reason in _WARMTH:
            for pair in well:
                info = pair[1].info
                if info is not None and info.state is state:
                    return pair, reason
    return well[0], "The first that can do what is asked."


_WARMTH = (
    (ModelState.LOADED, "It is in memory."),
    (ModelState.LOADING, "It is being loaded."),
)


def _by_lot(well: list[tuple[Candidate, Route]], mark: float) -> tuple[Candidate, Route]:
    drawn = well[0]
    for pair in well:
        if pair[0].weight:
            drawn = pair
            mark -= pair[0].weight
            if mark < 0:
                break
    return drawn


def _none_is_able(
    rule: VirtualModel, errors: list[GatewayError], catalogue: Catalogue
) -> GatewayError:
    if len(errors) == 1:
        return errors[0]
    reasons = " ".join(error.message for error in errors)
    if all(isinstance(error, ModelNotFound) for error in errors):
        nearest = nearest_names(rule.candidates[0].model, catalogue.refs)
        return ModelNotFound(rule.name, nearest, f"None of '{rule.name}' is there. {reasons}")
    return UnsupportedCapability(f"None of '{rule.name}' can do this. {reasons}", param="model")
