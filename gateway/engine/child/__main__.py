"""The process of one model: `python -m gateway.engine.child FD NAME`, started by the gateway.

It opens the very engine that would run in the gateway, and says over the socket FD what the engine
says. It ends when it is told to, when its engine dies, and when the gateway is gone. NAME is for
people who look at the list of processes.
"""

import ctypes
import logging
import os
import resource
import signal
import socket
import sys
from contextlib import aclosing, suppress
from pathlib import Path
from typing import NoReturn

import anyio
from anyio.abc import TaskGroup, UNIXSocketStream

from gateway.core.errors import EngineFailed, GatewayError, Internal, ModelLoadFailed
from gateway.core.names import ModelRef
from gateway.engine.child.lent_memory import LentMemory
from gateway.engine.child.link import Link
from gateway.engine.child.wire import (
    BEAT_S,
    EXIT_OUT_OF_MEMORY,
    WINDOW,
    Ask,
    AskVectors,
    Beat,
    Cancel,
    Close,
    Embedded,
    Fault,
    Finish,
    Grant,
    Lent,
    Loading,
    Open,
    Opened,
    Refused,
    Released,
    ToChild,
    Told,
    decode_to_child,
    to_fault,
)
from gateway.engine.engine import Embedder, Engine, Generator
from gateway.engine.files.progress import LoadProgress
from gateway.engine.loading.loader import choose_device
from gateway.engine.loading.room import open_room
from gateway.engine.memory.overhead import resident_bytes
from gateway.engine.opening import EngineSpec, open_engine
from gateway.engine.weights.runtime import import_torch

logger = logging.getLogger(__name__)

OOM_SCORE = 500
"""Where the machine runs out of memory the kernel shall end a model and not the gateway."""

PROGRESS_S = 0.2
"""How often a load says how far it is."""

_PR_SET_PDEATHSIG = 1


