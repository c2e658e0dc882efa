"""Where a request is in its plan: whom it was sent to, how often, and who comes next."""

from collections.abc import Sequence

from gateway.core.routing import Route


class Tries:
    """Walks routes from the first on; `after` is the code of the error that led to the present."""

    __slots__ = ("_all", "_left", "after", "count", "route")

    def __init__(self, routes: Sequence[Route]) -> None:
        self._all = routes
        self._left = routes[1:]
        self.route = routes[0]
        self.count = 1
        self.after: str | None = None

    @property
    def place(self) -> int:
        """The place of the present one in the plan."""
        return self._all.index(self.route)

    @property
    def others(self) -> list[Route]:
        """All but the present one, beginning with those that come after it."""
        at = self.place
        return [*self._all[at + 1 :], *self._all[:at]]

    def turn(self) -> bool:
        """Go on to the next candidate; False when there is none."""
        if not self._left:
            return False
        self.route, self._left, self.count = self._left[0], self._left[1:], 1
        return True

    def restart(self, routes: Sequence[Route], after: str) -> None:
        """Go on to the first of `routes`, then to the others of them."""
        self._left, self.after = routes, after
        self.turn()
