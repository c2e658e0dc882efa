"""The Hub and its token as GraphQL shows them."""

from datetime import datetime
from enum import Enum
from typing import cast

import strawberry

from gateway.core import hub as core
from schema.types import Long, Problem, to_datetime


@strawberry.enum(description="How models of the Hub are sorted; the most and the newest first.")
class HubSort(Enum):
    DOWNLOADS = strawberry.enum_value("DOWNLOADS", description="Downloads of the last month.")
    LIKES = strawberry.enum_value("LIKES", description="Likes.")
    CREATED = strawberry.enum_value("CREATED", description="When it was made.")
    UPDATED = strawberry.enum_value("UPDATED", description="When it was last changed.")
    TRENDING = strawberry.enum_value("TRENDING", description="What the Hub calls trending.")


@strawberry.input(description="What to look for at the Hub; an empty text is no condition.")
class HubQueryInput:
    search: str = strawberry.field(default="", description="In the name.")
    author: str = strawberry.field(default="", description="Whose models.")
    task: str = strawberry.field(default="", description="Such as text-generation.")
    library: str = strawberry.field(default="", description="Such as transformers or gguf.")
    sort: HubSort = strawberry.field(default=HubSort.DOWNLOADS, description="Which come first.")
    limit: int = strawberry.field(default=20, description="The most models; up to 1000.")

    def to_core(self) -> core.HubQuery:
        return core.HubQuery(
            search=self.search,
            author=self.author,
            task=self.task,
            library=self.library,
            sort=cast(core.Sort, self.sort.name.lower()),
            limit=self.limit,
        )


@strawberry.type(description="A model of the Hub. What the Hub does not tell is null.")
class HubModel:
    id: strawberry.ID = strawberry.field(description="owner/name.")
    author: str | None = strawberry.field(description="Whose it is.")
    sha: str | None = strawberry.field(description="The newest commit.")
    task: str | None = strawberry.field(description="What it is for.")
    library: str | None = strawberry.field(description="What it is run with.")
    license: str | None = strawberry.field(description="Its license.")
    downloads: Long | None = strawberry.field(description="Downloads of the last month.")
    likes: int | None = strawberry.field(description="Likes.")
    gated: str | None = strawberry.field(
        description="How access is given, auto or manual; null: it is open."
    )
    private: bool = strawberry.field(description="Only some are shown it.")
    tags: list[str] = strawberry.field(description="Its tags.")
    parameters: Long | None = strawberry.field(description="How many numbers its weights are.")
    created_at: datetime | None = strawberry.field(description="When it was made.")
    updated_at: datetime | None = strawberry.field(description="When it was last changed.")

    @classmethod
    def of(cls, model: core.HubModel) -> "HubModel":
        return cls(
            id=strawberry.ID(model.id),
            author=model.author,
            sha=model.sha,
            task=model.task,
            library=model.library,
            license=model.license,
            downloads=_long(model.downloads),
            likes=model.likes,
            gated=model.gated,
            private=model.private,
            tags=list(model.tags),
            parameters=_long(model.parameters),
            created_at=None if model.created_at is None else to_datetime(model.created_at),
            updated_at=None if model.updated_at is None else to_datetime(model.updated_at),
        )


@strawberry.type(description="Where an answer comes from.")
class HubFreshness:
    cached: bool = strawberry.field(description="It is remembered; the Hub was not asked now.")
    age_seconds: float = strawberry.field(description="How old it is.")
    stale: Problem | None = strawberry.field(
        description="Why the Hub could not be asked although the answer is old."
    )

    @classmethod
    def of(cls, freshness: core.Freshness) -> "HubFreshness":
        return cls(
            cached=freshness.is_cached,
            age_seconds=freshness.age_s,
            stale=None if freshness.stale is None else Problem.of(freshness.stale),
        )


@strawberry.type(description="Models of the Hub.")
class HubListing:
    models: list[HubModel] = strawberry.field(description="Best first.")
    freshness: HubFreshness = strawberry.field(description="Where the answer comes from.")

    @classmethod
    def of(cls, listing: core.HubListing) -> "HubListing":
        return cls(
            models=[HubModel.of(model) for model in listing.models],
            freshness=HubFreshness.of(listing.freshness),
        )


