"""What the gateway decides for Ollama's models, and how `/api/ps` reads as their status. Pure.

Ollama keeps its own memory: it decides what goes when room is needed, on which device a model runs
and in which numbers. What can be told to it goes with every request.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from msgspec.structs import replace

from gateway.core.decisions import Decision, Decisions
from gateway.core.errors import UnsupportedCapability
from gateway.core.loading import ConfigChange, ConfigReport, LoadConfig, ModelConfig, ModelStatus
from gateway.core.messages import GenerateRequest
from gateway.core.names import ModelRef
from gateway.core.states import ModelState
from gateway.providers.ollama_listing_wire import Running, name_key, read_ref, read_resident

_FOREVER_S = 10 * 365 * 24 * 3600.0  # Ollama writes "for ever" as a date in the year 2318


_NONE = ModelConfig()


class ModelConfigs:
    """The configs of one server's models; they end with the gateway."""

    def __init__(self, num_ctx: int | None) -> None:
        """`num_ctx` is the context length of models that have none of their own."""
        self._num_ctx = num_ctx
        self._decisions: dict[str, Decisions] = {}

    def of(self, ref: ModelRef) -> ModelConfig:
        known = self._decisions.get(name_key(ref)) if self._decisions else None
        return _NONE if known is None else known.config

    @contextmanager
    def changed(self, ref: ModelRef, change: ConfigChange) -> Iterator[None]:
        """Change a model's config as `change` does, and take that back if the block raises."""
        decision = self._decide(ref, change, is_final=False)
        decisions = self._decisions[name_key(ref)]
        try:
            yield
        except BaseException:
            decisions.take_back(decision)
            raise
        decisions.confirm(decision)

    def change(self, ref: ModelRef, change: ConfigChange) -> None:
        """Change a model's config; raises UnsupportedCapability for what Ollama cannot be told."""
        self._decide(ref, change, is_final=True)

    def _decide(self, ref: ModelRef, change: ConfigChange, *, is_final: bool) -> Decision:
        require_loadable(ref, change.load)
        if change.pinned:
            raise UnsupportedCapability(
                f"{ref} cannot be pinned: Ollama decides what it unloads.",
                hint="A negative keep_alive keeps a model until Ollama needs its room.",
                param="pinned",
            )
        decisions = self._decisions.setdefault(name_key(ref), Decisions(ModelConfig()))
        return decisions.add(change, is_final=is_final)

    def apply(self, request: GenerateRequest, ref: ModelRef) -> GenerateRequest:
        """Return the request with the model's defaults where it says nothing."""
        config = self.of(ref)
        if config is _NONE:
            return request
        keep_alive_s = request.keep_alive_s
        return replace(
            request,
            options=request.options.over(config.defaults),
            keep_alive_s=config.keep_alive_s if keep_alive_s is None else keep_alive_s,
        )

    def num_ctx(self, ref: ModelRef) -> int | None:
        """Return the context length to ask for, always the same: another one loads anew."""
        return self.of(ref).load.context_length or self._num_ctx

    def report(self, ref: ModelRef, running: Running | None) -> ConfigReport:
        wanted = self.of(ref).load.context_length
        is_other = running is not None and wanted is not None and running.context_length != wanted
        return ConfigReport(ref, self.of(ref), requires_reload=is_other)

    def status(self, running: Running, now: float) -> ModelStatus | None:
        """Return a line of `/api/ps` as a status; who uses the model Ollama does not tell."""
        ref, resident = read_ref(running.model or running.name), read_resident(running)
        if ref is None or resident is None:
            return None
        left_s = None if resident.expires_at is None else max(0.0, resident.expires_at - now)
        return ModelStatus(
            ref=ref,
            state=ModelState.LOADED,
            config=self.of(ref),
            memory_bytes=resident.memory_bytes,
            expires_in_s=left_s if left_s is not None and left_s < _FOREVER_S else None,
            requires_reload=self.report(ref, running).requires_reload,
        )


def find_running(running: Sequence[Running], ref: ModelRef) -> Running | None:
    """Return the line of `/api/ps` of a model, whatever the case of its name."""
    for model in running:
        found = read_ref(model.model or model.name)
        if found is not None and name_key(found) == name_key(ref):
            return model
    return None


def require_loadable(ref: ModelRef, config: LoadConfig | None) -> None:
    """Raise UnsupportedCapability for a way to load that Ollama cannot be told."""
    usual = LoadConfig()
    for name in ("device", "dtype", "quantization"):
        if config is not None and getattr(config, name) != getattr(usual, name):
            raise UnsupportedCapability(
                f"Ollama decides the {name} of {ref} itself.",
                hint="Only context_length can be chosen for its models.",
                param=name,
            )
