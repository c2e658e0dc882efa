"""What mutations are given, checked and turned into what the services understand."""

import math

import msgspec
import strawberry

from gateway.core import loading, messages
from gateway.core.errors import InvalidRequest
from gateway.core.messages import require_clean_text
from gateway.core.options import require_in_range
from schema.types import Dtype, Long, Quantization


@strawberry.input(description="How to load a model; what is left out is AUTO.")
class LoadConfigInput:
    device: str = strawberry.field(
        default="auto", description="auto, cpu, mps, cuda or cuda:0, as far as there is one."
    )
    dtype: Dtype = strawberry.field(
        default=Dtype.AUTO, description="The number format of its weights."
    )
    quantization: Quantization = strawberry.field(
        default=Quantization.NONE, description="How far to quantize them."
    )
    context_length: int | None = strawberry.field(
        default=None,
        description="Most tokens of prompt and answer together; null: what the model has.",
    )

    def to_core(self) -> loading.LoadConfig:
        """Return the config; raise InvalidRequest for a device that cannot be."""
        values = {
            "device": self.device,
            "dtype": self.dtype.name.lower(),
            "quantization": self.quantization.name.lower(),
            "context_length": self.context_length,
        }
        try:
            return msgspec.convert(values, loading.LoadConfig)
        except msgspec.ValidationError as error:
            what, _, place = str(error).partition(" - at `$.")
            name = place.rstrip("`")
            raise InvalidRequest(f"'{name}' is wrong: {what}.", param=name) from None


@strawberry.input(description="How much likelier or less likely one token is made.")
class TokenBiasInput:
    token: int = strawberry.field(description="The id of the token, from 0.")
    bias: float = strawberry.field(description="-100 to 100; added to its logit.")


@strawberry.input(description="How to choose tokens; null is the model's own way.")
class OptionsInput:
    temperature: float | None = strawberry.field(default=None, description="0 to 2; 0 is greedy.")
    top_p: float | None = strawberry.field(default=None, description="Above 0, up to 1.")
    top_k: int | None = strawberry.field(default=None, description="From 0; 0 is all tokens.")
    min_p: float | None = strawberry.field(default=None, description="0 to 1.")
    repetition_penalty: float | None = strawberry.field(default=None, description="0.01 to 10.")
    frequency_penalty: float | None = strawberry.field(default=None, description="-2 to 2.")
    presence_penalty: float | None = strawberry.field(default=None, description="-2 to 2.")
    seed: Long | None = strawberry.field(default=None, description="-2^63 to 2^64 - 1.")
    max_tokens: int | None = strawberry.field(default=None, description="From 1.")
    stop: list[str] | None = strawberry.field(
        default=None, description="Up to 16 texts, none of them empty."
    )
    stop_token_ids: list[int] | None = strawberry.field(
        default=None, description="Up to 1024 tokens, from 0; such a one ends the answer, unseen."
    )
    logprobs: int | None = strawberry.field(
        default=None,
        description="0 to 20: how many of the likeliest tokens to name beside each; null: none, "
        "and no probabilities.",
    )
    logit_bias: list[TokenBiasInput] | None = strawberry.field(
        default=None, description="Up to 1024 tokens, each once."
    )

    def to_core(self, prefix: str = "defaults.") -> messages.Options:
        """Return the options; raise InvalidRequest for the first that is out of range. `prefix` is
        what stands before its name in the request."""
        options = messages.Options(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            seed=self.seed,
            max_tokens=self.max_tokens,
            stop=tuple(self.stop or ()),
            stop_ids=tuple(self.stop_token_ids or ()),
            logprobs=self.logprobs,
            logit_bias=tuple((each.token, each.bias) for each in self.logit_bias or ()),
        )
        _require_tokens("stop_token_ids", list(options.stop_ids), prefix)
        _require_tokens("logit_bias", [token for token, _ in options.logit_bias], prefix)
        require_in_range(options, prefix)
        for text in options.stop:
            require_clean_text(text, f"{prefix}stop")
        return options


@strawberry.input(description="Which model to load, and how.")
class LoadModelInput:
    model: str = strawberry.field(description="Its name, in any form that requests may use.")
    config: LoadConfigInput | None = strawberry.field(
        default=None, description="How to load it; left out: as it was decided before."
    )
    pinned: bool | None = strawberry.field(
        default=None, description="Whether it stays until it is unloaded by hand."
    )
    keep_alive_seconds: float | None = strawberry.field(
        default=None, description="How long it stays unused; negative: for ever."
    )
    wait: bool = strawberry.field(
        default=False, description="Answer once it is loaded, not once it is loading."
    )


@strawberry.input(description="Which model to unload, and how.")
class UnloadModelInput:
    model: str = strawberry.field(description="Its name, in any form that requests may use.")
    force: bool = strawberry.field(
        default=False, description="End the requests that use it, with `model_unloaded`."
    )
    wait: bool = strawberry.field(default=False, description="Answer once it is out of memory.")


@strawberry.input(description="What to decide for a model; what is left out stays as it is.")
class ConfigureModelInput:
    model: str = strawberry.field(description="Its name, in any form that requests may use.")
    load: LoadConfigInput | None = strawberry.field(
        default=None, description="How to load it from now on; replaces all of it."
    )
    defaults: OptionsInput | None = strawberry.field(
        default=None, description="Options for requests that leave them out; replaces all of them."
    )
    keep_alive_seconds: float | None = strawberry.field(
        default=strawberry.UNSET,
        description="How long it stays unused; negative: for ever; null: as the gateway is set.",
    )
    pinned: bool | None = strawberry.field(
        default=None, description="Whether it stays until it is unloaded by hand."
    )

    def to_core(self) -> loading.ConfigChange:
        """Return the change; raise InvalidRequest for what is out of range."""
        keep_alive_s = self.keep_alive_seconds
        return loading.ConfigChange(
            load=None if self.load is None else self.load.to_core(),
            defaults=None if self.defaults is None else self.defaults.to_core(),
            keep_alive_s=(
                msgspec.UNSET if keep_alive_s is strawberry.UNSET else require_seconds(keep_alive_s)
            ),
            pinned=self.pinned,
        )


def _require_tokens(name: str, ids: list[int], prefix: str) -> None:
    wrong = [token for token in ids if token < 0]
    if wrong:
        raise InvalidRequest(
            f"'{name}' has {wrong[0]}, which is no token.", param=f"{prefix}{name}"
        )
    if name == "logit_bias" and len(set(ids)) < len(ids):
        raise InvalidRequest(f"'{name}' names a token twice.", param=f"{prefix}{name}")


def require_seconds(value: float | None) -> float | None:
    """Return a keep-alive; a number that no clock can hold is refused with InvalidRequest."""
    if value is not None and not (math.isfinite(value) and value <= MAX_KEEP_ALIVE_S):
        raise InvalidRequest(
            f"'keepAliveSeconds' must be at most {MAX_KEEP_ALIVE_S:g}.",
            hint="A negative number is for ever.",
            param="keepAliveSeconds",
        )
    return value


MAX_KEEP_ALIVE_S = 1e9
