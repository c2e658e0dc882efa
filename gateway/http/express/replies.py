"""Replies as bytes: the same that the server of the long way writes."""

from collections.abc import Iterable

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from gateway.http.decision_ids import DECISION_ID
from gateway.http.middleware import ALWAYS, REQUEST_ID
from gateway.http.sse_events import stream_headers

Headers = Iterable[tuple[bytes, bytes]]

_JSON_TYPE = b"content-type: application/json\r\n"


def _lines(headers: Headers) -> bytes:
    return b"".join([b"%b: %b\r\n" % header for header in headers])


_ALWAYS = _lines(ALWAYS)
_REQUEST_ID = REQUEST_ID.lower().encode()
_DECISION_ID = DECISION_ID.lower().encode()


class Replies:
    """Makes the replies of one server, whose own headers change with the time."""

    def __init__(self) -> None:
        self._own: Headers = ()
        self._own_lines = b""

    def whole(self, own: Headers, request_id: str, stream_id: str, body: bytes) -> bytes:
        """Return a reply of status 200 that is JSON."""
        ids = self._ids(request_id, stream_id)
        return b"%b%bcontent-length: %d\r\n%b%b\r\n%b" % (
            STATUS_LINE[200],
            self._lines_of(own),
            len(body),
            _JSON_TYPE,
            ids,
            body,
        )

    def refusal(self, own: Headers, request_id: str, stream_id: str, response: Response) -> bytes:
        """Return what `response` is, which says no decision's id where there is no stream."""
        return b"%b%b%b%b\r\n%b" % (
            STATUS_LINE[response.status_code],
            self._lines_of(own),
            _lines(response.raw_headers),
            self._ids(request_id, stream_id),
            bytes(response.body),
        )

    def stream(self, own: Headers, request_id: str, stream_id: str) -> bytes:
        """Return the head of a stream; chunks follow."""
        return b"%b%b%b%btransfer-encoding: chunked\r\n\r\n" % (
            STATUS_LINE[200],
            self._lines_of(own),
            _lines(stream_headers(stream_id)),
            self._ids(request_id, stream_id),
        )

    def _lines_of(self, own: Headers) -> bytes:
        if own is not self._own:  # the server makes them anew each second
            self._own, self._own_lines = own, _lines(own)
        return self._own_lines

    @staticmethod
    def _ids(request_id: str, stream_id: str) -> bytes:
        decision = b"%b: %b\r\n" % (_DECISION_ID, stream_id.encode()) if stream_id else b""
        return b"%b: %b\r\n%b%b" % (_REQUEST_ID, request_id.encode(), _ALWAYS, decision)
