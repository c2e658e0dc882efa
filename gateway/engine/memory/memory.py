"""Where an engine's state takes its memory from."""

from typing import Protocol

FIRST_CAPACITY = 256
"""Tokens that a new cache holds a row, and by which it grows at least."""


class Memory(Protocol):
    """Bytes that may be taken and must be given back. Called in the engine's thread."""

    def reserve(self, size_bytes: int, *, is_needed: bool = True) -> bool:
        """Take `size_bytes` more; False, and nothing changed, when there is no room for them.

        Others may be asked to make room for what `is_needed`, but not for what is only useful.
        """
        ...

    def release(self, size_bytes: int) -> None:
        """Give `size_bytes` back."""
        ...


class Unlimited:
    """Memory that nobody counts: for a model that is only being tried out."""

    def reserve(self, size_bytes: int, *, is_needed: bool = True) -> bool:
        return True

    def release(self, size_bytes: int) -> None:
        pass
