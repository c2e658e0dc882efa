"""What is told, as a generator: each event is read before the next one may be told; and what a
generator yields, as a whole."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Sequence
from contextlib import suppress

from gateway.core.events import Collector, Event, Generation
from gateway.core.messages import GenerateRequest
from gateway.core.names import ModelRef
from gateway.core.ports import Provider
from gateway.core.telling import Tell


def stream_of(
    provider: Provider, request: GenerateRequest, ref: ModelRef
) -> AsyncGenerator[Event, None]:
    """Yield what a provider tells; closing it cancels the answer."""
    return events_of(lambda tell: provider.answer(request, ref, tell))


async def events_of(
    answer: Callable[[Tell], Awaitable[None]],
) -> AsyncGenerator[Event, None]:
    """Yield what `answer` tells, and raise what it raises; closing it cancels the answer."""
    told: asyncio.Queue[Event | None] = asyncio.Queue()

    def tell(events: Sequence[Event]) -> Callable[[], Awaitable[None]]:
        for event in events:
            told.put_nowait(event)
        return told.join

    async def run() -> None:
        try:
            await answer(tell)
        finally:
            told.put_nowait(None)

    task = asyncio.ensure_future(run())
    try:
        while (event := await told.get()) is not None:
            yield event
            told.task_done()
        await task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def collect(events: AsyncIterable[Event]) -> Generation:
    """Read a stream to its end and return the answer it made; raises what the stream raises, and
    what `Collector.whole` does."""
    collector = Collector()
    async for event in events:
        collector.add_all((event,))
    return collector.whole()