class _Answer:
    """One answer under way: how it is cancelled, and how much its reader lets it say."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.is_stopped = False
        self._credit = WINDOW
        self._granted = anyio.Event()

    def grant(self, events: int) -> None:
        self._credit += events
        self._granted.set()

    def stop(self) -> None:
        """End it, and not because its reader wants that."""
        self.is_stopped = True
        self.scope.cancel()

    async def spend(self) -> None:
        """Wait until the reader has room for one event."""
        while self._credit <= 0:
            self._granted = anyio.Event()
            await self._granted.wait()
        self._credit -= 1


class _Child:
    """The engine of this process and its answers."""

    def __init__(self, link: Link[ToChild], tasks: TaskGroup) -> None:
        self._link = link
        self._tasks = tasks
        self._memory = LentMemory(link.post)
        self._engine: Engine | None = None
        self._is_in_ram = False
        self._own_bytes = 0
        self._answers: dict[int, _Answer] = {}
        self._listening = anyio.CancelScope()

    async def listen(self) -> None:
        """Do what the gateway says; return when it says Close or the engine is dead."""
        with self._listening:
            while messages := await self._link.receive():
                for message in messages:
                    if isinstance(message, Close):
                        return
                    self._obey(message)
            # The gateway is gone and nobody reads any more: there is nothing to be tidy for.
            os._exit(1)

    async def aclose(self) -> None:
        """Free the model; the answers under way end with EngineFailed."""
        # The engine may wait for an answer that nobody reads any more.
        self._memory.close()
        if self._engine is not None:
            await self._engine.aclose()
        # Those whose reader has no room would wait for him; the others have ended by themselves.
        for answer in self._answers.values():
            answer.stop()

    async def beat(self) -> None:
        """Say that the process is well, as long as somebody reads it."""
        while True:
            await anyio.sleep(BEAT_S)
            if self._link.is_idle:
                engine = self._engine
                said = Beat(self._memory_bytes(engine), engine.packing) if engine else Beat(0)
                self._link.post(said)

    def _obey(self, message: ToChild) -> None:
        match message:
            case Open():
                logging.getLogger().setLevel(message.log_level)
                self._tasks.start_soon(self._open, message.spec, message.memory_limit_bytes)
            case Ask() | AskVectors():
                self._answers[message.id] = _Answer()
                self._tasks.start_soon(self._answer, message, self._answers[message.id])
            case Finish() if self._engine is not None:
                self._tasks.start_soon(self._finish, self._engine)
            case Lent():
                self._memory.settle(message.id, message.granted)
            # An answer may end while the gateway says something about it.
            case Grant() if message.id in self._answers:
                self._answers[message.id].grant(message.events)
            case Cancel() if message.id in self._answers:
                self._answers[message.id].scope.cancel()

    async def _open(self, spec: EngineSpec, limit_bytes: int) -> None:
        """Load the model; without one this process is of no use, so it ends."""
        progress = LoadProgress()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._tell_progress, progress)
            try:
                await self._load(spec, limit_bytes, progress)
            except GatewayError as error:
                if isinstance(error.__cause__, MemoryError):
                    # Whatever needs memory to be tidy may fail at it, or go round in circles.
                    _exit(EXIT_OUT_OF_MEMORY)
                self._link.post(Refused(to_fault(error)))
                self._listening.cancel()
            tasks.cancel_scope.cancel()

    async def _load(self, spec: EngineSpec, limit_bytes: int, progress: LoadProgress) -> None:
        # Libraries that have no memory while they are imported hang rather than say so.
        await anyio.to_thread.run_sync(import_torch)
        _limit_memory(spec.ref, limit_bytes)
        device = await anyio.to_thread.run_sync(choose_device, spec.load.device)
        self._is_in_ram = device == "cpu"
        self._own_bytes = resident_bytes() or 0
        engine = self._engine = await open_engine(
            spec, progress, self._memory, room=open_room(spec.threads)
        )
        # A load may be over before it was told of.
        self._link.post(Loading(progress.read_bytes, progress.total_bytes))
        told = self._memory_bytes(engine), engine.first_bytes, engine.is_batched, engine.recipe
        self._link.post(Opened(*told, engine.packing))
        self._tasks.start_soon(self._stop_with, engine)

    async def _tell_progress(self, progress: LoadProgress) -> None:
        told = 0
        while True:
            await anyio.sleep(PROGRESS_S)
            if progress.read_bytes != told:
                told = progress.read_bytes
                self._link.post(Loading(told, progress.total_bytes))

    async def _answer(self, ask: Ask | AskVectors, answer: _Answer) -> None:
        fault: Fault | None = None
        try:
            with answer.scope:
                await self._tell(ask, answer)
            if answer.is_stopped:
                fault = to_fault(EngineFailed("The engine of this model stopped."))
        except GatewayError as error:
            fault = to_fault(error)
        except MemoryError:
            fault = to_fault(EngineFailed("The model ran out of memory on this request."))
        except Exception:
            logger.exception("a request failed")
            fault = to_fault(Internal("Something went wrong inside the gateway."))
        del self._answers[ask.id]
        self._link.post(Released(ask.id, fault))

    async def _tell(self, ask: Ask | AskVectors, answer: _Answer) -> None:
        engine = self._engine
        if isinstance(ask, AskVectors) and isinstance(engine, Embedder):
            self._link.post(Embedded(ask.id, await engine.embed(ask.request)))
        elif isinstance(ask, Ask) and isinstance(engine, Generator):
            async with aclosing(engine.stream(ask.request)) as events:
                async for event in events:
                    await answer.spend()
                    self._link.post(Told(ask.id, event))
        else:
            raise EngineFailed("The model cannot do this, or is not loaded.")

    async def _finish(self, engine: Engine) -> None:
        await engine.finish()
        self._link.post(Beat(self._memory_bytes(engine), engine.packing))

    async def _stop_with(self, engine: Engine) -> None:
        """End this process with its engine, whether that was closed or died."""
        await engine.wait_ended()
        self._listening.cancel()

    def _memory_bytes(self, engine: Engine) -> int:
        """Return what the model takes; in RAM that is all of this process, which is there for
        nothing else, and what of the model is still only mapped."""
        if not self._is_in_ram:
            return engine.memory_bytes
        return max(self._own_bytes + engine.memory_bytes, resident_bytes() or 0)


async def serve(connection: socket.socket) -> None:
    """Serve the gateway at the other end of `connection` until either side ends."""
    async with (
        await UNIXSocketStream.from_socket(connection) as stream,
        anyio.create_task_group() as tasks,
    ):
        link: Link[ToChild] = Link(stream, decode_to_child)
        tasks.start_soon(link.run_writer)
        async with anyio.create_task_group() as answers:
            child = _Child(link, answers)
            tasks.start_soon(child.beat)
            await child.listen()
            await child.aclose()
        await link.flush()
        tasks.cancel_scope.cancel()


def main() -> None:
    _die_with_the_gateway()
    # Signals to a whole group or control group are the gateway's: it decides when a model ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    connection = socket.socket(fileno=int(sys.argv[1]))
    status = 0
    try:
        anyio.run(serve, connection, backend_options={"use_uvloop": True})
    except* MemoryError:
        status = EXIT_OUT_OF_MEMORY
    except* Exception:
        logger.exception("the process of a model failed")
        status = status or 1
    if status:
        # The gateway waits to learn it: torch may take a second to be taken down.
        _exit(status)


def _exit(status: int) -> NoReturn:
    """End the process now, with what was logged."""
    logging.shutdown()
    os._exit(status)


def _die_with_the_gateway() -> None:
    """Have the kernel end this process should the gateway die while this one cannot look."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))


def _limit_memory(ref: ModelRef, limit_bytes: int) -> None:
    """Bound the memory that is this process's own: files that are only read do not count.

    Raises ModelLoadFailed where the libraries alone have taken more.
    """
    if limit_bytes:
        taken_bytes = _data_bytes()
        if taken_bytes >= limit_bytes:
            raise ModelLoadFailed(
                f"The process of {ref} may have {limit_bytes} bytes for itself; the libraries that "
                f"run models take {taken_bytes} of them before any model is there.",
                hint="Raise GATEWAY_HF_CHILD_MEMORY_BYTES.",
            )
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))


def _data_bytes() -> int:
    """Return what counts against the limit now; 0 where the kernel does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[5])
    except OSError:
        return 0
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
