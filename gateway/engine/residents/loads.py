"""The loads of models: each in a task of its own, one at a time, with a place taken before.

Nobody's leaving cancels a load that has begun. Touched on the event loop only.
"""

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from gateway.core.errors import GatewayError, Internal
from gateway.core.loading import LoadConfig
from gateway.core.models import LocalModel
from gateway.core.names import ModelRef
from gateway.core.states import ModelState
from gateway.engine.engine import Engine
from gateway.engine.files.progress import LoadProgress
from gateway.engine.memory.budget import Share
from gateway.engine.residents.departures import Departures
from gateway.engine.residents.placement import Placement
from gateway.engine.residents.residence import Attempt, Model, Place, Residence
from gateway.engine.weights.runtime import give_back_memory

logger = logging.getLogger(__name__)

Open = Callable[[ModelRef, LocalModel, LoadConfig, LoadProgress, Share], Awaitable[Engine]]
"""Loads a model, wherever it is to live; the engine takes the bytes of its cache of the share."""


class Loads:
    """Brings models into memory; whoever waits for one waits for its attempt."""

    def __init__(
        self,
        open: Open,
        placement: Placement,
        departures: Departures,
        task_group: TaskGroup,
        *,
        clock: Callable[[], float],
    ) -> None:
        """`open` must not block the event loop."""
        self._open = open
        self._placement = placement
        self._departures = departures
        self._tasks = task_group
        self._clock = clock
        self._one = anyio.Lock()

    def begin(self, model: Model, files: LocalModel) -> None:
        """Load a model that is neither there nor on its way; sets its `attempt`."""
        model.files_bytes = files.size_bytes
        model.attempt = Attempt(model, files, model.config.load)
        model.enter(ModelState.LOADING)
        self._tasks.start_soon(self._run, model.attempt, name=f"load {model.ref}")

    async def _run(self, attempt: Attempt) -> None:
        model = attempt.model
        error: GatewayError | None = Internal(f"Loading {model.ref} failed inside the gateway.")
        try:
            model.residence = await self._load(attempt)
            error = None
        except GatewayError as known:
            error = attempt.error or known.renewed()
        except Exception:
            logger.exception("loading %s failed", model.ref)
        try:
            if error is not None and attempt.began_at is not None:
                await self._collect()
        finally:
            self._placement.leave_line(attempt)
            if error is not None and attempt.place is not None:
                self._placement.leave(attempt.place)
            self._end(attempt, error)

    def _end(self, attempt: Attempt, error: GatewayError | None) -> None:
        model = attempt.model
        model.attempt = None
        attempt.error = error.renewed() if error else None
        attempt.done.set()
        if error is None:
            model.enter(ModelState.LOADED)
            self._departures.expire_later(model)
            if model.residence is not None and model.residence.engine is not None:
                self._tasks.start_soon(self._departures.watch, model, model.residence.engine)
                self._tasks.start_soon(self._finish, model, model.residence.engine)
        elif attempt.is_given_up:
            model.enter(ModelState.NOT_LOADED)
        else:
            logger.warning("loading %s failed: %s", model.ref, error.message)
            model.enter(ModelState.FAILED, error)

    async def _finish(self, model: Model, engine: Engine) -> None:
        """Have done behind the answers what the load put off."""
        await engine.finish()
        model.notify()

    async def _load(self, attempt: Attempt) -> Residence:
        model = attempt.model
        await self._placement.take(attempt)
        place = attempt.place
        assert place is not None, "it was taken above"
        if self._one.locked():
            self._placement.tell_positions()
        async with self._one:
            attempt.require_wanted()
            attempt.began_at = began_at = self._clock()
            self._placement.leave_line(attempt)
            model.notify()
            engine = await self._open(
                model.ref, attempt.files, attempt.config, attempt.progress, place.share
            )
            try:
                await self._placement.settle(attempt, engine.memory_bytes, engine.first_bytes)
                attempt.require_wanted()
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await engine.aclose()
                raise
        seconds = self._clock() - began_at
        model.remember(attempt, engine, seconds)
        logger.info("loaded %s in %.2f s", model.ref, seconds)
        place.share.on_shortage = self._shortage_of(place)
        residence = Residence(attempt, place, engine)
        residence.last_used = self._clock()
        residence.keep_alive_s = self._departures.keep_alive_of(model)
        return residence

    def _shortage_of(self, place: Place) -> Callable[[int], None]:
        """Return what an engine's thread calls when its cache finds no room to grow."""
        # A thread of its own has no context that a task could be started in.
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()

        def relieve(size_bytes: int) -> None:
            if not (self._departures.is_closing or place.is_being_relieved):
                place.is_being_relieved = True
                self._tasks.start_soon(self._placement.relieve, place, size_bytes)

        def call(size_bytes: int) -> None:
            with suppress(RuntimeError):  # the loop is closed: there is nobody to make room
                loop.call_soon_threadsafe(relieve, size_bytes, context=context)

        return call

    async def _collect(self) -> None:
        """Free what a model left behind; who closes has the process's end before him."""
        if not self._departures.is_closing:
            await anyio.to_thread.run_sync(give_back_memory)
