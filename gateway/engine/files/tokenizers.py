"""Keeps the tokenizers of the models loaded last: reading a large one takes longer than its model.

A model that comes back finds its tokenizer here. Some 50 MB stay for each of a large vocabulary,
outside the budget, and nobody else waits meanwhile: a parser of JSON lets no other thread run.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from gateway.core.trust import Trust
from gateway.engine.files.trusted import UNTRUSTED, reading_options

LIMIT = 4

_WEIGHTS = frozenset({".safetensors", ".bin", ".gguf", ".pt", ".pth"})

Stamp = tuple[tuple[str, int, int], ...]


class TokenizerCache:
    """The tokenizers of up to LIMIT folders, the one used longest ago goes first. Thread-safe."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Path, Stamp, Trust], Any] = OrderedDict()
        self._lock = threading.Lock()

    def load(self, path: Path, trust: Trust = UNTRUSTED) -> Any:
        """Return the tokenizer in a model's folder, as its files are now. Blocking: up to seconds.

        Raises what transformers raises.
        """
        key = path, _stamp(path), trust
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        tokenizer = load_tokenizer(path, trust)
        with self._lock:
            self._kept[key] = tokenizer
            while len(self._kept) > LIMIT:
                self._kept.popitem(last=False)
        return tokenizer


def load_tokenizer(path: Path, trust: Trust = UNTRUSTED) -> Any:
    """Read the tokenizer in a model's folder, as far as `trust` allows."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, **reading_options(trust))


def _stamp(path: Path) -> Stamp:
    """Return what changes when anything in the folder does that a tokenizer may be read from."""
    files = (file for file in path.iterdir() if file.suffix not in _WEIGHTS)
    states = ((file.name, file.stat()) for file in files if file.is_file())
    return tuple(sorted((name, state.st_mtime_ns, state.st_size) for name, state in states))
