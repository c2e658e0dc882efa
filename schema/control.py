"""What is decided for a model, planned and seen of it, as GraphQL shows it."""

import strawberry

from gateway.core import loading, messages
from schema.types import Dtype, Long, ModelState, Problem, Quantization


@strawberry.type(description="How a model is loaded.")
class LoadConfig:
    device: str = strawberry.field(description="auto, cpu, mps, cuda or cuda:0.")
    dtype: Dtype = strawberry.field(description="The number format of its weights.")
    quantization: Quantization = strawberry.field(description="How far they are quantized.")
    context_length: int | None = strawberry.field(
        description="Most tokens of prompt and answer together; null: what the model has."
    )

    @classmethod
    def of(cls, config: loading.LoadConfig) -> "LoadConfig":
        return cls(
            device=config.device,
            dtype=Dtype[config.dtype.upper()],
            quantization=Quantization[config.quantization.upper()],
            context_length=config.context_length,
        )


@strawberry.type(description="How much likelier or less likely one token is made.")
class TokenBias:
    token: int = strawberry.field(description="The id of the token.")
    bias: float = strawberry.field(description="What is added to its logit.")


@strawberry.type(description="Options for requests that leave them out; null is the model's own.")
class GenerationOptions:
    temperature: float | None = strawberry.field(description="0 is greedy.")
    top_p: float | None = strawberry.field(description="Nucleus sampling.")
    top_k: int | None = strawberry.field(description="Only the k likeliest tokens; 0 is all.")
    min_p: float | None = strawberry.field(description="Least share of the likeliest token.")
    repetition_penalty: float | None = strawberry.field(description="1 is none.")
    frequency_penalty: float | None = strawberry.field(description="0 is none.")
    presence_penalty: float | None = strawberry.field(description="0 is none.")
    seed: Long | None = strawberry.field(description="The same seed, the same answer.")
    max_tokens: int | None = strawberry.field(description="Most tokens of the answer.")
    stop: list[str] = strawberry.field(description="The answer ends before any of these.")
    stop_token_ids: list[int] = strawberry.field(
        description="Any of these tokens ends the answer, unseen."
    )
    logprobs: int | None = strawberry.field(
        description="How many of the likeliest tokens are named beside each."
    )
    logit_bias: list[TokenBias] = strawberry.field(description="What is added to the logits.")

    @classmethod
    def of(cls, options: messages.Options) -> "GenerationOptions":
        return cls(
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            min_p=options.min_p,
            repetition_penalty=options.repetition_penalty,
            frequency_penalty=options.frequency_penalty,
            presence_penalty=options.presence_penalty,
            seed=None if options.seed is None else Long(options.seed),
            max_tokens=options.max_tokens,
            stop=list(options.stop),
            stop_token_ids=list(options.stop_ids),
            logprobs=options.logprobs,
            logit_bias=[TokenBias(token=token, bias=bias) for token, bias in options.logit_bias],
        )


@strawberry.type(description="What is decided for a model; outlives its unloading.")
class ModelConfig:
    load: LoadConfig = strawberry.field(description="Holds at the next load.")
    defaults: GenerationOptions = strawberry.field(description="Hold for new requests at once.")
    keep_alive_seconds: float | None = strawberry.field(
        description="How long it stays in memory unused; negative: for ever; null: as the "
        "gateway is set."
    )
    pinned: bool = strawberry.field(description="It is neither evicted nor does it expire.")

    @classmethod
    def of(cls, config: loading.ModelConfig) -> "ModelConfig":
        return cls(
            load=LoadConfig.of(config.load),
            defaults=GenerationOptions.of(config.defaults),
            keep_alive_seconds=config.keep_alive_s,
            pinned=config.pinned,
        )


@strawberry.type(description="The config of a model, and whether it is true of it now.")
class ConfigReport:
    id: strawberry.ID = strawberry.field(description="The model's full name.")
    config: ModelConfig = strawberry.field(description="What is decided.")
    requires_reload: bool = strawberry.field(
        description="It is loaded in another way than `config.load` says."
    )

    @classmethod
    def of(cls, report: loading.ConfigReport) -> "ConfigReport":
        return cls(
            id=strawberry.ID(str(report.ref)),
            config=ModelConfig.of(report.config),
            requires_reload=report.requires_reload,
        )


@strawberry.type(description="What loading a model would take now; null where nobody knows.")
class LoadPlan:
    id: strawberry.ID = strawberry.field(description="The model's full name.")
    need_bytes: Long | None = strawberry.field(
        description="Memory that a load takes at its worst moment."
    )
    free_bytes: Long | None = strawberry.field(description="Memory that is free for models.")
    budget_bytes: Long | None = strawberry.field(description="Memory for all models together.")
    evictions: list[strawberry.ID] = strawberry.field(
        description="The models that would have to go, in that order."
    )
    fits: bool | None = strawberry.field(description="Whether it could be loaded now.")
    already_loaded: bool = strawberry.field(description="There is nothing to do.")
    reason: str | None = strawberry.field(description="Why it does not fit now.")

    @classmethod
    def of(cls, plan: loading.LoadPlan) -> "LoadPlan":
        return cls(
            id=strawberry.ID(str(plan.ref)),
            need_bytes=_long(plan.need_bytes),
            free_bytes=_long(plan.free_bytes),
            budget_bytes=_long(plan.budget_bytes),
            evictions=[strawberry.ID(str(ref)) for ref in plan.evictions],
            fits=plan.fits,
            already_loaded=plan.already_loaded,
            reason=plan.reason,
        )


@strawberry.type(description="One model now.")
class ModelStatus:
    id: strawberry.ID = strawberry.field(description="Its full name: provider/name.")
    state: ModelState = strawberry.field(description="Where its weights are.")
    config: ModelConfig = strawberry.field(description="What is decided for it.")
    memory_bytes: Long = strawberry.field(description="Memory that it takes; 0 when in none.")
    leases: int = strawberry.field(description="How many requests use it.")
    queued: int = strawberry.field(description="How many wait for it to be loaded.")
    pinned: bool = strawberry.field(description="It is neither evicted nor does it expire.")
    expires_in_seconds: float | None = strawberry.field(
        description="When it will be unloaded, if nobody uses it until then."
    )
    fraction: float | None = strawberry.field(
        description="0 to 1: how much of its weights is read, while it loads and if known."
    )
    eta_seconds: float | None = strawberry.field(
        description="How long the load will take, while it loads and if known."
    )
    device: str | None = strawberry.field(description="Where it runs.")
    batched: bool | None = strawberry.field(
        description="Whether its requests share their steps; null when unknown."
    )
    packing: float | None = strawberry.field(
        description="0 to 1: how much of its weights is packed, while there is more to pack."
    )
    requires_reload: bool = strawberry.field(
        description="It is loaded in another way than `config.load` says."
    )
    error: Problem | None = strawberry.field(description="Why it failed, if it did.")

    @classmethod
    def of(cls, status: loading.ModelStatus) -> "ModelStatus":
        return cls(
            id=strawberry.ID(str(status.ref)),
            state=ModelState[status.state.name],
            config=ModelConfig.of(status.config),
            memory_bytes=Long(status.memory_bytes),
            leases=status.leases,
            queued=status.queued,
            pinned=status.pinned,
            expires_in_seconds=status.expires_in_s,
            fraction=status.fraction,
            eta_seconds=status.eta_s,
            device=status.device,
            batched=status.batched,
            packing=status.packing,
            requires_reload=status.requires_reload,
            error=None if status.error is None else Problem.of(status.error),
        )


def _long(value: int | None) -> Long | None:
    return None if value is None else Long(value)
