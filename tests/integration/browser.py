"""A real Chromium without a window, driven by its own protocol: https://chromedevtools.github.io."""

import base64
import json
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from subprocess import PIPE
from typing import Any

import anyio
import httpx
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream
from websockets.asyncio.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Page:
    """One tab: navigates, runs scripts, tells what they return."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._ids = count(1)
        self._load_count = 0
        self.complaints: list[str] = []
        """What the console said of errors, refusals of the content security policy among them."""

    async def open(self, url: str) -> None:
        await self._load("Page.navigate", url=url)

    async def reload(self) -> None:
        await self._load("Page.reload")

    async def run(self, script: str) -> Any:
        """Return what an expression is, a promise's value if it is one."""
        answer = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until an expression is true."""
        look = f"const look = () => ({condition}) ? resolve() : setTimeout(look, 20); look();"
        with anyio.fail_after(30):
            await self.run(f"new Promise((resolve) => {{ {look} }})")

    async def type(self, selector: str, text: str) -> None:
        await self.run(f"document.querySelector({selector!r}).focus()")
        await self.call("Input.insertText", text=text)

    async def press_enter(self) -> None:
        for kind in ("keyDown", "keyUp"):
            key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
            await self.call("Input.dispatchKeyEvent", type=kind, **key)

    async def click(self, selector: str) -> None:
        await self.run(f"document.querySelector({selector!r}).click()")

    async def text(self, selector: str) -> str:
        return str(await self.run(f"document.querySelector({selector!r}).textContent"))

    async def screenshot(self, file: Path, width: int = 1000, height: int = 700) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        answer = await self.call("Page.captureScreenshot", format="png")
        await anyio.Path(file).write_bytes(base64.b64decode(answer["data"]))

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        await self._connection.send(json.dumps(message))
        while (answer := await self._receive()).get("id") != number:
            pass
        assert "error" not in answer, answer
        return dict(answer["result"])

    async def _load(self, method: str, **parameters: Any) -> None:
        before = self._load_count
        await self.call(method, **parameters)
        while self._load_count == before:
            await self._receive()

    async def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(await self._connection.recv())
        self._note(message)
        return message

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Page.loadEventFired":
            self._load_count += 1
        elif event.get("method") == "Log.entryAdded":
            entry = event["params"]["entry"]
            if entry["level"] == "error":
                self.complaints.append(f"{entry['text']} {entry.get('url', '')}")
        elif event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(event["params"]["exceptionDetails"]))


@asynccontextmanager
async def browsing() -> AsyncIterator[Page]:
    """Give a tab of a browser that has never been used."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--remote-debugging-port=0",
            f"--user-data-dir={folder}",
            "about:blank",
        ]
        async with await anyio.open_process(command, stdout=None, stderr=PIPE) as process:
            try:
                url = await _read_address(process)
                async with connect(url, max_size=None, proxy=None) as connection:
                    page = Page(connection)
                    for domain in ("Page", "Runtime", "Log"):
                        await page.call(f"{domain}.enable")
                    yield page
            finally:
                process.kill()


async def _read_address(process: Process) -> str:
    """Return the address of the browser's tab."""
    assert process.stderr is not None
    said = ""
    async for chunk in TextReceiveStream(process.stderr, errors="replace"):
        said += chunk
        if found := re.search(r"ws://(127\.0\.0\.1:\d+)/\S+\s", said):
            async with httpx.AsyncClient(trust_env=False, verify=False) as client:
                tabs = (await client.get(f"http://{found[1]}/json/list")).json()
            [tab] = [each for each in tabs if each["type"] == "page"]
            return str(tab["webSocketDebuggerUrl"])
    raise AssertionError(f"the browser did not start: {said}")
