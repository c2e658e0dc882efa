"""Packs a model's weights behind its answers, as far as there is memory to do so."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from gateway.engine.memory.memory import Memory
from gateway.engine.weights.compute import Compute

if TYPE_CHECKING:
    from gateway.engine.weights.packing import Packing

logger = logging.getLogger(__name__)

RETRY_S = 1.0
"""How often it is looked whether there is memory to go on."""


class Packer:
    """Drives a `Packing`. Used on the event loop."""

    def __init__(self, name: str, packing: Packing | None, memory: Memory, behind: Compute) -> None:
        """`packing` None: there is nothing to pack. The steps are done in `behind`; what they take
        for their time is reserved from `memory`."""
        self._name = name
        self._packing = packing
        self._memory = memory
        self._behind = behind
        self._scope = anyio.CancelScope()
        self._turn = anyio.Lock()

    @property
    def fraction(self) -> float | None:
        """How much is packed, 0 to 1; None once nothing is left."""
        return self._packing.fraction if self._packing else None

    async def run(self) -> None:
        """Pack what is left; return when it is packed, or was given up."""
        async with self._turn:
            with self._scope:
                await self._run()
            self._packing = None

    async def aclose(self) -> None:
        """Give up what is left. Returns when nothing is held any more: at most one product."""
        self._scope.cancel()
        async with self._turn:
            self._packing = None

    async def _run(self) -> None:
        while (packing := self._packing) is not None and not packing.is_done:
            try:
                went_on = await anyio.to_thread.run_sync(partial(self._step, packing))
            except Exception:
                # A model that is not packed is only slower.
                logger.exception("%s stays unpacked in part", self._name)
                return
            if not went_on:
                await anyio.sleep(RETRY_S)

    def _step(self, packing: Packing) -> bool:
        """Do one step, if there is memory for it: nobody makes room for what is only faster."""
        size_bytes = packing.working_bytes
        if not self._memory.reserve(size_bytes, is_needed=False):
            return False
        try:
            self._behind.run(packing.step)
        finally:
            self._memory.release(size_bytes)
        return True
