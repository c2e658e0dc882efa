"""The files of models as GraphQL shows them: what is there, verified, removed and cleaned up."""

from datetime import datetime
from enum import Enum
from typing import Annotated

import strawberry

from gateway.core import library as core
from gateway.services import library as services
from gateway.services.removals import PROVIDER
from schema.context import Info
from schema.models import Model, ProviderError
from schema.types import Long, to_datetime


@strawberry.enum(description="What looking into a model's files came to.")
class Verdict(Enum):
    OK = strawberry.enum_value("OK", description="Nothing is wrong with them.")
    CORRUPT = strawberry.enum_value("CORRUPT", description="Damaged, or not what they must be.")
    REFUSED = strawberry.enum_value("REFUSED", description="Sound, but not loaded here.")


@strawberry.enum(description="How far a verification goes; each takes in those before it.")
class Check(Enum):
    HEADERS = strawberry.enum_value("HEADERS", description="Headers and indexes; milliseconds.")
    CHECKSUMS = strawberry.enum_value("CHECKSUMS", description="All bytes, where sums are known.")
    LOAD = strawberry.enum_value("LOAD", description="A load in a process that may die of it.")


@strawberry.type(description="A verdict on files that were as they are now.")
class Verification:
    verdict: Verdict = strawberry.field(description="What it came to.")
    check: Check = strawberry.field(description="How far it went.")
    reason: str | None = strawberry.field(description="What is wrong, for people.")
    at: datetime = strawberry.field(description="When.")

    @classmethod
    def of(cls, found: core.Verification) -> "Verification":
        return cls(
            verdict=Verdict[found.verdict.name],
            check=Check[found.check.name],
            reason=found.reason,
            at=to_datetime(found.at),
        )


@strawberry.type(description="One model's files on this machine; null is unknown.")
class LibraryModel:
    id: strawberry.ID = strawberry.field(description="Its full name, with a revision if needed.")
    source: str = strawberry.field(description="local, hub or builtin.")
    format: str = strawberry.field(description="safetensors or gguf.")
    path: str = strawberry.field(description="Where it lies.")
    repository: str | None = strawberry.field(description="Its repository on the Hub.")
    sha: str | None = strawberry.field(description="The commit of that repository.")
    refs: list[str] = strawberry.field(description="The branches and tags that mean that commit.")
    size_bytes: Long = strawberry.field(description="Size of all its files.")
    usable: bool = strawberry.field(description="Nothing that is known speaks against loading it.")
    first_seen: datetime | None = strawberry.field(description="When it was found here.")
    last_used: datetime | None = strawberry.field(description="When it was loaded or asked last.")
    last_updated: datetime = strawberry.field(description="When its newest file was written.")
    update_available: bool | None = strawberry.field(description="The Hub has a newer commit.")
    brings_code: bool = strawberry.field(description="Its files name classes of their own.")
    allowed: list[str] = strawberry.field(
        description="What the operator allows to it: pickle, that its weights are read from "
        "pickles; code, that its own code is run."
    )
    verification: Verification | None = strawberry.field(
        description="What is known of its files as they are now."
    )

    @classmethod
    def of(cls, entry: services.LibraryEntry) -> "LibraryModel":
        shelved = entry.model
        verification = entry.verification
        return cls(
            id=strawberry.ID(entry.id),
            source=shelved.model.source,
            format=shelved.model.card.format,
            path=shelved.model.path,
            repository=shelved.repository,
            sha=shelved.model.revision,
            refs=list(shelved.refs),
            size_bytes=Long(shelved.size_bytes),
            usable=entry.is_usable,
            first_seen=_moment(entry.first_seen),
            last_used=_moment(entry.last_used),
            last_updated=to_datetime(shelved.updated_at),
            update_available=entry.update_available,
            brings_code=shelved.model.card.brings_code,
            allowed=shelved.model.trust.allowed,
            verification=None if verification is None else Verification.of(verification),
        )


@strawberry.type(description="Something in the library's folders that is no model.")
class Oddity:
    path: str = strawberry.field(description="Where it lies.")
    reason: str = strawberry.field(description="Why it is none.")


@strawberry.type(description="A folder of models and the disk it is on.")
class DiskUse:
    path: str = strawberry.field(description="The folder.")
    models_bytes: Long = strawberry.field(description="What its models take together.")
    free_bytes: Long | None = strawberry.field(description="What is free on the disk.")
    total_bytes: Long | None = strawberry.field(description="What the disk holds.")


@strawberry.type(description="The models whose files are there, by where they lie.")
class Library:
    local_models: list[LibraryModel] = strawberry.field(
        description="In the models folder, and built in."
    )
    cached_hub_models: list[LibraryModel] = strawberry.field(
        description="In the Hub's cache, one for each revision."
    )
    ollama_models: list[Model] = strawberry.field(description="At the Ollama server.")
    oddities: list[Oddity] = strawberry.field(description="What is no model, and why.")
    disks: list[DiskUse] = strawberry.field(description="Folders and their disks.")
    provider_errors: list[ProviderError] = strawberry.field(
        description="The providers that could not be listed."
    )

    @classmethod
    def of(cls, listing: services.LibraryListing) -> "Library":
        return cls(
            local_models=[LibraryModel.of(entry) for entry in listing.local],
            cached_hub_models=[LibraryModel.of(entry) for entry in listing.hub],
            ollama_models=[Model.of(info) for info in listing.ollama],
            oddities=[Oddity(path=odd.path, reason=odd.reason) for odd in listing.oddities],
            disks=[
                DiskUse(
                    path=disk.path,
                    models_bytes=Long(disk.models_bytes),
                    free_bytes=None if disk.free_bytes is None else Long(disk.free_bytes),
                    total_bytes=None if disk.total_bytes is None else Long(disk.total_bytes),
                )
                for disk in listing.disks
            ],
            provider_errors=[ProviderError.of(fault) for fault in listing.faults],
        )


