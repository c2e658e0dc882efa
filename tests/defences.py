"""The defences against the faults of docs/operations.md, and what removing each makes fail.

A fault test counts only if it bites. Each defence is a piece of code that stands once in its file;
taken out, it must make a test fail. By hand, some minutes for all:

    python -m tests.defences [FAULT ...]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 240


@dataclass(frozen=True)
class Defence:
    """`code` of `file` defends against `fault`; with `removed` in its place `test` fails."""

    fault: str
    what: str
    file: str
    code: str
    removed: str
    test: str

    @property
    def tests(self) -> list[str]:
        """The arguments of pytest."""
        path, _, name = self.test.partition("::")
        return [f"tests/{path}", *(["-k", name] if name else [])]


DEFENCES = (
    Defence(
        "F1",
        "the breaker opens",
        "core/breaker.py",
        "FAILURES = 10\n",
        "FAILURES = 10**9\n",
        "integration/http/test_upstream_faults.py::comes_back",
    ),
    Defence(
        "F1",
        "a refused connection is an upstream that is away",
        "providers/http1.py",
        "raise Unreachable from error",
        "raise MalformedReply from error",
        "integration/providers/test_ollama_failures.py::nobody_listening",
    ),
    Defence(
        "F2",
        "the deadline to connect",
        "providers/http1.py",
        "with anyio.fail_after(self._connect_s):",
        "with anyio.fail_after(90):",
        "integration/providers/test_ollama_failures.py::connection_that_is_not_accepted",
    ),
    Defence(
        "F2",
        "the deadline of a reply",
        "providers/http1_connection_wire.py",
        "self._deadline = deadline = self._loop.time() + seconds",
        "self._deadline = deadline = self._loop.time() + 90",
        "integration/providers/test_ollama_failures.py::silence",
    ),
    Defence(
        "F3",
        "an answer that was cut is not whole",
        "providers/http1_connection_wire.py",
        "is_whole = exc is None and",
        "is_whole = True or",
        "integration/http/test_upstream_cuts.py::every_cut_of_an_answer",
    ),
    Defence(
        "F4",
        "the bound of a line",
        "providers/ollama_stream_wire.py",
        "if len(line) > self._max_line_bytes:",
        "if False:",
        "integration/providers/test_ollama_failures.py::line_without_end",
    ),
    Defence(
        "F5",
        "only a whole line is progress",
        "providers/pouring_wire.py",
        "if reader.lines > lines and self._is_held and reply is not None:",
        "if True:",
        "integration/http/test_upstream_faults.py::byte_a_second",
    ),
    Defence(
        "F6",
        "what is compressed is refused unread",
        "providers/http1_wire.py",
        'return self.headers.get("content-encoding", "").lower() not in ("", "identity")',
        "return False",
        "integration/providers/test_ollama_failures.py::compressed",
    ),
    Defence(
        "F7",
        "who is busy is not asked again",
        "core/retry.py",
        "_AGAIN = (ProviderUnavailable, IncompleteStream)",
        "_AGAIN = (ProviderUnavailable, IncompleteStream, Overloaded)",
        "integration/http/test_upstream_faults.py::storm",
    ),
    Defence(
        "F7",
        "the budget of retries",
        "core/retry.py",
        "        if self._tokens < 1:\n            return False\n",
        "",
        "unit/core/test_breaker.py::retries_are_at_most",
    ),
    Defence(
        "F8",
        "looks at who rests",
        "services/health.py",
        'logger.info("%s is back", name)\n            self._breakers.pop(name, None)',
        'logger.info("%s is back", name)',
        "integration/http/test_upstream_faults.py::comes_back",
    ),
    Defence(
        "F8",
        "one probe at a time",
        "core/breaker.py",
        "if now < self._open_until or self._is_probed",
        "if now < self._open_until",
        "unit/core/test_breaker.py::one_probe",
    ),
    Defence(
        "F9",
        "what was given up counts until the server closes",
        "providers/http1_connection_wire.py",
        "self._is_parting = True\n        transport.write_eof()",
        "self.abort()\n        return\n        transport.write_eof()",
        "integration/providers/test_given_up.py::hears_no_abort",
    ),
    Defence(
        "F9",
        "a server is at no more than it may",
        "providers/http1.py",
        "if self.asked >= self._max_asked:",
        "if False:",
        "integration/providers/test_given_up.py::hears_no_abort",
    ),
    Defence(
        "F10",
        "a stream that nobody reads is cancelled",
        "services/streams.py",
        "            stream.cancel()\n\n    async def _await_reader",
        "            pass\n\n    async def _await_reader",
        "integration/http/test_streams_face.py",
    ),
    Defence(
        "F10",
        "the end of the connection cancels the work",
        "http/disconnect.py",
        "            connection.watch(work.cancel)\n",
        "",
        "integration/http/test_disconnect.py::leaving_stops_the_model",
    ),
    Defence(
        "F10",
        "the end of a connection of the express way stops what is answered on it",
        "http/express/exchange.py",
        "self._line.connection.watch(self._stream.forsake)",
        "pass",
        "integration/http/test_express.py::who_leaves_stops",
    ),
    Defence(
        "F11",
        "who always has more to say leaves turns to others",
        "core/telling.py",
        "EVENTS_A_TURN = 16",
        "EVENTS_A_TURN = 10**9",
        "integration/http/test_disconnect.py::never_pauses",
    ),
    Defence(
        "F11",
        "large pieces share the turns",
        "http/sse_flow.py",
        "if size > LARGE_BYTES and not connection.turns.admit(size, self._flush):",
        "if False:",
        "integration/http/test_slow_clients.py::share_turns",
    ),
    Defence(
        "F12",
        "the bound of what a reader has still to read",
        "services/replay.py",
        "return len(self._unread) < most_unread and self.unread_bytes < self._max_bytes",
        "return True",
        "integration/http/test_slow_clients.py::take_nothing",
    ),
    Defence(
        "F12",
        "the send timeout",
        "http/sse_flow.py",
        "self._patience = self._loop.call_later(limit_s, self._give_up)",
        "pass",
        "integration/http/test_slow_clients.py::take_nothing",
    ),
    Defence(
        "F13",
        "the deadline of a head",
        "http/protocol.py",
        "self._deadline = self.loop.call_later(self.guard.limits.head_s, self.transport.abort)",
        "pass",
        "integration/http/test_slow_clients.py::heads_that_do_not_come",
    ),
    Defence(
        "F13",
        "the bound of a head",
        "http/protocol.py",
        "if self._head_bytes > HEAD_BYTES:",
        "if False:",
        "integration/http/test_slow_clients.py::head_without_end",
    ),
    Defence(
        "F13",
        "the deadline of a body",
        "http/body.py",
        "with anyio.fail_after(BODY_DEADLINE_S):",
        "if True:",
        "integration/http/test_slow_clients.py::body_that_does_not_come",
    ),
    Defence(
        "F13",
        "who is silent is asked",
        "http/server.py",
        "listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)",
        "pass",
        "integration/http/test_vanished.py::vanished_without",
    ),
    Defence(
        "F13",
        "who confirms nothing is given up",
        "http/server.py",
        '"TCP_USER_TIMEOUT": round(vanished_s * 1000),',
        "",
        "integration/http/test_vanished.py::vanished_without",
    ),
    Defence(
        "F14",
        "the bound of streams",
        "services/streams.py",
        "if len(self._live) >= self._limits.max_streams:",
        "if False:",
        "integration/http/test_drain.py::too_many_streams",
    ),
    Defence(
        "F22",
        "a child that is silent is taken for dead",
        "engine/child/keeper.py",
        "while self._silent_beats < self._patience_beats:",
        "while True:",
        "integration/engine/test_isolated.py::hangs",
    ),
    Defence(
        "F24",
        "a model in use stays",
        "core/eviction.py",
        "if model.leases == 0 and not model.pinned",
        "if not model.pinned",
        "unit/core/test_eviction.py",
    ),
    Defence(
        "F36",
        "a database that is slow is told of",
        "services/recorder.py",
        "return not (self._is_away or is_slow)",
        "return True",
        "integration/process/test_kill.py::ten_seconds",
    ),
    Defence(
        "F36",
        "records that wait go to the journal",
        "services/recorder.py",
        "elif not await self._is_database_coming():\n                await self._spool()",
        "else:\n                await self._sleep(0.1)",
        "integration/process/test_kill.py::ten_seconds",
    ),
    Defence(
        "F37",
        "records that wait go to the journal",
        "services/recorder.py",
        "elif not await self._is_database_coming():\n                await self._spool()",
        "else:\n                await self._sleep(0.1)",
        "integration/process/test_database_away.py::postgresql",
    ),
    Defence(
        "F38",
        "a write to SQLite that is cancelled is done to its end",
        "store/database.py",
        "with anyio.CancelScope(shield=self._is_sqlite):",
        "with anyio.CancelScope(shield=False):",
        "integration/store/test_database_faults.py::cancel",
    ),
    Defence(
        "F38",
        "a connection goes back though its user is cancelled",
        "store/database.py",
        "with anyio.move_on_after(_RELEASE_TIMEOUT_S, shield=True):\n"
        "                        await connection.close()",
        "with anyio.move_on_after(_RELEASE_TIMEOUT_S):\n"
        "                        await connection.close()",
        "integration/store/test_database_faults.py::between_two",
    ),
    Defence(
        "F39",
        "`started` waits for what the log does not take",
        "services/owner.py",
        "await self._recorder.wait_written(self._ticket, COMMIT_WAIT_S)\n",
        "pass\n",
        "integration/process/test_first_moments.py::full_disk",
    ),
    Defence(
        "F40",
        "the log has what begins before it is said",
        "store/open_log.py",
        "written = self._write(tail.file, data)",
        "written = len(data)",
        "integration/process/test_first_moments.py::locked",
    ),
    Defence(
        "F40",
        "what a run before left open is closed",
        "services/recorder.py",
        "count = await self._store.interrupt_orphans(self._node, self._now(), boot=self.boot)",
        "count = 0",
        "integration/process/test_kill.py::on_sqlite",
    ),
    Defence(
        "F41",
        "what a gateway leaves whose lease ended is closed",
        "services/lease.py",
        "if count := await self._store.interrupt_expired(self._lease_s):",
        "if count := 0:",
        "integration/process/test_database_away.py::frozen",
    ),
    Defence(
        "F41",
        "the first end of a session stays",
        "store/sessions.py",
        "_insert_ending = self._insert(_COLUMNS, {_is_open: (*_SERVED, *_CLOSED)})",
        "_insert_ending = self._insert(_COLUMNS, {_is_open | ~_is_open: (*_SERVED, *_CLOSED)})",
        "integration/process/test_database_away.py::frozen",
    ),
    Defence(
        "F42",
        "migrators take turns",
        "store/migrate.py",
        "        _wait_for_other_migrators(connection)\n        config",
        "        config",
        "integration/store/test_migrations.py::take_turns",
    ),
    Defence(
        "F43",
        "streams get an end when the grace is over",
        "services/streams.py",
        'stream.abort(ShuttingDown("The gateway shut down before the answer was complete."))',
        "stream.cancel()",
        "integration/process/test_exit.py",
    ),
    Defence(
        "F43",
        "a second signal ends the grace",
        "http/server.py",
        "self._graces_s = [grace_s, 0.0]",
        "self._graces_s = [grace_s, grace_s]",
        "integration/process/test_exit.py",
    ),
    Defence(
        "F43",
        "who takes nothing is cut",
        "http/server.py",
        "tasks.start_soon(self._cut_frozen)",
        "pass",
        "integration/process/test_exit.py",
    ),
    Defence(
        "F44",
        "a token goes by a clock that nobody sets",
        "services/stream_tokens.py",
        "clock: Callable[[], float] = time.monotonic",
        "clock: Callable[[], float] = lambda: time.time()",
        "unit/services/test_clock_jumps.py::token_holds",
    ),
    Defence(
        "F45",
        "the bound of connections",
        "http/connections.py",
        "if of_peer or self.count >= self.limits.most:",
        "if of_peer:",
        "integration/process/test_file_limit.py",
    ),
    Defence(
        "F45",
        "files are left for what is done",
        "http/connections.py",
        "RESERVED_FILES = 128",
        "RESERVED_FILES = -300",
        "integration/process/test_file_limit.py",
    ),
)


@contextmanager
def without(defence: Defence) -> Iterator[Path]:
    """A copy of the tree that lacks one defence."""
    with tempfile.TemporaryDirectory(prefix="without-") as name:
        copy = Path(name)
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        files = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout
        packed = ["tar", "--create", "--null", "--files-from=-", "--ignore-failed-read"]
        tree = subprocess.run(packed, cwd=ROOT, input=files, capture_output=True, check=True).stdout
        subprocess.run(["tar", "--extract"], cwd=copy, input=tree, check=True)
        file = copy / "gateway" / defence.file
        file.write_text(file.read_text("utf-8").replace(defence.code, defence.removed), "utf-8")
        yield copy


def run_without(defence: Defence) -> tuple[bool, str]:
    """Return whether a test failed for want of `defence`, and what pytest said of it."""
    command = [sys.executable, "-m", "pytest", "-x", "--tb=no", "-p", "no:cacheprovider"]
    with without(defence) as copy:
        try:
            done = subprocess.run(
                [*command, "--timeout", "120", *defence.tests],
                cwd=copy,
                env={**os.environ, "PYTHONPATH": str(copy)},
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False, f"no end within {TIMEOUT_S} s"
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return done.returncode == 1 and bool(failed), (failed or done.stdout.splitlines() or [""])[-1]


def main() -> int:
    """Take out the defences against the named faults, or all, one after the other."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("faults", nargs="*", metavar="FAULT")
    wanted = parser.parse_args().faults
    missed = 0
    for defence in DEFENCES:
        if wanted and defence.fault not in wanted:
            continue
        began = time.monotonic()
        bites, said = run_without(defence)
        missed += not bites
        verdict = "bites" if bites else "DOES NOT BITE"
        took = f"{time.monotonic() - began:.0f} s"
        sys.stdout.write(f"{defence.fault} | {defence.what} | {verdict} | {took} | {said}\n")
        sys.stdout.flush()
    return bool(missed)


if __name__ == "__main__":
    raise SystemExit(main())
