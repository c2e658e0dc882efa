"""A file that holds a secret of this gateway, made at its first use."""

import contextlib
import os
import secrets
from pathlib import Path

_BYTES = 32


def read_or_make(file: Path) -> str:
    """Return what the file holds; one that is not there is made, with one random secret and for
    this user only. Raises OSError, UnicodeDecodeError."""
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
