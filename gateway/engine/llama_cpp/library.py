"""llama.cpp's C library in this process: imported once, its log lines led into ours."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

logger = logging.getLogger(__name__)

# Source: ggml.h, enum ggml_log_level. Its debug lines tell of every tensor and are left out.
_INFO, _WARN, _ERROR = 2, 3, 4
_LEVELS = {_INFO: logging.DEBUG, _WARN: logging.INFO, _ERROR: logging.WARNING}


class Library:
    """The C functions as `api`. There is one for a process, as there is one log in llama.cpp."""

    def __init__(self) -> None:
        import llama_cpp.llama_cpp as api

        self.api: Any = api
        self._recording = threading.local()
        # llama.cpp calls it as long as the process lives, so it must live as long.
        self._callback = api.llama_log_callback(self._log)
        api.llama_log_set(self._callback, None)
        api.llama_backend_init()

    @contextmanager
    def recorded(self) -> Iterator[list[str]]:
        """Give a list that fills with what llama.cpp says in this thread."""
        lines: list[str] = []
        self._recording.lines = lines
        try:
            yield lines
        finally:
            self._recording.lines = None

    def _log(self, level: int, text: bytes, _: Any) -> None:
        if level not in _LEVELS:
            return
        line = text.decode(errors="replace").strip()
        lines = getattr(self._recording, "lines", None)
        if lines is not None:
            lines.append(line)
        logger.log(_LEVELS[level], "%s", line)


@cache
def load_library() -> Library:
    """Return the library; takes a moment the first time."""
    return Library()
