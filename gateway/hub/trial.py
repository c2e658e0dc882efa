"""Loads a model in a child process, to see whether it can be: what is bad kills the child only.

The child has a bound on its memory and its time, no network and no pickle: where the kernel lets
it, a network of its own without a way out, and everywhere a Python that refuses to connect.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from gateway.core.embeddings import EmbedRequest
from gateway.core.errors import (
    GatewayError,
    ModelLoadFailed,
    ModelRefused,
    ModelTooLarge,
    ProviderTimeout,
)
from gateway.core.library import ShelvedModel
from gateway.core.loading import LoadConfig
from gateway.core.messages import GenerateRequest, Options
from gateway.core.names import ModelRef
from gateway.engine.child.process import ChildLog, describe_end
from gateway.engine.child.wire import EXIT_OUT_OF_MEMORY
from gateway.engine.engine import Embedder, Generator
from gateway.engine.opening import EngineSpec, open_engine
from gateway.engine.weights.runtime import import_torch

PROVIDER = "huggingface"
SPARE_BYTES = 4 * 2**30
"""What the child may have for itself, beside three times its weights."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
_CLONE_NEWUSER, _CLONE_NEWNET, _PR_SET_PDEATHSIG = 0x10000000, 0x40000000, 1
_REFUSED = ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo")
_EXIT_REFUSED = 4
_REFUSED_ONCE_LOADED = "pickle.find_class"


class _Order(msgspec.Struct, frozen=True):
    spec: EngineSpec
    memory_bytes: int


class ChildLoadTester:
    """A core.ports.LoadTester: each model in a process of its own, on the processor."""

    def __init__(
        self,
        *,
        environment: Mapping[str, str],
        memory_bytes: int = 0,
        timeout_s: float = 300.0,
        threads: int = 0,
    ) -> None:
        """`memory_bytes` 0: what a model of its size may need."""
        self._environment = {**environment, **OFFLINE}
        self._memory_bytes = memory_bytes
        self._timeout_s = timeout_s
        self._threads = threads

    async def __call__(self, model: ShelvedModel) -> str | None:
        limit = self._memory_bytes or 3 * model.model.size_bytes + SPARE_BYTES
        spec = EngineSpec(
            ref=ModelRef(PROVIDER, model.name),
            files=model.model,
            load=LoadConfig(device="cpu"),
            max_active=1,
            max_queue=1,
            threads=self._threads,
            gguf_context_length=256,
        )
        try:
            with anyio.fail_after(self._timeout_s):
                return await self._run(model.name, _Order(spec, limit))
        except TimeoutError:
            raise ProviderTimeout(
                PROVIDER,
                f"{model.name} could not be loaded within {self._timeout_s:g} s.",
                hint="GATEWAY_HF_VERIFY_TIMEOUT_S is how long a load test may take.",
            ) from None

    async def _run(self, name: str, order: _Order) -> str | None:
        # The child finds the gateway where this process found it, however it was started.
        code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main()"
        log = ChildLog(order.spec.ref)
        # Cancelled in mid-start, nobody would know the child.
        with anyio.CancelScope(shield=True):
            process = await anyio.open_process(
                [sys.executable, "-c", code], env=self._environment, start_new_session=True
            )
        # Leaving the block kills the child if it has not ended.
        async with process, anyio.create_task_group() as tasks:
            assert process.stdin and process.stdout and process.stderr
            tasks.start_soon(log.run, process.stderr)
            with suppress(anyio.BrokenResourceError):
                await process.stdin.send(msgspec.msgpack.encode(order))
                await process.stdin.aclose()
            printed = b"".join([chunk async for chunk in process.stdout])
            status = await process.wait()
            await log.ended.wait()
        return _read_end(name, status, printed, log.speaks_of_memory, order.memory_bytes)


def _read_end(
    name: str, status: int, printed: bytes, speaks_of_memory: bool, limit_bytes: int
) -> str | None:
    """Return why the model cannot be loaded; raises ModelTooLarge where memory was what lacked, and
    ModelRefused where it was leave."""
    if status == 0:
        return None
    if status == _EXIT_REFUSED:
        raise ModelRefused(_read_reason(printed) or f"{name} is not allowed.")
    end = describe_end(status, speaks_of_memory=speaks_of_memory, limit_bytes=limit_bytes)
    if "memory" in end:
        raise ModelTooLarge(
            f"The process that loaded {name} {end}.",
            hint="GATEWAY_HF_VERIFY_MEMORY_BYTES is what a load test may have.",
        )
    return _read_reason(printed) or f"The process that loaded it {end}."


def _read_reason(printed: bytes) -> str | None:
    with suppress(msgspec.DecodeError):
        return str(msgspec.json.decode(printed.rpartition(b"\n")[2]))
    return None


def main() -> None:
    """Try the model that standard input tells of; exit with 1 and the reason as JSON if it cannot
    be loaded."""
    _leave_the_network()
    order = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=_Order)
    status, reason = 0, ""
    try:
        anyio.run(_try, order)
    except* MemoryError:
        status = EXIT_OUT_OF_MEMORY
    except* GatewayError as group:
        error = _first(group)
        status = _EXIT_REFUSED if isinstance(error, ModelRefused) else 1
        reason = getattr(error, "message", str(error))
        if isinstance(error.__cause__, MemoryError):
            status = EXIT_OUT_OF_MEMORY
    sys.stdout.buffer.write(b"\n" + msgspec.json.encode(reason))
    sys.stdout.flush()
    # Without the finalizers of libraries that may hang, or need memory to be tidy.
    os._exit(status)


async def _try(order: _Order) -> None:
    await anyio.to_thread.run_sync(import_torch)
    _bound_memory(order.memory_bytes)
    sys.addaudithook(_refuse_pickle)
    engine = await open_engine(order.spec)
    if isinstance(engine, Embedder):
        await engine.embed(EmbedRequest(id="trial", model="trial", inputs=("Hello",)))
    elif isinstance(engine, Generator):
        request = GenerateRequest(
            id="trial", model="trial", prompt="Hello", raw=True, options=Options(max_tokens=1)
        )
        async for _ in engine.stream(request):
            pass
    await engine.aclose()


def _leave_the_network() -> None:
    """Have this process without a network. Called while there is one thread, and nothing else yet
    was imported that could have opened anything."""
    sys.addaudithook(_refuse_network)
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # The first is for root; others need a user namespace for it, where those are allowed.
        if library.unshare(_CLONE_NEWNET) != 0:
            library.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


def _refuse_network(event: str, _arguments: tuple[Any, ...]) -> None:
    if event in _REFUSED:
        raise ModelLoadFailed("Loading it asks for the network.")


def _refuse_pickle(event: str, _arguments: tuple[Any, ...]) -> None:
    if event == _REFUSED_ONCE_LOADED:
        raise ModelLoadFailed("Loading it reads a pickle.")


def _bound_memory(limit_bytes: int) -> None:
    """Bound what is this process's own; raises MemoryError where the libraries took more."""
    import resource

    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        if pages * resource.getpagesize() >= limit_bytes:
            raise MemoryError
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))


def _first(group: BaseExceptionGroup[GatewayError]) -> GatewayError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