@strawberry.type(description="A file of a repository.")
class HubFile:
    path: str = strawberry.field(description="Where it is in the repository.")
    size_bytes: Long | None = strawberry.field(description="Its size.")
    sha256: str | None = strawberry.field(description="Its checksum, of large files.")

    @classmethod
    def of(cls, file: core.HubFile) -> "HubFile":
        return cls(path=file.path, size_bytes=_long(file.size_bytes), sha256=file.sha256)


@strawberry.type(description="Whether a model fits into empty memory here.")
class HubFit:
    fits: bool | None = strawberry.field(description="null: unknown, see reason.")
    need_bytes: Long | None = strawberry.field(description="What a load takes at its worst.")
    budget_bytes: Long | None = strawberry.field(description="What there is for models.")
    basis: str | None = strawberry.field(
        description="headers: of the weights, as a load counts; sizes: of the files only."
    )
    reason: str | None = strawberry.field(description="Why it does not fit, or is not known to.")

    @classmethod
    def of(cls, fit: core.Fit) -> "HubFit":
        return cls(
            fits=fit.fits,
            need_bytes=_long(fit.need_bytes),
            budget_bytes=_long(fit.budget_bytes),
            basis=fit.basis,
            reason=fit.reason,
        )


@strawberry.type(description="A model of the Hub with its files.")
class HubDetails:
    model: HubModel = strawberry.field(description="The model.")
    files: list[HubFile] = strawberry.field(description="Its files.")
    size_bytes: Long = strawberry.field(description="All files together.")
    architecture: str | None = strawberry.field(description="Its architecture.")
    context_length: int | None = strawberry.field(description="The tokens that it can see.")
    fit: HubFit = strawberry.field(description="Whether it fits into memory here.")
    freshness: HubFreshness = strawberry.field(description="Where the answer comes from.")

    @classmethod
    def of(cls, report: core.HubReport) -> "HubDetails":
        details = report.details
        return cls(
            model=HubModel.of(details.model),
            files=[HubFile.of(file) for file in details.files],
            size_bytes=Long(details.size_bytes),
            architecture=details.architecture,
            context_length=details.context_length,
            fit=HubFit.of(report.fit),
            freshness=HubFreshness.of(report.freshness),
        )


@strawberry.enum(description="Where the Hub's token comes from.")
class HfTokenSource(Enum):
    STORED = strawberry.enum_value("STORED", description="Somebody set it here.")
    ENVIRONMENT = strawberry.enum_value("ENVIRONMENT", description="HF_TOKEN, or its setting.")
    NONE = strawberry.enum_value("NONE", description="There is none: the Hub is asked anonymously.")


@strawberry.type(description="Whose token it is.")
class HubAccount:
    name: str = strawberry.field(description="The user.")
    role: str | None = strawberry.field(description="read, write or fineGrained.")
    scopes: list[str] = strawberry.field(description="What a fine-grained token may.")
    organizations: list[str] = strawberry.field(description="The user's organizations.")

    @classmethod
    def of(cls, account: core.HubAccount) -> "HubAccount":
        return cls(
            name=account.name,
            role=account.role,
            scopes=list(account.scopes),
            organizations=list(account.organizations),
        )


@strawberry.type(description="What may be told of the Hub's token; never the token.")
class HfToken:
    source: HfTokenSource = strawberry.field(description="Where it comes from.")
    updated_at: datetime | None = strawberry.field(description="When it was stored.")
    valid: bool | None = strawberry.field(description="null: the Hub was not asked.")
    account: HubAccount | None = strawberry.field(description="Whose it is, if valid.")

    @classmethod
    def of(cls, report: core.TokenReport) -> "HfToken":
        about = report.account
        return cls(
            source=HfTokenSource[report.source.name],
            updated_at=None if report.updated_at is None else to_datetime(report.updated_at),
            valid=report.valid,
            account=None if about is None else HubAccount.of(about),
        )


def _long(value: int | None) -> Long | None:
    return None if value is None else Long(value)
