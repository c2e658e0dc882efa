"""What Ollama makes of a request before a model sees it: refusals, counted words, cuts."""

import base64
import binascii
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from tests.integration.ollama_peer.lines import TEMPLATE_TOKENS
from tests.integration.ollama_peer.models import Model


def refuse(body: dict[str, Any], model: Model, asked: str, verb: str) -> tuple[int, str] | None:
    """Return status and text of what Ollama would refuse, before it looks at the prompt."""
    can = model.capabilities or ["completion"]
    full = f"registry.ollama.ai/library/{model.name}"
    wants = body.get("format")
    images = [
        image for message in body.get("messages") or () for image in message.get("images", [])
    ]
    for image in images:
        try:
            base64.b64decode(image, validate=True)
        except (binascii.Error, ValueError):
            return 400, "illegal base64 data at input byte 0"
    if "completion" not in can:
        return 400, f'"{asked}" does not support {verb}'
    if body.get("tools") and "tools" not in can:
        return 400, f"{full} does not support tools"
    if images and "vision" not in can:
        return 400, f"{full} does not support vision"
    if body.get("think") and "thinking" not in can:
        return 400, f'"{asked}" does not support thinking'
    if wants not in (None, "", "json") and not isinstance(wants, dict):
        return 500, f"invalid format: {wants!r}; expected 'json' or a JSON schema"
    if isinstance(body.get("keep_alive"), str) and body["keep_alive"].isdigit():
        return 400, f'time: missing unit in duration "{body["keep_alive"]}"'
    return None


def count_prompt(body: dict[str, Any], verb: str) -> int:
    """Return the tokens of a prompt: one a word, and those of the template."""
    texts = [body.get("prompt") or ""]
    if verb == "chat":
        texts = [message.get("content", "") for message in body.get("messages") or ()]
    return TEMPLATE_TOKENS + sum(len(text.split()) for text in texts)


def cut_prompt(body: dict[str, Any], verb: str, window: int) -> int:
    """Cut a prompt to the window as Ollama does, without a word; return its tokens then.

    The oldest messages go but for the system's and the newest; what is still too long loses its
    middle, and fills the window.
    """
    messages = body.get("messages") or []
    while verb == "chat" and count_prompt(body, verb) > window:
        old = [each for each in messages[:-1] if each.get("role") != "system"]
        if not old:
            break
        messages.remove(old[0])
    return min(count_prompt(body, verb), window)


def refuse_length(used: int, window: int) -> str:
    """Return the text of the refusal: the body of the inner server, JSON as it is."""
    text = (
        f"the request exceeds the available context size ({used} tokens, {window} are there), "
        "try increasing it"
    )
    inner = {"code": 400, "message": text, "type": "exceed_context_size_error"}
    return json.dumps({"error": {**inner, "n_prompt_tokens": used, "n_ctx": window}})


def unit(numbers: Sequence[float]) -> list[float]:
    length = math.hypot(*numbers)
    return [number / length for number in numbers]


def words_of(body: dict[str, Any], model: Model, verb: str) -> list[str]:
    if body.get("format"):
        text = '{"answer": 42}'
    elif model.answer is not None:
        text = model.answer
    else:
        text = f"You said: {_asked(body, verb)[:2000]}"
    if verb == "chat" and body["messages"][-1].get("role") == "assistant":
        # The message is open: the model goes on with it.
        return re.findall(r"\s*\S+|\s+", text.removeprefix(body["messages"][-1]["content"]))
    head, *tail = text.split(" ")
    return [head, *(f" {word}" for word in tail)]


def _asked(body: dict[str, Any], verb: str) -> str:
    if verb == "generate":
        return str(body["prompt"])
    messages = body["messages"]
    is_open = messages[-1].get("role") == "assistant" and len(messages) > 1
    return str(messages[-2 if is_open else -1].get("content", ""))
