"""`X-Gateway-Decision`: the id of the decision that a reply follows from, errors too."""

from starlette.types import Scope

from gateway import telemetry

DECISION_ID = "X-Gateway-Decision"
_KEY = "gateway.decision"


def note_decision(scope: Scope, decision_id: str) -> None:
    """Have the reply to this request say that this decision was made about it, and what the task
    logs from now on."""
    telemetry.decision_id.set(decision_id)
    scope[_KEY] = decision_id


def noted_decision(scope: Scope) -> str | None:
    """Return what was noted so far."""
    decision_id: str | None = scope.get(_KEY)
    return decision_id
