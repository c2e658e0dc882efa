"""What every provider offers, in one listing, in bounded time, also when some do not answer."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import anyio
import msgspec

from gateway.core.catalogue import Catalogue
from gateway.core.errors import GatewayError, Internal, ProviderError, ProviderTimeout
from gateway.core.models import ModelInfo, ProviderStatus
from gateway.core.ports import Provider
from gateway.core.states import ProviderState

logger = logging.getLogger(__name__)


class ProviderFault(msgspec.Struct, frozen=True):
    """Why a provider's models are missing from a listing."""

    provider: str
    error: GatewayError


class Listing(msgspec.Struct, frozen=True, dict=True):
    """The models of the providers that answered, and what is wrong with the others."""

    models: tuple[ModelInfo, ...]
    faults: tuple[ProviderFault, ...]
    taken_at: float

    @cached_property
    def catalogue(self) -> Catalogue:
        return Catalogue(self.models)

    def of(self, provider: str) -> list[ModelInfo]:
        return [model for model in self.models if model.ref.provider == provider]


class Catalog:
    """Asks all providers at once and waits `timeout_s` for the slowest; reuses for `ttl_s`.

    Callers that come while a listing is under way share it.
    """

    def __init__(
        self,
        providers: Mapping[str, Provider],
        *,
        timeout_s: float,
        ttl_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._providers = providers
        self._timeout_s = timeout_s
        self._ttl_s = ttl_s
        self._clock = clock
        self._lock = anyio.Lock()
        self.latest: Listing | None = None
        """The last listing, whatever its age."""
        self._is_stale = False
        self._looks_begun = 0
        self._looks_done = 0

    async def listing(self, *, fresh: bool = False) -> Listing:
        """Return the models of all providers; never raises for a provider's fault.

        `fresh` asks for a look that began after this call.
        """
        begun_before, done_before = self._looks_begun, self._looks_done
        if not fresh and self.latest and self._is_recent(self.latest):
            return self.latest
        async with self._lock:
            latest = self.latest
            # Who came during a look takes what it found, even if a model changed meanwhile:
            # two looks in a row could take longer than a listing may.
            shared = self._looks_begun > begun_before if fresh else self._looks_done > done_before
            if latest and (shared or (not fresh and self._is_recent(latest))):
                return latest
            self._looks_begun += 1
            self.latest = await self._ask_all()
            self._looks_done += 1
            return self.latest

    async def known(self) -> Listing:
        """Return the last listing whatever its age: a request must not wait for a dead provider."""
        return self.latest or await self.listing()

    def forget(self) -> None:
        """Take the kept listing for old: a model changed."""
        self._is_stale = True

    def _is_recent(self, listing: Listing) -> bool:
        return not self._is_stale and self._clock() - listing.taken_at < self._ttl_s

    async def _ask_all(self) -> Listing:
        taken_at = self._clock()
        self._is_stale = False
        answers: dict[str, Sequence[ModelInfo]] = {}
        faults: dict[str, GatewayError] = {}

        async def ask(name: str, provider: Provider) -> None:
            try:
                with anyio.fail_after(self._timeout_s):
                    answers[name] = await provider.models()
            except TimeoutError:
                faults[name] = ProviderTimeout(
                    name, f"{name} did not list its models within {self._timeout_s:g} s."
                )
            except GatewayError as error:
                faults[name] = error
            except Exception:
                logger.exception("%s failed to list its models", name)
                faults[name] = Internal(f"Listing the models of {name} failed in the gateway.")

        async with anyio.create_task_group() as group:
            for name, provider in self._providers.items():
                group.start_soon(ask, name, provider)
        return Listing(
            models=tuple(model for name in self._providers for model in answers.get(name, ())),
            faults=tuple(
                ProviderFault(name, faults[name]) for name in self._providers if name in faults
            ),
            taken_at=taken_at,
        )


def describe_providers(
    listing: Listing, names: Sequence[str], *, at: float, kinds: Mapping[str, str] | None = None
) -> list[ProviderStatus]:
    """Return the status of each provider that `listing` shows; `at` is Unix seconds. A provider
    that is not in `kinds` is the only one of its kind."""
    faults = {fault.provider: fault.error for fault in listing.faults}
    kinds = kinds or {}
    return [_describe(name, kinds.get(name, name), listing, faults.get(name), at) for name in names]


def _describe(
    name: str, kind: str, listing: Listing, fault: GatewayError | None, at: float
) -> ProviderStatus:
    found = {capability for model in listing.of(name) for capability in model.capabilities}
    return ProviderStatus(
        name=name,
        kind=kind,
        state=ProviderState.DOWN if fault else ProviderState.UP,
        checked_at=at,
        last_seen_at=at if fault is None or not isinstance(fault, ProviderError) else None,
        error_code=fault.code if fault else None,
        error_message=fault.message if fault else None,
        capabilities=tuple(sorted(found)),
    )
