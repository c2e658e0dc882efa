"""LentMemory: the gateway's memory budget, as the engine in a child asks for it over the socket."""

import asyncio
import itertools
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

from gateway.engine.child.wire import FromChild, Need, Returned

ANSWER_S = 5.0
"""How long an engine waits for a busy gateway; then it goes on as if there were no room."""


class LentMemory:
    """A `Memory` for the engine's thread; `settle` and `close` are for the event loop, where it is
    made."""

    def __init__(self, post: Callable[[FromChild], None]) -> None:
        """`post` is called on the event loop."""
        self._post = post
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._questions: dict[int, tuple[int, Future[bool]]] = {}
        self._is_closed = False

    def reserve(self, size_bytes: int, *, is_needed: bool = True) -> bool:
        """Take `size_bytes` more if the gateway has them; blocks until it said so."""
        number = next(self._numbers)
        answer: Future[bool] = Future()
        self._questions[number] = (size_bytes, answer)
        # Looked at after the question is there: `close` finds it, or is found here.
        if self._is_closed:
            return False
        self._say(Need(number, size_bytes, is_needed))
        try:
            return answer.result(ANSWER_S)
        except TimeoutError:
            # What can no longer be taken back is being answered right now.
            return False if answer.cancel() else answer.result()

    def release(self, size_bytes: int) -> None:
        """Give `size_bytes` back."""
        self._say(Returned(size_bytes))

    def settle(self, number: int, granted: bool) -> None:
        """Take the gateway's answer; what nobody waits for any more goes back to it."""
        if number not in self._questions:
            return
        size_bytes, answer = self._questions.pop(number)
        if answer.set_running_or_notify_cancel():
            answer.set_result(granted)
        elif granted:
            self._post(Returned(size_bytes))

    def close(self) -> None:
        """Refuse all that is asked for from now on: nobody listens to the gateway any more."""
        self._is_closed = True
        for number in list(self._questions):
            self.settle(number, granted=False)

    def _say(self, message: FromChild) -> None:
        with suppress(RuntimeError):  # the loop is closed: the process ends
            self._loop.call_soon_threadsafe(self._post, message)
