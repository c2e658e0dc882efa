"""Why models leave memory, as the manager tells it."""

from pathlib import Path

import anyio
import msgspec

from gateway.core.states import ModelState, UnloadReason
from tests.integration.engine.house import A, B, keeping_house


async def test_each_unload_says_why(llama_folder: Path) -> None:
    async with keeping_house(llama_folder, max_models=1) as house:
        await house.use(A)
        await house.use(B)
        await house.manager.unload(B)
        await house.use(A)
        house.files = msgspec.structs.replace(house.files, changed_ns=1)
        await house.use(A, keep_alive_s=0)
        while house.state_of(A) is not ModelState.NOT_LOADED:
            await anyio.wait_all_tasks_blocked()
        async with house.manager.lease(A, house.files) as engine:
            await engine.aclose()
        await house.use(B)
    assert house.reasons == [
        (A, UnloadReason.ROOM),
        (B, UnloadReason.ASKED),
        (A, UnloadReason.REPLACED),
        (A, UnloadReason.IDLE),
        (A, UnloadReason.DIED),
        (B, UnloadReason.STOPPING),
    ]
