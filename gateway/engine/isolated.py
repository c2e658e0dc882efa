"""IsolatedEngine: an engine in a process of its own, so that its death is nobody else's."""

import itertools
import logging
import socket
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress

import anyio
from anyio.abc import Process, TaskGroup, TaskStatus, UNIXSocketStream

from gateway.core.errors import EngineFailed, GatewayError, ModelLoadFailed
from gateway.core.events import Event, Finished
from gateway.core.messages import GenerateRequest
from gateway.engine.child_process import ChildLog, describe_end, start_child
from gateway.engine.child_wire import (
    BEAT_S,
    WINDOW,
    Ask,
    Beat,
    Cancel,
    Close,
    FromChild,
    Grant,
    Open,
    Opened,
    Refused,
    Released,
    Told,
    WireError,
    decode_from_child,
    to_error,
)
from gateway.engine.link import Link
from gateway.engine.opening import EngineSpec

logger = logging.getLogger(__name__)

STOP_S = 5.0
"""How long a child may take to end when it is told to; then it is killed."""
EXIT_S = 0.5
"""How long we wait to learn what ended a child that closed its socket; its readers wait, too."""
LAST_WORDS_S = 0.3
SILENT_BEATS = 30
"""Beats that a loaded child may miss (it may hang, or be stopped) before it is taken for dead."""


async def open_isolated(
    spec: EngineSpec,
    *,
    task_group: TaskGroup,
    environment: Mapping[str, str],
    memory_limit_bytes: int = 0,
) -> "IsolatedEngine":
    """Load a model in a new process and return the engine that is there.

    The process lives in `task_group` and never raises into it. Cancelling this kills the process.

    Raises ModelLoadFailed, also when the process dies.
    """
    engine = IsolatedEngine(spec, memory_limit_bytes)
    await task_group.start(engine.run, environment, name=f"process of {spec.ref}")
    return engine


class Inbox:
    """What was said to one reader and he has not read yet: at most WINDOW events."""

    def __init__(self, grant: Callable[[int], None]) -> None:
        self._grant = grant
        self._events: deque[Event] = deque()
        self._taken = 0
        self._error: GatewayError | None = None
        self._arrived = anyio.Event()
        self.released = anyio.Event()

    def deliver(self, event: Event) -> None:
        """Add an event; raises WireError when more come than were asked for."""
        if len(self._events) >= WINDOW:
            raise WireError("more events than the reader has room for")
        self._events.append(event)
        self._arrived.set()

    def release(self, error: GatewayError | None) -> None:
        """Nothing more will come."""
        self._error = error
        self.released.set()
        self._arrived.set()

    async def take(self) -> list[Event]:
        """Return all events that are there, waiting for the first; none: nothing is left.

        Raises the error that ended the answer, after its events.
        """
        while not self._events:
            if self._error is not None:
                raise self._error
            if self.released.is_set():
                return []
            self._arrived = anyio.Event()
            await self._arrived.wait()
        events = list(self._events)
        self._events.clear()
        self._taken += len(events)
        if self._taken >= WINDOW // 2 and not self.released.is_set():
            self._grant(self._taken)
            self._taken = 0
        return events


