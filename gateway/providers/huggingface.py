"""HuggingFaceService: models from the files on this machine, in this process or in their own."""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import anyio.to_thread
from anyio.abc import TaskGroup
from msgspec.structs import replace

from gateway.core.cards import ModelCard
from gateway.core.embeddings import Embeddings, EmbedRequest
from gateway.core.errors import (
    GatewayError,
    InvalidRequest,
    ModelCorrupt,
    ModelLoadFailed,
    ModelNotFound,
)
from gateway.core.events import Event, Started
from gateway.core.loading import (
    ConfigChange,
    ConfigReport,
    LoadConfig,
    LoadPlan,
    ModelConfig,
    ModelStatus,
)
from gateway.core.messages import GenerateRequest
from gateway.core.models import Capability, LocalModel, ModelInfo, Resident
from gateway.core.names import ModelRef, parse_ref
from gateway.core.ports import ModelLibrary
from gateway.core.routing import cannot_embed, cannot_generate
from gateway.core.states import ModelState
from gateway.core.telling import Tell, Wait, tell_all
from gateway.engine.child.isolated import PROCESS_BYTES, open_isolated
from gateway.engine.decoding.loaded import Recipe
from gateway.engine.engine import Embedder, Engine, Generator
from gateway.engine.files.needs import Setup, estimate_load
from gateway.engine.files.progress import LoadProgress
from gateway.engine.files.trusted import require_readable
from gateway.engine.llama_cpp import INSTALL_HINT, is_installed
from gateway.engine.loading.loader import choose_device
from gateway.engine.loading.room import EngineRoom, open_room
from gateway.engine.memory.budget import Share
from gateway.engine.opening import EngineSpec, open_engine
from gateway.engine.residents.manager import HuggingFaceModelManager
from gateway.engine.weights.runtime import import_torch
from gateway.providers import ProviderContext
from gateway.settings import Settings, model_environment

logger = logging.getLogger(__name__)

SCAN_S = 0.5
"""How long a listing waits for a look at the files, less than others wait for the listing."""
LACKS_LLAMA_CPP = "GGUF files need llama.cpp, which is not installed."