@strawberry.type(description="What a verification came to.")
class VerifiedModel:
    model: LibraryModel = strawberry.field(description="The model, with the verdict.")
    warnings: list[str] = strawberry.field(description="What an operator should know besides.")
    fresh: bool = strawberry.field(description="Whether its files were looked at just now.")


@strawberry.type(description="A model whose files are gone.")
class DeletedModel:
    id: strawberry.ID = strawberry.field(description="Its full name.")
    freed_bytes: Long | None = strawberry.field(description="What that freed, if known.")


@strawberry.type(description="One model that a clean-up removes.")
class Removal:
    id: strawberry.ID = strawberry.field(description="Its full name.")
    reason: str = strawberry.field(description="age or size.")
    freed_bytes: Long = strawberry.field(description="What that frees after those before it.")


@strawberry.type(description="What downloads left of one repository, and a clean-up removes.")
class RemovedLeftover:
    repository: str = strawberry.field(description="owner/name on the Hub.")
    freed_bytes: Long = strawberry.field(description="What that frees.")
    last_updated: datetime = strawberry.field(description="When something came last.")


@strawberry.type(description="What a clean-up removes.")
class Cleaning:
    removed: list[Removal] = strawberry.field(description="In this order.")
    kept_in_use: list[strawberry.ID] = strawberry.field(description="Kept, as they are in memory.")
    unfinished: list[RemovedLeftover] = strawberry.field(
        description="What downloads left; not in the bytes below."
    )
    before_bytes: Long = strawberry.field(description="What the cache's models took.")
    after_bytes: Long = strawberry.field(description="What those that are left take.")
    dry_run: bool = strawberry.field(description="Nothing was removed.")


@strawberry.input(description="Which model to verify, and how far.")
class VerifyModelInput:
    model: str = strawberry.field(description="Its name, in any form that requests may use.")
    check: Check = strawberry.field(default=Check.CHECKSUMS, description="How far to go.")
    force: bool = strawberry.field(
        default=False, description="Look anew where the result for these files is kept."
    )


@strawberry.input(description="What to remove of the Hub's cache; without a reason, nothing.")
class CleanModelsInput:
    unused_days: float | None = strawberry.field(
        default=None, description="What nobody used for so many days."
    )
    max_bytes: Long | None = strawberry.field(
        default=None, description="The least recently used, until the rest takes no more."
    )
    unfinished_days: float | None = strawberry.field(
        default=None,
        description="What downloads left that failed, where nothing came for so many days.",
    )
    dry_run: bool = strawberry.field(default=True, description="Only tell what would go.")


_Verify = Annotated[VerifyModelInput, strawberry.argument(description="Which, and how far.")]
_Name = Annotated[str, strawberry.argument(description="A repository's plain name is all of it.")]
_Updates = Annotated[
    bool, strawberry.argument(description="Ask the Hub whether it has something newer.")
]
_Clean = Annotated[CleanModelsInput, strawberry.argument(description="What to remove.")]


async def list_library(info: Info, updates: _Updates = False) -> Library | None:
    return Library.of(await info.context.gateway.library.listing(updates=updates))


async def verify_model(info: Info, input: _Verify) -> VerifiedModel | None:
    found = await info.context.gateway.library.verify(
        input.model, core.Check[input.check.name], force=input.force
    )
    return VerifiedModel(
        model=LibraryModel.of(found.entry), warnings=list(found.warnings), fresh=found.is_fresh
    )


async def delete_model(info: Info, model: _Name) -> DeletedModel | None:
    gone = await info.context.gateway.library.delete(model)
    freed = gone.freed_bytes
    return DeletedModel(
        id=strawberry.ID(gone.id), freed_bytes=None if freed is None else Long(freed)
    )


async def clean_models(info: Info, input: _Clean) -> Cleaning | None:
    plan = await info.context.gateway.library.clean(
        unused_days=input.unused_days,
        max_bytes=input.max_bytes,
        unfinished_days=input.unfinished_days,
        dry_run=input.dry_run,
    )
    return Cleaning(
        removed=[
            Removal(id=_id(each.name), reason=each.reason, freed_bytes=Long(each.frees_bytes))
            for each in plan.removals
        ],
        kept_in_use=[_id(name) for name in plan.kept],
        unfinished=[
            RemovedLeftover(
                repository=each.repository,
                freed_bytes=Long(each.size_bytes),
                last_updated=to_datetime(each.changed_at),
            )
            for each in plan.unfinished
        ],
        before_bytes=Long(plan.before_bytes),
        after_bytes=Long(plan.after_bytes),
        dry_run=input.dry_run,
    )


def _id(name: str) -> strawberry.ID:
    return strawberry.ID(f"{PROVIDER}/{name}")


def _moment(unix_s: float | None) -> datetime | None:
    return None if unix_s is None else to_datetime(unix_s)
