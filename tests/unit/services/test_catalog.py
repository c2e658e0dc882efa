import anyio

from gateway.core.errors import ProviderUnavailable
from gateway.core.models import ModelInfo
from gateway.core.names import ModelRef
from gateway.core.states import ProviderState
from gateway.services.catalog import Catalog, describe_providers
from tests.scripted_provider import ScriptedProvider


class HangingProvider(ScriptedProvider):
    """Never lists its models."""

    async def models(self) -> list[ModelInfo]:
        await anyio.sleep_forever()
        raise AssertionError("unreachable")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class CountingProvider(ScriptedProvider):
    """Counts its listings; each waits for `gate`."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.gate = anyio.Event()
        self.gate.set()

    async def models(self) -> list[ModelInfo]:
        self.count += 1
        await self.gate.wait()
        return self.listed


def catalog_of(
    *providers: ScriptedProvider, ttl_s: float = 1.0, clock: Clock | None = None
) -> Catalog:
    named = {provider.name: provider for provider in providers}
    return Catalog(named, timeout_s=0.5, ttl_s=ttl_s, clock=clock or Clock())


async def test_a_dead_and_a_hanging_provider_are_named_and_the_others_are_listed() -> None:
    dead, slow, well = (
        ScriptedProvider(name="dead"),
        HangingProvider(name="slow"),
        ScriptedProvider(),
    )
    dead.listing_error = ProviderUnavailable("dead", "dead is dead.")
    listing = await catalog_of(dead, slow, well).listing()
    assert [model.id for model in listing.models] == ["scripted/echo"]
    assert [(f.provider, f.error.code) for f in listing.faults] == [
        ("dead", "provider_unavailable"),
        ("slow", "provider_timeout"),
    ]


async def test_a_listing_is_reused_until_it_is_old_or_forgotten() -> None:
    clock, provider = Clock(), CountingProvider()
    catalog = catalog_of(provider, clock=clock)
    first = await catalog.listing()
    assert await catalog.listing() is first
    clock.now = 2.0
    second = await catalog.listing()
    assert second is not first
    catalog.forget()
    assert await catalog.listing() is not second
    assert provider.count == 3


async def test_a_request_takes_the_last_listing_whatever_its_age() -> None:
    clock, provider = Clock(), CountingProvider()
    catalog = catalog_of(provider, clock=clock)
    first = await catalog.known()
    clock.now = 1000.0
    catalog.forget()
    assert await catalog.known() is first


async def test_callers_at_once_share_one_look_and_a_fresh_one_begins_after_the_call() -> None:
    clock, provider = Clock(), CountingProvider()
    catalog = catalog_of(provider, clock=clock)
    provider.gate = anyio.Event()
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(catalog.listing)
        await anyio.wait_all_tasks_blocked()
        provider.gate.set()
    assert provider.count == 1
    clock.now = 0.5
    await catalog.listing(fresh=True)
    assert provider.count == 2


async def test_the_status_of_a_provider_says_what_is_wrong_and_keeps_when_it_was_seen() -> None:
    dead, well = ScriptedProvider(name="dead"), ScriptedProvider()
    dead.listing_error = ProviderUnavailable("dead", "dead is dead.")
    listing = await catalog_of(dead, well).listing()
    down, up = describe_providers(listing, ["dead", "scripted"], at=5.0)
    assert (down.state, down.error_code, down.last_seen_at) == (
        ProviderState.DOWN,
        "provider_unavailable",
        None,
    )
    assert (up.state, up.error_code, up.last_seen_at) == (ProviderState.UP, None, 5.0)
    assert "chat" in up.capabilities


async def test_a_defect_in_one_provider_hides_no_other_and_reveals_nothing() -> None:
    class Broken(ScriptedProvider):
        async def models(self) -> list[ModelInfo]:
            raise ZeroDivisionError("secret")

    listing = await catalog_of(Broken(name="broken"), ScriptedProvider()).listing()
    assert [model.id for model in listing.models] == ["scripted/echo"]
    [fault] = listing.faults
    assert (fault.provider, fault.error.code) == ("broken", "internal")
    assert "secret" not in fault.error.message


async def test_a_change_during_a_look_does_not_make_its_callers_look_again() -> None:
    provider = CountingProvider()
    catalog = catalog_of(provider, ttl_s=100)
    provider.gate = anyio.Event()
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(catalog.listing)
        await anyio.wait_all_tasks_blocked()
        catalog.forget()
        provider.gate.set()
    assert provider.count == 1
    await catalog.listing()
    assert provider.count == 2


def test_a_ref_prints_as_users_write_it() -> None:
    assert str(ModelRef("huggingface", "o/n", "abc")) == "huggingface/o/n@abc"
