"""HubTokenService: which token counts, and that none is stored that the Hub does not know."""

import anyio
import pytest

from gateway.core.errors import (
    DatabaseUnavailable,
    HubTokenRejected,
    HubTokenRequired,
    HubUnavailable,
    InvalidRequest,
)
from gateway.core.hub import HubAccount, StoredSecret, TokenReport, TokenSource
from gateway.services.hub_token import LOOK_AGAIN_S, SECRET, HubTokenService
from gateway.testing import MemorySecretStore

ALICE = HubAccount("alice", "read")


class MortalStore(MemorySecretStore):
    """A store whose database may go away."""

    is_away = False

    async def get(self, name: str) -> StoredSecret | None:
        if self.is_away:
            raise DatabaseUnavailable("away")
        return await super().get(name)


class House:
    """A service with a Hub that knows one token, `hf_alice`."""

    def __init__(self, environment: str | None = None, *, required: bool = False) -> None:
        self.store = MortalStore(now=lambda: 1000.0)
        self.is_up = True
        self.now = 0.0
        self.forgotten = 0
        self.service = HubTokenService(
            self.store,
            self._whoami,
            environment=environment,
            changed=self._forget,
            required=required,
            recommended=["good/one"],
            clock=lambda: self.now,
        )

    async def _whoami(self, token: str) -> HubAccount:
        if not self.is_up:
            raise HubUnavailable("away")
        if token != "hf_alice":
            raise HubTokenRejected("unknown")
        return ALICE

    async def _forget(self) -> None:
        self.forgotten += 1


async def test_without_any_token_the_hub_is_asked_anonymously() -> None:
    house = House()
    assert await house.service.lookup() is None
    assert await house.service.report(validate=True) == TokenReport(TokenSource.NONE)


async def test_a_stored_token_wins_over_the_environment_s() -> None:
    house = House("hf_env")
    assert await house.service.lookup() == "hf_env"
    assert (await house.service.report()).source is TokenSource.ENVIRONMENT
    report = await house.service.set(" hf_alice\n")
    assert report == TokenReport(TokenSource.STORED, 1000.0, True, ALICE)
    assert await house.service.lookup() == "hf_alice"
    assert (await house.service.delete()).source is TokenSource.ENVIRONMENT
    assert await house.service.lookup() == "hf_env"
    assert house.forgotten == 2


async def test_a_token_that_the_hub_does_not_know_is_not_stored() -> None:
    house = House()
    with pytest.raises(HubTokenRejected):
        await house.service.set("hf_wrong")
    house.is_up = False
    with pytest.raises(HubUnavailable):
        await house.service.set("hf_alice")
    assert await house.service.lookup() is None
    report = await house.service.set("hf_unchecked", validate=False)
    assert (report.source, report.valid) == (TokenSource.STORED, None)


async def test_validation_tells_what_the_hub_says() -> None:
    house = House("hf_gone")
    assert (await house.service.report()).valid is None
    assert (await house.service.report(validate=True)).valid is False
    house.is_up = False
    with pytest.raises(HubUnavailable):
        await house.service.report(validate=True)


@pytest.mark.parametrize("text", ["", " \n", "a b", "hf_\r\nX: y", "hf_é", "x" * 513, "hf_\x00"])
async def test_what_can_be_no_token_is_refused_and_not_repeated(text: str) -> None:
    house = House()
    with pytest.raises(InvalidRequest) as caught:
        await house.service.set(text, validate=False)
    assert "hf_" not in str(caught.value)
    assert await house.service.lookup() is None


async def test_a_change_by_another_gateway_counts_within_two_seconds() -> None:
    house = House()
    assert await house.service.lookup() is None
    await house.store.put(SECRET, "hf_theirs")
    house.now += LOOK_AGAIN_S
    assert LOOK_AGAIN_S <= 2
    assert await house.service.lookup() == "hf_theirs"


async def test_while_the_database_is_away_the_last_token_goes_on() -> None:
    house = House("hf_env")
    await house.service.set("hf_alice")
    house.store.is_away = True
    house.now += 60
    assert await house.service.lookup() == "hf_alice"
    other = House("hf_env")
    other.store.is_away = True
    with pytest.raises(DatabaseUnavailable):
        await other.service.lookup()


async def test_an_operator_may_want_a_token_for_downloads() -> None:
    house = House(required=True)
    await house.service.require_for_download("good/one")
    with pytest.raises(HubTokenRequired, match="'any/other'"):
        await house.service.require_for_download("any/other")
    await house.service.set("hf_alice")
    await house.service.require_for_download("any/other")
    await House().service.require_for_download("any/other")


class SlowStore(MemorySecretStore):
    """A store whose first answer takes until the test lets it arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.answered, self.go_on = anyio.Event(), anyio.Event()

    async def get(self, name: str) -> StoredSecret | None:
        found = await super().get(name)
        if not self.answered.is_set():
            self.answered.set()
            await self.go_on.wait()
        return found


async def test_a_look_that_began_before_a_change_does_not_undo_it() -> None:
    house = House()
    house.service._store = store = SlowStore()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(house.service.lookup)
        await store.answered.wait()
        tasks.start_soon(house.service.set, "hf_alice")
        while await MemorySecretStore.get(store, SECRET) is None:
            await anyio.lowlevel.checkpoint()
        for _ in range(100):  # as far as it comes
            await anyio.lowlevel.checkpoint()
        store.go_on.set()
    assert await house.service.lookup() == "hf_alice"
