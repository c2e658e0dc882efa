"""Keeper: has a process for one model, from its start to its end, and speaks with it."""

import itertools
import logging
import socket
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from anyio.abc import Process, TaskStatus, UNIXSocketStream

from gateway.core.errors import EngineFailed, GatewayError, ModelLoadFailed, ModelUnloaded
from gateway.engine.child.inbox import Inbox
from gateway.engine.child.link import Link
from gateway.engine.child.process import ChildLog, describe_end, start_child
from gateway.engine.child.wire import (
    BEAT_S,
    Ask,
    AskVectors,
    Beat,
    Cancel,
    Close,
    Embedded,
    Finish,
    FromChild,
    Grant,
    Lent,
    Loading,
    Need,
    Open,
    Opened,
    Refused,
    Released,
    Returned,
    Told,
    WireError,
    decode_from_child,
    to_error,
)
from gateway.engine.decoding.loaded import Recipe
from gateway.engine.files.progress import LoadProgress
from gateway.engine.memory.memory import Memory
from gateway.engine.opening import EngineSpec

logger = logging.getLogger(__name__)

STOP_S = 5.0
"""How long a child may take to end when it is told to; then it is killed."""
EXIT_S = 0.5
"""How long we wait to learn what ended a child that closed its socket; its readers wait, too."""
LAST_WORDS_S = 0.3
SILENT_BEATS = 30
"""Beats that a loaded child may miss (it may hang, or be stopped) before it is taken for dead."""
LOADING_BEATS = 90
"""The same while it loads: it may have to start on a busy machine, and import torch."""


