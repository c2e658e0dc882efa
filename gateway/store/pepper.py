"""The pepper of the API keys: given by the operator, or made once and kept in a file."""

import contextlib
import os
import secrets
from pathlib import Path

from gateway.core.errors import Misconfigured
from gateway.core.keys import Peppers

_BYTES = 32


def load_peppers(given: str, file: Path) -> Peppers:
    """Return the peppers in `given` (between commas), else those in `file` (one a line).

    A file that is not there is made, with one random pepper and for this user only. Raises
    Misconfigured.
    """
    try:
        text = given or _read_or_make(file)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise Misconfigured([f"GATEWAY_KEY_PEPPER_FILE: {file}: {reason}"]) from None
    values = text.replace(",", "\n").split()
    if not values:
        raise Misconfigured([f"GATEWAY_KEY_PEPPER_FILE: {file}: it is empty"])
    return Peppers([value.encode() for value in values])


def _read_or_make(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        _make(file)
    return file.read_text(encoding="utf-8")


def _make(file: Path) -> None:
    """Make the file, whole or not at all; the first of several who make it at once wins."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}-{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_hex(_BYTES) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, file)
    finally:
        draft.unlink()
