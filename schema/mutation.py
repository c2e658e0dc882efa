"""The root of every mutation: models in memory and on the disk, collections, the Hub's token.

Each field is nullable: one that fails costs only itself, never what was done beside it.
"""

from typing import Annotated

import strawberry

from gateway.core.errors import ShuttingDown
from gateway.services.control import ModelControlService
from schema.collections import (
    Collection,
    ImportReport,
    add_to_collection,
    change_collection,
    create_collection,
    delete_collection,
    import_library,
    remove_from_collection,
)
from schema.context import Info
from schema.control import ConfigReport, ModelStatus
from schema.downloads import (
    Download,
    cancel_download,
    delete_download,
    pause_download,
    resume_download,
    start_download,
)
from schema.hub import HfToken
from schema.inputs import (
    ConfigureModelInput,
    LoadModelInput,
    UnloadModelInput,
    require_seconds,
)
from schema.library import (
    Cleaning,
    DeletedModel,
    VerifiedModel,
    clean_models,
    delete_model,
    verify_model,
)
from schema.rotations import (
    Rotation,
    RotationStep,
    advance_rotation,
    delete_rotation,
    pause_rotation,
    resume_rotation,
    set_rotation,
)
from schema.routes import ModelRoute, delete_route, set_route

_Load = Annotated[LoadModelInput, strawberry.argument(description="Which model, and how.")]
_Unload = Annotated[UnloadModelInput, strawberry.argument(description="Which model, and how.")]
_Stream = Annotated[strawberry.ID, strawberry.argument(description="The id of the stream.")]
_Configure = Annotated[
    ConfigureModelInput, strawberry.argument(description="Which model, and what to decide.")
]

_Token = Annotated[str, strawberry.argument(description="The token; pass it as a variable.")]
_Validate = Annotated[
    bool, strawberry.argument(description="Ask the Hub first, and store none that it rejects.")
]


async def load_model(info: Info, input: _Load) -> ModelStatus | None:
    status = await _control(info).load(
        input.model,
        None if input.config is None else input.config.to_core(),
        pinned=input.pinned,
        keep_alive_s=require_seconds(input.keep_alive_seconds),
        wait=input.wait,
    )
    return ModelStatus.of(status)


async def unload_model(info: Info, input: _Unload) -> ModelStatus | None:
    status = await _control(info).unload(input.model, force=input.force, wait=input.wait)
    return ModelStatus.of(status)


async def configure_model(info: Info, input: _Configure) -> ConfigReport | None:
    _control(info)
    configs = info.context.gateway.configs
    return ConfigReport.of(await configs.configure(input.model, input.to_core()))


async def stop_stream(info: Info, id: _Stream) -> bool | None:
    return info.context.gateway.streams.stop(id, caller=info.context.caller.id)


async def set_hf_token(info: Info, token: _Token, validate: _Validate = True) -> HfToken | None:
    return HfToken.of(await info.context.gateway.hub_token.set(token, validate=validate))


async def delete_hf_token(info: Info) -> HfToken | None:
    return HfToken.of(await info.context.gateway.hub_token.delete())


@strawberry.type(description="What can be changed.")
class Mutation:
    load_model: ModelStatus | None = strawberry.field(
        resolver=load_model,
        description="Begin to load a model; the answer comes at once, modelStateChanged tells the "
        "rest. `planLoad` is the same without doing it.",
    )
    unload_model: ModelStatus | None = strawberry.field(
        resolver=unload_model,
        description="Begin to unload a model; requests that use it may finish.",
    )
    configure_model: ConfigReport | None = strawberry.field(
        resolver=configure_model,
        description="Decide how a model is loaded and kept, and with which options it answers.",
    )
    stop_stream: bool | None = strawberry.field(
        resolver=stop_stream,
        description="Stop a stream of one's own; false: it had ended already. Its reader is told "
        "that it was cancelled.",
    )
    verify_model: VerifiedModel | None = strawberry.field(
        resolver=verify_model, description="Look whether a model's files are whole."
    )
    delete_model: DeletedModel | None = strawberry.field(
        resolver=delete_model,
        description="Remove a model's files; refused while somebody uses it.",
    )
    clean_models: Cleaning | None = strawberry.field(
        resolver=clean_models, description="Remove models of the Hub's cache by age and by size."
    )
    create_collection: Collection | None = strawberry.field(
        resolver=create_collection, description="Make a collection of models."
    )
    change_collection: Collection | None = strawberry.field(
        resolver=change_collection, description="Rename or describe a collection."
    )
    delete_collection: Collection | None = strawberry.field(
        resolver=delete_collection, description="Remove a collection; its models stay."
    )
    add_to_collection: Collection | None = strawberry.field(
        resolver=add_to_collection, description="Add a model; once more is harmless."
    )
    remove_from_collection: Collection | None = strawberry.field(
        resolver=remove_from_collection, description="Take a model out of a collection."
    )
    import_library: ImportReport | None = strawberry.field(
        resolver=import_library,
        description="Take over collections and configs: all of the file, or nothing.",
    )
    start_download: Download | None = strawberry.field(
        resolver=start_download,
        description="Queue a download; the same one that has not ended yet is not begun twice, and "
        "one that failed goes on. "
        "`planDownload` is the same without doing it, downloadProgress tells how it goes.",
    )
    pause_download: Download | None = strawberry.field(
        resolver=pause_download, description="Stop it for now; what was fetched is kept."
    )
    resume_download: Download | None = strawberry.field(
        resolver=resume_download,
        description="Queue a download again that is paused or has failed.",
    )
    cancel_download: Download | None = strawberry.field(
        resolver=cancel_download,
        description="Stop it for good and delete what is not whole.",
    )
    delete_download: Download | None = strawberry.field(
        resolver=delete_download,
        description="Take a download that has ended off the list; what a failed one left goes.",
    )
    set_rotation: Rotation | None = strawberry.field(
        resolver=set_rotation, description="Make a rotation, or make it another."
    )
    delete_rotation: Rotation | None = strawberry.field(
        resolver=delete_rotation,
        description="Remove a rotation and its history; its models stay as they are.",
    )
    pause_rotation: Rotation | None = strawberry.field(
        resolver=pause_rotation, description="Let no step begin by itself."
    )
    resume_rotation: Rotation | None = strawberry.field(
        resolver=resume_rotation,
        description="Undo a pause; the time to the next step begins anew.",
    )
    advance_rotation: RotationStep | None = strawberry.field(
        resolver=advance_rotation,
        description="Queue a step to the next model; rotationChanged tells how it goes.",
    )

    set_route: ModelRoute | None = strawberry.field(
        resolver=set_route,
        description="Make or change an alias or a virtual model; it holds in every gateway of the "
        "database within a second.",
    )
    delete_route: ModelRoute | None = strawberry.field(
        resolver=delete_route, description="Remove an alias or a virtual model."
    )
    set_hf_token: HfToken | None = strawberry.field(
        resolver=set_hf_token, description="Store the token that the Hub is asked with."
    )
    delete_hf_token: HfToken | None = strawberry.field(
        resolver=delete_hf_token, description="Forget the stored token."
    )


def _control(info: Info) -> ModelControlService:
    """Return what carries the changes out; a gateway that shuts down begins nothing new."""
    if info.context.gateway.streams.draining:
        raise ShuttingDown("The gateway is shutting down.")
    return info.context.gateway.control
