"""Who is well: one breaker for each provider and each model that failed."""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

import anyio

from gateway.core.breaker import Breaker, BreakerState
from gateway.core.errors import GatewayError, ProviderResting, ProviderUnavailable
from gateway.core.names import ModelRef
from gateway.core.plan import Health
from gateway.core.ports import Provider
from gateway.core.retry import blames_model

logger = logging.getLogger(__name__)

PROBE_S = 0.5
"""Between looks at a provider that nobody asks: it is back for all within a second."""
PROBE_TIMEOUT_S = 0.4
MAX_BREAKERS = 4096
"""Models of which failures are remembered; the oldest is forgotten."""

Key = str | ModelRef


class Attempt:
    """One try at a model, which is asked inside; say `answered` once it does. Errors that leave it
    are counted."""

    __slots__ = ("_board", "_has_answered", "probes", "ref")

    def __init__(self, board: "HealthBoard", ref: ModelRef) -> None:
        self._board = board
        self.ref = ref
        self.probes: tuple[Breaker, ...] = ()
        self._has_answered = False

    def answered(self) -> None:
        if not self._has_answered:
            self._has_answered = True
            self._board.forgive(self.ref)

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, GatewayError):
            self._board.count(self, error)
        for breaker in self.probes:
            breaker.end_probe()


class HealthBoard:
    """Is told how each attempt went; tells who is not asked for now, and lets one probe in."""

    def __init__(self, providers: Mapping[str, Provider], clock: Callable[[], float]) -> None:
        self._providers = providers
        self._clock = clock
        self._breakers: dict[Key, Breaker] = {}
        self._failed = anyio.Event()
        self.openings: Counter[str] = Counter()
        """How often asking was given up, by provider: as a whole, or one of its models."""

    def view(self) -> Health:
        """Return who had better not be asked now; cheap while all are well."""
        if not self._breakers:
            return Health()
        now = self._clock()
        shut = {
            key: _say(key, breaker)
            for key, breaker in self._breakers.items()
            if breaker.state(now) == "open"
        }
        return Health(
            {key: reason for key, reason in shut.items() if isinstance(key, str)},
            {key: reason for key, reason in shut.items() if isinstance(key, ModelRef)},
        )

    def breakers(self) -> dict[Key, BreakerState]:
        """Return the state of each provider's breaker, and of models' that are not closed."""
        now = self._clock()
        states: dict[Key, BreakerState] = dict.fromkeys(self._providers, "closed")
        for key, breaker in self._breakers.items():
            if (state := breaker.state(now)) != "closed":
                states[key] = state
        return states

    @property
    def resting(self) -> list[str]:
        """The providers that failed too often and were not seen to work since."""
        now = self._clock()
        return [
            name
            for name in self._providers
            if name in self._breakers and self._breakers[name].state(now) != "closed"
        ]

    def is_well(self, ref: ModelRef) -> bool:
        """Tell whether neither the model nor its provider failed lately."""
        return not self._breakers or not (ref.provider in self._breakers or ref in self._breakers)

    def attempt(self, ref: ModelRef) -> Attempt:
        """Return what `ref` is to be asked in. Raises ProviderResting when it is not to be asked
        now."""
        attempt = Attempt(self, ref)
        if not self._breakers:
            return attempt
        now = self._clock()
        found: dict[Key, Breaker] = {
            key: self._breakers[key] for key in (ref.provider, ref) if key in self._breakers
        }
        for key, breaker in found.items():
            if breaker.state(now) == "open":
                wait_s = max(breaker.wait_s(now), PROBE_S)
                raise ProviderResting(ref.provider, _say(key, breaker), retry_after_s=wait_s)
        for breaker in found.values():
            if breaker.state(now) == "half_open":
                breaker.begin_probe()
                attempt.probes += (breaker,)
        return attempt

    def count(self, attempt: Attempt, error: GatewayError) -> None:
        """Take note that an attempt failed, if the error tells anything of who was asked."""
        if isinstance(error, ProviderUnavailable):
            self._fail(attempt.ref.provider, attempt, error)
        elif blames_model(error):
            self._fail(attempt.ref, attempt, error)

    def forgive(self, ref: ModelRef) -> None:
        """It answered: what failed before is forgotten."""
        if self._breakers:
            self._breakers.pop(ref.provider, None)
            self._breakers.pop(ref, None)

    def _fail(self, key: Key, attempt: Attempt, error: GatewayError) -> None:
        if key not in self._breakers and len(self._breakers) >= MAX_BREAKERS:
            del self._breakers[next(iter(self._breakers))]
        breaker = self._breakers.setdefault(key, Breaker())
        now = self._clock()
        was_open = breaker.state(now) != "closed"
        breaker.fail(now, error.message, is_probe=breaker in attempt.probes)
        if not was_open and breaker.state(now) == "open":
            self.openings[attempt.ref.provider] += 1
        self._failed.set()

    async def watch(self, sleep: Callable[[float], Awaitable[None]] = anyio.sleep) -> None:
        """Look, for ever, whether the providers that nobody asks are back."""
        while True:
            if not self.resting:
                self._failed = anyio.Event()
                await self._failed.wait()
            # All at once: one that hangs must not keep another from being seen.
            async with anyio.create_task_group() as tasks:
                for name in self.resting:
                    tasks.start_soon(self._look_at, name)
            await sleep(PROBE_S)

    async def _look_at(self, name: str) -> None:
        if await _is_back(self._providers[name]):
            logger.info("%s is back", name)
            self._breakers.pop(name, None)


async def _is_back(provider: Provider) -> bool:
    try:
        with anyio.fail_after(PROBE_TIMEOUT_S):
            await provider.models()
    except (GatewayError, TimeoutError):
        return False
    except Exception:
        logger.exception("%s failed to list its models", provider.name)
        return False
    return True


def _say(key: Key, breaker: Breaker) -> str:
    times = f"{breaker.failures} times in a row"
    return f"{breaker.reason} {key} failed {times} and is left alone for now."
