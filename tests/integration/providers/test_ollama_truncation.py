"""Prompts that are longer than Ollama's context: refused or told, never cut without a word."""

import pytest

from gateway.core.errors import ContextLengthExceeded
from gateway.core.events import Finished, Started
from gateway.core.messages import GenerateRequest
from gateway.providers.ollama_truncation_wire import is_longer, may_cut_silently
from tests.integration.ollama_peer import OllamaPeer, Seen
from tests.integration.providers.ollama_support import ask, read, read_all, say, serving

OLD, ANCIENT = "0.12.5", "0.3.14"
WINDOW = 40
LONG = "word " * 100
TALK = (
    say("system", "Be brief."),
    *(say("user" if i % 2 else "assistant", "word " * 6) for i in range(6)),
    say("user", "And now?"),
)
"""Ten tokens of the template, 40 words, and no message that would not fit alone."""


def chats(peer: OllamaPeer) -> list[Seen]:
    return peer.seen("/api/chat")


@pytest.fixture
def peer(ollama_peer: OllamaPeer) -> OllamaPeer:
    ollama_peer.add_model("llama3.2")
    ollama_peer.default_context = WINDOW
    return ollama_peer


@pytest.mark.parametrize("asked", [ask(LONG), ask(messages=TALK), ask(messages=(), prompt=LONG)])
async def test_a_prompt_that_is_too_long_is_refused(
    peer: OllamaPeer, asked: GenerateRequest
) -> None:
    async with serving(peer.url) as service:
        events, error = await read_all(service, asked)
    assert isinstance(error, ContextLengthExceeded)
    assert "available context size" in error.message
    assert events == []


@pytest.mark.parametrize("by_setting", [True, False])
async def test_who_lets_it_be_cut_is_told_that_it_was(peer: OllamaPeer, by_setting: bool) -> None:
    request = ask(messages=TALK, truncate=None if by_setting else True)
    async with serving(peer.url, truncate=by_setting) as service:
        events = await read(service, request)
        short = await read(service, ask("Hi", truncate=True))
    [end] = [event for event in events if isinstance(event, Finished)]
    assert end.truncated and end.usage.prompt_tokens <= WINDOW
    assert [seen.body["truncate"] for seen in chats(peer)] == [False, True, False]
    assert isinstance(short[-1], Finished) and not short[-1].truncated


async def test_a_request_may_be_stricter_than_the_setting(peer: OllamaPeer) -> None:
    async with serving(peer.url, truncate=True) as service:
        _, error = await read_all(service, ask(LONG, truncate=False))
    assert isinstance(error, ContextLengthExceeded)


async def test_an_old_server_is_caught_by_what_it_counted(peer: OllamaPeer) -> None:
    """It passes over `truncate`: the answer has come when the cut is seen."""
    peer.version = OLD
    async with serving(peer.url) as service:
        events, error = await read_all(service, ask(LONG))
        assert isinstance(error, ContextLengthExceeded)
        assert isinstance(events[0], Started)
        flagged = await read(service, ask(LONG, truncate=True))
    assert isinstance(flagged[-1], Finished) and flagged[-1].truncated


async def test_a_context_that_is_full_tells_it_where_words_do_not(peer: OllamaPeer) -> None:
    """Text without spaces may have any number of tokens: but a prompt that was cut fills the
    context that Ollama says it has."""
    peer.version = OLD
    # As many tokens as the peer sees words; to the gateway they are no words.
    dots = ". " * 100
    async with serving(peer.url) as service:
        await read(service, ask("Hi"))
        await service.models()
        _, error = await read_all(service, ask(dots))
    assert isinstance(error, ContextLengthExceeded)


async def test_a_prompt_that_fits_is_fine_with_any_server(peer: OllamaPeer) -> None:
    for version in ("0.33.0", OLD, ANCIENT):
        peer.version = version
        async with serving(peer.url) as service:
            await service.models()
            events = await read(service, ask("word " * 20))
            assert isinstance(events[-1], Finished) and not events[-1].truncated


async def test_counts_that_leave_out_what_was_cached_accuse_nobody(peer: OllamaPeer) -> None:
    """Before 0.4 a prompt was counted without what was kept of the last one."""
    peer.version = ANCIENT
    async with serving(peer.url) as service:
        events = await read(service, ask(LONG))
    assert isinstance(events[-1], Finished) and not events[-1].truncated


async def test_what_cannot_fit_the_context_that_is_asked_for_is_not_sent(peer: OllamaPeer) -> None:
    async with serving(peer.url, num_ctx=50) as service:
        _, error = await read_all(service, ask(LONG))
    assert isinstance(error, ContextLengthExceeded)
    assert not chats(peer)


async def test_well_counted_answers_cost_no_further_request(peer: OllamaPeer) -> None:
    async with serving(peer.url) as service:
        await read(service, ask("Hi"))
    assert [seen.path for seen in peer.requests] == ["/api/chat"]


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.3.14", False),
        ("0.4.0", True),
        ("0.12.5", True),
        ("0.13.0", False),
        ("1.0", False),
        ("0.0.0", False),
        ("dev", False),
    ],
)
def test_versions_that_cut_without_a_word_are_known(version: str, expected: bool) -> None:
    assert may_cut_silently(version) is expected


def test_only_words_count_for_sure() -> None:
    assert is_longer(ask("one two three"), 2)
    assert not is_longer(ask("one two three"), 3)
    assert not is_longer(ask("=" * 1000 + " - . !"), 1)
