"""The root of every subscription."""

from collections.abc import AsyncGenerator, Collection
from typing import Annotated

import strawberry

from gateway import telemetry
from gateway.core.errors import GatewayError, InvalidRequest
from gateway.core.models import ModelStateChange
from gateway.core.names import ModelRef, parse_ref
from gateway.services.feed import Interest, StateUpdate
from schema.context import Info
from schema.downloads import Download, watch_downloads
from schema.generation import GenerateInput
from schema.rotations import RotationEvent, watch_rotations
from schema.streams import StreamEvent, describe_event
from schema.types import ModelState

_Models = Annotated[
    list[strawberry.ID] | None,
    strawberry.argument(description="Only these models, by their full names."),
]
_Generate = Annotated[
    GenerateInput, strawberry.argument(description="What to answer, by which model, and how.")
]
_Providers = Annotated[
    list[str] | None, strawberry.argument(description="Only the models of these providers.")
]


@strawberry.type(description="A model and where its weights are now.")
class ModelStateEntry:
    id: strawberry.ID = strawberry.field(description="Its full name: provider/name.")
    provider: str = strawberry.field(description="The provider that has it.")
    name: str = strawberry.field(description="Its name at that provider.")
    state: ModelState = strawberry.field(description="Where its weights are.")
    message: str | None = strawberry.field(description="Why it failed, if it did.")

    @classmethod
    def of(cls, change: ModelStateChange) -> "ModelStateEntry":
        return cls(
            id=strawberry.ID(str(change.ref)),
            provider=change.ref.provider,
            name=change.ref.qualified_model,
            state=ModelState[change.state.name],
            message=change.message,
        )


@strawberry.type(description="What is new of the models that were asked for.")
class ModelStateUpdate:
    snapshot: bool = strawberry.field(
        description="True: forget what was told before, this is the present. Comes first, when "
        "more changed than was read, and when a model went away. Where there are very many models "
        "the next updates tell the rest."
    )
    models: list[ModelStateEntry] = strawberry.field(
        description="The models and their states, in the order of the changes."
    )

    @classmethod
    def of(cls, update: StateUpdate) -> "ModelStateUpdate":
        return cls(
            snapshot=update.is_snapshot,
            models=[ModelStateEntry.of(change) for change in update.states],
        )


async def watch_states(
    info: Info, models: _Models = None, providers: _Providers = None
) -> AsyncGenerator[ModelStateUpdate, None]:
    gateway = info.context.gateway
    interest = _read_interest(models or (), providers or (), gateway.provider_names)
    with gateway.feed.subscribe(interest) as subscription:
        while True:
            yield ModelStateUpdate.of(await subscription.read())


async def generate(info: Info, input: _Generate) -> AsyncGenerator[StreamEvent, None]:
    context = info.context
    wanted = input.to_core(telemetry.request_id.get(), context.read_body)
    async with context.gateway.streams.open(
        wanted,
        face="graphql",
        caller=context.caller,
        is_resumable=True,
        is_detached=input.detached,
    ) as reader:
        telemetry.decision_id.set(reader.stream.id)
        number = 0
        try:
            # One at a time, as they are sent.
            while events := await reader.read(1):
                number += 1
                yield describe_event(reader.stream, number, events[0])
                reader.confirm()
        except GatewayError as error:
            error.decision_id = reader.stream.id
            raise


@strawberry.type(description="What the gateway tells as it happens.")
class Subscription:
    model_state_changed: AsyncGenerator[ModelStateUpdate, None] = strawberry.subscription(
        resolver=watch_states,
        description="The present states of the models first, then each change. Where both "
        "arguments are there, both must fit.",
    )
    generate: AsyncGenerator[StreamEvent, None] = strawberry.subscription(
        resolver=generate,
        description="Generate an answer: any WaitingEvents, a StartedEvent, DeltaEvents and a "
        "FinishedEvent, or an error. Who ends the subscription stops the model.",
    )
    download_progress: AsyncGenerator[Download, None] = strawberry.subscription(
        resolver=watch_downloads,
        description="The downloads that have not ended, or those asked for, as they are now; then "
        "each as it changes, up to its end.",
    )
    rotation_changed: AsyncGenerator[RotationEvent, None] = strawberry.subscription(
        resolver=watch_rotations,
        description="The rotations as they are now, then each that changes.",
    )


def _read_interest(
    models: Collection[str], providers: Collection[str], known: Collection[str]
) -> Interest:
    """Return whom to watch; raise InvalidRequest for names that no model could ever have."""
    for provider in providers:
        if provider not in known:
            raise InvalidRequest(
                f"There is no provider '{provider}'.",
                hint=f"There are: {', '.join(known)}.",
                param="providers",
            )
    refs = frozenset(_read_id(model, known) for model in models)
    return Interest(models=refs, providers=frozenset(providers))


def _read_id(model: str, known: Collection[str]) -> ModelRef:
    provider, slash, name = model.partition("/")
    if not slash or provider not in known:
        raise InvalidRequest(
            f"'{model}' is not the id of a model.",
            hint="Pass ids as availableModels tells them: provider/name.",
            param="models",
        )
    return parse_ref(provider, name)
