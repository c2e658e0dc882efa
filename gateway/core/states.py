"""States of models, providers and streams, and which transitions are legal."""

from enum import StrEnum

from gateway.core.errors import StaleTransition


class ModelState(StrEnum):
    """Where a model's weights are. "Busy" is not a state: it is leases > 0."""

    NOT_LOADED = "NOT_LOADED"
    LOADING = "LOADING"
    LOADED = "LOADED"
    UNLOADING = "UNLOADING"
    FAILED = "FAILED"


class UnloadReason(StrEnum):
    """Why a model leaves memory: `room` is an eviction, `idle` the end of its keep-alive, `asked`
    somebody's wish, `replaced` new files or another config, `died` its engine's failure,
    `stopping` the end of the gateway."""

    ROOM = "room"
    IDLE = "idle"
    ASKED = "asked"
    REPLACED = "replaced"
    DIED = "died"
    STOPPING = "stopping"


class ProviderState(StrEnum):
    UNKNOWN = "UNKNOWN"
    UP = "UP"
    DOWN = "DOWN"


class StreamEnd(StrEnum):
    """Why a stream ended. INTERRUPTED: the gateway died under it and found it at its next start."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CANCELLED = "cancelled"
    ERROR = "error"
    INTERRUPTED = "interrupted"


LEGAL_SOURCES: dict[ModelState, frozenset[ModelState]] = {
    ModelState.NOT_LOADED: frozenset({ModelState.UNLOADING, ModelState.LOADING, ModelState.FAILED}),
    ModelState.LOADING: frozenset({ModelState.NOT_LOADED, ModelState.FAILED}),
    ModelState.LOADED: frozenset({ModelState.LOADING}),
    ModelState.UNLOADING: frozenset({ModelState.LOADED}),
    ModelState.FAILED: frozenset({ModelState.LOADING, ModelState.UNLOADING}),
}
"""For each state, the states it may be entered from."""


def require_transition(source: ModelState, target: ModelState) -> ModelState:
    """Return `target`; raise StaleTransition when it cannot follow `source`."""
    if source not in LEGAL_SOURCES[target]:
        raise StaleTransition(f"A model that is {source} cannot become {target}.")
    return target
