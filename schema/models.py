"""`availableModels`: its filter, its pages, and the providers that are missing from it."""

import base64
import binascii
from bisect import bisect_right

import strawberry

from gateway import problems
from gateway.core import models as core
from gateway.core import states
from gateway.core.errors import InvalidRequest
from gateway.services.catalog import Listing, ProviderFault
from schema.types import Capability, Long, ModelState

MAX_FIRST = 500


@strawberry.input(description="Which models to list; what is left out does not restrict.")
class ModelFilter:
    providers: list[str] | None = strawberry.field(
        default=None, description="Names of providers; a model of any of them is listed."
    )
    states: list[ModelState] | None = strawberry.field(
        default=None, description="A model in any of these states is listed."
    )
    capabilities: list[Capability] | None = strawberry.field(
        default=None, description="A model that has all of these is listed."
    )
    text: str | None = strawberry.field(
        default=None, description="Found in the id or a metadata value, in any case."
    )

    def to_core(self) -> core.ModelFilter:
        """Return the filter as the core understands it."""
        return core.ModelFilter(
            providers=frozenset(self.providers or ()),
            states=frozenset(states.ModelState[state.name] for state in self.states or ()),
            capabilities=frozenset(core.Capability[item.name] for item in self.capabilities or ()),
            text=self.text or "",
        )


@strawberry.type(description="One thing that a provider tells of a model.")
class Metadata:
    key: str = strawberry.field(description="What it is, such as family or quantization.")
    value: str = strawberry.field(description="What the provider says.")


@strawberry.type(description="A model that can be used now, whether it is in memory or not.")
class Model:
    id: strawberry.ID = strawberry.field(
        description="The name that requests ask for: provider/name."
    )
    provider: str = strawberry.field(description="The provider that has it.")
    name: str = strawberry.field(description="Its name at that provider.")
    state: ModelState = strawberry.field(description="Where its weights are.")
    size_bytes: Long | None = strawberry.field(description="Size of its files, if known.")
    context_length: int | None = strawberry.field(
        description="Most tokens of prompt and answer together, if known."
    )
    capabilities: list[Capability] = strawberry.field(
        description="What it can be asked for; empty when unknown."
    )
    batched: bool | None = strawberry.field(
        description="Whether its requests share their steps, or are answered one at a time; null "
        "when unknown."
    )
    virtual: bool = strawberry.field(
        description="Whether it is a name that stands for several models: of a rotation, or of a "
        "virtual model, which has no provider before its name."
    )
    metadata: list[Metadata] = strawberry.field(description="What else its provider tells of it.")
    message: str | None = strawberry.field(description="Why it failed, if it did.")

    @classmethod
    def of(cls, info: core.ModelInfo) -> "Model":
        return cls(
            id=strawberry.ID(info.id),
            provider=info.ref.provider,
            name=info.ref.qualified_model,
            state=ModelState[info.state.name],
            size_bytes=None if info.size_bytes is None else Long(info.size_bytes),
            context_length=info.context_length,
            capabilities=[Capability[capability.name] for capability in info.capabilities],
            batched=info.batched,
            virtual=info.virtual,
            metadata=[Metadata(key=key, value=value) for key, value in info.metadata],
            message=info.message,
        )


@strawberry.type(description="Why the models of one provider are missing.")
class ProviderError:
    provider: str = strawberry.field(description="Name of the provider.")
    code: str = strawberry.field(description="What is wrong, for programs.")
    message: str = strawberry.field(description="What is wrong, for people.")
    hint: str | None = strawberry.field(description="What to do about it.")
    retryable: bool = strawberry.field(description="Whether trying again makes sense.")

    @classmethod
    def of(cls, fault: ProviderFault) -> "ProviderError":
        problem = problems.describe(fault.error)
        return cls(
            provider=fault.provider,
            code=problem.code,
            message=problem.message,
            hint=problem.hint,
            retryable=problem.retryable,
        )


@strawberry.type(description="Where a page ends.")
class PageInfo:
    has_next_page: bool = strawberry.field(description="Whether more follow.")
    end_cursor: str | None = strawberry.field(
        description="Pass it as `after` for the next page; null when the page is empty."
    )


@strawberry.type(description="One page of the models of all providers, sorted by id.")
class ModelPage:
    models: list[Model] = strawberry.field(description="The models of this page.")
    total_count: int = strawberry.field(description="How many match the filter on all pages.")
    page_info: PageInfo = strawberry.field(description="Where this page ends.")
    provider_errors: list[ProviderError] = strawberry.field(
        description="The providers that could not be listed; the other fields do without them."
    )


def choose_page(
    listing: Listing, wanted: ModelFilter | None, first: int, after: str | None
) -> ModelPage:
    """Return the `first` models behind the cursor `after` that match.

    A cursor names the last id seen, so models that come and go between two pages neither repeat
    nor hide others. Raises InvalidRequest for a `first` out of range and for a strange cursor.
    """
    if not 0 <= first <= MAX_FIRST:
        raise InvalidRequest(f"'first' must be from 0 to {MAX_FIRST}.", param="first")
    chosen = core.select_models(listing.models, wanted.to_core() if wanted else core.ModelFilter())
    chosen.sort(key=lambda model: model.id)
    start = bisect_right(chosen, _decode_cursor(after), key=lambda model: model.id) if after else 0
    page = chosen[start : start + first]
    return ModelPage(
        models=[Model.of(model) for model in page],
        total_count=len(chosen),
        page_info=PageInfo(
            has_next_page=start + len(page) < len(chosen),
            end_cursor=_encode_cursor(page[-1].id) if page else None,
        ),
        provider_errors=[ProviderError.of(fault) for fault in listing.faults],
    )


def _encode_cursor(model_id: str) -> str:
    return base64.urlsafe_b64encode(model_id.encode()).decode()


def _decode_cursor(cursor: str) -> str:
    try:
        return base64.b64decode(cursor, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise InvalidRequest(
            "'after' is not a cursor.", hint="Pass pageInfo.endCursor.", param="after"
        ) from None
