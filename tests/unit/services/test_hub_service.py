"""HubService: fresh, remembered and stale answers. The Hub is scripted, the cache is contracted."""

from collections.abc import Mapping, Sequence

import pytest

from gateway.core.errors import (
    DatabaseUnavailable,
    HubError,
    HubOffline,
    HubProtocolError,
    HubRateLimited,
    HubUnavailable,
    InvalidRequest,
    RepositoryNotFound,
)
from gateway.core.hub import HubDetails, HubModel, HubQuery, Need, Remembered
from gateway.services.hub import HubService
from gateway.testing import MemoryHubCache


class ScriptedHub:
    """Says what it is told to, and counts how often it was asked."""

    def __init__(self) -> None:
        self.error: HubError | None = None
        self.models: tuple[HubModel, ...] = (HubModel("a/b", sha="1"),)
        self.need: Need | None = Need(70, "headers")
        self.asked = 0
        self.commits_asked: list[str] = []

    async def search(self, query: HubQuery) -> tuple[HubModel, ...]:
        self._answer()
        return self.models

    async def details(self, repository: str) -> HubDetails:
        self._answer()
        return HubDetails(self.models[0], need=self.need)

    async def latest_commit(self, repository: str) -> str:
        self._answer()
        self.commits_asked.append(repository)
        return "newest"

    def _answer(self) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error


class ClosedCache(MemoryHubCache):
    async def get(self, key: str) -> Remembered | None:
        raise DatabaseUnavailable("away")

    async def get_all(self, keys: Sequence[str]) -> Mapping[str, Remembered]:
        raise DatabaseUnavailable("away")

    async def put(self, key: str, remembered: Remembered) -> None:
        raise DatabaseUnavailable("away")


class House:
    """A service whose time stands still until it is moved."""

    def __init__(self, cache: MemoryHubCache | None = None, budget: int | None = 100) -> None:
        self.hub = ScriptedHub()
        self.now = 1000.0
        self.cache = cache or MemoryHubCache()

        self.token: str | None = None

        async def budget_bytes() -> int | None:
            return budget

        async def token() -> str | None:
            return self.token

        self.service = HubService(
            self.hub,
            self.cache,
            endpoint="https://h",
            token=token,
            budget_bytes=budget_bytes,
            fresh_s=300,
            now=lambda: self.now,
        )


async def test_a_fresh_answer_is_used_again_without_asking() -> None:
    house = House()
    first = await house.service.search(HubQuery(search="x"))
    house.now += 299
    again = await house.service.search(HubQuery(search="x"))
    assert again.models == first.models == house.hub.models
    assert (first.freshness.is_cached, again.freshness.is_cached) == (False, True)
    assert again.freshness.age_s == 299
    assert house.hub.asked == 1
    await house.service.search(HubQuery(search="y"))
    assert house.hub.asked == 2


async def test_an_old_answer_is_asked_for_anew() -> None:
    house = House()
    await house.service.details("a/b")
    house.now += 300
    house.hub.models = (HubModel("a/b", sha="2"),)
    report = await house.service.details("a/b")
    assert (report.details.model.sha, report.freshness.is_cached) == ("2", False)


@pytest.mark.parametrize("error", [HubUnavailable, HubOffline, HubRateLimited])
async def test_an_old_answer_stands_in_for_a_hub_that_cannot_be_asked(
    error: type[HubError],
) -> None:
    house = House()
    await house.service.search(HubQuery())
    house.now += 5000
    house.hub.error = error("no")
    listing = await house.service.search(HubQuery())
    assert listing.models == house.hub.models
    assert listing.freshness.age_s == 5000
    assert isinstance(listing.freshness.stale, error)
    with pytest.raises(error):
        await house.service.search(HubQuery(search="never asked"))


@pytest.mark.parametrize("error", [RepositoryNotFound, HubProtocolError])
async def test_what_the_hub_itself_says_is_not_hidden_by_an_old_answer(
    error: type[HubError],
) -> None:
    house = House()
    await house.service.details("a/b")
    house.now += 5000
    house.hub.error = error("gone")
    with pytest.raises(error):
        await house.service.details("a/b")


async def test_without_a_database_the_hub_still_answers() -> None:
    house = House(ClosedCache())
    assert (await house.service.search(HubQuery())).models == house.hub.models
    assert await house.service.latest_commits(["a/b"]) == {}


async def test_what_another_version_remembered_is_asked_for_anew() -> None:
    house = House()
    await house.cache.put("https://h anonymous model a/b", Remembered(b'{"model":{}}', house.now))
    assert (await house.service.details("a/b")).freshness.is_cached is False


