"""Replies in HTTP/1.1: the same however they are cut, refused when they could mean two things."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.providers.http1_wire import (
    MAX_HEAD_BYTES,
    MAX_INTERIM_REPLIES,
    KnownHeads,
    MalformedReply,
    ReplyHead,
    ReplyParser,
)

LINE = '{"message":{"content":"Grüße 🦙"},"done":false}\n'.encode()
OLLAMA = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"
    b"Date: Fri, 20 Nov 2026 10:11:12 GMT\r\nTransfer-Encoding: chunked\r\n\r\n"
)
CHUNKS = b"%x\r\n%b\r\n%X;name=value\r\n%b\r\n" % (len(LINE), LINE, len(LINE), LINE)

# The bytes, the body in them, and whether the connection serves again.
RECORDED = {
    "chunked": (OLLAMA + CHUNKS + b"0\r\n\r\n", LINE * 2, True),
    "with trailers": (OLLAMA + CHUNKS + b"000\r\nX-Sum: 1\r\nX-B: 2\r\n\r\n", LINE * 2, True),
    "with a length": (
        b"HTTP/1.1 404 Not Found\r\nCONTENT-LENGTH:  5 \r\n\r\nhello",
        b"hello",
        True,
    ),
    "empty": (b"HTTP/1.1 500 \r\nContent-Length: 0\r\n\r\n", b"", True),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
    "closing": (b"HTTP/1.1 200\r\nConnection: Close\r\nContent-Length: 2\r\n\r\nok", b"ok", False),
    "of an old server": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok", False),
    "announced": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"ok",
        True,
    ),
    "followed by more": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1", b"ok", False),
}
UNTIL_CLOSE = b"HTTP/1.0 200 OK\r\nServer: x\r\n\r\n" + LINE


def parse(*pieces: bytes) -> tuple[ReplyParser, bytes]:
    parser, body = ReplyParser(KnownHeads()), list[bytes]()
    for piece in pieces:
        parser.feed(piece, body)
    return parser, b"".join(body)


@pytest.mark.parametrize("name", RECORDED)
def test_a_reply_is_the_same_however_it_is_cut_in_two(name: str) -> None:
    data, wanted, keeps_alive = RECORDED[name]
    for cut in range(1, len(data)):
        parser, body = parse(data[:cut], data[cut:])
        assert (body, parser.is_complete) == (wanted, True), cut
        assert parser.keeps_alive is keeps_alive, cut


@pytest.mark.parametrize("name", RECORDED)
def test_a_reply_is_the_same_byte_by_byte(name: str) -> None:
    data, wanted, keeps_alive = RECORDED[name]
    parser, body = parse(*(data[at : at + 1] for at in range(len(data))))
    assert (body, parser.is_complete, parser.keeps_alive) == (wanted, True, keeps_alive)


@pytest.mark.parametrize("name", RECORDED)
def test_no_reply_is_complete_before_its_last_byte(name: str) -> None:
    data, wanted, _ = RECORDED[name]
    whole = data.removesuffix(b"HTTP/1.1") if name == "followed by more" else data
    for cut in range(1, len(whole)):
        parser, body = parse(whole[:cut])
        assert not parser.is_complete, cut
        assert wanted.startswith(body), cut
        assert not parser.end(), cut


def test_a_body_without_a_length_ends_with_its_connection() -> None:
    parser, body = parse(UNTIL_CLOSE)
    assert (body, parser.is_complete, parser.keeps_alive) == (LINE, False, False)
    assert parser.end()


def test_headers_are_found_by_their_names_in_lower_case() -> None:
    parser, _ = parse(b"HTTP/1.1 503 x\r\nRETRY-after: \t7 \r\nVia: a\r\nvia: b\xff\r\n\r\n")
    assert parser.head == ReplyHead(503, {"retry-after": "7", "via": "a, b\xff"})


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    st.lists(st.integers(1, 400), max_size=30),
    st.data(),
)
def test_chunks_and_reads_may_be_cut_anywhere(
    chunks: list[bytes], cuts: list[int], data: st.DataObject
) -> None:
    extension = data.draw(st.sampled_from([b"", b";x", b" ;a=\xff"]))
    message = OLLAMA + b"".join(b"%x%b\r\n%b\r\n" % (len(c), extension, c) for c in chunks)
    message += b"0\r\n\r\n"
    edges = sorted({0, len(message), *(cut for cut in cuts if cut < len(message))})
    pieces = [message[a:b] for a, b in pairwise(edges)]
    parser, body = parse(*pieces)
    assert (body, parser.is_complete) == (b"".join(chunks), True)


@pytest.mark.parametrize("inside", [b"x", b"a\r\nb", b"\r\n", b"0\r\n\r\n", b"y" * 300])
@pytest.mark.parametrize("size", [b"%x", b"%X", b"0%x", b"%x;x"])
def test_a_chunk_in_a_read_of_its_own_is_one_whatever_is_in_it(size: bytes, inside: bytes) -> None:
    one = size % len(inside) + b"\r\n" + inside + b"\r\n"
    parser, body = parse(OLLAMA, one, one)
    assert (body, parser.is_complete) == (inside * 2, False)
    parser, body = parse(OLLAMA, one, b"0\r\n\r\n")
    assert (body, parser.is_complete) == (inside, True)
    for reads in ([one[:-1], one[-1:]], [one[:1], one[1:]], [one + one[:3], one[3:]]):
        _, body = parse(OLLAMA, *reads)
        assert body in (inside, inside * 2)


@pytest.mark.parametrize("said", [b"2\r\nx\r\n", b"1\r\nxy\r\n", b"1\r\nxab", b"x\r\nx\r\n"])
def test_a_chunk_in_a_read_of_its_own_is_as_long_as_it_says(said: bytes) -> None:
    with pytest.raises(MalformedReply):
        parse(OLLAMA, said, b"0\r\n\r\n")


@given(st.binary(max_size=300), st.sampled_from([b"", *(data for data, *_ in RECORDED.values())]))
def test_any_bytes_are_a_reply_or_malformed_and_never_anything_else(
    rubbish: bytes, before: bytes
) -> None:
    for begin in (before, before[: len(before) // 2], OLLAMA, OLLAMA + CHUNKS):
        try:
            parser, _ = parse(*(part for part in (begin, rubbish) if part))
            parser.end()
        except MalformedReply:
            pass


HEAD = b"HTTP/1.1 200 OK\r\n"
HOSTILE = {
    "no http": b"SSH-2.0-OpenSSH_9.9\r\n",
    "http 2": b"HTTP/2 200\r\n\r\n",
    "http 1.2": b"HTTP/1.2 200 OK\r\n\r\n",
    "a status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "a status line with a control character": b"HTTP/1.1 200 O\x00K\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n",
    "the same length twice": HEAD + b"Content-Length: 2\r\ncontent-length: 2\r\n\r\nok",
    "a list of lengths": HEAD + b"Content-Length: 2, 2\r\n\r\nok",
    "a negative length": HEAD + b"Content-Length: -2\r\n\r\n",
    "a signed length": HEAD + b"Content-Length: +2\r\n\r\nok",
    "a hexadecimal length": HEAD + b"Content-Length: 0x2\r\n\r\nok",
    "a length with an underscore": HEAD + b"Content-Length: 1_0\r\n\r\n",
    "a length beyond all": HEAD + b"Content-Length: 9999999999999999\r\n\r\n",
    "an empty length": HEAD + b"Content-Length: \r\n\r\n",
    "length and chunks": HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
    "another coding": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "chunked twice": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunks of an old server": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a folded header": HEAD + b"X-A: b\r\n c\r\n\r\n",
    "a header without a colon": HEAD + b"X-A\r\n\r\n",
    "a name with a space before the colon": HEAD + b"Content-Length : 2\r\n\r\nok",
    "a header without a name": HEAD + b": x\r\n\r\n",
    "a bare line feed": HEAD + b"X-A: b\nX-C: d\r\n\r\n",
    "a bare carriage return": HEAD + b"X-A: b\rX-C: d\r\n\r\n",
    "an upgrade": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "a chunk size that is none": OLLAMA + b"xyz\r\n",
    "a chunk size with a sign": OLLAMA + b"+5\r\nhello\r\n",
    "a chunk size with 0x": OLLAMA + b"0x5\r\nhello\r\n",
    "a chunk size with an underscore": OLLAMA + b"1_0\r\n",
    "a chunk size beyond all": OLLAMA + b"fffffffff\r\n",
    "a chunk size that is empty": OLLAMA + b"\r\n",
    "a chunk longer than it said": OLLAMA + b"2\r\nabc\r\n",
    "a chunk that ends with a line feed": OLLAMA + b"2\r\nab\n0\r\n\r\n",
    "a chunk line without end": OLLAMA + b"5;" + b"x" * 300,
    "a trailer that is none": OLLAMA + b"0\r\nx\r\n\r\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_could_be_read_in_two_ways_is_refused(name: str) -> None:
    with pytest.raises(MalformedReply):
        parse(HOSTILE[name])
    with pytest.raises(MalformedReply):
        parse(*(HOSTILE[name][at : at + 1] for at in range(len(HOSTILE[name]))))


def test_what_came_before_a_mistake_is_there() -> None:
    parser, body = ReplyParser(KnownHeads()), list[bytes]()
    with pytest.raises(MalformedReply):
        parser.feed(OLLAMA + CHUNKS + b"rubbish\r\n", body)
    assert b"".join(body) == LINE * 2


@pytest.mark.parametrize("begin", [HEAD + b"X-A: ", HEAD + b"X-A:", OLLAMA + b"0\r\nX-A: "])
@pytest.mark.parametrize("filler", [b"a", b" "])
def test_heads_and_trailers_are_bounded(begin: bytes, filler: bytes) -> None:
    with pytest.raises(MalformedReply):
        parse(begin, *[filler * 1024] * (MAX_HEAD_BYTES // 1024 + 1))
    with pytest.raises(MalformedReply):
        parse(begin + filler * MAX_HEAD_BYTES + b"\x00\r\n\r\n")


def test_announcements_are_bounded() -> None:
    with pytest.raises(MalformedReply):
        parse(b"HTTP/1.1 102 Processing\r\n\r\n" * (MAX_INTERIM_REPLIES + 1))


@pytest.mark.parametrize("name", RECORDED)
def test_a_head_that_is_known_means_the_same_again(name: str) -> None:
    data, wanted, keeps_alive = RECORDED[name]
    known, parsers = KnownHeads(), list[ReplyParser]()
    for _ in range(2):
        parser, body = ReplyParser(known), list[bytes]()
        parser.feed(data, body)
        assert (b"".join(body), parser.is_complete) == (wanted, True)
        assert parser.keeps_alive is keeps_alive
        parsers.append(parser)
    assert parsers[0].head is parsers[1].head


def test_heads_that_are_known_are_few() -> None:
    heads = KnownHeads()
    first = heads.read(b"HTTP/1.1 200 OK\r\nDate: 0")
    assert heads.read(b"HTTP/1.1 200 OK\r\nDate: 0") is first
    for second in range(1, 100):
        heads.read(b"HTTP/1.1 200 OK\r\nDate: %d" % second)
    assert len(heads._known) < 10
    assert heads.read(b"HTTP/1.1 200 OK\r\nDate: 0") == first
