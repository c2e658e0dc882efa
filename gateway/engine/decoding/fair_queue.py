"""Who is next: callers take turns, however many requests each of them has waiting. Pure."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar


class Waiter(Protocol):
    @property
    def caller(self) -> str: ...


W = TypeVar("W", bound=Waiter)


class FairQueue(Generic[W]):
    """Round robin over callers, first come first served within each.

    What was put back comes before everything else.
    """

    def __init__(self) -> None:
        self._lines: dict[str, deque[W]] = {}
        self._returned: deque[W] = deque()

    def __len__(self) -> int:
        return len(self._returned) + sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[W]:
        """Yield everything in the order in which it would be popped."""
        yield from self._returned
        lines = [list(line) for line in self._lines.values()]
        for turn in range(max(map(len, lines), default=0)):
            for line in lines:
                if turn < len(line):
                    yield line[turn]

    def push(self, item: W, limit: int) -> W | None:
        """Add `item`; return what does not fit into `limit`: the last one of the caller who has
        most waiting, or `item` itself."""
        line = self._lines.get(item.caller, deque())
        displaced = None
        if len(self) >= limit:
            longest = max(self._lines.values(), key=len, default=deque())
            if len(longest) <= len(line) + 1:
                return item
            displaced = longest.pop()
        self._lines.setdefault(item.caller, deque()).append(item)
        return displaced

    def put_back(self, item: W) -> None:
        """Let `item`, which had its turn, be the very next."""
        self._returned.appendleft(item)

    def rotate(self) -> None:
        """Let the first one have had its turn, and stay: it goes behind its caller's others, and
        its caller behind the other callers."""
        item = self.pop()
        self._lines.setdefault(item.caller, deque()).append(item)

    def pop(self) -> W:
        """Remove and return the next one; its caller goes to the end of the turns."""
        if self._returned:
            return self._returned.popleft()
        caller, line = next(iter(self._lines.items()))
        item = line.popleft()
        del self._lines[caller]
        if line:
            self._lines[caller] = line
        return item

    def remove(self, is_gone: Callable[[W], bool]) -> list[W]:
        """Remove and return all for whom `is_gone` holds."""
        gone = [item for item in self if is_gone(item)]
        if gone:
            self._returned = deque(item for item in self._returned if not is_gone(item))
            lines = {
                caller: deque(item for item in line if not is_gone(item))
                for caller, line in self._lines.items()
            }
            self._lines = {caller: line for caller, line in lines.items() if line}
        return gone
