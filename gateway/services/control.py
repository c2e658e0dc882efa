"""ModelControlService: loads, unloads and configures models by name, whoever provides them."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup
from msgspec.structs import replace

from gateway.core.errors import (
    GatewayError,
    Internal,
    ModelNotFound,
    ModelTooLarge,
    ModelUnloaded,
    ProviderUnavailable,
)
from gateway.core.loading import (
    ConfigChange,
    ConfigReport,
    LoadConfig,
    LoadPlan,
    ModelStatus,
    find_status,
)
from gateway.core.names import ModelRef
from gateway.core.ports import Provider
from gateway.core.routing import describe_guess, resolve_route
from gateway.core.states import ModelState
from gateway.services.catalog import Catalog

logger = logging.getLogger(__name__)


class _Job:
    """A load or an unload under way; many may wait for its end.

    `replaces`: what is in memory of that model until its end is not what was asked for.
    """

    def __init__(self, replaces: bool) -> None:
        self.replaces = replaces
        self.error: GatewayError | None = None
        self.done = anyio.Event()

    async def result(self) -> None:
        await self.done.wait()
        if self.error is not None:
            raise self.error


_Jobs = dict[ModelRef, list[_Job]]
"""Those of each model that are under way, the oldest first."""


class ModelControlService:
    """Every method takes a name in any form that requests may use, and raises what resolving it
    does: ModelNotFound, AmbiguousModel, InvalidRequest.

    Loads and unloads run in tasks of the service: who asked may leave. Those of one model are
    brought together by its provider.
    """

    def __init__(
        self,
        providers: Mapping[str, Provider],
        catalog: Catalog,
        task_group: TaskGroup,
        *,
        aliases: Mapping[str, str],
        look_again: Callable[[], None] | None = None,
    ) -> None:
        """`look_again` is called when a load or an unload is over: not every provider tells."""
        self._look_again = look_again or catalog.forget
        self._providers = providers
        self._catalog = catalog
        self._tasks = task_group
        self._aliases = aliases
        self._loads: _Jobs = {}
        self._unloads: _Jobs = {}
        self._failures: dict[ModelRef, GatewayError] = {}

    async def load(
        self,
        name: str,
        config: LoadConfig | None = None,
        *,
        pinned: bool | None = None,
        keep_alive_s: float | None = None,
        wait: bool = False,
    ) -> ModelStatus:
        """Begin to load a model and return its status at once; with `wait`, once it is loaded.

        A load of the model that is under way is joined, and what is wished here comes on top.
        Raises ModelTooLarge when it could never fit and UnsupportedCapability for a config that its
        provider cannot follow; with `wait` also what fails later, which else is in the status.
        """
        async with self._meant(name) as (provider, ref):
            plan = await provider.plan(ref, config)
            if plan.is_too_large and not plan.already_loaded:
                raise ModelTooLarge(plan.reason or f"{plan.ref} does not fit.")
            under_way = self._loads.get(plan.ref)
            if under_way and (config, pinned, keep_alive_s) == (None, None, None):
                job = under_way[0]
            else:
                work = partial(
                    provider.load, plan.ref, config, pinned=pinned, keep_alive_s=keep_alive_s
                )
                job = self._start(self._loads, plan.ref, work, replaces=not plan.already_loaded)
                if plan.already_loaded:
                    # Only the pin and the keep-alive are to be set, which takes no time.
                    await job.result()
            if wait:
                await job.result()
            return await self._status_of(provider, plan.ref)

    async def unload(self, name: str, *, force: bool = False, wait: bool = False) -> ModelStatus:
        """Begin to unload a model and return its status at once; with `wait`, once it is gone.

        Running streams may finish, unless `force` ends them with ModelUnloaded. A model that is not
        loaded is fine as it is; of one that failed, the failure is forgotten. Raises
        UnsupportedCapability for a provider whose models are not ours to unload.
        """
        async with self._meant(name) as (provider, ref):
            ref = (await provider.config(ref)).ref
            before = await self._status_of(provider, ref)
            under_way = self._unloads.get(ref)
            if under_way and not force:
                job = under_way[-1]
            else:
                work = partial(provider.unload, ref, force=force)
                job = self._start(self._unloads, ref, work)
                # A provider that refuses does so at once, and so does this call.
                await anyio.lowlevel.checkpoint()
                wait = wait or job.done.is_set()
                if before.state in (ModelState.NOT_LOADED, ModelState.FAILED):
                    # There is no more than a failure to be forgotten, which takes no time.
                    wait = True
            if wait:
                await job.result()
            return await self._status_of(provider, ref)

    async def plan(self, name: str, config: LoadConfig | None = None) -> LoadPlan:
        """Return what `load` would do now."""
        async with self._meant(name) as (provider, ref):
            return await provider.plan(ref, config)

    async def status(self, name: str) -> ModelStatus:
        """Return the status of one model."""
        async with self._meant(name) as (provider, ref):
            return await self._status_of(provider, (await provider.config(ref)).ref)

    async def statuses(self) -> list[ModelStatus]:
        """Return the status of every model that is in memory or was asked for, by name.

        A provider that does not answer is left out: the listing tells what is wrong with it.
        """
        found: dict[ModelRef, ModelStatus] = {}

        async def ask(provider: Provider) -> None:
            try:
                found.update((each.ref, each) for each in await provider.status())
            except GatewayError as error:
                logger.info("%s does not tell its models: %s", provider.name, error.message)

        async with anyio.create_task_group() as group:
            for provider in self._providers.values():
                group.start_soon(ask, provider)
        for ref in (*self._loads, *self._unloads, *self._failures):
            found.setdefault(ref, ModelStatus(ref, ModelState.NOT_LOADED))
        return [self._with_job(found[ref]) for ref in sorted(found, key=str)]

    async def config(self, name: str) -> ConfigReport:
        """Return what is decided for a model."""
        async with self._meant(name) as (provider, ref):
            return await provider.config(ref)

    async def configure(self, name: str, change: ConfigChange) -> ConfigReport:
        """Change what is decided for a model; says whether it takes a reload to be true."""
        async with self._meant(name) as (provider, ref):
            return await provider.configure(ref, change)

    @asynccontextmanager
    async def _meant(self, name: str) -> AsyncIterator[tuple[Provider, ModelRef]]:
        """Give the model that a name means, and who provides it. Where that was a guess at a
        provider that proves to be away, the error says so."""
        resolve = partial(resolve_route, name, providers=self._providers, aliases=self._aliases)
        try:
            route = resolve(catalogue=(await self._catalog.known()).catalogue)
        except ModelNotFound:
            # It may have come since the last look.
            route = resolve(catalogue=(await self._catalog.listing()).catalogue)
        try:
            yield self._providers[route.ref.provider], route.ref
        except ProviderUnavailable as error:
            known = (await self._catalog.known()).catalogue
            described = describe_guess(name, route, error, known)
            if described is error:
                raise
            raise described from error

    def _start(
        self,
        jobs: _Jobs,
        ref: ModelRef,
        work: Callable[[], Awaitable[None]],
        *,
        replaces: bool = False,
    ) -> _Job:
        job = _Job(replaces)
        jobs.setdefault(ref, []).append(job)
        self._failures.pop(ref, None)
        self._tasks.start_soon(self._run, jobs, ref, job, work, name=f"control {ref}")
        return job

    async def _run(
        self, jobs: _Jobs, ref: ModelRef, job: _Job, work: Callable[[], Awaitable[None]]
    ) -> None:
        try:
            await work()
            self._failures.pop(ref, None)
        except GatewayError as error:
            logger.warning("%s: %s", ref, error.message)
            job.error = error
        except Exception:
            logger.exception("a load or unload of %s failed", ref)
            job.error = Internal("Something went wrong inside the gateway.")
        finally:
            jobs[ref].remove(job)
            if not jobs[ref]:
                del jobs[ref]
            if job.error is not None and not isinstance(job.error, ModelUnloaded):
                self._failures[ref] = job.error
            self._look_again()
            job.done.set()

    async def _status_of(self, provider: Provider, ref: ModelRef) -> ModelStatus:
        return self._with_job(find_status(await provider.status(ref), ref))

    def _with_job(self, status: ModelStatus) -> ModelStatus:
        """Return the status with what only this service knows: providers that keep no states of
        their own show nothing of a load that is under way, or of one that failed; and one that is
        to load a model in another way may not have begun with it."""
        if status.ref in self._unloads and status.state is ModelState.LOADED:
            return replace(status, state=ModelState.UNLOADING)
        if status.ref in self._loads and status.state in (ModelState.NOT_LOADED, ModelState.FAILED):
            return replace(status, state=ModelState.LOADING, error=None)
        is_replaced = any(job.replaces for job in self._loads.get(status.ref, ()))
        if is_replaced and status.state is ModelState.LOADED:
            return replace(status, state=ModelState.LOADING)
        if status.ref in self._failures and status.state is ModelState.NOT_LOADED:
            return replace(status, state=ModelState.FAILED, error=self._failures[status.ref])
        return status
