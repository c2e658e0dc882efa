"""How events get from who says them to who hears them: told at once, where they come from.

Between a socket and another one there is no queue and no task that would have to be woken for each
token. Who hears may hold back who tells, by what telling returns.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

import anyio.lowlevel

from gateway.core.events import Event

Wait = Callable[[], Awaitable[None]]
Tell = Callable[[Sequence[Event]], Wait | None]
"""Is told events in their order, those that came together at once; must not block. Where it returns
a Wait, nothing may be told before that was awaited. What it raises ends the answer, and is for who
asked for it: it passes who tells."""

Rest = Callable[[], Awaitable[None]]
"""What is left to be done of an answer that began without a task, in one: to wait, to ask again, or
to raise why it failed."""

Over = Callable[[Rest | None], None]
"""Is told once that all of an answer was told, or what is left to be done of it."""

EVENTS_A_TURN = 16


async def tell_one(tell: Tell, event: Event) -> None:
    """Tell one event, and wait if need be."""
    wait = tell((event,))
    if wait is not None:
        await wait()


async def tell_all(events: AsyncGenerator[Event, None], tell: Tell) -> None:
    """Tell what a generator yields, one by one, and close it; raises what it raises."""
    count = 0
    async with aclosing(events):
        async for event in events:
            await tell_one(tell, event)
            count += 1
            if count % EVENTS_A_TURN == 0:
                # A generator that always has more leaves others none.
                await anyio.lowlevel.checkpoint()
