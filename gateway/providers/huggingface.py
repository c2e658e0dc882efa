"""HuggingFaceService: transformers models in this process, from the files on this machine."""

import logging
import os
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup

from gateway.core.errors import ModelNotFound
from gateway.core.events import Event, Started, Waiting
from gateway.core.messages import GenerateRequest
from gateway.core.models import Capability, LocalModel, ModelInfo, Resident
from gateway.core.names import ModelRef
from gateway.core.ports import ModelLibrary
from gateway.core.states import ModelState
from gateway.engine.engine import Engine
from gateway.engine.loader import LoadConfig
from gateway.engine.manager import HuggingFaceModelManager
from gateway.engine.opening import EngineSpec, open_engine
from gateway.engine.runtime import import_torch
from gateway.providers import ProviderContext
from gateway.settings import Settings

logger = logging.getLogger(__name__)

DEFAULT_BUDGET = 0.6
"""The share of this machine's memory that models may take when the operator gives no budget."""


class HuggingFaceService:
    """Lists the library's models and streams from them, loading and evicting as needed."""

    name = "huggingface"

    def __init__(self, library: ModelLibrary, manager: HuggingFaceModelManager) -> None:
        self._library = library
        self._manager = manager

    def warm_up(self, tasks: TaskGroup) -> None:
        """Import torch in the background, so that the first request need not wait for it."""
        tasks.start_soon(self._import_torch, name="import torch")

    async def _import_torch(self) -> None:
        try:
            await anyio.to_thread.run_sync(import_torch)
        except (ImportError, OSError):
            logger.exception("torch cannot be imported; models in this process will not load")

    async def models(self) -> Sequence[ModelInfo]:
        # A scan of a slow disk may outlast the listing, which does not wait for it.
        found = await anyio.to_thread.run_sync(self._library.scan, abandon_on_cancel=True)
        return [self._describe(model) for model in found]

    async def stream(self, request: GenerateRequest, ref: ModelRef) -> AsyncGenerator[Event, None]:
        """Yield the model's answer; loads it first, together with others who wait for it.

        Raises ModelNotFound, ModelLoadFailed, ModelTooLarge, NoRoom, Overloaded, and what the
        engine says of the request.
        """
        ref, files = await anyio.to_thread.run_sync(self._find, ref)
        began_at = time.monotonic()
        if self._manager.state_of(ref)[0] is not ModelState.LOADED:
            yield Waiting("loading")
        async with self._manager.lease(ref, files, request.keep_alive_s) as engine:
            load_ms = (time.monotonic() - began_at) * 1000
            async with aclosing(engine.stream(request)) as events:
                async for event in events:
                    if isinstance(event, Started):
                        event = msgspec.structs.replace(event, load_ms=load_ms)
                    yield event

    async def resident(self) -> Sequence[Resident]:
        return self._manager.residents()

    async def aclose(self) -> None:
        await self._manager.aclose()

    def _find(self, ref: ModelRef) -> tuple[ModelRef, LocalModel]:
        """Return a model's files, and its ref in the one spelling that stands for them.

        A branch and the commit it points to are one model, and so is the default without a pin.
        """
        files = self._library.find(ref.model, ref.revision)
        if files is None:
            raise ModelNotFound(str(ref))
        default = self._library.find(ref.model) if ref.revision else files
        is_default = default is not None and default.path == files.path
        return ModelRef(self.name, ref.model, None if is_default else files.revision), files

    def _describe(self, model: LocalModel) -> ModelInfo:
        ref = ModelRef(self.name, model.name)
        state, message = self._manager.state_of(ref)
        facts = {
            "source": model.source,
            "architecture": model.card.architecture,
            "family": model.card.family,
            "dtype": model.card.dtype,
            "revision": model.revision,
        }
        return ModelInfo(
            ref=ref,
            state=state,
            size_bytes=model.size_bytes,
            context_length=model.card.context_length,
            capabilities=(
                (Capability.CHAT, Capability.COMPLETION)
                if model.card.has_chat_template
                else (Capability.COMPLETION,)
            ),
            metadata=tuple((key, value) for key, value in facts.items() if value),
            message=message,
        )


def create(settings: Settings, context: ProviderContext) -> HuggingFaceService:
    """Build the service with its manager; torch is imported in the background."""
    config = LoadConfig(settings.hf_device, settings.hf_dtype, settings.hf_threads)

    async def open(ref: ModelRef, files: LocalModel) -> Engine:
        return await open_engine(
            EngineSpec(
                ref=ref,
                files=files,
                load=config,
                max_active=settings.hf_max_active,
                max_queue=settings.hf_max_queue,
            )
        )

    manager = HuggingFaceModelManager(
        open=open,
        task_group=context.task_group,
        observe=context.observe,
        max_models=settings.hf_max_models,
        budget_bytes=settings.hf_memory_budget_bytes or int(_memory_bytes() * DEFAULT_BUDGET),
        clock=context.clock,
    )
    service = HuggingFaceService(context.library, manager)
    service.warm_up(context.task_group)
    return service


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
