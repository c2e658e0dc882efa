"""The worker thread of one model: admits sequences and advances them together, step by step."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from gateway.core.errors import EngineFailed, Overloaded
from gateway.core.events import Waiting
from gateway.engine.bridge import Outbox
from gateway.engine.runner import Runner
from gateway.engine.sequence import Sequence

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


class Scheduler:
    """Serves up to `max_active` sequences at once; `max_queue` more may wait.

    `submit` and `cancel` are for the event loop; everything that touches the model happens in the
    worker thread. A sequence that raises fails alone. Should the loop itself die, every sequence
    gets EngineFailed and `alive` turns false.
    """

    def __init__(
        self,
        name: str,
        runner: Runner,
        *,
        max_active: int,
        max_queue: int,
        bound_threads: Callable[[], None],
    ) -> None:
        """`bound_threads` is called once, in the worker thread."""
        self._runner = runner
        self._prefilled = 0
        self._max_active = max_active
        self._max_queue = max_queue
        self._bound_threads = bound_threads
        self._queue: deque[tuple[Sequence, float]] = deque()
        self._active: list[Sequence] = []
        self._condition = threading.Condition()
        self._closing = False
        self._outbox = Outbox(asyncio.get_running_loop())
        self.alive = True
        self._thread = threading.Thread(target=self._run, name=f"engine {name}", daemon=True)
        self._thread.start()

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence; its events arrive in its channel.

        Raises Overloaded when the queue is full, EngineFailed when the worker is gone.
        """
        with self._condition:
            if not self.alive or self._closing:
                raise EngineFailed("The engine of this model stopped.")
            ahead = len(self._active) + len(self._queue) - self._max_active
            if ahead >= self._max_queue:
                raise Overloaded(f"{len(self._queue)} requests already wait for this model.")
            self._queue.append((sequence, time.monotonic()))
            if ahead >= 0:
                self._tell_place(sequence, ahead + 1)
                self._outbox.flush()
            self._condition.notify()

    def cancel(self, sequence: Sequence) -> None:
        """Let the worker drop the sequence before its next step; harmless after its end."""
        with self._condition:
            sequence.cancelled = True
            self._condition.notify()

    def wake(self) -> None:
        """Tell the worker that a reader made room."""
        with self._condition:
            self._condition.notify()

    def close(self) -> None:
        """Stop the worker; sequences still there get EngineFailed. Blocking: at most one step."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        reason = "The model was unloaded."
        try:
            self._bound_threads()
            while self._wait_for_work():
                self._admit()
                self._step()
                self._outbox.flush()
        except BaseException:
            # Not a fault of one sequence: those are caught in _compute and _accept.
            logger.exception("the engine's loop died")
            reason = "The engine of this model died."
        finally:
            self._release_all(reason)

    def _wait_for_work(self) -> bool:
        """Wait until some sequence can go on; False when the scheduler is closing."""
        with self._condition:
            self._condition.wait_for(lambda: self._closing or self._has_work())
            return not self._closing

    def _has_work(self) -> bool:
        if self._queue and len(self._active) < self._max_active:
            return True
        waiting = (sequence for sequence, _ in self._queue)
        return any(sequence.cancelled for sequence in waiting) or any(
            sequence.cancelled or not sequence.channel.is_full for sequence in self._active
        )

    def _admit(self) -> None:
        with self._condition:
            kept = deque(item for item in self._queue if not item[0].cancelled)
            dropped = [item[0] for item in self._queue if item[0].cancelled]
            admitted = 0
            while kept and len(self._active) < self._max_active:
                sequence, queued_at = kept.popleft()
                sequence.queue_ms = (time.monotonic() - queued_at) * 1000
                sequence.place = self._runner.open()
                self._active.append(sequence)
                admitted += 1
            moved = bool(admitted or dropped)
            self._queue = kept
            places = [sequence for sequence, _ in kept]
        for sequence in dropped:
            self._outbox.post(sequence.channel, [], released=True)
        if moved:
            for position, sequence in enumerate(places, 1):
                self._tell_place(sequence, position)

    def _tell_place(self, sequence: Sequence, position: int) -> None:
        if sequence.queue_position != position:
            sequence.queue_position = position
            self._outbox.post(sequence.channel, [Waiting("queued", position=position)])

    def _step(self) -> None:
        """Feed every sequence whose reader keeps up, at most one chunk of one prompt among them."""
        chosen = self._choose()
        for sequence, logits in self._compute(chosen):
            self._accept(sequence, logits)
        gone = [sequence for sequence in self._active if sequence.cancelled or sequence.finished]
        for sequence in gone:
            self._release(sequence)

    def _choose(self) -> list[Sequence]:
        ready = [s for s in self._active if not s.cancelled and not s.channel.is_full]
        speaking = [sequence for sequence in ready if not sequence.in_prompt]
        prompts = [sequence for sequence in ready if sequence.in_prompt]
        if prompts:
            # In turn, so that a long prompt does not keep a short one waiting.
            self._prefilled += 1
            speaking.append(prompts[self._prefilled % len(prompts)])
        return speaking

    def _compute(self, chosen: list[Sequence]) -> list[tuple[Sequence, Tensor]]:
        """Compute one step; should it fail, find out whose fault it was, and let only him fail."""
        if not chosen:
            return []
        try:
            logits = self._runner.run([(s.place, s.next_ids) for s in chosen])
        except Exception:
            if len(chosen) > 1:
                logger.exception("a step failed; its sequences go on one by one")
                return [pair for sequence in chosen for pair in self._compute([sequence])]
            logger.exception("a sequence failed")
            self._fail(chosen[0])
            return []
        return list(zip(chosen, logits, strict=True))

    def _accept(self, sequence: Sequence, logits: Tensor) -> None:
        try:
            events = sequence.accept(logits)
        except Exception:
            logger.exception("a sequence failed")
            self._fail(sequence)
        else:
            self._outbox.post(sequence.channel, events)

    def _fail(self, sequence: Sequence) -> None:
        error = EngineFailed("The model failed on this request.")
        self._outbox.post(sequence.channel, [], error=error)
        sequence.finished = True

    def _release(self, sequence: Sequence) -> None:
        self._runner.release(sequence.place)
        sequence.place = None
        with self._condition:
            self._active.remove(sequence)
        self._outbox.post(sequence.channel, [], released=True)

    def _release_all(self, reason: str) -> None:
        with self._condition:
            self.alive = False
            placed = self._active
            left = [*placed, *(sequence for sequence, _ in self._queue)]
            self._active = []
            self._queue.clear()
        for sequence in left:
            self._outbox.post(sequence.channel, [], error=EngineFailed(reason), released=True)
        self._outbox.flush()
        # Last, as the runner may be what broke: the readers know by now.
        for sequence in placed:
            with suppress(Exception):
                self._runner.release(sequence.place)
