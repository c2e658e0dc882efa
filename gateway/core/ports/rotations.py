"""Rotations: what they are, whose step it is, and what became of those before."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from gateway.core.ports.downloads import Worker
from gateway.core.rotation import Rotation, RotationOrder, Source, Step, Trigger


class RotationLook(NamedTuple):
    """All rotations by name, at `now` by the database's clock in Unix seconds."""

    now: float
    rotations: Sequence[Rotation]


class RotationStore(Protocol):
    """Rotations and their steps. All methods raise DatabaseUnavailable."""

    async def look(self) -> RotationLook: ...

    async def find(self, name: str) -> Rotation | None: ...

    async def put(self, name: str, order: RotationOrder, source: Source) -> Rotation:
        """Insert or replace. The present model stays if it is in the order, and so does the time
        of the next step unless that is to come by another clock."""
        ...

    async def remove(self, name: str) -> bool:
        """Forget a rotation and its steps; return whether there was one."""
        ...

    async def pause(self, name: str) -> Rotation | None:
        """Let no step begin by itself; those that wait for their turn are cancelled."""
        ...

    async def resume(self, name: str) -> Rotation | None:
        """Undo `pause`; the time to the next step begins anew."""
        ...

    async def count(self, requests: Mapping[str, int]) -> None:
        """Add requests to what the rotations of these names have counted."""
        ...

    async def ask(
        self, step_id: str, name: str, trigger: Trigger, wish: str | None = None
    ) -> Step | None:
        """Queue a step. None: there is one already, no such rotation, or it is not time (any
        more)."""
        ...

    async def claim(self, worker: Worker, name: str) -> Step | None:
        """Return the rotation's step that nobody takes, as RUNNING by `worker` behind a new fence.

        What an earlier run of the same node left counts at once, others' when their lease is over.
        """
        ...

    async def keep(self, step: Step, worker: Worker) -> bool:
        """Prolong the lease; False: somebody else has the step, or it is over."""
        ...

    async def record(self, step: Step, worker: Worker, current: str | None = None) -> bool:
        """Write how far a step is, and with `current` who answers from now on, in one
        transaction. An end sets the time of the next step, QUEUED gives the step back.

        False: nothing was written, as somebody else has the step by now.
        """
        ...

    async def history(self, name: str, limit: int) -> Sequence[Step]:
        """Return the newest steps, newest first."""
        ...
