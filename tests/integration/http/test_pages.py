"""The pages: what they hold, what they ask, and the chat page's own client against the gateway."""

import json
import re
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

import gateway.http.pages
from gateway.core.errors import ProviderUnavailable
from gateway.core.events import Started, TextDelta, Waiting
from gateway.core.states import StreamEnd
from gateway.http.pages import CHAT_ROUTES
from tests.integration.browser import CHROMIUM, Page, browsing
from tests.integration.clients import node
from tests.integration.http.chaos_proxy import ChaosProxy
from tests.integration.http.serving import Served, serving
from tests.integration.http.test_access import make
from tests.scripted_provider import ECHO, ScriptedProvider, answer

CHAT = Path(gateway.http.pages.__file__).parent / "chat"
WORDS = [f"word {number} \u00fc\r\n\u2028" for number in range(300)]

EVENT_BYTES = (
    b"\xef\xbb\xbfretry: 3000\n\n"
    b": ping\n\n"
    b'id: 1\nevent: waiting\ndata: {"stage":"loading"}\n\n'
    b"id: 2\r\nevent: delta\r\ndata: gr\xc3\xbc\xc3\x9f \xf0\x9f\x8c\x8d\xe2\x80\xa8\r\n\r\n"
    b":comment: in between\rdata:one\rdata:  two\rdata\r\r"
    b"event: nothing\n\n"
    b"id\ndata: no name, no id\n\n"
    b"data: cut off by the end\n"
)
EVENTS = [
    ["waiting", "1", '{"stage":"loading"}'],
    ["delta", "2", "grüß 🌍\u2028"],
    ["message", "2", "one\n two\n"],
    ["message", "", "no name, no id"],
]


async def chat(url: str, key: str, *arguments: str, script: str = "chat_page.mjs") -> Any:
    """Return what a script tells that asks with the page's client; by default of one question."""
    module = (CHAT / "chat-stream.js").as_uri()
    printed = await anyio.to_thread.run_sync(
        node.run_script, script, module, url, key, "scripted/echo", *arguments
    )
    return json.loads(printed)


def text_of(events: list[Any]) -> str:
    return "".join(e["data"].get("text", "") for e in events if e["type"] == "delta")


def test_the_page_reads_events_however_their_bytes_are_cut() -> None:
    seen = json.loads(
        node.run_script(
            "chat_events.mjs", (CHAT / "chat-events.js").as_uri(), json.dumps(list(EVENT_BYTES))
        )
    )
    assert len(seen) == len(EVENT_BYTES) + 2
    for events in seen:
        assert events == EVENTS


async def test_the_page_reads_on_after_cuts_and_misses_and_repeats_nothing() -> None:
    async with serving(ScriptedProvider(answer(*WORDS))) as served:
        key = await make(served, "infer")
        # The first connection lists the models and is kept for the question.
        async with ChaosProxy(served.port, iter([3000, 700, 0, 5000])).running() as proxy:
            seen = await chat(proxy.url, key)
        assert proxy.cut_count == 4
    kinds = [event["type"] for event in seen["events"]]
    assert kinds.count("cut") >= 3
    assert (kinds[0], kinds[-1]) == ("opened", "finished")
    assert text_of(seen["events"]) == text_of(seen["again"]) == "".join(WORDS)


async def test_the_page_keeps_its_connection_from_one_answer_to_the_next() -> None:
    endless = iter([2**30] * 9)
    async with serving(ScriptedProvider(answer("a", "b"))) as served:
        key = await make(served, "infer")
        async with ChaosProxy(served.port, endless).running() as proxy:
            ends = await chat(proxy.url, key, script="chat_questions.mjs")
    assert ends == ["finished"] * 5
    # A question may be sent before the connection of the last answer is known to be free.
    assert 9 - len(list(endless)) <= 2


async def test_the_page_stops_the_model_and_is_told_the_end() -> None:
    provider = ScriptedProvider([Started(ECHO), TextDelta("a"), anyio.Event()])
    async with serving(provider) as served:
        seen = await chat(served.url, await make(served, "infer"), "stop")
        session = await served.last_session()
    assert seen["events"][-1]["type"] == "finished"
    assert seen["events"][-1]["data"]["reason"] == "cancelled"
    assert session.closed is not None and session.closed.end is StreamEnd.CANCELLED


async def test_the_page_is_told_what_is_wrong_with_its_hint() -> None:
    async with serving(ScriptedProvider()) as served:
        await make(served, "infer")
        seen = await chat(served.url, "")
        nobody = await chat("http://127.0.0.1:9", "")
    assert (seen["error"]["status"], seen["error"]["code"]) == (401, "unauthenticated")
    assert "gateway keys" in seen["error"]["hint"]
    assert (nobody["error"]["status"], nobody["error"]["code"]) == (0, "unreachable")


async def test_the_files_of_the_page_are_there_for_everybody_and_name_no_other_address() -> None:
    async with serving(ScriptedProvider()) as served:
        await make(served, "infer")
        for path in CHAT_ROUTES:
            reply = await served.client.get(path)
            assert reply.status_code == 200
            policy = reply.headers["content-security-policy"]
            assert "script-src 'self';" in policy and "unsafe" not in policy
            assert reply.headers["cache-control"] == "no-cache"
            assert not re.search(r"https?://|@import|url\(|<style|style=|onclick", reply.text), path
        page = (await served.client.get("/chat")).text
        named = re.findall(r'(?:src|href)="(?!data:)(.*?)"', page)
        assert {f"/{name}" for name in named} == {"/chat.css", "/chat.js"}


