"""What a parsed document asks for, fragments included. Pure: knows no limits and refuses nothing.

Each definition is walked once, and its cost is added wherever it is spread (`measure`), so the
work follows the length of the document's text and never what the text unfolds to.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import msgspec
from graphql import (
    DocumentNode,
    ExecutableDefinitionNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    InlineFragmentNode,
    SelectionNode,
)


class FragmentCycle(Exception):
    """Fragments that spread each other in a circle; `name` is one of them."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Cost(msgspec.Struct, frozen=True):
    """What a document asks for; `steps` is the work that finding it out took.

    `selections` are fields, spreads and inline fragments, counted wherever they are spread, as
    are `aliases`; `directives` are counted where they stand in the text.
    """

    depth: int = 0
    selections: int = 0
    aliases: int = 0
    directives: int = 0
    steps: int = 0


def measure(document: DocumentNode) -> Cost:
    """Return the cost of all operations, and of the fragments that nobody spreads, together.

    Raises FragmentCycle.
    """
    parts = _parts_of(document)
    named = {part.fragment: part for part in parts if part.fragment is not None}
    totals: dict[str, Cost] = {}
    for name in _inner_first(named):
        totals[name] = named[name].total(totals)
    roots = [part.total(totals) for part in _roots_of(parts)]
    return Cost(
        depth=max((root.depth for root in roots), default=0),
        selections=sum(root.selections for root in roots),
        aliases=sum(root.aliases for root in roots),
        directives=sum(part.directives for part in parts),
        steps=sum(part.steps for part in parts),
    )


def count_pairs(document: DocumentNode) -> tuple[int, int]:
    """Return how many pairs of fields validation will compare, and the steps counting took.

    Source: "Field Selection Merging" in the GraphQL specification: two fields are compared when
    they have one response name at one place; fragments spread at one place are compared alike.
    This unfolds every fragment: only for documents whose `measure` is small.
    """
    parts = _parts_of(document)
    fragments = {part.fragment: part.selections_at_top for part in parts}
    counts: Counter[tuple[str | int, ...]] = Counter()
    stack: list[tuple[tuple[str | int, ...], Sequence[SelectionNode]]] = [
        ((index,), root.selections_at_top) for index, root in enumerate(_roots_of(parts))
    ]
    steps = sum(part.steps for part in parts)
    while stack:
        place, selections = stack.pop()
        for selection in selections:
            steps += 1
            inner = place
            inside = _selections_in(selection)
            if isinstance(selection, FieldNode):
                inner = (*place, (selection.alias or selection.name).value)
                counts[inner] += 1
            elif isinstance(selection, FragmentSpreadNode):
                counts[(*place, "...")] += 1
                inside = fragments.get(selection.name.value, ())
            stack.append((inner, inside))
    return sum(count * (count - 1) // 2 for count in counts.values()), steps


class _Part:
    """One definition by itself: what it holds, and which fragments it spreads at which depth."""

    def __init__(self, definition: ExecutableDefinitionNode) -> None:
        is_fragment = isinstance(definition, FragmentDefinitionNode)
        self.fragment = definition.name.value if is_fragment and definition.name else None
        self.selections_at_top = definition.selection_set.selections
        self.depth = self.selections = self.aliases = self.steps = 0
        self.directives = _count_directives(definition)
        self.spreads: list[tuple[str, int]] = []
        stack: list[tuple[Sequence[SelectionNode], int]] = [(self.selections_at_top, 0)]
        while stack:
            selections, depth = stack.pop()
            for selection in selections:
                stack.append(self._add(selection, depth))

    def total(self, totals: Mapping[str, Cost]) -> Cost:
        """Return the cost with that of the fragments; a spread of an unknown one costs itself."""
        self.steps += len(self.spreads)
        inner = [(totals.get(name, Cost()), depth) for name, depth in self.spreads]
        return Cost(
            depth=max([self.depth, *(depth + cost.depth for cost, depth in inner)]),
            selections=self.selections + sum(cost.selections for cost, _ in inner),
            aliases=self.aliases + sum(cost.aliases for cost, _ in inner),
        )

    def _add(self, selection: SelectionNode, depth: int) -> tuple[Sequence[SelectionNode], int]:
        """Count one selection; return those inside it, and their depth."""
        self.steps += 1
        self.selections += 1
        self.directives += len(selection.directives or ())
        if isinstance(selection, FragmentSpreadNode):
            self.spreads.append((selection.name.value, depth))
        if isinstance(selection, FieldNode):
            self.aliases += selection.alias is not None
            depth += 1
            self.depth = max(self.depth, depth)
        return _selections_in(selection), depth


def _parts_of(document: DocumentNode) -> list[_Part]:
    return [_Part(d) for d in document.definitions if isinstance(d, ExecutableDefinitionNode)]


def _roots_of(parts: Sequence[_Part]) -> list[_Part]:
    """Return the operations and the fragments that nobody spreads: all is reached from these."""
    spread = {name for part in parts for name, _ in part.spreads}
    return [part for part in parts if part.fragment is None or part.fragment not in spread]


def _inner_first(parts: Mapping[str, _Part]) -> Iterator[str]:
    """Yield every fragment after all that it spreads. Without recursion: chains may be long."""
    done: set[str] = set()
    entered: set[str] = set()
    stack = list(parts)
    while stack:
        name = stack[-1]
        if name in done:
            stack.pop()
        elif name in entered:
            stack.pop()
            done.add(name)
            yield name
        else:
            entered.add(name)
            parts[name].steps += len(parts[name].spreads)
            stack.extend(_not_done(parts, name, entered, done))


def _not_done(
    parts: Mapping[str, _Part], name: str, entered: set[str], done: set[str]
) -> Iterator[str]:
    for inner, _ in parts[name].spreads:
        if inner in parts and inner not in done:
            if inner in entered:
                raise FragmentCycle(inner)
            yield inner


def _selections_in(selection: SelectionNode) -> Sequence[SelectionNode]:
    if isinstance(selection, FieldNode | InlineFragmentNode) and selection.selection_set:
        return selection.selection_set.selections
    return ()


def _count_directives(definition: ExecutableDefinitionNode) -> int:
    variables = definition.variable_definitions or ()
    of_variables = sum(len(variable.directives or ()) for variable in variables)
    return len(definition.directives or ()) + of_variables
