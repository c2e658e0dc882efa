"""What a request asks of its tokens, over the model's own defaults. Pure."""

from typing import Any

import msgspec

from gateway.core.messages import Options

COLDEST = 1e-4
"""Below this a temperature is greedy: dividing by it would leave the range of a float32."""


class Sampling(msgspec.Struct, frozen=True):
    """Resolved options: every value is there. temperature 0 is greedy; top_k 0 is off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()


def resolve_sampling(options: Options, generation_config: Any) -> Sampling:
    """Return the caller's options over the model's own defaults (its generation_config).

    A model that does not sample by default is greedy until the caller gives a temperature.
    """
    defaults = generation_config if getattr(generation_config, "do_sample", False) else None

    def pick(asked: float | None, name: str, neutral: float) -> float:
        if asked is not None:
            return asked
        own = getattr(defaults, name, None)
        return neutral if own is None else own

    temperature = pick(options.temperature, "temperature", 1.0 if defaults else 0.0)
    return Sampling(
        temperature=temperature if temperature >= COLDEST else 0.0,
        top_p=pick(options.top_p, "top_p", 1.0),
        top_k=int(pick(options.top_k, "top_k", 0)),
        min_p=pick(options.min_p, "min_p", 0.0),
        repetition_penalty=pick(options.repetition_penalty, "repetition_penalty", 1.0),
        frequency_penalty=options.frequency_penalty or 0.0,
        presence_penalty=options.presence_penalty or 0.0,
        seed=options.seed,
        logprobs=options.logprobs,
        logit_bias=options.logit_bias,
    )
