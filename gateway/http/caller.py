"""Whose request it is: the holder of a key, or without keys whoever calls himself the same."""

import hashlib
from collections.abc import Iterable

from starlette.requests import HTTPConnection

from gateway.core.errors import Unauthenticated
from gateway.core.keys import CALLER, Caller, read_credential

_DIGITS = 16


def caller_of(request: HTTPConnection) -> Caller:
    """Return whom the keeper of the doors (`access.py`) let in; KeyError if he was passed by."""
    caller: Caller = request.scope[CALLER]
    return caller


def identify_stranger(headers: Iterable[tuple[str, str]]) -> Caller:
    """Return the caller of a gateway without keys: he may everything.

    Those who send one credential are one caller, whatever it is: callers take turns in a model's
    queue, and none profits from what the model kept of another's prompts. Only a digest is kept.
    """
    try:
        credential = read_credential(headers)
    except Unauthenticated:
        credential = None
    if credential is None:
        return Caller()
    return Caller(hashlib.sha256(credential.encode()).hexdigest()[:_DIGITS])
