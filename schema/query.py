"""The root of every query.

A field that may fail by itself is nullable: a database that does not answer, or a model that
nobody has, costs that field only, never what stands beside it.
"""

from typing import Annotated

import strawberry

import gateway
from gateway.core.states import ModelState
from schema.collections import Collection, export_library, list_collections
from schema.context import Info
from schema.control import ConfigReport, LoadPlan, ModelStatus
from schema.decisions import Decision, explain_route, find_decision, list_decisions
from schema.downloads import (
    Download,
    DownloadPlan,
    find_download,
    list_downloads,
    plan_download,
)
from schema.hub import HfToken, HubDetails, HubListing, HubQueryInput
from schema.inputs import LoadConfigInput
from schema.library import Library, list_library
from schema.memory import Memory, tell_memory
from schema.models import ModelFilter, ModelPage, choose_page
from schema.providers import Provider
from schema.rotations import (
    Rotation,
    RotationStep,
    find_rotation,
    list_rotations,
    list_steps,
)
from schema.routes import ModelRoute, list_routes
from schema.sessions import Session, require_first
from schema.streams import LiveStream

_Filter = Annotated[ModelFilter | None, strawberry.argument(description="Which models to list.")]
_First = Annotated[int, strawberry.argument(description="The most models of a page; up to 500.")]
_After = Annotated[
    str | None, strawberry.argument(description="`pageInfo.endCursor` of the page before.")
]
_Newest = Annotated[int, strawberry.argument(description="How many, newest first; up to 200.")]

_Name = Annotated[
    str, strawberry.argument(description="The model's name, in any form that requests may use.")
]
_Config = Annotated[LoadConfigInput | None, strawberry.argument(description="How to load it.")]

_Wanted = Annotated[HubQueryInput | None, strawberry.argument(description="What to look for.")]
_Repository = Annotated[str, strawberry.argument(description="owner/name.")]
_Validate = Annotated[bool, strawberry.argument(description="Ask the Hub whether it is valid.")]

FRESH_S = 0.25
"""How long a listing of sessions waits for the records that are on their way."""

_IN_MEMORY = frozenset({ModelState.LOADING, ModelState.LOADED, ModelState.UNLOADING})


async def list_models(
    info: Info, filter: _Filter = None, first: _First = 100, after: _After = None
) -> ModelPage:
    return choose_page(await info.context.gateway.listing(), filter, first, after)


async def list_providers(info: Info) -> list[Provider] | None:
    services = info.context.gateway
    statuses = await services.provider_states.all(services.node)
    return [Provider.of(status) for status in statuses]


async def list_sessions(info: Info, first: _Newest = 20) -> list[Session] | None:
    services = info.context.gateway
    newest = require_first(first)
    await services.recorder.flush(FRESH_S)  # who has seen a stream finds it here, too
    recent = await services.sessions.recent(newest)
    return [Session.of(session) for session in recent]


async def list_streams(info: Info) -> list[LiveStream]:
    streams = info.context.gateway.streams.of_caller(info.context.caller.id)
    return [LiveStream.of(stream) for stream in streams]


async def tell_status(info: Info, model: _Name) -> ModelStatus | None:
    return ModelStatus.of(await info.context.gateway.control.status(model))


async def list_loaded(info: Info) -> list[ModelStatus]:
    statuses = await info.context.gateway.control.statuses()
    return [ModelStatus.of(status) for status in statuses if status.state in _IN_MEMORY]


async def tell_config(info: Info, model: _Name) -> ConfigReport | None:
    return ConfigReport.of(await info.context.gateway.control.config(model))


async def plan_load(info: Info, model: _Name, config: _Config = None) -> LoadPlan | None:
    wanted = None if config is None else config.to_core()
    return LoadPlan.of(await info.context.gateway.control.plan(model, wanted))


async def search_hub(info: Info, query: _Wanted = None) -> HubListing | None:
    wanted = (query or HubQueryInput()).to_core()
    return HubListing.of(await info.context.gateway.hub.search(wanted))


async def tell_hub_model(info: Info, name: _Repository) -> HubDetails | None:
    return HubDetails.of(await info.context.gateway.hub.details(name))


