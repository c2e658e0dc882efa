"""Log probabilities in OpenAI's two shapes: those of a chat, and those of a plain completion."""

from collections.abc import Sequence
from typing import Any

from gateway.core.events import TokenLogprob


def describe_logprobs(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Return the tokens as a chat's `logprobs.content` has them; `bytes` are numbers."""
    return [
        {**_describe(each), "top_logprobs": [_describe(other) for other in each.top]}
        for each in logprobs
    ]


def describe_text_logprobs(logprobs: Sequence[TokenLogprob], offset: int = 0) -> dict[str, Any]:
    """Return the tokens as a plain completion has them; the text begins at `offset`."""
    offsets = []
    for each in logprobs:
        offsets.append(offset)
        offset += len(each.token)
    return {
        "tokens": [each.token for each in logprobs],
        "token_logprobs": [each.logprob for each in logprobs],
        "top_logprobs": [{o.token: o.logprob for o in each.top} for each in logprobs],
        "text_offset": offsets,
    }


def _describe(logprob: TokenLogprob) -> dict[str, Any]:
    return {"token": logprob.token, "logprob": logprob.logprob, "bytes": list(logprob.raw)}
