"""How far a load is: bytes of weights read, as transformers places them. Nothing is invented."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gateway.core.cards import PICKLES
from gateway.core.errors import ModelUnloaded

_BAR = "Loading weights"
"""How transformers describes the bar over the parameters that it fills."""
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


class LoadProgress:
    """Written by the thread that loads; read, and cancelled, by any other."""

    def __init__(self) -> None:
        self.read_bytes = 0
        self.total_bytes = 0
        self.on_cancel: Callable[[], None] | None = None
        """Called by `cancel`, for a load that no thread here would notice it in."""
        self._cancelled = False

    @property
    def fraction(self) -> float | None:
        """How much of the weights is read, 0 to 1; None before the first."""
        return self.read_bytes / self.total_bytes if self.read_bytes else None

    def cancel(self) -> None:
        """Let the thread that loads raise ModelUnloaded at the next weight."""
        self._cancelled = True
        if self.on_cancel is not None:
            self.on_cancel()

    def check(self) -> None:
        """Raise ModelUnloaded if the load was cancelled."""
        if self._cancelled:
            raise ModelUnloaded("The load was cancelled.")

    def over(
        self,
        parameters: Iterable[tuple[str, Any]],
        sizes: dict[str, int],
        on_read: Callable[[int], None] = lambda size_bytes: None,
        pickled_bytes: int = 0,
    ) -> Iterator[tuple[str, Any]]:
        """Yield the parameters and count their bytes; one that the files name otherwise counts as
        much as the others do on average, and so do all of pickles, whose sizes are not told."""
        named = list(parameters)
        known = [sizes[name] for name, _ in named if name in sizes]
        usual = max(1, sum(known or [pickled_bytes]) // max(1, len(known or named)))
        self.read_bytes, self.total_bytes = 0, sum(sizes.get(name, usual) for name, _ in named)
        for name, mapping in named:
            self.check()
            yield name, mapping
            self.read_bytes += sizes.get(name, usual)
            on_read(sizes.get(name, usual))


@contextmanager
def watched(
    progress: LoadProgress,
    folder: Path,
    on_read: Callable[[int], None] = lambda size_bytes: None,
) -> Iterator[None]:
    """Report to `progress`, and to `on_read`, what transformers loads meanwhile.

    One load at a time: the hook is the library's own, and there is one for the whole process.
    """
    from transformers.utils import logging

    sizes = read_tensor_sizes(folder)
    pickled_bytes = sum(file.stat().st_size for file in folder.glob(f"{PICKLES}*.bin"))

    def hook(bar: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if options.get("desc") == _BAR and args:
            return progress.over(args[0], sizes, on_read, pickled_bytes)
        return bar(*args, **options)

    previous = logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        logging.set_tqdm_hook(previous)


def read_tensor_sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of each tensor, as the headers of the safetensors files say.

    A file that cannot be read is left out: loading it will say what is wrong.
    """
    sizes: dict[str, int] = {}
    for path in folder.glob("*.safetensors"):
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if length > _MAX_HEADER_BYTES:
                    continue
                for name, about in json.loads(file.read(length)).items():
                    if name != "__metadata__":
                        begin, end = about["data_offsets"]
                        sizes[name] = end - begin
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return sizes
