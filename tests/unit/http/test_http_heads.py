"""Heads of requests: what is cut from them, and who is found again by them."""

import pytest

from gateway.core.keys import Caller, KeyScope
from gateway.http.express import heads as express_heads
from gateway.http.express.heads import Heads, Passed, cut_head, is_usual
from gateway.http.stream import read_stream

HEAD = b"POST /api/v1/stream HTTP/1.1\r\nHost: localhost\r\nContent-Length: %b\r\nA: b\r\n\r\n"
PASSED = Passed(Caller("key", frozenset({KeyScope.INFER})), "/api/v1/stream", read_stream)


def head_of(length: bytes = b"2") -> express_heads.Head:
    head = cut_head(HEAD % length + b"{}")
    assert head is not None
    return head


def test_a_head_is_cut_where_the_length_is_told() -> None:
    data = HEAD % b"2" + b"{}more"
    head = head_of()
    assert head.before + b"2" + head.after == data[: head.body_at]
    assert data[head.body_at : head.total] == b"{}"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"POST / HTTP/1.1\r\nContent-Length: 2\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r",
        b"POST / HTTP/1.1\r\nHost: a\r\n\r\nContent-Length: 2\r\n",
        b"POST / HTTP/1.1\r\nX-Content-Length: 2\r\n\r\n{}",
        b"POST / HTTP/1.1\r\nContent-Length: -2\r\n\r\n{}",
        b"POST / HTTP/1.1\r\nContent-Length: 2, 2\r\n\r\n{}",
        b"POST / HTTP/1.1\r\nContent-Length: 123456\r\n\r\n{}",
        b"POST / HTTP/1.1\r\nContent-Length: 99999\r\n\r\n{}",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    ],
)
def test_what_has_no_plain_length_is_cut_nowhere(data: bytes) -> None:
    assert cut_head(data) is None


def test_who_passed_is_found_by_the_same_head_whatever_the_length() -> None:
    heads = Heads(lambda: 1)
    assert heads.find("1.2.3.4", head_of()) is None
    heads.learn("1.2.3.4", head_of(), PASSED)
    assert heads.find("1.2.3.4", head_of(b"17")) == PASSED


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"localhost", b"localhosu"),
        (b"A: b", b"A: c"),
        (b"POST", b"PUT"),
        (b"A: b", b"A: b\r\nC: d"),
    ],
)
def test_another_head_is_not(old: bytes, new: bytes) -> None:
    heads = Heads(lambda: 1)
    heads.learn("1.2.3.4", head_of(), PASSED)
    other = cut_head((HEAD % b"2").replace(old, new))
    assert other is not None and heads.find("1.2.3.4", other) is None


def test_another_address_is_not() -> None:
    heads = Heads(lambda: 1)
    heads.learn("1.2.3.4", head_of(), PASSED)
    assert heads.find("1.2.3.5", head_of()) is None


def test_all_is_forgotten_once_the_keys_change() -> None:
    version = 1
    heads = Heads(lambda: version)
    heads.learn("1.2.3.4", head_of(), PASSED)
    version = 2
    assert heads.find("1.2.3.4", head_of()) is None
    version = 1
    assert heads.find("1.2.3.4", head_of()) is None
    heads.learn("1.2.3.4", head_of(), PASSED)
    assert heads.find("1.2.3.4", head_of()) == PASSED


def test_the_oldest_is_forgotten_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(express_heads, "MAX_HEADS", 2)
    heads = Heads(lambda: 1)
    for peer in "abc":
        heads.learn(peer, head_of(), PASSED)
    assert [heads.find(peer, head_of()) for peer in "abc"] == [None, PASSED, PASSED]


LENGTH = (b"content-length", b"2")


@pytest.mark.parametrize(
    ("headers", "usual"),
    [
        ([LENGTH, (b"accept", b"*/*"), (b"connection", b"Keep-Alive")], True),
        ([], False),
        ([LENGTH, LENGTH], False),
        ([LENGTH, (b"connection", b"close")], False),
        ([LENGTH, (b"connection", b"keep-alive"), (b"connection", b"close")], False),
        ([LENGTH, (b"origin", b"http://localhost")], False),
        ([LENGTH, (b"x-request-id", b"mine")], False),
        ([LENGTH, (b"expect", b"100-continue")], False),
        ([LENGTH, (b"traceparent", b"00-1-2-01")], False),
    ],
)
def test_what_asks_something_of_its_reply_is_not_usual(
    headers: list[tuple[bytes, bytes]], usual: bool
) -> None:
    scope = {"http_version": "1.1", "root_path": "", "headers": headers}
    assert is_usual(scope) is usual
    assert not is_usual(scope | {"http_version": "1.0"})
    assert not is_usual(scope | {"root_path": "/below"})
