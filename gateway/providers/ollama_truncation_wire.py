"""Whether Ollama cut a prompt without a word, told from what it counted.

A server that knows `truncate` refuses what is too long if it is told to; older ones pass over the
field, and their counts tell: those of Go's runners (from 0.4 on) are of the prompt as it was used.
Source: Ollama's server/prompt.go, runner/ollamarunner/runner.go and api/types.go.
"""

import logging
import re
from collections.abc import Mapping

from gateway.core.errors import ContextLengthExceeded, ProviderError
from gateway.core.messages import GenerateRequest
from gateway.core.names import ModelRef
from gateway.providers.ollama_control_wire import ControlPlane
from gateway.providers.ollama_lifecycle_wire import find_running
from gateway.providers.ollama_listing_wire import Running, name_key

logger = logging.getLogger(__name__)

_COUNTS_WHOLE, _KNOWS_TRUNCATE = (0, 4), (0, 13)
"""The field came with 0.12.6; the counts of the versions after it are as true."""

_WORD = re.compile(r"\w\S*")
_NUMBERS = re.compile(r"(\d{1,9})\.(\d{1,9})")


class TruncationGuard:
    """Looks at what one server counted; asks it no more than that where all is well."""

    def __init__(self, control: ControlPlane) -> None:
        self._control = control
        self._windows: dict[str, int] = {}

    def learn(self, in_memory: Mapping[str, Running]) -> None:
        """Take note of the contexts that the models in memory have, by their keys."""
        self._windows = {
            key: each.context_length for key, each in in_memory.items() if each.context_length
        }

    def is_doubtful(
        self, request: GenerateRequest, ref: ModelRef, counted: int, num_ctx: int | None
    ) -> bool:
        """Tell whether the prompt may have been cut, of which Ollama counted so many tokens.
        `num_ctx` is the context that was asked for."""
        if not counted:
            return False
        window = num_ctx or self._windows.get(name_key(ref))
        return (window is not None and counted >= window) or is_longer(request, counted)

    async def was_cut(
        self, request: GenerateRequest, ref: ModelRef, counted: int, num_ctx: int | None
    ) -> bool:
        """Do as `is_doubtful`, and return True only where it is certain: the server may be asked
        what it can."""
        if not self.is_doubtful(request, ref, counted, num_ctx):
            return False
        try:
            if not may_cut_silently(await self._control.version()):
                return False
            return is_longer(request, counted) or await self._is_full(ref, counted)
        except ProviderError as error:
            logger.info("whether Ollama cut a prompt is not known: %s", error.message)
            return False

    async def _is_full(self, ref: ModelRef, counted: int) -> bool:
        """Tell whether the prompt fills the context, as one that was cut does. The model may have
        been loaded with another one since the last look."""
        running = find_running(await self._control.running(), ref)
        window = running.context_length if running else None
        return window is not None and counted >= window


def too_long(ref: ModelRef) -> ContextLengthExceeded:
    """Return the error for a prompt that Ollama cut, or would have cut."""
    return ContextLengthExceeded(
        f"The prompt is longer than the context in which Ollama runs {ref}.",
        hint="Shorten it, raise GATEWAY_OLLAMA_NUM_CTX, or send 'truncate': true to have it cut.",
        param="messages",
    )


def is_longer(request: GenerateRequest, tokens: int) -> bool:
    """Tell whether the prompt surely has more than so many tokens: each word has one of its own."""
    # A word and a space are two characters: most prompts need not be looked through.
    return request.text_length >= 2 * tokens and _count_words(request) > tokens


def may_cut_silently(version: str) -> bool:
    """Tell whether a server of this version cuts prompts without a word, and counts them truly."""
    numbers = _NUMBERS.match(version)
    if numbers is None:
        return False
    return _COUNTS_WHOLE <= (int(numbers[1]), int(numbers[2])) < _KNOWS_TRUNCATE


def _count_words(request: GenerateRequest) -> int:
    texts = (request.prompt or "", *(message.text for message in request.messages))
    return sum(len(_WORD.findall(text)) for text in texts)
