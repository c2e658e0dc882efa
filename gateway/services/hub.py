"""HubService: what the Hub has, from the cache while that is fresh or the Hub is away."""

import hashlib
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from time import time
from typing import Any, NamedTuple, TypeVar

import anyio
import msgspec

from gateway.core.errors import (
    DatabaseUnavailable,
    GatewayError,
    HubOffline,
    HubRateLimited,
    HubUnavailable,
    RepositoryNotFound,
)
from gateway.core.hub import (
    Freshness,
    HubDetails,
    HubListing,
    HubModel,
    HubQuery,
    HubReport,
    Remembered,
    judge_fit,
    require_query,
)
from gateway.core.names import require_repository
from gateway.core.ports import HubCache, HubSource
from gateway.core.trust import TrustRules
from gateway.services.flights import SingleFlight

logger = logging.getLogger(__name__)

T = TypeVar("T")

AT_ONCE = 8
"""How many newest commits are asked for at once."""

TokenLookup = Callable[[], Awaitable[str | None]]
"""Gives the token to use now; None is to ask anonymously."""


class HubService:
    """Answers are remembered with their age. One that is older than `fresh_s` is asked for anew,
    and still given, with the reason, when the Hub cannot be asked."""

    def __init__(
        self,
        source: HubSource,
        cache: HubCache,
        *,
        endpoint: str,
        token: TokenLookup,
        budget_bytes: Callable[[], Awaitable[int | None]],
        fresh_s: float,
        recommended: Sequence[str] = (),
        trust: TrustRules | None = None,
        now: Callable[[], float] = time,
    ) -> None:
        """`token` gives the token that the Hub is asked with: what one is shown is not for the
        next. `budget_bytes` is what models may take where they are loaded by default; None: the
        gateway loads none. `trust` is what is allowed to which model. `now` is Unix seconds."""
        self.recommended = tuple(recommended)
        self._source = source
        self._cache = cache
        self._endpoint = endpoint
        self._token = token
        self._budget_bytes = budget_bytes
        self._fresh_s = fresh_s
        self._trust = trust or TrustRules()
        self._now = now
        self._flights: SingleFlight[Any] = SingleFlight()

    async def search(self, query: HubQuery) -> HubListing:
        """Return the models that fit. Raises InvalidRequest, HubError."""
        require_query(query)
        key = f"search {msgspec.json.encode(query).decode()}"
        models, freshness = await self._answer(
            key, tuple[HubModel, ...], lambda: self._source.search(query)
        )
        return HubListing(models, freshness)

    async def details(self, repository: str) -> HubReport:
        """Return what is in a repository and whether it fits. Raises InvalidRequest, HubError."""
        require_repository(repository)
        details, freshness = await self._answer(
            f"model {repository}", HubDetails, lambda: self._source.details(repository)
        )
        trust = self._trust.of(repository, details.model.sha)
        fit = judge_fit(details.need, await self._budget_bytes(), trust)
        return HubReport(details, fit, freshness)

    async def latest_commits(self, repositories: Collection[str]) -> Mapping[str, str]:
        """Return the commits of the branch main as far as they are remembered; the Hub is not
        asked."""
        return {name: known.commit for name, known in (await self._commits(repositories)).items()}

    async def look_up(self, repositories: Collection[str]) -> GatewayError | None:
        """Ask the Hub for the commits that are not remembered, or for too long. Return why it could
        not be asked; a repository that it does not show is no reason."""
        known = await self._commits(repositories)
        fresh = {name for name, each in known.items() if each.age_s < self._fresh_s}
        limiter = anyio.CapacityLimiter(AT_ONCE)
        errors: list[GatewayError] = []

        async def ask(name: str) -> None:
            async with limiter:
                try:
                    key = await self._key(f"commit {name}")
                    answer = await self._flights.ask(key, lambda: self._source.latest_commit(name))
                    if await self._key(f"commit {name}") == key:
                        await self._remember(key, answer)
                except RepositoryNotFound:
                    pass  # made elsewhere, private, or gone: nothing newer is known of it
                except GatewayError as error:
                    errors.append(error)
                    tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for name in set(repositories) - fresh:
                tasks.start_soon(ask, name)
        return errors[0] if errors else None

    async def _commits(self, repositories: Collection[str]) -> Mapping[str, "_Commit"]:
        """Return what is remembered, of details or alone: the younger of both."""
        try:
            root = await self._key("")
            keys = [f"{root}{kind} {name}" for name in repositories for kind in ("model", "commit")]
            found = await self._cache.get_all(keys)
        except GatewayError as error:
            logger.warning("newest commits cannot be looked up: %s", error.message)
            return {}
        commits: dict[str, _Commit] = {}
        for key, remembered in sorted(found.items(), key=lambda pair: pair[1].fetched_at):
            kind, _, name = key[len(root) :].partition(" ")
            commit = _read_commit(kind, remembered.body)
            if commit is not None:
                age_s = max(0.0, self._now() - remembered.fetched_at)
                commits[name] = _Commit(commit, age_s)
        return commits

    async def forget(self) -> None:
        """Forget all answers: what one token is shown is not for the next."""
        await self._cache.clear()

    async def _answer(
        self, about: str, kind: type[T], ask: Callable[[], Awaitable[T]]
    ) -> tuple[T, Freshness]:
        key = await self._key(about)
        known = await self._recall(key, kind)
        if known is not None and known[1] < self._fresh_s:
            return known[0], Freshness(known[1], is_cached=True)
        try:
            answer = await self._flights.ask(key, ask)
        except (HubUnavailable, HubOffline, HubRateLimited) as error:
            if known is None:
                raise
            return known[0], Freshness(known[1], is_cached=True, stale=error.renewed())
        if await self._key(about) == key:  # else it may be what the other token is shown
            await self._remember(key, answer)
        return answer, Freshness()

    async def _key(self, about: str) -> str:
        token = await self._token()
        digest = hashlib.sha256((token or "").encode()).hexdigest()[:16]
        return f"{self._endpoint} {digest if token else 'anonymous'} {about}"

    async def _recall(self, key: str, kind: type[T]) -> tuple[T, float] | None:
        """Return what is remembered and its age; None also where the database is away."""
        try:
            found = await self._cache.get(key)
            if found is None:
                return None
            value = msgspec.json.decode(found.body, type=kind)
        except (DatabaseUnavailable, msgspec.DecodeError) as error:
            logger.warning("the Hub's answer is not remembered: %s", _reason(error))
            return None
        return value, max(0.0, self._now() - found.fetched_at)

    async def _remember(self, key: str, answer: object) -> None:
        try:
            await self._cache.put(key, Remembered(msgspec.json.encode(answer), self._now()))
        except DatabaseUnavailable as error:
            logger.warning("the Hub's answer cannot be kept: %s", error.message)


class _Commit(NamedTuple):
    commit: str
    age_s: float


class _Model(msgspec.Struct):
    """As much of details as is needed here."""

    sha: str | None = None


class _Details(msgspec.Struct):
    model: _Model


def _read_commit(kind: str, body: bytes) -> str | None:
    try:
        if kind == "commit":
            return msgspec.json.decode(body, type=str)
        return msgspec.json.decode(body, type=_Details).model.sha
    except msgspec.DecodeError:  # it is of another version
        return None


def _reason(error: Exception) -> str:
    return error.message if isinstance(error, GatewayError) else "it is of another version"
