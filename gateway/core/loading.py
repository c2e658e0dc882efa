"""How a model is loaded and kept: what may be decided, planned and seen of it. Plain data."""

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from gateway.core.errors import GatewayError
from gateway.core.messages import Options
from gateway.core.names import ModelRef
from gateway.core.states import ModelState

DEVICE_FORM = "auto|cpu|mps|cuda(:[0-9]{1,3})?"
"""How a device is written, as a regular expression. Whether it is there only the machine tells."""
Device = Annotated[str, msgspec.Meta(pattern=rf"^({DEVICE_FORM})\Z")]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "int8", "int4"]

_BITS = {"float64": 64, "float32": 32, "bfloat16": 16, "float16": 16}


class LoadConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to load. `auto` is what the operator set, else the best device and the files' own dtype.

    `context_length` is the most tokens of prompt and answer together; None: what the model has.
    """

    device: Device = "auto"
    dtype: Dtype = "auto"
    quantization: Quantization = "none"
    context_length: Annotated[int, msgspec.Meta(ge=1)] | None = None


class ModelConfig(msgspec.Struct, frozen=True):
    """What is decided for one model; outlives its unloading.

    `load` holds at the next load, the rest at once: `defaults` stand in for options that a request
    leaves out, `keep_alive_s` is for requests that say none (negative: for ever; None: as the
    gateway is set), a pinned model is neither evicted nor does it expire.
    """

    load: LoadConfig = LoadConfig()
    defaults: Options = Options()
    keep_alive_s: float | None = None
    pinned: bool = False


class ConfigChange(msgspec.Struct, frozen=True):
    """What shall be different; each part that is there replaces that part whole."""

    load: LoadConfig | None = None
    defaults: Options | None = None
    keep_alive_s: float | msgspec.UnsetType | None = msgspec.UNSET
    pinned: bool | None = None

    def of(self, config: ModelConfig) -> ModelConfig:
        """Return `config` with this change."""
        keep_alive_s = self.keep_alive_s
        return ModelConfig(
            load=config.load if self.load is None else self.load,
            defaults=config.defaults if self.defaults is None else self.defaults,
            keep_alive_s=config.keep_alive_s if keep_alive_s is msgspec.UNSET else keep_alive_s,
            pinned=config.pinned if self.pinned is None else self.pinned,
        )


class ConfigReport(msgspec.Struct, frozen=True):
    """The config of a model; `requires_reload`: it is loaded in another way than `config.load`."""

    ref: ModelRef
    config: ModelConfig
    requires_reload: bool = False


class LoadPlan(msgspec.Struct, frozen=True):
    """What loading a model now would take: bytes, and who would have to go, in that order.

    `need_bytes` must be free while it loads, for packing and the like; less is kept afterwards.
    None is unknown: a provider that keeps its own memory does not tell. `reason` is a sentence,
    there when the model does not fit now.
    """

    ref: ModelRef
    need_bytes: int | None = None
    free_bytes: int | None = None
    budget_bytes: int | None = None
    evictions: tuple[ModelRef, ...] = ()
    fits: bool | None = None
    already_loaded: bool = False
    reason: str | None = None

    @property
    def is_too_large(self) -> bool:
        """Whether it would not even fit into empty memory."""
        if self.need_bytes is None or self.budget_bytes is None:
            return False
        return self.need_bytes > self.budget_bytes


class ModelStatus(msgspec.Struct, frozen=True):
    """One model now. `leases` use it, `queued` wait for it to be loaded.

    `fraction` (0 to 1, of the weights read) and `eta_s` are there while it loads and where they are
    known; `packing` (0 to 1) while a model that answers has weights that are not packed yet;
    `expires_in_s` when it is idle and will be unloaded; `error` when it failed.
    """

    ref: ModelRef
    state: ModelState
    config: ModelConfig = ModelConfig()
    memory_bytes: int = 0
    leases: int = 0
    queued: int = 0
    pinned: bool = False
    expires_in_s: float | None = None
    fraction: float | None = None
    eta_s: float | None = None
    device: str | None = None
    batched: bool | None = None
    packing: float | None = None
    requires_reload: bool = False
    error: GatewayError | None = None


def estimate_bytes(size_bytes: int, stored_dtype: str | None, dtype: Dtype) -> int:
    """Return what weights of `size_bytes` take in another dtype; the same where that is unknown."""
    stored, wanted = _BITS.get(stored_dtype or ""), _BITS.get(dtype)
    return size_bytes * wanted // stored if stored and wanted else size_bytes


def dtype_bytes(dtype: str | None) -> int | None:
    """Return the bytes of one number; None for a dtype that is not known here."""
    bits = _BITS.get(dtype or "")
    return bits // 8 if bits else None


def estimate_eta(elapsed_s: float, fraction: float | None, last_s: float | None) -> float | None:
    """Return the seconds that a load has left: by what the last one took, else by the weights read
    so far, which leaves out what follows their reading; None when neither tells."""
    if last_s is not None:
        return round(max(0.0, last_s - elapsed_s), 2)
    return round(elapsed_s * (1 - fraction) / fraction, 2) if fraction else None


def find_status(statuses: Sequence[ModelStatus], ref: ModelRef) -> ModelStatus:
    """Return the status of `ref`; a model that nobody has touched yet is not loaded."""
    return next(
        (each for each in statuses if each.ref == ref), ModelStatus(ref, ModelState.NOT_LOADED)
    )
