"""MemoryService: what the models of all providers hold of this machine's memory."""

from collections.abc import Callable, Sequence

import anyio
import anyio.to_thread

from gateway.core.ledger import MemoryReport
from gateway.engine.memory.ledger import MemoryLedger

DEVICE_WAIT_S = 1.0
"""How long a report waits for what the machine has: torch may still be on its way."""


class MemoryService:
    """Shows the ledger; who goes for whom is the ledger's own work."""

    def __init__(
        self,
        ledger: MemoryLedger,
        *,
        providers: Sequence[str],
        choose_device: Callable[[], str],
    ) -> None:
        """`providers` are the names of all; `choose_device` may block, and returns where models go
        that nobody says anything else of."""
        self.ledger = ledger
        self._providers = providers
        self._choose_device = choose_device

    async def report(self) -> MemoryReport:
        """Return what is held where; looks at the providers first."""
        with anyio.move_on_after(DEVICE_WAIT_S):
            device = await anyio.to_thread.run_sync(self._choose_device, abandon_on_cancel=True)
            await self.ledger.find_budget(device)
        await self.ledger.look()
        here = self.ledger.tenants
        return self.ledger.report([name for name in self._providers if name not in here])
