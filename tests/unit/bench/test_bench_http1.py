from collections.abc import Callable

import pytest

from bench.http1 import UNTIL_CLOSE, Reader

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n"
    b"6;x=1\r\n world\r\n"
    b"0\r\n\r\n"
)
MEASURED = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nagain"


class Heard:
    def __init__(self, without_length: int) -> None:
        self.messages: list[bytes] = []
        self.body = b""
        self.reader = Reader(self.head, self.more, self.end, without_length=without_length)

    def head(self, head: bytes) -> None:
        self.body = b""

    def more(self, piece: bytes) -> None:
        self.body += piece

    def end(self) -> None:
        self.messages.append(self.body)


def by_bytes(data: bytes) -> list[bytes]:
    return [bytes([each]) for each in data]


@pytest.mark.parametrize("cut", [lambda data: [data], by_bytes])
def test_messages_are_the_same_however_they_are_cut(cut: Callable[[bytes], list[bytes]]) -> None:
    heard = Heard(UNTIL_CLOSE)
    for piece in cut(CHUNKED + MEASURED + CHUNKED):
        heard.reader.feed(piece)
    assert heard.messages == [b"hello world", b"again", b"hello world"]


def test_a_request_without_a_length_has_no_body() -> None:
    heard = Heard(0)
    heard.reader.feed(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert heard.messages == [b""]


def test_a_reply_without_a_length_ends_with_its_connection() -> None:
    heard = Heard(UNTIL_CLOSE)
    heard.reader.feed(b"HTTP/1.1 200 OK\r\n\r\nall of it")
    assert heard.messages == []
    heard.reader.close()
    assert heard.messages == [b"all of it"]


def test_a_message_that_is_cut_off_has_no_end() -> None:
    heard = Heard(UNTIL_CLOSE)
    heard.reader.feed(CHUNKED[:-3])
    heard.reader.close()
    assert heard.messages == []
