"""What is said of a process that ended, and what becomes of the lines it wrote."""

import logging
import signal

import anyio
import pytest
from anyio.streams.memory import MemoryObjectReceiveStream

from gateway.core.names import ModelRef
from gateway.engine.child.process import LAST_LINES, LINE_BYTES, ChildLog, describe_end
from gateway.engine.child.wire import EXIT_OUT_OF_MEMORY

REF = ModelRef("huggingface", "tiny")


@pytest.mark.parametrize(
    ("returncode", "speaks", "limit", "said"),
    [
        (None, False, 0, "stopped answering"),
        (-signal.SIGKILL, False, 0, "was killed by SIGKILL, as the kernel does when memory"),
        (-signal.SIGKILL, True, 9, "was killed by SIGKILL"),
        (-signal.SIGSEGV, True, 0, "was killed by SIGSEGV"),
        (-64, False, 0, "was killed by SIGRTMAX"),
        (-63, False, 0, "was killed by signal 63"),
        (-signal.SIGABRT, False, 0, "was killed by SIGABRT"),
        (-signal.SIGABRT, True, 0, "ran out of memory"),
        (1, True, 9, "ran out of memory; its limit is 9 bytes"),
        (EXIT_OUT_OF_MEMORY, False, 9, "ran out of memory; its limit is 9 bytes"),
        (3, False, 9, "ended with status 3"),
        (0, True, 9, "ended with status 0"),
    ],
)
def test_an_end_is_told_by_what_is_known_of_it(
    returncode: int | None, speaks: bool, limit: int, said: str
) -> None:
    told = describe_end(returncode, speaks_of_memory=speaks, limit_bytes=limit)
    assert told.startswith(said)


async def logged(*pieces: bytes) -> ChildLog:
    send, receive = anyio.create_memory_object_stream[bytes](len(pieces))
    for piece in pieces:
        send.send_nowait(piece)
    send.close()
    log = ChildLog(REF)
    reader: MemoryObjectReceiveStream[bytes] = receive
    await log.run(reader)  # type: ignore[arg-type]
    receive.close()
    return log


async def test_lines_keep_their_level_and_get_the_model_s_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    await logged(
        b"a warning of a library\nINFO gate", b"way: packed\nERROR x: bad\nTraceback\n", b"la"
    )
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "huggingface/tiny: a warning of a library"),
        ("INFO", "huggingface/tiny: gateway: packed"),
        ("ERROR", "huggingface/tiny: x: bad"),
        ("ERROR", "huggingface/tiny: Traceback"),
        ("ERROR", "huggingface/tiny: la"),
    ]


async def test_a_line_without_an_end_is_not_kept_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    await logged(*[b"x" * LINE_BYTES] * 10)
    lengths = [len(record.getMessage()) for record in caplog.records]
    assert sum(lengths) > LINE_BYTES * 4
    assert max(lengths) <= LINE_BYTES + len("huggingface/tiny: ")


@pytest.mark.parametrize(
    ("line", "speaks"),
    [
        (b"MemoryError\n", True),
        (b"terminate called after throwing an instance of 'std::bad_alloc'\n", True),
        (b"DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes\n", True),
        (b"torch.OutOfMemoryError: CUDA out of memory.\n", True),
        (b"all is well\n", False),
        (b"MemoryError\n" + b"all is well\n" * LAST_LINES, False),
    ],
)
async def test_the_last_lines_tell_whether_memory_was_short(line: bytes, speaks: bool) -> None:
    assert (await logged(line)).speaks_of_memory is speaks
