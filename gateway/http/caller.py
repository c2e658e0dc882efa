"""Whose request it is: those with the same credential are one caller."""

import hashlib
from collections.abc import Mapping

_DIGITS = 16


def identify_caller(headers: Mapping[str, str]) -> str:
    """Return a name for whoever sent `headers`: a digest of the key, empty without one.

    Callers take turns in a model's queue, and none profits from what the model kept of another's
    prompts. The key itself goes no further than this.
    """
    scheme, _, token = headers.get("authorization", "").partition(" ")
    key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    return hashlib.sha256(key.encode()).hexdigest()[:_DIGITS] if key else ""