class HuggingFaceService:
    """Lists the library's models, streams from them and embeds, loading and evicting as needed."""

    name = "huggingface"

    def __init__(
        self,
        library: ModelLibrary,
        manager: HuggingFaceModelManager,
        *,
        room: EngineRoom,
        usual: LoadConfig,
        gguf_context_length: int,
        used: Callable[[LocalModel], None] = lambda model: None,
    ) -> None:
        """`room` is where the manager's engines are, `usual` how the operator wants models
        loaded; `used` is told of models that are loaded or asked."""
        self._library = library
        self._manager = manager
        self._room = room
        self._usual = usual
        self._gguf_context_length = gguf_context_length
        self._used = used
        self._scanned: Sequence[LocalModel] | None = None

    def warm_up(self, tasks: TaskGroup) -> None:
        """Import torch in the background, so that the first request need not wait for it."""
        tasks.start_soon(self._import_torch, name="import torch")

    def preload(
        self,
        names: Sequence[str],
        tasks: TaskGroup,
        configured: Callable[[], Awaitable[object]],
    ) -> None:
        """Load models in the background, once they are `configured`; one that fails is logged, and
        seen as failed."""
        for name in names:
            ref = parse_ref(self.name, name.removeprefix(f"{self.name}/"))
            tasks.start_soon(self._preload, ref, configured, name=f"preload {ref}")

    async def _preload(self, ref: ModelRef, configured: Callable[[], Awaitable[object]]) -> None:
        await configured()
        try:
            await self.load(ref)
        except GatewayError as error:
            logger.error("%s was to be preloaded: %s", ref, error.message)
            self._manager.record_failure(ref, error)

    async def _import_torch(self) -> None:
        try:
            await anyio.to_thread.run_sync(import_torch)
        except (ImportError, OSError):
            logger.exception("torch cannot be imported; models in this process will not load")

    async def models(self) -> Sequence[ModelInfo]:
        """Return the models whose files are here; where looking takes long (a slow disk, all cores
        compute), those that the last look found."""
        with anyio.move_on_after(None if self._scanned is None else SCAN_S):
            self._scanned = await anyio.to_thread.run_sync(
                self._library.scan, abandon_on_cancel=True
            )
        return [self._describe(model) for model in self._scanned or ()]

    async def answer(self, request: GenerateRequest, ref: ModelRef, tell: Tell) -> None:
        """Have the model answer; loads it first, together with others who wait for it.

        Raises ModelNotFound, ModelLoadFailed, ModelTooLarge, ModelUnloaded, NoRoom, Overloaded, and
        what the engine says of the request.
        """
        ref, files = await anyio.to_thread.run_sync(self._find, ref)
        if files.card.embeds:  # said before it is loaded for nothing
            raise cannot_generate(str(ref))
        self._used(files)
        began_at = time.monotonic()
        async with self._manager.claim(ref, files, request.keep_alive_s) as claim:
            await tell_all(claim.waits(), tell)
            load_ms = (time.monotonic() - began_at) * 1000
            defaults = self._manager.config(ref).config.defaults
            request = replace(request, options=request.options.over(defaults))
            engine = claim.engine
            if not isinstance(engine, Generator):  # its files were others a moment ago
                raise cannot_generate(str(ref))

            def tell_load(events: Sequence[Event]) -> Wait | None:
                if type(events[0]) is Started:
                    events = (replace(events[0], load_ms=load_ms), *events[1:])
                return tell(events)

            await tell_all(engine.stream(request), tell_load)

    def continues(self, request: GenerateRequest, ref: ModelRef) -> bool:
        """Every model here goes on from a text: it is put after the prompt."""
        return True

    async def embed(self, request: EmbedRequest, ref: ModelRef) -> Embeddings:
        """Return the model's vectors; loads it first, together with others who wait for it.

        Raises what `answer` raises, and UnsupportedCapability for a model that generates text.
        """
        ref, files = await anyio.to_thread.run_sync(self._find, ref)
        if not files.card.embeds:
            raise cannot_embed(str(ref))
        self._used(files)
        async with self._manager.lease(ref, files, request.keep_alive_s) as engine:
            if not isinstance(engine, Embedder):
                raise cannot_embed(str(ref))
            return await engine.embed(request)

    async def resident(self) -> Sequence[Resident]:
        return self._manager.residents()

    async def load(
        self,
        ref: ModelRef,
        config: LoadConfig | None = None,
        *,
        pinned: bool | None = None,
        keep_alive_s: float | None = None,
    ) -> None:
        ref, files = await anyio.to_thread.run_sync(self._find, ref)
        config = self._complete(config, files)
        self._used(files)
        await self._manager.load(ref, files, config, pinned=pinned, keep_alive_s=keep_alive_s)

    async def unload(self, ref: ModelRef, *, force: bool = False) -> None:
        await self._manager.unload(await self._find_known(ref), force=force)

    async def plan(self, ref: ModelRef, config: LoadConfig | None = None) -> LoadPlan:
        ref, files = await anyio.to_thread.run_sync(self._find, ref)
        return await self._manager.plan(ref, files, self._complete(config, files))

    async def status(self, ref: ModelRef | None = None) -> Sequence[ModelStatus]:
        return self._manager.statuses(ref)

    async def config(self, ref: ModelRef) -> ConfigReport:
        return self._manager.config(await self._find_known(ref))

    async def configure(self, ref: ModelRef, change: ConfigChange) -> ConfigReport:
        ref, files = await anyio.to_thread.run_sync(self._find, ref)
        change = replace(change, load=self._complete(change.load, files))
        return self._manager.configure(ref, change)

    async def aclose(self) -> None:
        await self._manager.aclose()
        await anyio.to_thread.run_sync(self._room.close)

    def _find(self, ref: ModelRef) -> tuple[ModelRef, LocalModel]:
        """Return a model's files, and its ref in the one spelling that stands for them.

        A branch and the commit it points to are one model, and so is the default without a pin.
        """
        files = self._library.find(ref.model, ref.revision)
        if files is None:
            raise ModelNotFound(str(ref))
        # Said before room is made for what cannot be loaded.
        if files.problem is not None:
            raise ModelCorrupt(f"{ref} is damaged. {files.problem}", param="model")
        if _lacks_llama_cpp(files):
            raise ModelLoadFailed(LACKS_LLAMA_CPP, hint=INSTALL_HINT)
        if files.card.format == "pickle":
            require_readable(str(ref), Path(files.path), files.trust)
        default = self._library.find(ref.model) if ref.revision else files
        is_default = default is not None and default.path == files.path
        return ModelRef(self.name, files.name, None if is_default else files.revision), files

    def state_of(self, ref: ModelRef) -> ModelState:
        """Return what the manager knows, of one that is pinned to a revision under either name."""
        return self._manager.state_of(self._manager.find(ref) or replace(ref, revision=None))[0]

    async def _find_known(self, ref: ModelRef) -> ModelRef:
        """Return the one spelling of a ref, also where the files of a known model went away."""
        try:
            return (await anyio.to_thread.run_sync(self._find, ref))[0]
        except (ModelNotFound, ModelLoadFailed):
            known = self._manager.find(ref)
            if known is None:
                raise
            return known

    def _complete(self, config: LoadConfig | None, files: LocalModel) -> LoadConfig | None:
        """Return the config with the operator's own choices for `auto`.

        Raises InvalidRequest for a context that is longer than the model's.
        """
        if config is None:
            return None
        most = files.card.context_length
        if config.context_length and most and config.context_length > most:
            raise InvalidRequest(
                f"'context_length' is {config.context_length}; {files.name} has {most}.",
                param="context_length",
            )
        usual = self._usual
        return replace(
            config,
            device=usual.device if config.device == "auto" else config.device,
            dtype=usual.dtype if config.dtype == "auto" else config.dtype,
        )

    def _describe(self, model: LocalModel) -> ModelInfo:
        ref = ModelRef(self.name, model.name)
        state, message = self._manager.state_of(ref)
        facts = {
            "source": model.source,
            "format": model.card.format,
            "architecture": model.card.architecture,
            "family": model.card.family,
            "dtype": model.card.dtype,
            "quantization": model.card.quantization,
            "revision": model.revision,
            "verdict": "corrupt" if model.problem else None,
        }
        return ModelInfo(
            ref=ref,
            state=state,
            size_bytes=model.size_bytes,
            context_length=self._context_length(model),
            capabilities=_capabilities(model.card),
            metadata=tuple((key, value) for key, value in facts.items() if value),
            batched=self._manager.is_batched(ref, model),
            message=message or _problem(model),
        )

    def _context_length(self, model: LocalModel) -> int | None:
        """Return how many tokens a stream may have: of a GGUF model, no more than are set aside."""
        own = model.card.context_length
        if model.card.format == "gguf" and own is not None:
            return min(own, self._gguf_context_length)
        return own