class IsolatedEngine:
    """The engine at the other end of a socket; `open_isolated` makes one.

    `memory_bytes` is what the whole process has in RAM, or what the model takes elsewhere, if that
    is more; the child says it about once a second.
    """

    def __init__(self, spec: EngineSpec, memory_limit_bytes: int) -> None:
        self._spec = spec
        self._limit_bytes = memory_limit_bytes
        self._memory_bytes = 0
        self._link: Link[FromChild]
        self._process: Process
        self._inboxes: dict[int, Inbox] = {}
        self._ids = itertools.count(1)
        self._opened = anyio.Event()
        self._ended = anyio.Event()
        self._is_usable = False
        self._is_closing = False
        self._silent_beats = 0
        self._refusal: GatewayError | None = None
        self._verdict: str | None = None
        self._failure = "The engine of this model stopped."

    @property
    def memory_bytes(self) -> int:
        return self._memory_bytes

    @property
    def alive(self) -> bool:
        return self._is_usable

    @property
    def pid(self) -> int:
        return self._process.pid

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        await self._link.wait_for_room()
        if not self._is_usable:
            raise EngineFailed(self._failure)
        answer_id = next(self._ids)
        self._link.post(Ask(answer_id, request))
        inbox = Inbox(lambda events: self._link.post(Grant(answer_id, events)))
        self._inboxes[answer_id] = inbox
        try:
            while events := await inbox.take():
                for event in events:
                    yield event
                    if isinstance(event, Finished):
                        return
            raise EngineFailed("The engine let go of this request.")
        finally:
            if not inbox.released.is_set():
                self._link.post(Cancel(answer_id))
            # The lease on the model must outlast its work for this request: at most one step.
            with anyio.CancelScope(shield=True):
                await inbox.released.wait()
            del self._inboxes[answer_id]

    async def aclose(self) -> None:
        """End the process: within STOP_S by itself, else by force."""
        if self._ended.is_set():
            return
        self._is_usable = False
        self._is_closing = True
        self._failure = "The model was unloaded."
        self._link.post(Close())
        try:
            with anyio.move_on_after(STOP_S):
                await self._ended.wait()
        finally:
            self._kill()
            with anyio.CancelScope(shield=True):
                await self._ended.wait()

    async def run(
        self,
        environment: Mapping[str, str],
        *,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Keep the process from its start to its end; `started` when the model is loaded.

        Raises only before that.
        """
        try:
            await self._run(environment, task_status)
        except Exception:
            if not self._opened.is_set():
                raise
            logger.exception("the process of %s could not be kept", self._spec.ref)
        finally:
            self._settle()
            self._ended.set()
        if not self._opened.is_set():
            raise self._refusal or ModelLoadFailed(self._failure)

    async def _run(self, environment: Mapping[str, str], task_status: TaskStatus[None]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            stream = await UNIXSocketStream.from_socket(ours)
            self._link = Link(stream, decode_from_child)
            async with stream:
                # Whoever is cancelled while he starts a process does not get what he must end.
                with anyio.CancelScope(shield=True):
                    self._process = await self._start(theirs, environment)
                theirs.close()
                try:
                    await self._attend(task_status)
                finally:
                    self._kill()
                    with anyio.CancelScope(shield=True):
                        await self._process.aclose()

    async def _start(self, theirs: socket.socket, environment: Mapping[str, str]) -> Process:
        try:
            return await start_child(self._spec.ref, theirs, environment)
        except OSError as error:
            raise ModelLoadFailed(
                f"No process can be started for {self._spec.ref}: {error.strerror}."
            ) from error

    async def _attend(self, task_status: TaskStatus[None]) -> None:
        """Listen to the child until it ends, and find out why it did."""
        log = ChildLog(self._spec.ref)
        level = logging.getLogger().getEffectiveLevel()
        assert self._process.stderr is not None, "it was asked for"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._link.run_writer)
            tasks.start_soon(log.run, self._process.stderr)
            tasks.start_soon(self._watch)
            self._link.post(Open(self._spec, level, self._limit_bytes))
            try:
                while messages := await self._link.receive():
                    self._silent_beats = 0
                    for message in messages:
                        self._take(message)
                        if isinstance(message, Opened):
                            task_status.started()
            except WireError as error:
                self._condemn(f"cannot be understood ({error})")
            await self._learn_end(log)
            tasks.cancel_scope.cancel()

    def _take(self, message: FromChild) -> None:
        match message:
            case Told():
                self._inbox(message.id).deliver(message.event)
            case Released():
                fault = message.fault
                self._inbox(message.id).release(to_error(fault) if fault else None)
            case Beat():
                self._memory_bytes = message.memory_bytes
            case Opened():
                self._memory_bytes = message.memory_bytes
                self._is_usable = True
                self._opened.set()
            case Refused():
                self._refusal = to_error(message.fault)

    def _inbox(self, answer_id: int) -> Inbox:
        try:
            return self._inboxes[answer_id]
        except KeyError:
            raise WireError(f"an answer to request {answer_id}, which was not asked") from None

    async def _watch(self) -> None:
        """End a loaded child that is silent for too long. Our own pauses cost it one beat each."""
        await self._opened.wait()
        while self._silent_beats < SILENT_BEATS:
            await anyio.sleep(BEAT_S)
            self._silent_beats += 1
        self._condemn(f"did not answer for {SILENT_BEATS * BEAT_S:g} s")

    async def _learn_end(self, log: ChildLog) -> None:
        """Give the readers the reason why nothing more will come."""
        self._is_usable = False
        # Told to close it may take its time: `aclose` has a bound of its own.
        with anyio.move_on_after(None if self._is_closing else EXIT_S):
            await self._process.wait()
        with anyio.move_on_after(LAST_WORDS_S):
            await log.ended.wait()
        if self._is_closing:
            return
        end = self._verdict or describe_end(
            self._process.returncode,
            speaks_of_memory=log.speaks_of_memory,
            limit_bytes=self._limit_bytes,
        )
        self._failure = f"The process of {self._spec.ref} {end}."
        if self._refusal is None:
            logger.error("%s", self._failure)
        self._settle()

    def _settle(self) -> None:
        """End the answers that the child can end no more."""
        self._is_usable = False
        for inbox in self._inboxes.values():
            if not inbox.released.is_set():
                inbox.release(EngineFailed(self._failure))

    def _condemn(self, verdict: str) -> None:
        self._verdict = verdict
        self._kill()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
