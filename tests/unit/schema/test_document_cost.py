"""schema.cost: right against a plain unfolding, and never more work than the text is long."""

import pytest
from graphql import (
    ExecutableDefinitionNode,
    FieldNode,
    FragmentSpreadNode,
    SelectionSetNode,
    get_introspection_query,
    parse,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from schema.cost import Cost, FragmentCycle, count_pairs, measure


def exponential(levels: int) -> str:
    """A short document whose fragments unfold to 2 ** levels fields."""
    links = "".join(f"fragment f{i} on Q {{...f{i + 1} ...f{i + 1}}}" for i in range(levels))
    return f"{{...f0}}{links}fragment f{levels} on Q {{a}}"


def test_a_plain_query_is_counted_field_by_field() -> None:
    document = parse("query A @x { a: b { c @y { d } } ... on Q @z { e } }")
    cost = measure(document)
    assert (cost.depth, cost.selections, cost.aliases, cost.directives) == (3, 5, 1, 3)


def test_a_fragment_counts_wherever_it_is_spread() -> None:
    document = parse("{ a { ...F } b { c { ...F } } } fragment F on Q { x: y { z } }")
    cost = measure(document)
    assert (cost.depth, cost.selections, cost.aliases) == (4, 9, 2)


def test_a_fragment_that_nobody_spreads_counts_too() -> None:
    assert measure(parse("{ a } fragment F on Q { b { c } }")).selections == 3


def test_directives_of_variables_and_fragments_count() -> None:
    document = parse("query ($a: Int @x) @y { ...F @z } fragment F on Q @w { b }")
    assert measure(document).directives == 4


@pytest.mark.parametrize(
    "text",
    [
        "{ ...A } fragment A on Q { ...A }",
        "{ ...A } fragment A on Q { a { ...B } } fragment B on Q { ...C } fragment C on Q { ...A }",
        "{ b } fragment A on Q { ...B } fragment B on Q { ...A }",
    ],
)
def test_a_circle_of_fragments_is_found(text: str) -> None:
    with pytest.raises(FragmentCycle):
        measure(parse(text))


def test_fragments_that_meet_again_are_no_circle() -> None:
    text = "{ ...A ...B } fragment A on Q {...C} fragment B on Q {...A ...C} fragment C on Q {c}"
    assert measure(parse(text)).selections == 9


def test_nested_fragments_unfold_without_being_unfolded() -> None:
    text = exponential(18)
    assert len(text) < 700
    cost = measure(parse(text))
    assert cost.selections == 2**18 + 2 * (2**18 - 1) + 1
    assert cost.steps < 150


def test_a_chain_of_fragments_longer_than_the_stack_is_measured() -> None:
    links = "".join(f"fragment f{i} on Q {{a {{...f{i + 1}}}}}" for i in range(5000))
    cost = measure(parse(f"{{...f0}}{links}fragment f5000 on Q {{a}}"))
    assert cost.depth == 5001
    assert cost.steps < 5 * 5002


def test_ten_thousand_aliases_take_one_step_each() -> None:
    text = "{" + " ".join(f"a{i}: b" for i in range(10_000)) + "}"
    cost = measure(parse(text))
    assert (cost.aliases, cost.steps) == (10_000, 10_000)


def test_directives_take_no_steps_of_their_own() -> None:
    cost = measure(parse("{ a " + "@b " * 20_000 + "}"))
    assert (cost.directives, cost.steps) == (20_000, 1)


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("{ a b c }", 0),
        ("{ a a a a }", 6),
        ("{ x: a x: b }", 1),
        ("{ a { b } a { b } }", 2),
        ("{ a { b } c { b } }", 0),
        ("{ ...F ...F } fragment F on Q { a }", 2),
        ("{ a ... on Q { a } ...F } fragment F on Q { a }", 3),
        ("query A { a } query B { a }", 0),
    ],
)
def test_pairs_are_fields_of_one_name_at_one_place(text: str, pairs: int) -> None:
    assert count_pairs(parse(text))[0] == pairs


def test_the_introspection_of_graphql_core_has_no_pairs() -> None:
    assert count_pairs(parse(get_introspection_query()))[0] == 0


# Documents of up to six fragments; a fragment spreads only later ones, so there is no circle.
FRAGMENTS = 6


def selection_sets(first: int) -> st.SearchStrategy[str]:
    names = [f"...f{i}" for i in range(first, FRAGMENTS)] + ["a", "b", "x: a", "...missing"]
    leaves = st.sampled_from(names)
    sets = st.recursive(
        st.lists(leaves, min_size=1, max_size=4),
        lambda inner: st.lists(
            st.one_of(
                leaves,
                st.builds("a {{ {} }}".format, inner.map(" ".join)),
                st.builds("... on Q {{ {} }}".format, inner.map(" ".join)),
            ),
            min_size=1,
            max_size=4,
        ),
        max_leaves=12,
    )
    return sets.map(lambda parts: "{ " + " ".join(parts) + " }")


documents = st.tuples(*(selection_sets(i + 1) for i in range(-1, FRAGMENTS))).map(
    lambda sets: sets[0] + "".join(f" fragment f{i} on Q {body}" for i, body in enumerate(sets[1:]))
)


def unfold(selection_set: SelectionSetNode, known: dict[str, SelectionSetNode]) -> Cost:
    """The plain way: visits everything that everything unfolds to."""
    depth = selections = aliases = 0
    for selection in selection_set.selections:
        inside = getattr(selection, "selection_set", None)
        if isinstance(selection, FragmentSpreadNode):
            inside = known.get(selection.name.value)
        cost = unfold(inside, known) if inside else Cost()
        is_field = isinstance(selection, FieldNode)
        depth = max(depth, cost.depth + is_field)
        selections += 1 + cost.selections
        aliases += cost.aliases + bool(isinstance(selection, FieldNode) and selection.alias)
    return Cost(depth=depth, selections=selections, aliases=aliases)


@settings(deadline=None)
@given(documents)
def test_measuring_agrees_with_unfolding(text: str) -> None:
    document = parse(text)
    bodies = [
        d.selection_set for d in document.definitions if isinstance(d, ExecutableDefinitionNode)
    ]
    known = {f"f{i}": body for i, body in enumerate(bodies[1:])}
    roots = [bodies[0], *(body for name, body in known.items() if f"...{name}" not in text)]
    plain = [unfold(root, known) for root in roots]
    cost = measure(document)
    assert cost.depth == max(root.depth for root in plain)
    assert cost.selections == sum(root.selections for root in plain)
    assert cost.aliases == sum(root.aliases for root in plain)


@settings(deadline=None)
@given(documents)
def test_the_work_of_measuring_follows_the_text(text: str) -> None:
    selections_in_text = text.count(":") + len(text.split())
    assert measure(parse(text)).steps <= 3 * selections_in_text


@settings(deadline=None)
@given(documents)
def test_the_work_of_counting_pairs_follows_what_was_measured(text: str) -> None:
    document = parse(text)
    cost = measure(document)
    assert count_pairs(document)[1] <= cost.selections + cost.steps
