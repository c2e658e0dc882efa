"""Who may answer a request, in which order, and why. A pure function of plain data."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Literal

import msgspec

from gateway.core.catalogue import Catalogue
from gateway.core.embeddings import EmbedRequest
from gateway.core.errors import GatewayError, ModelNotFound, UnsupportedCapability
from gateway.core.messages import GenerateRequest
from gateway.core.models import Capability, ModelInfo
from gateway.core.names import ModelRef, nearest_names
from gateway.core.routing import (
    Route,
    find_needs,
    require_capabilities,
    require_needs,
    resolve_route,
)
from gateway.core.states import ModelState
from gateway.core.virtual import Candidate, VirtualModel

CHARACTERS_A_TOKEN = 8
"""No tokenizer in use makes fewer tokens of ordinary text: a prompt is surely longer than that."""

TOO_LONG = "context_too_small"
"""The code of a candidate that was skipped because the prompt is too long for it."""

Verdict = Literal["chosen", "next", "skipped"]


class Considered(msgspec.Struct, frozen=True):
    """What became of one candidate, and why: in words for a person, and as a code for programs,
    which for one that was skipped is mostly that of the error it would have been."""

    model: str
    verdict: Verdict
    reason: str
    code: str


class Plan(msgspec.Struct, frozen=True):
    """The routes to try, in their order, and how each candidate came to its place.

    `considered` begins with those of `routes`, in the same order. Without a route there is an
    `error`. `rule` is the order of the virtual model that was asked for, "alias" or "name";
    `rule_version` is there for a virtual model only.
    """

    asked: str
    rule: str
    routes: tuple[Route, ...]
    considered: tuple[Considered, ...]
    rule_version: int | None = None
    error: GatewayError | None = None


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
    """Return who may answer `request`, best first; at least one, or an error that says why not:
    what `resolve_route` raises, or UnsupportedCapability when no candidate can do what is asked.

    `draw` returns a number from 0 to 1, and is asked only where weights decide. Whoever is not
    well is asked last: better a slow error than none that was tried.
    """
    resolve = partial(resolve_route, providers=providers, catalogue=catalogue, aliases=aliases)
    rule = rules.get(request.model)
    if rule is not None:
        return _plan_rule(request, rule, resolve, catalogue, health, draw)
    kind = "alias" if request.model in aliases else "name"
    try:
        route = resolve(request.model)
        if route.info is not None:
            require_capabilities(request, route.info)
    except GatewayError as error:
        skipped = Considered(request.model, "skipped", error.message, error.code)
        return Plan(request.model, kind, (), (skipped,), error=error.renewed())
    considered = (Considered(str(route.ref), "chosen", _NAMED[kind], kind),)
    return Plan(request.model, kind, (route,), considered)


_NAMED = {
    "name": "It is the model that the name means.",
    "alias": "It is the model that the alias stands for.",
}


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
    needs, least_tokens = find_needs(request), _find_least_tokens(request)
    for candidate in rule.candidates:
        try:
            route = resolve(candidate.model)
            _require(needs, least_tokens, route.info)
        except GatewayError as error:
            errors.append(error)
            code = TOO_LONG if isinstance(error, _SurelyTooLong) else error.code
            skipped.append(Considered(candidate.model, "skipped", error.message, code))
        else:
            able.append((candidate, route))
    if not able:
        none = _none_is_able(rule, errors, catalogue)
        return Plan(request.model, rule.order, (), tuple(skipped), rule.version, none)
    objections = {route.ref: health.objection(route.ref) for _, route in able}
    well = [pair for pair in able if objections[pair[1].ref] is None]
    ill = [pair for pair in able if objections[pair[1].ref] is not None]
    first, why = _first(rule, well, draw)
    ordered = [*([first] if first else []), *(pair for pair in well if pair is not first), *ill]
    routes = tuple(route for _, route in ordered)
    considered = [
        _placed(route, place, rule, why, objections[route.ref])
        for place, route in enumerate(routes)
    ]
    return Plan(request.model, rule.order, routes, (*considered, *skipped), rule.version)


def _placed(
    route: Route, place: int, rule: VirtualModel, why: tuple[str, str], objection: str | None
) -> Considered:
    verdict: Verdict = "next" if place else "chosen"
    if objection is not None:
        return Considered(str(route.ref), verdict, objection, "resting")
    if place == 0:
        return Considered(str(route.ref), verdict, *why)
    if rule.order == "warm_first" and route.info and route.info.state is not ModelState.LOADED:
        return Considered(
            str(route.ref),
            verdict,
            "It can do what is asked, but is not in memory.",
            "not_resident",
        )
    return Considered(str(route.ref), verdict, "It can do what is asked.", "able")


class _SurelyTooLong(UnsupportedCapability):
    """The prompt cannot fit the context of a model."""


def _find_least_tokens(request: GenerateRequest | EmbedRequest) -> int:
    """Return how many tokens a prompt has at the very least."""
    return request.text_length // CHARACTERS_A_TOKEN if isinstance(request, GenerateRequest) else 0


def _require(needs: Collection[Capability], least_tokens: int, info: ModelInfo | None) -> None:
    """Raise UnsupportedCapability for a model that surely cannot do what is asked."""
    if info is None:
        return
    require_needs(needs, info)
    if info.context_length and least_tokens > info.context_length:
        raise _SurelyTooLong(
            f"The prompt has more than {least_tokens:,} tokens; {info.id} has room for "
            f"{info.context_length:,}."
        )


def _first(
    rule: VirtualModel,
    well: list[tuple[Candidate, Route]],
    draw: Callable[[], float],
) -> tuple[tuple[Candidate, Route] | None, tuple[str, str]]:
    """Return who of those who are well is asked first, and why, in words and as a code."""
    if not well:
        return None, ("", "")
    if rule.order == "weighted":
        total = sum(candidate.weight for candidate, _ in well)
        if total > 0:
            return _by_lot(well, draw() * total), ("Drawn by its weight.", "weight")
    if rule.order == "warm_first":
        for state, why in _WARMTH:
            for pair in well:
                info = pair[1].info
                if info is not None and info.state is state:
                    return pair, why
    return well[0], ("The first that can do what is asked.", "first")


_WARMTH = (
    (ModelState.LOADED, ("It is in memory.", "resident")),
    (ModelState.LOADING, ("It is being loaded.", "loading")),
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
        return errors[0].renewed()
    reasons = " ".join(error.message for error in errors)
    if all(isinstance(error, ModelNotFound) for error in errors):
        nearest = nearest_names(rule.candidates[0].model, catalogue.refs)
        return ModelNotFound(rule.name, nearest, f"None of '{rule.name}' is there. {reasons}")
    return UnsupportedCapability(f"None of '{rule.name}' can do this. {reasons}", param="model")
