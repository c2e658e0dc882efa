"""API keys as plain data: what one may do, how it is written, how it is recognised. Pure.

A key is `gw-<id>-<secret>`: the id finds its record, the secret has 256 random bits. Kept is only
its HMAC-SHA256 with a pepper that the database does not have. A slow hash would add nothing to
256 bits, and let anybody who sends wrong keys keep the gateway busy.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum

import msgspec

from gateway.core.errors import Unauthenticated

CALLER = "gateway.caller"
"""The name under which an ASGI scope holds the Caller of its request."""

MAX_NAME_LENGTH = 100
_ID_BYTES = 6
_SECRET_BYTES = 32
_KEY = re.compile(r"gw-([0-9a-f]{12})-[0-9a-f]{64}")


class KeyScope(StrEnum):
    INFER = "infer"
    """Generate, embed, list models, watch their states."""
    MANAGE = "manage"
    """Load, unload and configure models; read the records of streams."""
    ADMIN = "admin"
    """Everything, keys included."""


class Caller(msgspec.Struct, frozen=True):
    """Who sent a request, and what he may: the id of his key, and what stands in its record.

    Without keys everybody may everything, and the id only tells callers apart.
    """

    id: str = ""
    scopes: frozenset[KeyScope] = frozenset(KeyScope)
    max_streams: int | None = None
    requests_per_minute: int | None = None

    def may(self, accepted: Collection[KeyScope]) -> bool:
        """Tell whether one of the `accepted` scopes is his; ADMIN always is."""
        return KeyScope.ADMIN in self.scopes or not self.scopes.isdisjoint(accepted)


ANYBODY = Caller()


class KeyOrder(msgspec.Struct, frozen=True):
    """What a new key shall be; a limit of None is none."""

    name: str
    scopes: tuple[KeyScope, ...]
    max_streams: int | None = None
    requests_per_minute: int | None = None


class ApiKey(msgspec.Struct, frozen=True):
    """A key as it may be shown: nothing here helps to guess it. Times are Unix seconds."""

    id: str
    name: str
    scopes: tuple[KeyScope, ...]
    created_at: float
    max_streams: int | None = None
    requests_per_minute: int | None = None
    revoked_at: float | None = None

    def caller(self) -> Caller:
        return Caller(self.id, frozenset(self.scopes), self.max_streams, self.requests_per_minute)


class StoredKey(msgspec.Struct, frozen=True):
    """A key as the database has it: `digest` was made with the pepper of the id `pepper`."""

    key: ApiKey
    digest: str
    pepper: str


class Peppers:
    """The secrets that digests are made with: the first makes new ones, all of them recognise."""

    def __init__(self, values: Sequence[bytes]) -> None:
        self._values = {_name_pepper(value): value for value in values}
        self.newest = next(iter(self._values))

    def __contains__(self, pepper: str) -> bool:
        return pepper in self._values

    def digest(self, text: str) -> str:
        """Return the digest of a new key, by the newest pepper."""
        return _digest(self._values[self.newest], text)

    def recognise(self, stored: StoredKey | None, text: str) -> bool:
        """Tell whether `text` is the stored key, in the same time whatever is wrong, None too."""
        name, expected = (stored.pepper, stored.digest) if stored else (self.newest, "0" * 64)
        value = self._values.get(name, self._values[self.newest])
        is_same = hmac.compare_digest(_digest(value, text), expected)
        return is_same and stored is not None and name in self._values


def make_key_text() -> tuple[str, str]:
    """Return the id of a new key, and the key: the only time that it is known."""
    key_id = secrets.token_hex(_ID_BYTES)
    return key_id, f"gw-{key_id}-{secrets.token_hex(_SECRET_BYTES)}"


def read_key_id(text: str) -> str:
    """Return the id in a key; empty when `text` is none."""
    found = _KEY.fullmatch(text)
    return found[1] if found else ""


def read_credential(headers: Iterable[tuple[str, str]]) -> str | None:
    """Return the key that headers carry, as a bearer token or as x-api-key; None without any.

    Raises Unauthenticated for several that differ: whoever decides behind a proxy must not decide
    about another key than the proxy did.
    """
    found, is_other = set(), False
    for name, value in headers:
        if name.lower() == "x-api-key":
            found.add(value.strip())
        elif name.lower() == "authorization":
            scheme, _, token = value.strip().partition(" ")
            if scheme.lower() == "bearer":
                found.add(token.strip())
            else:
                is_other = True
    found.discard("")
    if len(found) > 1:
        raise Unauthenticated("The request carries several keys.", hint="Send one.")
    if is_other and not found:
        raise Unauthenticated("The scheme of 'Authorization' is not Bearer.")
    return found.pop() if found else None


def _digest(pepper: bytes, text: str) -> str:
    # In one call: as an object it takes three times as long, and every request does this.
    return hmac.digest(pepper, text.encode(errors="replace"), "sha256").hex()


def _name_pepper(value: bytes) -> str:
    """Return a name that tells peppers apart, and nothing of them."""
    return hmac.new(value, b"name of this pepper", hashlib.sha256).hexdigest()[:16]