class Keeper:
    """What the manager knows of an engine in another process; `run` must run as long as it lives.

    `memory_bytes` is what the child says about once a second: what the model takes, or what the
    whole process has in RAM, where that is the memory it takes and more.
    """

    def __init__(
        self, spec: EngineSpec, progress: LoadProgress, memory: Memory, memory_limit_bytes: int
    ) -> None:
        """The state of the sequences there takes its bytes from `memory` here."""
        self.recipe: Recipe | None = None
        self.first_bytes = 0
        self.packing: float | None = None
        self._spec = spec
        self._progress = progress
        self._memory = memory
        self._limit_bytes = memory_limit_bytes
        self._memory_bytes = 0
        self._lent_bytes = 0
        self._is_batched = False
        self._link: Link[FromChild]
        self._process: Process | None = None
        self._inboxes: dict[int, Inbox[Any]] = {}
        self._ids = itertools.count(1)
        self._opened = anyio.Event()
        self._settled = anyio.Event()
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
    def is_batched(self) -> bool:
        return self._is_batched

    @property
    def alive(self) -> bool:
        return self._is_usable

    async def finish(self) -> None:
        """Have the child pack what is left of its weights; see `gateway.engine.engine.Engine`."""
        if self._is_usable:
            self._link.post(Finish())

    async def wait_ended(self) -> None:
        """Return once it is known why the process answers no more."""
        await self._settled.wait()

    @property
    def pid(self) -> int:
        assert self._process is not None, "it was not started"
        return self._process.pid

    @asynccontextmanager
    async def ask(
        self, question: Callable[[int], Ask | AskVectors], kind: Any
    ) -> AsyncGenerator[Inbox[Any], None]:
        """Send a question, made of its id, and give the inbox for its answers of this kind.

        Leaving this cancels what is left of the answer, and returns when the child has let go.
        Raises EngineFailed, and what `encode_frame` does.
        """
        await self._link.wait_for_room()
        if not self._is_usable:
            raise EngineFailed(self._failure)
        answer_id = next(self._ids)
        self._link.post(question(answer_id))
        inbox: Inbox[Any] = Inbox(kind, lambda events: self._link.post(Grant(answer_id, events)))
        self._inboxes[answer_id] = inbox
        try:
            yield inbox
        finally:
            if not inbox.released.is_set():
                self._link.post(Cancel(answer_id))
            # The lease on the model must outlast its work for this request: at most one step.
            with anyio.CancelScope(shield=True):
                await inbox.released.wait()
            del self._inboxes[answer_id]

    def give_up(self) -> None:
        """End a load at once: it gets ModelUnloaded."""
        if not self._opened.is_set():
            self._refusal = ModelUnloaded("The load was cancelled.")
            self._kill()

    async def aclose(self) -> None:
        """End the process: within STOP_S by itself, else by force."""
        if self._is_usable:
            self._is_usable = False
            self._is_closing = True
            self._failure = "The model was unloaded."
            self._link.post(Close())
        # Else it is ending by itself, and its readers are about to be told why.
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
                    process = self._process = await self._start(theirs, environment)
                theirs.close()
                try:
                    # Nothing could be killed while it was being started.
                    if self._refusal is None:
                        await self._attend(process, task_status)
                finally:
                    self._kill()
                    with anyio.CancelScope(shield=True):
                        await process.aclose()

    async def _start(self, theirs: socket.socket, environment: Mapping[str, str]) -> Process:
        try:
            return await start_child(self._spec.ref, theirs, environment)
        except OSError as error:
            raise ModelLoadFailed(
                f"No process can be started for {self._spec.ref}: {error.strerror}."
            ) from error

    async def _attend(self, process: Process, task_status: TaskStatus[None]) -> None:
        """Listen to the child until it ends, and find out why it did."""
        log = ChildLog(self._spec.ref)
        level = logging.getLogger().getEffectiveLevel()
        assert process.stderr is not None, "it was asked for"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._link.run_writer)
            tasks.start_soon(log.run, process.stderr)
            tasks.start_soon(self._watch)
            self._link.post(Open(self._spec, level, self._limit_bytes))
            try:
                while messages := await self._link.receive():
                    self._silent_beats = 0
                    for message in messages:
                        self._take(message)
                        if isinstance(message, Opened):
                            task_status.started()
                    if self._refusal is not None:
                        break  # a child without a model is of no use, and may be in no state to end
            except WireError as error:
                self._condemn(f"cannot be understood ({error})")
            await self._learn_end(process, log)
            tasks.cancel_scope.cancel()

    def _take(self, message: FromChild) -> None:
        match message:
            case Told():
                self._inbox(message.id).deliver(message.event)
            case Embedded():
                self._inbox(message.id).deliver(message.embeddings)
            case Released():
                fault = message.fault
                self._inbox(message.id).release(to_error(fault) if fault else None)
            case Beat():
                self._memory_bytes, self.packing = message.memory_bytes, message.packing
            case Need():
                granted = self._memory.reserve(message.size_bytes, is_needed=message.is_needed)
                self._lent_bytes += message.size_bytes if granted else 0
                self._link.post(Lent(message.id, granted))
            case Returned():
                self._take_back(message.size_bytes)
            case Loading():
                self._progress.read_bytes = message.read_bytes
                self._progress.total_bytes = message.total_bytes
            case Opened():
                self._memory_bytes, self.packing = message.memory_bytes, message.packing
                self.first_bytes = message.first_bytes
                self._is_batched, self.recipe = message.is_batched, message.recipe
                self._is_usable = True
                self._opened.set()
            case Refused():
                self._refusal = to_error(message.fault)

    def _take_back(self, size_bytes: int) -> None:
        if size_bytes > self._lent_bytes:
            raise WireError("more memory came back than was lent")
        self._lent_bytes -= size_bytes
        self._memory.release(size_bytes)

    def _inbox(self, answer_id: int) -> Inbox[Any]:
        try:
            return self._inboxes[answer_id]
        except KeyError:
            raise WireError(f"an answer to request {answer_id}, which was not asked") from None

    async def _watch(self) -> None:
        """End a child that is silent for too long. Our own pauses cost it one beat each."""
        while self._silent_beats < self._patience_beats:
            await anyio.sleep(BEAT_S)
            self._silent_beats += 1
        self._condemn(f"did not answer for {self._patience_beats * BEAT_S:g} s")

    @property
    def _patience_beats(self) -> int:
        return SILENT_BEATS if self._opened.is_set() else LOADING_BEATS

    async def _learn_end(self, process: Process, log: ChildLog) -> None:
        """Give the readers the reason why nothing more will come."""
        self._is_usable = False
        # Told to close it may take its time: `aclose` has a bound of its own.
        with anyio.move_on_after(None if self._is_closing else EXIT_S):
            await process.wait()
        with anyio.move_on_after(LAST_WORDS_S):
            await log.ended.wait()
        if self._is_closing:
            return
        end = self._verdict or describe_end(
            process.returncode,
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
        # First: who hears of it shall find the model shown as it is.
        self._settled.set()
        for inbox in self._inboxes.values():
            if not inbox.released.is_set():
                inbox.release(EngineFailed(self._failure))

    def _condemn(self, verdict: str) -> None:
        self._verdict = verdict
        self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
