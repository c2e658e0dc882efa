"""An answer cut at every byte: one end, always; never a hang, never a whole answer too many."""

import anyio
import pytest

from gateway.core.errors import ProviderError
from gateway.core.events import Finished
from tests.integration.ollama_peer import Do, OllamaPeer, chat_end, chat_line, raw, tool_call
from tests.integration.providers.ollama_support import PATIENCE_S, read_all, serving

BODY = (
    chat_line(thinking="Hmm")
    + chat_line("Grüße 🦙")
    + chat_line(tool_calls=[tool_call("f", {"z": 1, "a": "b"})])
    + chat_end()
)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"
CHUNKED = (
    HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + b"".join(b"%x\r\n%b\n\r\n" % (len(part) + 1, part) for part in BODY.splitlines())
    + b"0\r\n\r\n"
)
UNTIL_CLOSE = HEAD + b"Connection: close\r\n\r\n" + BODY


@pytest.mark.parametrize(
    "message, surely_whole_from",
    [
        # An HTTP message that is cut may be an error even after the answer's last line.
        pytest.param(CHUNKED, len(CHUNKED), id="chunked"),
        pytest.param(UNTIL_CLOSE, len(UNTIL_CLOSE) - 1, id="until close"),
    ],
)
@pytest.mark.parametrize("end", [Do.CLOSE, Do.RESET])
async def test_a_cut_at_every_byte_gives_exactly_one_end(
    ollama_peer: OllamaPeer, message: bytes, surely_whole_from: int, end: Do
) -> None:
    """T6, F3"""
    # The last line needs no line end, so an answer may be whole from its last brace on.
    whole_from = message.rindex(b"}") + 1
    async with serving(ollama_peer.url, patience_s=60.0) as service:
        for cut in range(len(message) + 1):
            ollama_peer.script("llama3.2", raw([message[:cut], end]))
            with anyio.fail_after(PATIENCE_S):
                events, error = await read_all(service)
            ends = [index for index, event in enumerate(events) if isinstance(event, Finished)]
            if error is None:
                assert cut >= whole_from, cut
                assert ends == [len(events) - 1], cut
            else:
                assert isinstance(error, ProviderError), cut
                assert ends == [], cut
                # A reset may overtake bytes that were on their way; a close may not.
                assert cut < surely_whole_from or end is Do.RESET, cut
