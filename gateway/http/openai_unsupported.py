"""Fields of OpenAI's API, and of servers like it, that would change an answer and are not taken.

They are refused by name: a client that asks for one and is given an answer would believe it.
Sources: the OpenAI API reference; vLLM's documentation of what its server takes beyond it.
"""

from collections.abc import Collection, Mapping
from operator import attrgetter
from typing import Any

from gateway.core.errors import UnsupportedCapability
from gateway.http.options import OptionsBody


class UnsupportedBody(OptionsBody, kw_only=True):
    """Options, and beside them what is not supported; whatever that holds is not looked into."""

    best_of: Any = None
    echo: Any = None
    suffix: Any = None
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    modalities: Any = None
    moderation: Any = None
    verbosity: Any = None
    web_search_options: Any = None
    min_tokens: Any = None
    ignore_eos: Any = None
    length_penalty: Any = None
    typical_p: Any = None
    use_beam_search: Any = None
    prompt_logprobs: Any = None
    truncate_prompt_tokens: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    structured_outputs: Any = None
    chat_template: Any = None
    chat_template_kwargs: Any = None


_NAMES = tuple(UnsupportedBody.__annotations__)
_read_all = attrgetter(*_NAMES)
_NOTHING = (None,) * len(_NAMES)
_SAYS_NOTHING: Collection[Any] = (None, False, "", [], {})

# What a field may say without changing anything.
_DEFAULTS: Mapping[str, Any] = {
    "best_of": 1,
    "modalities": ["text"],
    "verbosity": "medium",
    "length_penalty": 1,
    "typical_p": 1,
}

_FORMAT = "Ask for it with 'response_format'."
_HINTS: Mapping[str, str] = {
    "best_of": "Send the request several times and choose.",
    "echo": "Put the prompt before the answer.",
    "suffix": "Send a prompt without it.",
    "functions": "Send them as 'tools'.",
    "function_call": "Send it as 'tool_choice'.",
    "guided_json": _FORMAT,
    "structured_outputs": _FORMAT,
    "chat_template_kwargs": "Ask for reasoning, or for none, with 'reasoning_effort'.",
}


def require_supported(body: UnsupportedBody) -> None:
    """Raise UnsupportedCapability for the first field that asks for something."""
    values = _read_all(body)
    if values == _NOTHING:  # as nearly always
        return
    for name, value in zip(_NAMES, values, strict=True):
        if value in _SAYS_NOTHING or value == _DEFAULTS.get(name):
            continue
        hint = _HINTS.get(name, "Leave it out.")
        raise UnsupportedCapability(f"'{name}' is not supported.", hint=hint, param=name)