def _lacks_llama_cpp(model: LocalModel) -> bool:
    return model.card.format == "gguf" and not is_installed()


def _problem(model: LocalModel) -> str | None:
    """Return why a model cannot be loaded, as far as its files tell."""
    if model.problem is None and _lacks_llama_cpp(model):
        return f"{LACKS_LLAMA_CPP} {INSTALL_HINT}"
    return model.problem


def _capabilities(card: ModelCard) -> tuple[Capability, ...]:
    if card.embeds:
        return (Capability.EMBEDDING,)
    can = {
        Capability.CHAT: card.has_chat_template,
        Capability.COMPLETION: True,
        # Images come in messages: without a template there is no place for them.
        Capability.VISION: card.sees_images and card.has_chat_template,
        Capability.TOOLS: bool(card.dialect.calls),
        Capability.THINKING: card.dialect.reasoning is not None,
        Capability.STRUCTURED: card.can_constrain,
    }
    return tuple(capability for capability, holds in can.items() if holds)


def create(settings: Settings, context: ProviderContext) -> HuggingFaceService:
    """Build the service with its manager; torch is imported in the background, if at all here."""
    room = open_room(settings.hf_threads)
    engines = _Engines(settings, context, room)
    usual = LoadConfig(settings.hf_device, settings.hf_dtype)
    manager = HuggingFaceModelManager(
        open=engines.open,
        choose_device=lambda config: choose_device(config.device),
        ledger=context.ledger,
        task_group=context.task_group,
        observe=context.observe,
        max_models=settings.hf_max_models,
        place_wait_s=settings.hf_place_wait_s,
        keep_alive_s=settings.hf_keep_alive_s,
        default_config=ModelConfig(load=usual),
        estimate=engines.estimate,
        overhead_bytes=lambda: room.overhead.held_bytes,
        clock=context.clock,
    )
    service = HuggingFaceService(
        context.library,
        manager,
        room=room,
        usual=usual,
        gguf_context_length=settings.gguf_context_length,
        used=context.used,
    )
    # With the models elsewhere, torch is here for no more than to see which devices there are.
    if engines.are_here or settings.hf_device != "cpu":
        service.warm_up(context.task_group)
    service.preload(settings.hf_preload, context.task_group, context.configured)
    return service


