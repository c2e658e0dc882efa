import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.core.errors import StaleTransition
from gateway.core.states import LEGAL_SOURCES, ModelState, require_transition

ARROWS = {
    (ModelState.NOT_LOADED, ModelState.LOADING),
    (ModelState.LOADING, ModelState.LOADED),
    (ModelState.LOADING, ModelState.NOT_LOADED),
    (ModelState.LOADING, ModelState.FAILED),
    (ModelState.LOADED, ModelState.UNLOADING),
    (ModelState.UNLOADING, ModelState.NOT_LOADED),
    (ModelState.UNLOADING, ModelState.FAILED),
    (ModelState.FAILED, ModelState.LOADING),
    (ModelState.FAILED, ModelState.NOT_LOADED),
}


class ModelLife(RuleBasedStateMachine):
    """Tries every transition at any time; the state only ever moves along the drawn arrows."""

    def __init__(self) -> None:
        super().__init__()
        self.state = ModelState.NOT_LOADED

    @rule(goal=st.sampled_from(ModelState))
    def move(self, goal: ModelState) -> None:
        legal = (self.state, goal) in ARROWS
        try:
            self.state = require_transition(self.state, goal)
        except StaleTransition:
            assert not legal
        else:
            assert legal

    @invariant()
    def there_is_always_a_way_on(self) -> None:
        assert any(self.state in sources for sources in LEGAL_SOURCES.values())


TestModelLife = ModelLife.TestCase


def test_a_refused_transition_names_both_states() -> None:
    with pytest.raises(StaleTransition, match="LOADED cannot become LOADING"):
        require_transition(ModelState.LOADED, ModelState.LOADING)
