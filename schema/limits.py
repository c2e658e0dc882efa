"""How much a document may ask for, and the refusal of one that asks for more.

The order keeps every step cheap: the length is known at once, the parser stops at a number of
tokens, the cost is measured without unfolding fragments, and only what is then known to be small
is unfolded to count the pairs of fields that validation would compare.
"""

import msgspec
from graphql import DocumentNode, GraphQLError

from gateway.core.errors import InvalidRequest
from schema.cost import Cost, FragmentCycle, count_pairs, measure


class Limits(msgspec.Struct, frozen=True):
    """The most of each that one document may have.

    There is room for what people write and for the introspection query of GraphiQL. Each bound
    keeps one way of being slow (lexing, merging fields, explaining errors) below 20 ms.
    """

    characters: int = 24 * 1024
    lines: int = 1000
    tokens: int = 1000
    definitions: int = 30
    depth: int = 20
    selections: int = 300
    aliases: int = 10
    directives: int = 30
    pairs: int = 600
    errors: int = 5


LIMITS = Limits()


def require_short(source: str, limits: Limits = LIMITS) -> None:
    """Raise GraphQLError for a text that would take long to parse."""
    _require("characters", len(source), limits.characters)
    # Validation looks for the line of every error that it reports.
    _require("lines", source.count("\n") + source.count("\r"), limits.lines)


def require_cheap(document: DocumentNode, limits: Limits = LIMITS) -> Cost:
    """Return what the document costs; raise GraphQLError when that is more than allowed."""
    _require("definitions", len(document.definitions), limits.definitions)
    try:
        cost = measure(document)
    except FragmentCycle as cycle:
        raise _refusal(f"Fragment '{cycle.name}' spreads itself.") from None
    _require("levels of fields", cost.depth, limits.depth)
    _require("selections, fragments unfolded", cost.selections, limits.selections)
    _require("aliases, fragments unfolded", cost.aliases, limits.aliases)
    _require("directives", cost.directives, limits.directives)
    pairs, steps = count_pairs(document)
    _require("pairs of fields of one name at one place", pairs, limits.pairs)
    return msgspec.structs.replace(cost, steps=cost.steps + steps)


def _require(what: str, count: int, most: int) -> None:
    if count > most:
        raise _refusal(f"The document has more than {most} {what}.")


def _refusal(message: str) -> GraphQLError:
    cause = InvalidRequest(message, hint="Split it into several queries.", param="query")
    return GraphQLError(message, original_error=cause)