class _Engines:
    """Opens engines as the settings say, and tells what that takes."""

    def __init__(self, settings: Settings, context: ProviderContext, room: EngineRoom) -> None:
        self.are_here = settings.hf_isolation == "thread"
        """Whether they are in this process, and not each in its own."""
        self._settings = settings
        self._room = room
        self._open_spec = self._choose_opener(context)
        self._recipes: dict[tuple[LocalModel, LoadConfig], Recipe] = {}

    async def open(
        self,
        ref: ModelRef,
        files: LocalModel,
        config: LoadConfig,
        progress: LoadProgress,
        share: Share,
    ) -> Engine:
        engine = await self._open_spec(self._specify(ref, files, config), progress, share)
        if engine.recipe is not None:
            self._recipes[files, config] = engine.recipe
        return engine

    def estimate(self, files: LocalModel, config: LoadConfig) -> int:
        """Return what a load takes at the most. Blocking: reads headers, and may import torch."""
        settings = self._settings
        setup = Setup(
            gguf_sequences=settings.gguf_max_active,
            gguf_context_length=settings.gguf_context_length,
            process_bytes=0 if self.are_here else PROCESS_BYTES,
        )
        needed = estimate_load(files, config, setup)
        # A process of its own counts what it compiles as its own.
        compiles = self.are_here and choose_device(config.device) == "cpu"
        return needed + self._room.code_bytes(files, config) if compiles else needed

    def _specify(self, ref: ModelRef, files: LocalModel, config: LoadConfig) -> EngineSpec:
        settings, is_gguf = self._settings, files.card.format == "gguf"
        return EngineSpec(
            ref=ref,
            files=files,
            load=config,
            max_active=settings.gguf_max_active if is_gguf else settings.hf_max_active,
            max_queue=settings.hf_max_queue,
            threads=settings.hf_threads,
            prompt_cache_bytes=settings.hf_prompt_cache_bytes,
            gguf_context_length=config.context_length or settings.gguf_context_length,
            recipe=self._recipes.get((files, config)),
        )

    def _choose_opener(
        self, context: ProviderContext
    ) -> Callable[[EngineSpec, LoadProgress, Share], Awaitable[Engine]]:
        if self.are_here:
            return partial(open_engine, room=self._room)
        return partial(
            open_isolated,
            task_group=context.task_group,
            environment=model_environment(self._settings),
            memory_limit_bytes=self._settings.hf_child_memory_bytes,
        )
