"""Types of options that several benches take."""

import argparse
from collections.abc import Iterable


def numbers(text: str) -> list[int]:
    """Read numbers, comma-separated."""
    return [int(part) for part in text.split(",")]


class names:
    """Reads names, comma-separated, that must be known."""

    def __init__(self, known: Iterable[str]) -> None:
        self._known = list(known)

    def __call__(self, text: str) -> list[str]:
        found = text.split(",")
        if unknown := [name for name in found if name not in self._known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(self._known)}")
        return found
