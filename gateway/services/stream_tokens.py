"""Tokens that let whoever holds one read one stream for a while: for browsers' EventSource, which
can send no header that would say who it is."""

import hmac
import time
from collections.abc import Callable


class StreamTokens:
    """Signs and checks tokens of the form `expiry.signature`; keeps none of them.

    `secret` is that of one process: a stream does not outlive it.
    """

    def __init__(
        self, secret: bytes, *, lifetime_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._secret = secret
        # Not the time of day: a clock that is set back would let old tokens in again.
        self._clock = clock
        self.lifetime_s = lifetime_s

    def issue(self, stream_id: str) -> str:
        """Return a token for `stream_id` that holds for `lifetime_s`."""
        return self._sign(stream_id, int(self._clock() + self.lifetime_s))

    def admits(self, stream_id: str, token: str) -> bool:
        """Tell whether `token` is one for `stream_id`, and not too old."""
        expiry = token.partition(".")[0]
        if not (expiry.isascii() and expiry.isdecimal() and len(expiry) <= 12):
            return False
        signed = self._sign(stream_id, int(expiry))
        is_genuine = hmac.compare_digest(signed.encode(), token.encode(errors="replace"))
        return is_genuine and self._clock() < int(expiry)

    def _sign(self, stream_id: str, expiry: int) -> str:
        signature = hmac.digest(self._secret, f"{stream_id}.{expiry}".encode(), "sha256").hex()
        return f"{expiry}.{signature}"
