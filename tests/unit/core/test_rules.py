"""Which aliases and virtual models hold beside each other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import InvalidRequest
from gateway.core.rules import (
    RuleDraft,
    RuleSet,
    StoredRule,
    assemble_rules,
    check_draft,
    drafts_of,
    require_agreeing,
)
from gateway.core.virtual import Candidate, VirtualModel

PROVIDERS = ("a", "b")
CONFIG = drafts_of({"short": "a/m"}, {"any": VirtualModel("any", (Candidate("a/m"),))})

names = st.sampled_from(["x", "y", "z", "short", "any", "a/m", "b/m", "a/n"])
candidates = st.lists(st.builds(Candidate, names, st.sampled_from([0.0, 1.0, -1.0])), max_size=3)
drafts = st.one_of(
    st.builds(RuleDraft, names, names),
    st.builds(lambda name, of: RuleDraft(name, None, tuple(of)), names, candidates),
)


def virtual(name: str, *models: str) -> RuleDraft:
    return RuleDraft(name, None, tuple(map(Candidate, models)))


def stored(*drafts: RuleDraft) -> list[StoredRule]:
    return [StoredRule(draft, number, 1.0) for number, draft in enumerate(drafts, 1)]


def assembled(*drafts: RuleDraft) -> RuleSet:
    return assemble_rules(CONFIG, stored(*drafts), providers=PROVIDERS)


def test_rules_of_both_places_hold_and_say_where_they_are_from() -> None:
    found = assembled(RuleDraft("mine", "b/m"), virtual("team/chat", "short", "b/m"))
    assert found.aliases == {"short": "a/m", "mine": "b/m"}
    assert [each.model for each in found.virtual["team/chat"].candidates] == ["short", "b/m"]
    assert (found.virtual["any"].version, found.virtual["team/chat"].version) == (0, 2)
    sources = {name: rule.source for name, rule in found.rules.items()}
    assert sources == {
        "any": "config", "mine": "database", "short": "config", "team/chat": "database",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("draft", "problem"),
    [
        (virtual("x", "any"), "leads to 'any'"),
        (virtual("x", "x"), "leads to 'x'"),
        (RuleDraft("x", "short"), "is a rule itself"),
        (RuleDraft("x", "x"), "is a rule itself"),
        (RuleDraft("a/other", "b/m"), "already means something else"),
        (virtual("x", "a/m", "a/m"), "names a candidate twice"),
        (RuleDraft("x\n", "b/m"), "printable"),
        (RuleDraft("x"), "either 'model' or 'candidates'"),
        (RuleDraft("x", "a/m", (Candidate("b/m"),)), "either 'model' or 'candidates'"),
        (RuleDraft("x", "a/m", order="weighted"), "An alias has no 'order'"),
        (RuleDraft("x", None, (Candidate("a/m", 0.0),)), "All weights"),
        (RuleDraft("x", None, (Candidate("a/m", float("nan")),)), "must not be negative"),
    ],
)
def test_what_can_never_work_does_not_hold_and_says_why(draft: RuleDraft, problem: str) -> None:
    found = assembled(draft)
    assert problem in (found.rules[draft.name].problem or "")
    assert draft.name not in found.aliases
    assert draft.name not in found.virtual
    with pytest.raises(InvalidRequest, match=problem.replace("'", ".")):
        require_agreeing(assembled(), found, draft.name)


def test_a_rule_that_would_break_another_is_refused() -> None:
    before, after = assembled(virtual("x", "y")), assembled(virtual("x", "y"), virtual("y", "a/m"))
    with pytest.raises(InvalidRequest, match="'x' leads to 'y'"):
        require_agreeing(before, after, "y")
    require_agreeing(before, assembled(virtual("x", "y"), RuleDraft("y", "a/m")), "y")


def test_a_text_that_nobody_could_store_is_no_name() -> None:
    with pytest.raises(InvalidRequest):
        check_draft(RuleDraft("x", "a/\x00"))


@given(st.lists(drafts, max_size=6, unique_by=lambda draft: draft.name))
def test_what_holds_leads_nowhere_but_to_models_and_aliases(made: list[RuleDraft]) -> None:
    found = assembled(*made)
    for target in found.aliases.values():
        assert target not in found.aliases
        assert target not in found.virtual
    for rule in found.virtual.values():
        assert rule.candidates
        assert all(each.model not in found.virtual for each in rule.candidates)
    assert not set(found.aliases) & set(found.virtual)
    # The configuration holds whatever else there is.
    assert found.aliases["short"] == "a/m"
    assert found.virtual["any"].version == 0
    holding = {name for name, rule in found.rules.items() if rule.problem is None}
    assert holding == {*found.aliases, *found.virtual}
