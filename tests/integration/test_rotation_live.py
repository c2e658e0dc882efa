"""Rotations of real gateways: tiny models in their processes, the scripted Ollama server, and one
database. No request fails because of a step."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup

from gateway.bootstrap.lifetime import running
from gateway.core.embeddings import EmbedRequest
from gateway.core.errors import GatewayError, InvalidRequest, RotationInConfig, StaleTransition
from gateway.core.events import Finished, TextDelta
from gateway.core.messages import GenerateRequest, Message, Options
from gateway.core.models import ModelInfo
from gateway.core.rotation import Phase, Rotation, RotationOrder, Step, StepState, Trigger
from gateway.core.states import ModelState
from gateway.services.gateway import Gateway
from gateway.settings import Settings
from tests.integration.ollama_peer import OllamaPeer, Script
from tests.tiny_models import build_model
from tests.told import collect

A, B, O = "huggingface/a", "huggingface/b", "ollama/o:latest"  # noqa: E741
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("ab"):
        build_model(folder / name, seed=seed)
    return folder


@pytest.fixture
async def peer() -> AsyncIterator[OllamaPeer]:
    async with OllamaPeer() as peer:
        peer.add_model("o", answer="one two three")
        yield peer


class House:
    """Gateways before one database, and requests that keep coming."""

    def __init__(self, url: str, folder: Path, models: Path, peer: OllamaPeer) -> None:
        self._url = url
        self._folder = folder
        self._models = models
        self._peer = peer
        self.failures: list[GatewayError] = []
        self.answered: list[str] = []
        self._answer = anyio.Event()

    @asynccontextmanager
    async def gateway(self, node: str = "one", **values: Any) -> AsyncIterator[Gateway]:
        folder = self._folder / node
        folder.mkdir(exist_ok=True)
        settings = Settings(
            node=node,
            data_dir=folder,
            database_url=self._url,
            hf_model_path=self._models,
            ollama_host=self._peer.url,
            stall_warn_s=0,
            drain_grace_s=1,
            **values,
        )
        async with running(settings) as gateway:
            yield gateway

    async def ask(self, gateway: Gateway, model: str = "rotation/r", tokens: int = 5) -> None:
        request = GenerateRequest(
            id="r",
            model=model,
            messages=(Message.user("hi"),),
            options=Options(max_tokens=tokens),
        )
        try:
            async with gateway.streams.open(request) as reader:
                await collect(reader)
                assert reader.stream.tally.ref is not None
                self.answered.append(str(reader.stream.tally.ref))
        except GatewayError as error:
            self.failures.append(error)
        self._answer.set()
        self._answer = anyio.Event()

    async def keep_asking(self, gateway: Gateway) -> None:
        while True:
            await self.ask(gateway)

    async def until_answered_by(self, model: str, more: int = 3) -> None:
        """Wait until the model has answered some requests from now on."""
        wanted = self.answered.count(model) + more
        while self.answered.count(model) < wanted and not self.failures:
            await self._answer.wait()


@pytest.fixture
async def house(
    database_url: str, tmp_path: Path, models: Path, peer: OllamaPeer
) -> AsyncIterator[House]:
    with anyio.fail_after(PATIENCE_S):
        yield House(database_url, tmp_path, models, peer)


@asynccontextmanager
async def load(house: House, *gateways: Gateway) -> AsyncIterator[None]:
    """Two who ask each gateway again and again, as long as the block lasts."""
    async with anyio.create_task_group() as tasks:
        for gateway in (*gateways, *gateways):
            tasks.start_soon(house.keep_asking, gateway)
        yield
        tasks.cancel_scope.cancel()


async def changes(gateway: Gateway, is_so: Callable[[Rotation], bool]) -> Rotation:
    """Wait for a rotation that is so, and return it."""
    async for event in gateway.rotations.watch():
        if event.rotation is not None and is_so(event.rotation):
            return event.rotation
    raise AssertionError("the watch ended")


async def stepped(gateway: Gateway, to: str) -> Step:
    """Step to the model by hand, wait for the end, and return the step."""
    asked = await gateway.rotations.advance("r", to)
    return await ended(gateway, asked.id)


async def ended(gateway: Gateway, step_id: str | None = None) -> Step:
    """Wait until the newest step (of that id) has ended."""
    while True:
        steps = await gateway.rotations.history("r", 1)
        if steps and not steps[0].is_active and step_id in (None, steps[0].id):
            return steps[0]
        await changes(gateway, lambda rotation: rotation.step is None)


async def state_of(gateway: Gateway, model: str) -> ModelState:
    return (await gateway.control.status(model)).state


async def test_under_steady_load_steps_over_all_providers_fail_no_request(house: House) -> None:
    async with house.gateway() as gateway:
        await gateway.rotations.put("r", RotationOrder((A, O, B)))
        async with load(house, gateway):
            await house.until_answered_by(A)
            for target in (O, B, A):
                step = await stepped(gateway, target)
                assert (step.state, step.target, step.message) == (S.SUCCEEDED, target, None)
                await house.until_answered_by(target)
        assert house.failures == []
        assert gateway.metrics.meter.rotation_steps == {("r", "succeeded"): 3}
        states = [await state_of(gateway, model) for model in (A, B, O)]
        assert states == [ModelState.LOADED, ModelState.NOT_LOADED, ModelState.NOT_LOADED]


S = StepState


async def test_where_only_one_has_room_streams_end_and_requests_wait_and_none_fails(
    house: House,
) -> None:
    async with house.gateway(hf_max_models=1) as gateway:
        await gateway.rotations.put("r", RotationOrder((A, B)))
        async with load(house, gateway):
            await house.until_answered_by(A)
            step = await stepped(gateway, B)
            assert (step.state, step.target) == (S.SUCCEEDED, B)
            await house.until_answered_by(B)
        assert house.failures == []
        assert await state_of(gateway, A) is ModelState.NOT_LOADED


async def test_one_whose_provider_is_away_is_passed_over_and_it_is_kept_why(
    house: House, peer: OllamaPeer
) -> None:
    async with house.gateway() as gateway:
        await gateway.rotations.put("r", RotationOrder((A, O, "huggingface/gone", B)))
        await peer.stop()
        await gateway.rotations.advance("r")
        step = await ended(gateway)
        assert (step.state, step.target) == (S.SUCCEEDED, B)
        [away, gone] = step.skipped
        assert away.model == O and "Ollama" in away.reason
        assert gone.model == "huggingface/gone" and "gone" in gone.reason
        refused = await stepped(gateway, O)
        assert refused.state is S.FAILED and refused.message
        assert (await gateway.rotations.find("r")).current == B


async def test_requests_for_one_that_is_away_are_answered_by_the_next(
    house: House, peer: OllamaPeer
) -> None:
    async with house.gateway() as gateway:
        await gateway.rotations.put("r", RotationOrder((O, A)))
        await peer.stop()
        await house.ask(gateway)
        assert (house.failures, house.answered) == ([], [A])


async def test_a_step_waits_for_a_time_with_fewer_requests(house: House, peer: OllamaPeer) -> None:
    release = anyio.Event()
    peer.script("slow", gated(release))
    async with house.gateway() as gateway, anyio.create_task_group() as tasks:
        order = RotationOrder((O, A), busy_streams=1)
        await gateway.rotations.put("r", order)
        for number in (1, 2):
            tasks.start_soon(partial(house.ask, gateway, "ollama/slow"))
            await peer.request(number - 1, "/api/chat")
        await gateway.rotations.advance("r")
        waiting = await changes(gateway, lambda r: r.step is not None and r.step.node is not None)
        assert waiting.step is not None
        assert (waiting.step.phase, waiting.step.state) == (Phase.WAITING, S.RUNNING)
        assert waiting.current == O
        release.set()
        assert (await ended(gateway)).target == A


async def test_a_step_waits_for_embeddings_too(house: House, peer: OllamaPeer) -> None:
    release = anyio.Event()
    peer.script_route("/api/embed", gated(release))
    async with house.gateway() as gateway, anyio.create_task_group() as tasks:

        async def embed() -> None:
            with suppress(GatewayError):  # the gate ends in an error
                await gateway.embeddings.embed(EmbedRequest("e", "ollama/o", ("text",)))

        await gateway.rotations.put("r", RotationOrder((O, A), busy_streams=0))
        tasks.start_soon(embed)
        await peer.request(path="/api/embed")
        await gateway.rotations.advance("r")
        waiting = await changes(gateway, lambda r: r.step is not None and r.step.node is not None)
        assert waiting.step is not None
        assert (waiting.step.phase, waiting.current) == (Phase.WAITING, O)
        release.set()
        assert (await ended(gateway)).target == A


async def test_streams_keep_the_one_before_in_memory_and_are_not_cut(house: House) -> None:
    async with house.gateway(stream_buffer_events=1) as gateway:
        await gateway.rotations.put("r", RotationOrder((A, B), drain_s=0.0))
        request = GenerateRequest(
            id="r", model=A, messages=(Message.user("hi"),), options=Options(max_tokens=200)
        )
        async with gateway.streams.open(request) as reader:
            events = aiter(reader)
            while not isinstance(await anext(events), TextDelta):
                pass
            # It runs, and stays: nobody reads on.
            step = await stepped(gateway, B)
            assert step.state is S.SUCCEEDED and step.message is not None
            assert "still in use" in step.message
            assert await state_of(gateway, A) is ModelState.LOADED
            rest = [event async for event in events]
        assert isinstance(rest[-1], Finished)


async def test_one_that_answers_for_another_rotation_is_not_unloaded(house: House) -> None:
    async with house.gateway() as gateway:
        await gateway.rotations.put("r", RotationOrder((A, B)))
        await gateway.rotations.put("other", RotationOrder(("a", O)))  # the same, by another name
        await gateway.control.load(A, wait=True)
        assert (await stepped(gateway, B)).state is S.SUCCEEDED
        assert await state_of(gateway, A) is ModelState.LOADED
        assert (await stepped(gateway, A)).state is S.SUCCEEDED
        assert await state_of(gateway, B) is ModelState.NOT_LOADED


async def test_steps_come_by_the_clock_and_by_the_number_of_requests(house: House) -> None:
    async with house.gateway() as gateway:
        await gateway.rotations.put("r", RotationOrder((O, A), cron="* * * * * *"))
        assert (await ended(gateway)).trigger is Trigger.CRON
        await gateway.rotations.pause("r")
        await changes(gateway, lambda rotation: rotation.step is None)
        await gateway.rotations.put("r", RotationOrder((O, A), requests=3))
        await gateway.rotations.resume("r")
        for _ in range(3):
            await house.ask(gateway)
        await changes(gateway, lambda r: r.step is not None)
        assert (await ended(gateway)).trigger is Trigger.REQUESTS
        assert house.failures == []


async def test_requests_by_an_alias_or_a_virtual_model_count_for_the_rotation(house: House) -> None:
    names = {"aliases": {"turns": "rotation/r"}, "virtual_models": {"several": ["rotation/r", B]}}
    async with house.gateway(**names) as gateway:
        await gateway.rotations.put("r", RotationOrder((O, A), requests=3))
        for asked in ("turns", "several", "rotation/r"):
            await house.ask(gateway, asked)
        step = await ended(gateway)
        assert (step.trigger, step.target) == (Trigger.REQUESTS, A)
        await house.ask(gateway, "several")
        assert (house.failures, house.answered) == ([], [O, O, O, A])
        with pytest.raises(InvalidRequest, match="another rotation"):
            await gateway.rotations.put("x", RotationOrder(("turns", A)))


async def test_two_gateways_take_each_step_once_and_both_follow(house: House) -> None:
    async with house.gateway("one") as one, house.gateway("two") as two:
        await one.rotations.put("r", RotationOrder((A, B), cron="*/4 * * * * *"))
        await changes(two, lambda rotation: rotation.name == "r")
        async with load(house, one, two):
            for _ in range(2):
                before = len(await one.rotations.history("r"))
                while len(await one.rotations.history("r")) == before:
                    await changes(one, lambda r: r.step is not None)
                    await changes(one, lambda r: r.step is None)
        await one.rotations.pause("r")
        rotation = await changes(one, lambda r: r.step is None and r.paused)
        history = await one.rotations.history("r")
        assert {step.state for step in history} <= {S.SUCCEEDED, S.CANCELLED}  # by the pause
        steps = [step for step in history if step.state is S.SUCCEEDED]
        assert len(steps) >= 2
        # Each step begins where the one before it ended: none was taken twice.
        for later, earlier in pairwise(steps):
            assert later.origin == earlier.target
            assert earlier.ended_at is not None and later.asked_at >= earlier.ended_at
        assert house.failures == []
        for gateway in (one, two):
            await until(gateway, lambda g=gateway: answers(g), rotation.current)


def answers(gateway: Gateway) -> Awaitable[str]:
    async def first() -> str:
        listing = await gateway.catalog.listing()
        [listed] = gateway.rotations.listed(listing)
        return dict(listed.metadata)["current"]

    return first()


async def until(gateway: Gateway, tell: Callable[[], Awaitable[str]], wanted: str) -> None:
    async for _ in gateway.rotations.watch():
        if await tell() == wanted:
            return


async def test_what_a_gateway_leaves_when_it_stops_the_next_takes_on(
    house: House, peer: OllamaPeer
) -> None:
    never = anyio.Event()
    peer.script_route("/api/generate", gated(never))
    async with house.gateway("one") as one:
        await one.rotations.put("r", RotationOrder((A, O)))
        await one.rotations.advance("r")
        await peer.request(path="/api/generate")
    del peer._routes["/api/generate"]
    async with house.gateway("two") as two:
        step = await ended(two)
        assert (step.state, step.target, step.node, step.fence) == (S.SUCCEEDED, O, "two", 2)


async def test_a_rotation_of_the_config_is_there_from_the_start_and_only_the_config_changes_it(
    house: House,
) -> None:
    async with house.gateway(rotations={"r": [O, A]}) as gateway:
        await house.ask(gateway)
        assert house.answered == [O]
        for change in (
            gateway.rotations.put("r", RotationOrder((A, B))),
            gateway.rotations.remove("r"),
        ):
            with pytest.raises(RotationInConfig):
                await change
        assert (await gateway.rotations.pause("r")).paused
    async with house.gateway(rotations={"r": {"models": [O, A], "requests": 5}}) as gateway:
        rotation = await gateway.rotations.find("r")
        assert (rotation.source, rotation.order.requests, rotation.paused) == ("config", 5, True)


async def test_what_makes_no_sense_is_refused(house: House) -> None:
    async with house.gateway() as gateway:
        rotations = gateway.rotations
        await rotations.put("r", RotationOrder((A, O)))
        for wrong in (
            rotations.put("x", RotationOrder((A,))),
            rotations.advance("r", A),
            rotations.advance("r", B),
            rotations.history("r", -1),
        ):
            with pytest.raises(InvalidRequest):
                await wrong
        await rotations.advance("r")
        with pytest.raises(StaleTransition):
            await rotations.advance("r")


async def test_it_is_listed_as_what_answers_now(house: House) -> None:
    async with house.gateway() as gateway:
        await gateway.rotations.put("r", RotationOrder((O, A)))
        listing = await gateway.catalog.listing()
        [listed] = gateway.rotations.listed(listing)
        assert (listed.id, listed.metadata) == ("rotation/r", (("current", O),))
        [own] = [info for info in listing.models if info.id == O]
        assert capabilities(listed) == capabilities(own)
        await gateway.rotations.remove("r")
        assert gateway.rotations.listed(listing) == []


def capabilities(info: ModelInfo) -> tuple[str, ...]:
    return tuple(info.capabilities)


def gated(gate: anyio.Event) -> Script:
    """Say nothing before the gate is open, then fail."""

    async def play(exchange: Any) -> None:
        async with anyio.create_task_group() as tasks:

            async def leave(group: TaskGroup) -> None:
                await exchange.seen.closed.wait()
                group.cancel_scope.cancel()

            tasks.start_soon(leave, tasks)
            await gate.wait()
            tasks.cancel_scope.cancel()
        await exchange.error(500, "gate")

    return play
