"""DecisionService: tells why a request went where it went, and writes that behind the requests.

What a gateway that is killed had not written yet is lost; the records of its streams tell what
they can.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence

import anyio
from msgspec.structs import replace

from gateway.core.decision_records import DecisionFilter, DecisionRecord, describe_plan
from gateway.core.embeddings import EmbedRequest
from gateway.core.errors import DatabaseUnavailable, DecisionNotFound
from gateway.core.keys import Caller, KeyScope
from gateway.core.messages import GenerateRequest
from gateway.core.ports import DecisionStore
from gateway.services.decision_log import DecisionLog
from gateway.services.router import ModelRouterService

logger = logging.getLogger(__name__)

MAX_BATCH = 100
"""Decisions of one transaction."""
RETRY_S = 0.5

_SEES_ALL = frozenset({KeyScope.MANAGE})


class DecisionService:
    """`run` must be running for anything to be written."""

    def __init__(
        self,
        log: DecisionLog,
        store: DecisionStore,
        router: ModelRouterService,
        *,
        node: str,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self.log = log
        self._store = store
        self._router = router
        self._node = node
        self._now = now
        self._sleep = sleep
        self._is_away = False

    async def find(self, decision_id: str, *, caller: Caller) -> DecisionRecord:
        """Return a decision of the caller's own, or any for who may read records.

        Raises DecisionNotFound, which does not tell whether it is somebody else's, and
        DatabaseUnavailable for one that is not in memory.
        """
        record = self.log.find(decision_id) or await self._store.find(decision_id)
        if record is None or not (caller.may(_SEES_ALL) or record.caller == caller.id):
            raise DecisionNotFound("You have no such decision, or it is no longer kept.")
        return record

    async def recent(self, wanted: DecisionFilter, *, caller: Caller) -> list[DecisionRecord]:
        """Return the decisions that are wanted, newest first, of every gateway of the database;
        the caller's own for who may not read the records of others. Raises DatabaseUnavailable."""
        if not caller.may(_SEES_ALL):
            wanted = replace(wanted, caller=caller.id)
        stored = await self._store.recent(wanted)
        # What is in memory goes before: it is what happened since, and may not fit any more.
        found = [record for record in stored if record.id not in self.log]
        found += self.log.recent(wanted)
        found.sort(key=lambda each: (each.opened_at, each.id), reverse=True)
        return found[: wanted.limit]

    async def explain(
        self, request: GenerateRequest | EmbedRequest, *, face: str, caller: Caller
    ) -> DecisionRecord:
        """Return what would be decided about the request now; it is not run, nor is this kept."""
        plan = await self._router.explain(request)
        return describe_plan(plan, face=face, caller=caller.id, node=self._node, at=self._now())

    async def flush(self, timeout_s: float) -> bool:
        """Wait until all is written; False when time ran out."""
        until = anyio.current_time() + timeout_s
        while self.log.pending_count:
            if not await self.log.changed.wait(until - anyio.current_time()):
                break
        return not self.log.pending_count

    async def run(self) -> None:
        """Write for ever; end it by cancelling."""
        while True:
            if not self.log.pending_count:
                await self.log.changed.wait()
            elif not await self._write(self.log.waiting(MAX_BATCH)):
                await self._sleep(RETRY_S)

    async def _write(self, records: Sequence[DecisionRecord]) -> bool:
        """Return whether the database is done with the oldest decisions, which these are."""
        is_lost = False
        try:
            await self._store.write(records)
        except DatabaseUnavailable as error:
            if not self._is_away:
                logger.warning("decisions wait: %s", error.message)
            self._is_away = True
            return False
        except Exception:
            # A defect of ours. One that no database takes must not hold up all others.
            logger.exception("decisions were refused: %d", len(records))
            if len(records) > 1:
                return await self._write_each(records)
            is_lost = True
        self._is_away = False
        self.log.settle(len(records), is_lost=is_lost)
        return True

    async def _write_each(self, records: Sequence[DecisionRecord]) -> bool:
        for record in records:
            if not await self._write([record]):
                return False
        return True