def list_recommended(info: Info) -> list[str]:
    return list(info.context.gateway.hub.recommended)


async def tell_hf_token(info: Info, validate: _Validate = False) -> HfToken | None:
    return HfToken.of(await info.context.gateway.hub_token.report(validate=validate))


def tell_version() -> str:
    return gateway.__version__


@strawberry.type(description="What can be asked of the gateway.")
class Query:
    available_models: ModelPage = strawberry.field(
        resolver=list_models,
        description="The models of every provider, and for each provider that cannot be listed "
        "the reason. Answers within a second, whatever the providers do.",
    )
    providers: list[Provider] | None = strawberry.field(
        resolver=list_providers,
        description="Every provider as it was when it was last looked at.",
    )
    sessions: list[Session] | None = strawberry.field(
        resolver=list_sessions,
        description="The newest streams, newest first; running ones too.",
    )
    streams: list[LiveStream] = strawberry.field(
        resolver=list_streams,
        description="The streams of the caller that run at this gateway, oldest first.",
    )
    model_status: ModelStatus | None = strawberry.field(
        resolver=tell_status, description="What one model is doing now."
    )
    loaded_models: list[ModelStatus] = strawberry.field(
        resolver=list_loaded,
        description="The models that are in memory, on their way there or on their way out. A "
        "provider that does not answer is left out.",
    )
    model_config: ConfigReport | None = strawberry.field(
        resolver=tell_config, description="What is decided for a model."
    )
    plan_load: LoadPlan | None = strawberry.field(
        resolver=plan_load, description="What loadModel would do now, without doing it."
    )
    library: Library | None = strawberry.field(
        resolver=list_library, description="The files of models on this machine, and at Ollama."
    )
    collections: list[Collection] | None = strawberry.field(
        resolver=list_collections, description="Collections of models, by name."
    )
    export_library: str | None = strawberry.field(
        resolver=export_library,
        description="All collections and configs of models, as the text of a file for "
        "importLibrary.",
    )
    hub_models: HubListing | None = strawberry.field(
        resolver=search_hub, description="Models of the Hugging Face Hub."
    )
    hub_model: HubDetails | None = strawberry.field(
        resolver=tell_hub_model, description="One model of the Hub with its files."
    )
    hub_recommended: list[str] = strawberry.field(
        resolver=list_recommended, description="Models of the Hub to begin with."
    )
    hf_token: HfToken | None = strawberry.field(
        resolver=tell_hf_token, description="Where the Hub's token comes from."
    )
    downloads: list[Download] | None = strawberry.field(
        resolver=list_downloads, description="The newest downloads, newest first."
    )
    download: Download | None = strawberry.field(
        resolver=find_download, description="One download as it is now."
    )
    plan_download: DownloadPlan | None = strawberry.field(
        resolver=plan_download, description="What startDownload would do now, without doing it."
    )
    decision: Decision | None = strawberry.field(
        resolver=find_decision, description="Why one request went where it went."
    )
    decisions: list[Decision] | None = strawberry.field(
        resolver=list_decisions,
        description="The newest decisions, newest first; one's own, or with the scope manage all.",
    )
    explain_route: Decision | None = strawberry.field(
        resolver=explain_route,
        description="What would be decided about a request now, without running it.",
    )
    routes: list[ModelRoute] = strawberry.field(
        resolver=list_routes, description="Aliases and virtual models, by name."
    )
    rotations: list[Rotation] | None = strawberry.field(
        resolver=list_rotations,
        description="Names that stand for one model after the other, by name.",
    )
    rotation: Rotation | None = strawberry.field(
        resolver=find_rotation, description="One rotation as it is now."
    )
    rotation_history: list[RotationStep] | None = strawberry.field(
        resolver=list_steps, description="The newest steps of a rotation, newest first."
    )
    memory: Memory | None = strawberry.field(
        resolver=tell_memory,
        description="What the models of all providers hold of this machine's memory.",
    )
    version: str = strawberry.field(resolver=tell_version, description="The gateway's version.")
