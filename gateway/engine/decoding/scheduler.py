"""The worker thread of one model: admits sequences and advances them together, step by step."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from gateway.core.errors import EngineFailed, GatewayError, Overloaded
from gateway.core.events import Event, Waiting
from gateway.engine.decoding.bridge import LoopEvent, Outbox
from gateway.engine.decoding.fair_queue import FairQueue
from gateway.engine.decoding.pace import Pace, share_prefill
from gateway.engine.decoding.runner import Feed, Runner, StateLost
from gateway.engine.decoding.sequence import Sequence
from gateway.engine.sampling.sampler import Sampled, sample

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

RELIEF_S = 0.5
"""How long a step that was refused memory waits for other models to give some back."""


class Scheduler:
    """Serves up to `max_active` sequences at once; `max_queue` more may wait.

    `submit` and `cancel` are for the event loop; everything that touches the model happens where
    `compute` does it, a step at a time. A sequence that raises fails alone. Should the loop itself
    die, every sequence gets EngineFailed, `alive` turns false, and `ended` is set, as it is after
    `close`.
    """

    def __init__(
        self,
        name: str,
        runner: Runner,
        *,
        max_active: int,
        max_queue: int,
        compute: Callable[[Callable[[], None]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`compute` does a piece of work, and returns when it is done."""
        self._runner = runner
        self._max_active = max_active
        self._compute = compute
        self._clock = clock
        self._max_queue = max_queue
        self._queue: FairQueue[Sequence] = FairQueue()
        self._active: list[Sequence] = []
        # A sequence lost its place for want of memory: nobody gets one before another leaves.
        self._is_full = False
        self._starved_at: float | None = None
        self._is_starved = False
        self._pace = Pace()
        self._condition = threading.Condition()
        self._closing = False
        self._outbox = Outbox(asyncio.get_running_loop())
        self.alive = True
        self.ended = LoopEvent()
        self.memory_bytes = 0
        self._thread = threading.Thread(target=self._run, name=f"engine {name}", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """How many sequences wait for a place."""
        with self._condition:
            return len(self._queue)

    @property
    def active(self) -> int:
        """How many sequences have a place."""
        return len(self._active)

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence; its events arrive in its channel.

        Raises Overloaded when the queue is full, EngineFailed when the worker is gone. A caller
        with less waiting than another takes the last place of that one, who gets Overloaded.
        """
        with self._condition:
            if not self.alive or self._closing:
                raise EngineFailed("The engine of this model stopped.")
            sequence.queued_at = self._clock()
            free = max(0, self._max_active - len(self._active))
            displaced = self._queue.push(sequence, self._max_queue + free)
            if displaced is sequence:
                raise self._overloaded()
            if displaced is not None:
                self._part_from(displaced, self._overloaded())
            if len(self._active) >= self._max_active:
                self._tell_places()
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

    def _overloaded(self) -> Overloaded:
        wait_s = self._pace.eta_s(len(self._queue) or 1, self._max_active)
        return Overloaded(
            f"{len(self._queue)} requests already wait for this model.", retry_after_s=wait_s
        )

    def _run(self) -> None:
        reason = "The model was unloaded."
        try:
            while self._wait_for_work():
                self._compute(self._turn)
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
            if self._is_starved and not self._closing:
                self._condition.wait(RELIEF_S / 10)
            self._is_starved = False
            self._condition.wait_for(lambda: self._closing or self._has_work())
            return not self._closing

    def _turn(self) -> None:
        self._admit()
        self._step()

    def _has_work(self) -> bool:
        if self._has_place():
            return True
        return any(sequence.cancelled for sequence in self._queue) or any(
            sequence.cancelled or not sequence.channel.is_full for sequence in self._active
        )

    def _has_place(self) -> bool:
        is_free = len(self._active) < self._max_active and not self._is_full
        return bool(self._queue) and is_free

    def _admit(self) -> None:
        with self._condition:
            dropped = self._queue.remove(lambda sequence: sequence.cancelled)
            admitted = []
            while self._has_place():
                sequence = self._queue.pop()
                self._active.append(sequence)
                admitted.append(sequence)
            if admitted or dropped:
                self._tell_places()
        for sequence in dropped:
            self._part_from(sequence)
        for sequence in admitted:
            self._open(sequence)

    def _open(self, sequence: Sequence) -> None:
        if not sequence.admitted_at:
            sequence.admitted_at = self._clock()
            sequence.queue_ms = (sequence.admitted_at - sequence.queued_at) * 1000
        try:
            sequence.place = self._runner.open(sequence.inputs)
            sequence.fed = self._runner.recall(sequence.place, sequence.caller, sequence.tokens)
        except Exception:
            logger.exception("a sequence cannot be opened")
            self._fail(sequence)

    def _tell_places(self) -> None:
        for position, sequence in enumerate(self._queue, 1):
            if sequence.queue_position != position:
                sequence.queue_position = position
                eta_s = self._pace.eta_s(position, self._max_active)
                event = Waiting("queued", position=position, eta_s=eta_s)
                self._outbox.post(sequence.channel, [event])

    def _step(self) -> None:
        """Feed every sequence whose reader keeps up: the next token, or more of its prompt."""
        began_at = self._clock()
        counts = self._choose()
        self._advance(counts)
        if counts:
            chunks = [count for count in counts.values() if count > 1]
            decoding = len(counts) - len(chunks)
            self._pace.observe_step(decoding, sum(chunks), self._clock() - began_at)
        gone = [sequence for sequence in self._active if sequence.cancelled or sequence.finished]
        for sequence in gone:
            self._release(sequence)
        self.memory_bytes = self._runner.memory_bytes

    def _choose(self) -> dict[Sequence, int]:
        """Return how many tokens of which sequences the next step computes."""
        ready = [s for s in self._active if not s.cancelled and not s.channel.is_full]
        counts = {sequence: 1 for sequence in ready if sequence.remaining == 1}
        prompts = [sequence for sequence in ready if sequence.remaining > 1]
        # The places of an image must not be parted: such a prompt is computed whole, one a step.
        counts |= {s: s.remaining for s in [s for s in prompts if s.inputs][:1]}
        prompts = [sequence for sequence in prompts if not sequence.inputs]
        budget = self._pace.prefill_tokens(len(counts))
        shares = share_prefill(budget, [sequence.remaining for sequence in prompts])
        counts |= {s: share for s, share in zip(prompts, shares, strict=True) if share}
        return counts

    def _advance(self, counts: dict[Sequence, int]) -> None:
        """Compute one step; should it fail, find out whose fault it was, and let only him fail."""
        if not counts:
            return
        feeds = [
            Feed(s.place, s.tokens[s.fed : s.fed + count], asks=count == s.remaining)
            for s, count in counts.items()
        ]
        try:
            logits = self._runner.run(feeds)
        except GatewayError as error:
            self._make_room(counts, error)
            return
        except Exception as error:
            if len(counts) > 1:
                logger.exception("a step failed; its sequences go on one by one")
                self._advance_singly(counts)
                return
            logger.exception("a sequence failed")
            reason = error.reason if isinstance(error, StateLost) else None
            self._fail(next(iter(counts)), reason)
            return
        self._take(counts, logits)

    def _advance_singly(self, counts: dict[Sequence, int]) -> None:
        for sequence, count in counts.items():
            # One of those before may have had to take this one's place.
            if sequence.place is not None:
                self._advance({sequence: count})

    def _take(self, counts: dict[Sequence, int], logits: Tensor) -> None:
        self._starved_at = None
        for sequence, count in counts.items():
            self._outbox.post(sequence.channel, sequence.advance(count))
            if not sequence.remaining and not sequence.said:
                self._keep(sequence)
        asking = [sequence for sequence in counts if not sequence.remaining]
        if not asking:
            return
        drawn = sample(logits, [sequence.sampler for sequence in asking])
        for sequence, outcome in zip(asking, drawn, strict=True):
            self._accept(sequence, outcome)

    def _accept(self, sequence: Sequence, outcome: Sampled | Exception) -> None:
        events: list[Event] = []
        try:
            if isinstance(outcome, Exception):
                raise outcome
            events = sequence.accept(outcome)
        except GatewayError as error:
            self._fail(sequence, error)
        except Exception:
            logger.exception("a sequence failed")
            self._fail(sequence)
        else:
            self._outbox.post(sequence.channel, events)

    def _make_room(self, counts: dict[Sequence, int], error: GatewayError) -> None:
        """Give memory back for the sequences that were refused some: what is kept of past prompts
        first, then the place of the youngest, which starts over once somebody left."""
        if self._runner.forget():
            return
        if any(sequence.cancelled or sequence.finished for sequence in self._active):
            # Who leaves after this step gives back what he has.
            return
        if self._may_be_relieved():
            return
        movable = [sequence for sequence in self._active if sequence.can_start_over]
        if len(self._active) == 1 or not movable:
            self._fail(max(counts, key=_age), error)
            return
        youngest = max(movable, key=_age)
        self._runner.release(youngest.place)
        youngest.place, youngest.fed = None, 0
        with self._condition:
            self._active.remove(youngest)
            self._queue.put_back(youngest)
            self._is_full = True

    def _may_be_relieved(self) -> bool:
        """Tell whether to try again in a moment: other models may be making room."""
        now = self._clock()
        self._starved_at = now if self._starved_at is None else self._starved_at
        if now - self._starved_at >= RELIEF_S:
            self._starved_at = None
            return False
        self._is_starved = True
        return True

    def _fail(self, sequence: Sequence, error: GatewayError | None = None) -> None:
        error = error or EngineFailed("The model failed on this request.")
        self._outbox.post(sequence.channel, [], error=error)
        sequence.cancelled = True

    def _keep(self, sequence: Sequence) -> None:
        try:
            self._runner.keep(sequence.place, sequence.caller, sequence.tokens)
        except Exception:
            # A convenience for later prompts: nobody's answer depends on it.
            logger.exception("a prompt cannot be kept")

    def _release(self, sequence: Sequence) -> None:
        if sequence.finished:
            self._pace.observe_service(self._clock() - sequence.admitted_at)
            self._keep(sequence)
        if sequence.place is not None:
            self._runner.release(sequence.place)
        with self._condition:
            self._active.remove(sequence)
            self._is_full = False
        self._part_from(sequence)

    def _part_from(self, sequence: Sequence, error: GatewayError | None = None) -> None:
        """Tell the reader that nothing more will come; the sequence is his alone from here on."""
        sequence.let_go()
        self._outbox.post(sequence.channel, [], error=error, released=True)

    def _release_all(self, reason: str) -> None:
        with self._condition:
            self.alive = False
            # Before the readers hear of it: they shall find the model shown as it is.
            self.ended.set()
            placed = self._active
            left = [*placed, *self._queue]
            self._active = []
            self._queue = FairQueue()
        places = [sequence.place for sequence in placed if sequence.place is not None]
        for sequence in left:
            self._part_from(sequence, EngineFailed(reason))
        self._outbox.flush()
        # Last, as the runner may be what broke: the readers know by now.
        with suppress(Exception):
            self._runner.forget()
            for place in places:
                self._runner.release(place)
        # Who still reads from the engine must not hold the model by it.
        del self._runner
        self.memory_bytes = 0


def _age(sequence: Sequence) -> float:
    return sequence.admitted_at
