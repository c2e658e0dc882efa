"""Models that run in the gateway."""

from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, field_validator

from gateway.core.downloads import is_commit
from gateway.core.loading import DEVICE_FORM
from gateway.core.trust import TrustRules
from gateway.settings.values import Folder, Group, Names, Positive


class HuggingFaceSettings(Group):
    """Models that run in the gateway, or in children of it."""

    hf_model_path: Folder | None = Field(
        None, description="Folder of models: `smol` in it is huggingface/smol."
    )
    hf_device: Annotated[str, Field(pattern=f"^({DEVICE_FORM})$")] = Field(
        "auto", description="Device: cpu, cuda, cuda:1, mps; auto: the best there is."
    )
    hf_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Number format of the weights; auto: as they are stored."
    )
    hf_isolation: Literal["thread", "process"] = Field(
        "thread", description="Where a model runs: in the gateway, or in a process of its own."
    )
    hf_child_memory_bytes: int = Field(
        0, ge=0, description="Bytes that the process of a model may have for itself; 0: no limit."
    )
    hf_threads: int = Field(0, ge=0, description="Compute threads; 0: as many as cores.")
    hf_preload: Names = Field((), description="Models to load at the start, comma-separated.")
    hf_keep_alive_s: float = Field(
        -1.0,
        allow_inf_nan=False,
        description="Seconds an idle model stays in memory; negative: until its room is needed.",
    )
    hf_max_models: int = Field(3, ge=1, description="Models in memory at once, on each device.")
    hf_place_wait_s: float = Field(
        30.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds a load waits for models in use to make room.",
    )
    hf_max_active: int = Field(16, ge=1, description="Streams that one model serves at once.")
    hf_max_queue: int = Field(64, ge=0, description="Requests that may wait for one model.")
    hf_prompt_cache_bytes: int = Field(
        256 * 2**20, ge=0, description="Bytes that one model may keep of past prompts."
    )
    hf_allow_pickle: Names = Field(
        (), description="Models whose weights may be pickles, comma-separated; * is all."
    )
    hf_trusted_repositories: Names = Field(
        (),
        description="Models whose own code is run, comma-separated: owner/name@commit, or "
        "owner/name for every commit.",
    )
    hf_verify_memory_bytes: int = Field(
        0,
        ge=0,
        description="Bytes that a load test may have; 0: three times the weights and 4 GiB.",
    )
    hf_verify_timeout_s: Positive = Field(300.0, description="Seconds a load test may take.")
    gguf_max_active: int = Field(4, ge=1, description="Streams that one GGUF model serves at once.")
    gguf_context_length: int = Field(
        4096,
        ge=256,
        le=2**20,
        description="Most tokens of a stream of a GGUF model; set aside for each stream at once.",
    )

    @field_validator("hf_trusted_repositories")
    @classmethod
    def _check_trusted(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            model, at, commit = name.partition("@")
            if model == "*":
                raise ValueError("name each model whose code is to be run: '*' stands for none")
            if not model or (at and not is_commit(commit)):
                raise ValueError(f"'{name}' is not of the form owner/name or owner/name@commit")
        return value

    @cached_property
    def trust_rules(self) -> TrustRules:
        """What the operator lets the files of models do."""
        return TrustRules(self.hf_allow_pickle, self.hf_trusted_repositories)
