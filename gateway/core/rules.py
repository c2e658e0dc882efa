"""The names that mean other models: aliases and virtual models, of the configuration and of the
database, and which of them hold. Pure."""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import msgspec

from gateway.core.errors import InvalidRequest
from gateway.core.messages import require_clean_text
from gateway.core.names import MAX_NAME_LENGTH
from gateway.core.virtual import Candidate, Order, VirtualModel, check_candidates, check_name

MAX_RULES = 1000
"""In the database."""

RuleSource = Literal["config", "database"]


class RuleDraft(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a name shall mean: another name of one `model`, or one of several `candidates`."""

    name: str
    model: str | None = None
    candidates: tuple[Candidate, ...] = ()
    order: Order = "listed"
    continue_on_failure: bool = False
    max_continuations: int | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """The names that it leads to."""
        if self.model is not None:
            return (self.model,)
        return tuple(candidate.model for candidate in self.candidates)

    def as_virtual(self, version: int = 0) -> VirtualModel:
        return VirtualModel(
            self.name,
            self.candidates,
            self.order,
            self.continue_on_failure,
            self.max_continuations,
            version,
        )


class StoredRule(msgspec.Struct, frozen=True):
    """A rule of the database. `version` is never used twice, not even by another rule;
    `updated_by` is the id of a key; times are Unix seconds."""

    draft: RuleDraft
    version: int
    updated_at: float
    updated_by: str = ""


class Rule(msgspec.Struct, frozen=True):
    """A rule as it is told: `problem` is why it does not hold, None that it does. One of the
    configuration has version 0 and is changed there alone."""

    draft: RuleDraft
    source: RuleSource
    version: int = 0
    updated_at: float | None = None
    updated_by: str = ""
    problem: str | None = None

    @property
    def name(self) -> str:
        return self.draft.name


class RuleSet(msgspec.Struct, frozen=True):
    """Every rule, by name, and what those that hold mean."""

    rules: Mapping[str, Rule]
    aliases: Mapping[str, str]
    virtual: Mapping[str, VirtualModel]


def drafts_of(aliases: Mapping[str, str], virtual: Mapping[str, VirtualModel]) -> list[RuleDraft]:
    """Return the rules of a configuration."""
    return [
        *(RuleDraft(name, model) for name, model in aliases.items()),
        *(_draft_of(each) for each in virtual.values()),
    ]


def _draft_of(rule: VirtualModel) -> RuleDraft:
    return RuleDraft(
        rule.name,
        None,
        rule.candidates,
        rule.order,
        rule.continue_on_failure,
        rule.max_continuations,
    )


def assemble_rules(
    config: Sequence[RuleDraft], stored: Sequence[StoredRule], *, providers: Collection[str]
) -> RuleSet:
    """Return what holds. The configuration was checked before and goes first; a stored rule that
    does not agree with it, or with another, is kept and does not hold."""
    rules = {draft.name: Rule(draft, "config") for draft in config}
    all_drafts = [*config, *(each.draft for each in stored)]
    virtual = {draft.name for draft in all_drafts if draft.model is None}
    aliases = {draft.name for draft in all_drafts if draft.model is not None}
    for each in stored:
        if each.draft.name in rules:
            continue  # the configuration's stands in its place
        problem = find_problem(each.draft, virtual=virtual, aliases=aliases, providers=providers)
        rules[each.draft.name] = Rule(
            each.draft, "database", each.version, each.updated_at, each.updated_by, problem
        )
    holding = [rule for rule in rules.values() if rule.problem is None]
    return RuleSet(
        dict(sorted(rules.items())),
        {rule.name: rule.draft.model for rule in holding if rule.draft.model is not None},
        {
            rule.name: rule.draft.as_virtual(rule.version)
            for rule in holding
            if rule.draft.model is None
        },
    )


def require_agreeing(before: RuleSet, after: RuleSet, changed: Collection[str]) -> None:
    """Raise InvalidRequest when one of the rules that `changed` does not hold, or another does not
    any more."""
    for name, rule in after.rules.items():
        known = before.rules.get(name)
        is_new = name in changed or known is None or known.problem is None
        if rule.problem is not None and is_new:
            raise InvalidRequest(rule.problem)


def check_draft(draft: RuleDraft) -> None:
    """Raise InvalidRequest and InvalidText for what can be no rule, whatever others there are."""
    require_clean_text(draft.name, "name")
    for target in draft.targets:
        require_clean_text(target, "model")
        if not 1 <= len(target) <= MAX_NAME_LENGTH:
            raise InvalidRequest("A model name has 1 to 512 characters.", param="model")
    if (draft.model is None) == (not draft.candidates):
        raise InvalidRequest(
            "A rule has either 'model' or 'candidates'.",
            hint="One model makes an alias, candidates make a virtual model.",
        )
    if draft.model is not None and draft.order != "listed":
        raise InvalidRequest("An alias has no 'order'.", param="order")
    if draft.model is not None and (draft.continue_on_failure or draft.max_continuations):
        raise InvalidRequest(
            "An alias has one candidate: nobody else could go on.", param="continue_on_failure"
        )


def find_problem(
    draft: RuleDraft,
    *,
    virtual: Collection[str],
    aliases: Collection[str],
    providers: Collection[str],
) -> str | None:
    """Return why the rule cannot hold beside the others, in a sentence; None: it can.

    One step is all that a name leads: an alias leads to a model, a virtual model to aliases and
    models. So no rule can lead back to itself.
    """
    try:
        check_draft(draft)
        check_name(draft.name, providers)
        if draft.model is None:
            check_candidates(draft.as_virtual(), virtual)
        elif draft.model in virtual or draft.model in aliases:
            raise InvalidRequest(
                f"'{draft.name}' leads to '{draft.model}', which is a rule itself.", param="model"
            )
    except InvalidRequest as error:
        return error.message
    return None
