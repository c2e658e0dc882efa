"""The express way: knows who may go it, and what an exchange there needs."""

from starlette.requests import Request

from gateway.core.keys import CALLER, Caller
from gateway.http.express.exchange import (
    Exchange,
    Line,
    Means,
    StreamExchange,
    WholeExchange,
)
from gateway.http.express.heads import HEAD, Head, Heads, Passed, cut_head, is_usual
from gateway.http.express.replies import Replies
from gateway.http.middleware import REQUEST_ID_BYTES
from gateway.http.orders import ReadOrder
from gateway.services.gateway import Gateway
from gateway.services.ids import RandomIds
from gateway.settings import Settings


class ExpressWay:
    """Beside the long way of one server, from which it learns."""

    def __init__(self, gateway: Gateway, settings: Settings) -> None:
        self._streams = gateway.streams
        self._ids = RandomIds(REQUEST_ID_BYTES)
        self._heads = Heads(lambda: gateway.gatekeeper.version)
        self._means = Means(
            gateway.streams, gateway.gatekeeper, gateway.metrics.meter, settings, Replies()
        )

    def learn(self, request: Request, read: ReadOrder) -> None:
        """A request passed every check of the long way, and `read` read its body."""
        scope = request.scope
        head: Head | None = scope.pop(HEAD, None)
        caller: Caller = scope[CALLER]
        if head is not None and caller.requests_per_minute is None and is_usual(scope):
            self._heads.learn(scope["client"][0], head, Passed(caller, scope["path"], read))

    def find(self, peer: str, data: bytes) -> tuple[Passed, Head] | None:
        """Return whose request `data` begins with; None for who is to go the long way."""
        head = cut_head(data)
        passed = None if head is None else self._heads.find(peer, head)
        if head is None or passed is None or self._streams.draining:
            return None
        return passed, head

    def enter(self, passed: Passed, body: bytes, line: Line) -> Exchange | None:
        """Return the exchange that `body` is for, which is yet to begin; None for a body that the
        long way is to refuse."""
        request_id = self._ids.make()
        try:
            order = passed.read(body, request_id, passed.caller.id)
        except Exception:  # whatever it is: there it is told
            return None
        kind = StreamExchange if order.is_stream else WholeExchange
        return kind(self._means, passed, order, request_id, line)