async def test_forgetting_forgets_everything() -> None:
    house = House()
    await house.service.details("a/b")
    assert await house.service.latest_commits(["a/b"]) == {"a/b": "1"}
    await house.service.forget()
    assert await house.service.latest_commits(["a/b"]) == {}
    assert house.hub.asked == 1


async def test_newest_commits_are_asked_for_once_and_the_younger_answer_counts() -> None:
    house = House()
    await house.service.details("a/b")
    assert await house.service.look_up(["a/b", "a/c"]) is None
    assert house.hub.commits_asked == ["a/c"]  # the other one is in the details
    assert await house.service.latest_commits(["a/b", "a/c"]) == {"a/b": "1", "a/c": "newest"}
    house.now += 5000
    assert await house.service.look_up(["a/b"]) is None
    assert await house.service.latest_commits(["a/b"]) == {"a/b": "newest"}
    house.hub.models = (HubModel("a/b", sha="2"),)
    house.now += 5000
    await house.service.details("a/b")
    assert await house.service.latest_commits(["a/b"]) == {"a/b": "2"}


async def test_why_newest_commits_cannot_be_asked_for_is_told() -> None:
    house = House()
    await house.service.details("a/b")
    house.now += 5000
    house.hub.error = HubUnavailable("away")
    assert isinstance(await house.service.look_up(["a/b", "a/c"]), HubUnavailable)
    assert await house.service.latest_commits(["a/b", "a/c"]) == {"a/b": "1"}
    house.hub.error = RepositoryNotFound("gone")
    assert await house.service.look_up(["a/b", "a/c"]) is None


@pytest.mark.parametrize(
    ("need", "budget", "fits", "reason"),
    [
        (Need(100, "headers"), 100, True, None),
        (Need(2 * 10**9, "sizes"), 10**9, False, "It needs 2.0 GB; there are 1.0 GB for models."),
        (Need(1, "sizes"), None, None, "The gateway runs no models itself."),
        (None, 100, None, "It holds no weights that can be loaded here."),
    ],
)
async def test_whether_a_model_fits_is_told_with_the_reason(
    need: Need | None, budget: int | None, fits: bool | None, reason: str | None
) -> None:
    house = House(budget=budget)
    house.hub.need = need
    fit = (await house.service.details("a/b")).fit
    assert (fit.fits, fit.reason) == (fits, reason)
    assert fit.need_bytes == (None if need is None else need.need_bytes)


@pytest.mark.parametrize(
    "query",
    [
        HubQuery(limit=0),
        HubQuery(limit=1001),
        HubQuery(search="x" * 201),
        HubQuery(author="\x00"),
        HubQuery(task="\ud800"),
    ],
)
async def test_a_search_that_makes_no_sense_is_refused(query: HubQuery) -> None:
    house = House()
    with pytest.raises(InvalidRequest):
        await house.service.search(query)
    assert house.hub.asked == 0


@pytest.mark.parametrize(
    "name", ["", "/", "a/", "a/b/c", "../b", "a/..", "a/b?x", "a b/c", "a/b\n", "a--b/c", "-a/b"]
)
async def test_a_name_that_no_repository_has_is_not_asked_for(name: str) -> None:
    house = House()
    with pytest.raises(InvalidRequest):
        await house.service.details(name)
    assert house.hub.asked == 0


async def test_what_one_token_is_shown_is_not_for_another() -> None:
    house = House()
    for token, asked in ((None, 1), ("hf_a", 2), ("hf_b", 3), ("hf_a", 3), (None, 3)):
        house.token = token
        await house.service.search(HubQuery(search="x"))
        assert house.hub.asked == asked
    assert "hf_a" not in str(vars(house.cache))


async def test_an_answer_that_may_be_of_another_token_is_not_kept() -> None:
    house = House()

    async def search(_query: HubQuery) -> tuple[HubModel, ...]:
        house.token = "hf_a"  # it changes while the Hub is asked
        return house.hub.models

    house.hub.search = search  # type: ignore[method-assign]
    await house.service.search(HubQuery())
    house.token = None
    house.hub.error = HubUnavailable("away")
    del house.hub.search  # type: ignore[method-assign]
    with pytest.raises(HubUnavailable):
        await house.service.search(HubQuery())


async def test_updates_are_unknown_while_the_token_cannot_be_looked_up() -> None:
    house = House()

    async def away() -> str | None:
        raise DatabaseUnavailable("away")

    house.service._token = away
    assert await house.service.latest_commits(["a/b"]) == {}