async def test_graphiql_is_named_where_it_is_there() -> None:
    for environment in ("development", "production"):
        async with serving(ScriptedProvider(), environment=environment) as served:
            index = (await served.client.get("/", headers={"accept": "text/html"})).text
        assert ("/graphql" in re.findall(r'href="(.*?)"', index)) == (environment == "development")


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")


async def open_chat(page: Page, served: Served, key: str, chosen: str = "scripted/echo") -> None:
    """Open the page, which asks for a key and gets one."""
    await page.open(f"{served.url}/chat")
    await page.until("document.activeElement.id === 'key'")
    await page.type("#key", key)
    await page.press_enter()
    await page.until(f"document.querySelector('#model').value === '{chosen}'")
    page.complaints.clear()  # the 401 that made it ask


async def say(page: Page, text: str) -> None:
    await page.type("#text", text)
    await page.press_enter()


@needs_chromium
async def test_a_browser_chats_with_a_key_under_the_page_s_policy() -> None:
    provider = ScriptedProvider(answer("hel", "lo <b>there</b>"))
    async with serving(provider) as served, browsing() as page:
        await open_chat(page, served, await make(served, "infer"))
        await say(page, "Who <i>are</i> you?")
        await page.until("document.querySelector('.note')")
        assert await page.text(".turn.user") == "Who <i>are</i> you?"
        assert await page.text(".turn.assistant .text") == "hello <b>there</b>"
        assert "3 + 2 tokens" in await page.text(".turn.assistant .note")
        await say(page, "And now?")
        await page.until("document.querySelectorAll('.note').length === 2")
        assert page.complaints == []
        kept = await page.run("JSON.stringify([localStorage.length, document.cookie])")
    assert json.loads(kept) == [0, ""]
    said = [message.role for message in provider.requests[1].messages]
    assert said == ["user", "assistant", "user"]


@needs_chromium
async def test_a_browser_keeps_what_was_chosen_and_offers_names_for_several_models() -> None:
    provider = ScriptedProvider(answer("hi"))
    rules = {"virtual_models": {"any": ["scripted/echo"]}}
    async with serving(provider, **rules) as served, browsing() as page:
        await open_chat(page, served, await make(served, "infer"))
        grouped = "document.querySelector('optgroup[label^=Names] option').value"
        assert await page.run(grouped) == "any"
        change = "document.querySelector('#model').dispatchEvent(new Event('change'))"
        await page.run(f"document.querySelector('#model').value = 'any'; {change}")
        await page.click("#settings summary")
        await page.type("#temperature", "0.5")
        await page.type("#max-tokens", "7")
        await page.type("#system", "Be brief.")
        await page.run("sessionStorage.removeItem('key')")  # as in another tab
        await open_chat(page, served, await make(served, "infer"), chosen="any")
        await say(page, "go")
        await page.until("document.querySelector('.note')")
        kept = await page.run("Object.keys(localStorage).sort().join()")
    [request] = provider.requests
    assert (request.model, request.options.temperature) == ("any", 0.5)
    assert (request.options.max_tokens, request.messages[0].text) == (7, "Be brief.")
    assert kept == "max-tokens,model,system,temperature"


@needs_chromium
async def test_a_browser_shows_progress_stops_and_reads_on_after_a_reload() -> None:
    more = anyio.Event()
    script = [
        Waiting("queued", position=2),
        Waiting("loading", fraction=0.25, eta_s=7.5),
        Started(ECHO),
        TextDelta("first "),
        more,
        TextDelta("second"),
        anyio.Event(),
    ]
    async with serving(ScriptedProvider(script)) as served, browsing() as page:
        await open_chat(page, served, await make(served, "infer"))
        await say(page, "go")
        await page.until("document.querySelector('.turn.assistant .text')")
        await page.reload()
        await page.until("document.querySelector('.turn.assistant .text')?.textContent")
        assert await page.text(".turn.assistant .text") == "first "
        more.set()
        await page.until("document.querySelector('.turn.assistant').textContent.includes('second')")
        assert await page.text(".turn.assistant .text") == "first second"
        await page.click("#stop")
        await page.until("document.querySelector('.note')")
        assert "stopped" in await page.text(".note")
        session = await served.last_session()
    assert session.closed is not None and session.closed.end is StreamEnd.CANCELLED


@needs_chromium
async def test_a_browser_shows_where_a_load_is_and_why_it_failed() -> None:
    failing = anyio.Event()
    script = [
        Waiting("loading", fraction=0.25, eta_s=7.5),
        failing,
        ProviderUnavailable("scripted", "It went away."),
    ]
    async with serving(ScriptedProvider(script)) as served, browsing() as page:
        await open_chat(page, served, await make(served, "infer"))
        await say(page, "go")
        await page.until("!document.querySelector('#progress').hidden")
        assert await page.text("#say") == "Loading the model ..., 8 s left"
        assert await page.run("document.querySelector('#progress').value") == 0.25
        failing.set()
        await page.until("document.querySelector('.error')")
        shown = await page.text(".error")
    assert "It went away. Is the provider running and reachable?" in shown
