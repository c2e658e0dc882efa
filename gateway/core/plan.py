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
from gateway.core.rotation import PREFIX
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

TWICE = "duplicate"
"""The code of one that means the same model as another before it."""

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
    rotation: str | None = None
    """The rotation that is asked first, by its full name."""


class Health(msgspec.Struct, frozen=True):
    """Who is not asked now: the sentence why, by provider and by model."""

    providers: Mapping[str, str] = {}
    models: Mapping[ModelRef, str] = {}

    def objection(self, ref: ModelRef) -> str | None:
        return self.providers.get(ref.provider) or self.models.get(ref)


WELL = Health()


def find_listed_state(route: Route) -> ModelState | None:
    """Return a model's state as the catalogue has it; None: nobody knows."""
    return None if route.info is None else route.info.state


def plan_routes(
    request: GenerateRequest | EmbedRequest,
    *,
    providers: Collection[str],
    catalogue: Catalogue,
    aliases: Mapping[str, str],
    rules: Mapping[str, VirtualModel],
    health: Health = WELL,
    state_of: Callable[[Route], ModelState | None] = find_listed_state,
    draw: Callable[[], float],
) -> Plan:
    """Return who may answer `request`, best first; at least one, or an error that says why not:
    what `resolve_route` raises, or UnsupportedCapability when no candidate can do what is asked.

    `draw` returns a number from 0 to 1, and is asked only where weights decide; `state_of` only
    where it matters who is in memory. Whoever is not well is asked last: better a slow error than
    none that was tried.
    """
    resolve = partial(resolve_route, providers=providers, catalogue=catalogue, aliases=aliases)
    find_rotation = partial(_find_rotation, aliases=aliases, rules=rules)
    rule = rules.get(request.model) or find_rotation(request.model)
    if rule is not None:
        look = partial(
            _look,
            needs=find_needs(request),
            least_tokens=_find_least_tokens(request),
            resolve=resolve,
            find_rotation=find_rotation,
            health=health,
            state_of=state_of if rule.order == "warm_first" else None,
        )
        return _plan_rule(request.model, rule, look, catalogue, draw)
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


def _find_rotation(
    name: str, *, aliases: Mapping[str, str], rules: Mapping[str, VirtualModel]
) -> VirtualModel | None:
    """Return the rule of the rotation that the name, or the alias, means."""
    meant = aliases.get(name, name)
    return rules.get(meant) if meant.startswith(PREFIX) else None


_NAMED = {
    "name": "It is the model that the name means.",
    "alias": "It is the model that the alias stands for.",
}


class _Able(msgspec.Struct):
    """A candidate that can do what is asked. `objection` is why it is asked last, `rotation` the
    rule of the one that it answers for; `state` is there where it matters, and known."""

    route: Route
    weight: float
    objection: str | None
    rotation: VirtualModel | None
    state: ModelState | None


def _plan_rule(
    asked: str,
    rule: VirtualModel,
    look: Callable[[Candidate], _Able],
    catalogue: Catalogue,
    draw: Callable[[], float],
) -> Plan:
    able, skipped, errors = _sift(rule, look)
    if not able:
        none = _none_is_able(rule, errors, catalogue)
        return Plan(asked, rule.order, (), tuple(skipped), rule.version, none)
    well = [each for each in able if each.objection is None]
    ill = [each for each in able if each.objection is not None]
    first, why = _first(rule, well, draw)
    ordered = [*([first] if first else []), *(each for each in well if each is not first), *ill]
    considered = [_placed(each, place, why) for place, each in enumerate(ordered)]
    rotation = rule if rule.name.startswith(PREFIX) else ordered[0].rotation
    return Plan(
        asked,
        rule.order,
        tuple(each.route for each in ordered),
        (*considered, *skipped),
        rule.version,
        rotation=rotation.name if rotation else None,
    )


def _sift(
    rule: VirtualModel, look: Callable[[Candidate], _Able]
) -> tuple[Collection[_Able], list[Considered], list[GatewayError]]:
    """Return who can do what is asked, each model once, and the others with the errors of those
    that cannot."""
    able: dict[ModelRef, _Able] = {}
    skipped: list[Considered] = []
    errors: list[GatewayError] = []
    for candidate in rule.candidates:
        try:
            found = look(candidate)
        except GatewayError as error:
            errors.append(error)
            code = TOO_LONG if isinstance(error, _SurelyTooLong) else error.code
            skipped.append(Considered(candidate.model, "skipped", error.message, code))
            continue
        known = able.setdefault(found.route.ref, found)
        if known is not found:
            known.weight += found.weight
            said = f"It means {found.route.ref}, which is there already."
            skipped.append(Considered(candidate.model, "skipped", said, TWICE))
    return able.values(), skipped, errors


def _look(
    candidate: Candidate,
    *,
    needs: Collection[Capability],
    least_tokens: int,
    resolve: Callable[[str], Route],
    find_rotation: Callable[[str], VirtualModel | None],
    health: Health,
    state_of: Callable[[Route], ModelState | None] | None,
) -> _Able:
    """Return what there is to know of a candidate; raises the error of one that cannot do it."""
    # A rotation stands for the one that answers for it now, which is its first.
    rotation = find_rotation(candidate.model)
    route = resolve(rotation.candidates[0].model if rotation else candidate.model)
    _require(needs, least_tokens, route.info)
    objection = health.objection(route.ref)
    state = state_of(route) if state_of else None
    return _Able(route, candidate.weight, objection, rotation, state)


def _placed(able: _Able, place: int, why: tuple[str, str]) -> Considered:
    said, code = why
    if able.objection is not None:
        said, code = able.objection, "resting"
    elif place and able.state not in (None, ModelState.LOADED):
        said, code = "It can do what is asked, but is not in memory.", "not_resident"
    elif place:
        said, code = "It can do what is asked.", "able"
    if able.rotation is not None:
        said = f"{said} It answers for {able.rotation.name} now."
    return Considered(str(able.route.ref), "next" if place else "chosen", said, code)


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
    rule: VirtualModel, well: list[_Able], draw: Callable[[], float]
) -> tuple[_Able | None, tuple[str, str]]:
    """Return who of those who are well is asked first, and why, in words and as a code."""
    if not well:
        return None, ("", "")
    if rule.order == "weighted":
        total = sum(each.weight for each in well)
        if total > 0:
            return _by_lot(well, draw() * total), ("Drawn by its weight.", "weight")
    if rule.order == "warm_first":
        for state, why in _WARMTH:
            for each in well:
                if each.state is state:
                    return each, why
    return well[0], ("The first that can do what is asked.", "first")


_WARMTH = (
    (ModelState.LOADED, ("It is in memory.", "resident")),
    (ModelState.LOADING, ("It is being loaded.", "loading")),
)


def _by_lot(well: list[_Able], mark: float) -> _Able:
    drawn = well[0]
    for each in well:
        if each.weight:
            drawn = each
            mark -= each.weight
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
