"""Peers as processes: a worker that is asked through a pipe, a server that is asked over HTTP."""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, Protocol

import aiohttp
import anyio
from anyio.abc import Process

from bench.answers import Answer
from bench.environments import ROOT

STOP_S = 20.0


class Failed(Exception):
    """The peer gave no answer; the reason for a person."""


class Peer(Protocol):
    """A running peer. `pid` is its process; all raise Failed."""

    @property
    def pid(self) -> int: ...

    async def start(self) -> None: ...

    async def settle(self) -> None:
        """Return once it is at rest after its first answer."""
        ...

    async def run(self, prompts: Sequence[str], new_tokens: int) -> list[Answer]:
        """Answer all prompts at the same time."""
        ...

    async def stop(self) -> None:
        """End it, however busy it is."""
        ...


class _Owned:
    """A process with its children, which end together."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command = command
        self._environment = environment
        self._process: Process | None = None
        self._log: IO[bytes] | None = None

    @property
    def process(self) -> Process:
        assert self._process is not None, "the peer is not running"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    async def open(self, stdin: int, stdout: int | None) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        self._process = await anyio.open_process(
            self._command,
            stdin=stdin,
            stdout=self._log if stdout is None else stdout,
            stderr=self._log,
            cwd=ROOT,
            env=self._environment,
            start_new_session=True,
        )

    def last_words(self) -> str:
        assert self._log is not None
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "it said nothing"

    async def stop(self) -> None:
        if self._process is None:
            return
        with anyio.CancelScope(shield=True):
            self._signal(signal.SIGTERM)
            with anyio.move_on_after(STOP_S) as scope:
                await self._process.wait()
            if scope.cancelled_caught:
                self._signal(signal.SIGKILL)
                await self._process.wait()
            # A child may outlive its parent; nothing may run beside the next peer.
            self._signal(signal.SIGKILL)
            await self._process.aclose()
        self._process = None
        assert self._log is not None
        self._log.close()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)


class WorkerPeer(_Owned):
    """A process that answers by the protocol of bench.worker."""

    _received = b""

    async def start(self) -> None:
        await self.open(subprocess.PIPE, subprocess.PIPE)
        await self._reply()

    async def settle(self) -> None:
        pass

    async def run(self, prompts: Sequence[str], new_tokens: int) -> list[Answer]:
        asked = json.dumps({"prompts": prompts, "new_tokens": new_tokens})
        assert self.process.stdin is not None
        await self.process.stdin.send(asked.encode() + b"\n")
        reply = await self._reply()
        return [Answer(**answer) for answer in reply["answers"]]

    async def _reply(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while b"\n" not in self._received:
            try:
                self._received += await self.process.stdout.receive()
            except anyio.EndOfStream:
                code = await self.process.wait()
                raise Failed(f"it ended with {code}: {self.last_words()}") from None
        line, _, self._received = self._received.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise Failed(reply["error"])
        return reply


class ServerPeer(_Owned):
    """A server of OpenAI's `/v1/completions`, asked over HTTP from this process."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        url: str,
        ready: str,
        model: str,
        data: tempfile.TemporaryDirectory[str] | None = None,
        status: str | None = None,
    ) -> None:
        """`ready` is the path that answers once it serves; `data` is removed at the end. `status`
        is the path that tells of the model whether its weights are still being packed."""
        super().__init__(command, environment)
        self.url = url
        self.model = model
        self._ready = ready
        self._data = data
        self._status = status

    async def start(self) -> None:
        await self.open(subprocess.DEVNULL, None)
        async with aiohttp.ClientSession() as client:
            while True:
                if self.process.returncode is not None:
                    raise Failed(f"it ended with {self.process.returncode}: {self.last_words()}")
                with suppress(aiohttp.ClientConnectionError):
                    async with client.get(self.url + self._ready) as reply:
                        if reply.ok:
                            return
                await anyio.sleep(0.1)

    async def stop(self) -> None:
        await super().stop()
        if self._data is not None:
            self._data.cleanup()

    async def settle(self) -> None:
        """Return once what a load puts off is done."""
        if self._status is None:
            return
        async with aiohttp.ClientSession() as client:
            while True:
                async with client.get(self.url + self._status) as reply:
                    if reply.ok and (await reply.json())["packing"] is None:
                        return
                await anyio.sleep(0.1)

    async def run(self, prompts: Sequence[str], new_tokens: int) -> list[Answer]:
        answers = [Answer() for _ in prompts]
        no_limits = aiohttp.ClientTimeout(total=None, sock_read=None)
        async with aiohttp.ClientSession(
            timeout=no_limits, connector=aiohttp.TCPConnector(limit=0)
        ) as client:
            began = time.perf_counter()
            try:
                async with anyio.create_task_group() as tasks:
                    for prompt, answer in zip(prompts, answers, strict=True):
                        tasks.start_soon(self._read, client, prompt, new_tokens, answer, began)
            except* (aiohttp.ClientError, Failed) as group:
                first = group.exceptions[0]
                kind = "" if isinstance(first, Failed) else f"{type(first).__name__}: "
                raise Failed(f"{kind}{first}") from None
        return answers

    async def _read(
        self,
        client: aiohttp.ClientSession,
        prompt: str,
        new_tokens: int,
        answer: Answer,
        began: float,
    ) -> None:
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": new_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        async with client.post(f"{self.url}/v1/completions", json=body) as reply:
            if not reply.ok:
                raise Failed(f"status {reply.status}: {(await reply.text())[:200]}")
            async for line in reply.content:
                if not line.startswith(b"data: {"):
                    continue
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    raise Failed(str(chunk["error"])[:200])
                if any(choice.get("text") for choice in chunk["choices"]):
                    answer.times_s.append(time.perf_counter() - began)
                if usage := chunk.get("usage"):
                    answer.prompt_tokens = usage["prompt_tokens"]
                    answer.completion_tokens = usage["completion_tokens"]
