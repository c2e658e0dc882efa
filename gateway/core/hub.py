"""The Hugging Face Hub as the gateway tells of it: models, files, what fits, tokens. Plain data.

Sizes are bytes, times Unix seconds; None is what the Hub does not tell.
"""

import re
from enum import StrEnum
from typing import Literal

import msgspec

from gateway.core.errors import GatewayError, InvalidRequest
from gateway.core.messages import require_clean_text
from gateway.core.trust import ALLOW_PICKLE, Trust

MAX_LIMIT = 1000
"""The Hub's own bound of a page."""
MAX_TEXT = 200
MAX_TOKEN_LENGTH = 512

Sort = Literal["downloads", "likes", "created", "updated", "trending"]

_TOKEN = re.compile(r"[!-~]+")


class HubQuery(msgspec.Struct, frozen=True):
    """What to look for; an empty text is no condition. Results are best first."""

    search: str = ""
    author: str = ""
    task: str = ""
    library: str = ""
    sort: Sort = "downloads"
    limit: int = 20


class HubModel(msgspec.Struct, frozen=True):
    """A model as a listing shows it. `gated` is how one gets access: "auto", "manual"."""

    id: str
    author: str | None = None
    sha: str | None = None
    task: str | None = None
    library: str | None = None
    license: str | None = None
    downloads: int | None = None
    likes: int | None = None
    gated: str | None = None
    private: bool = False
    tags: tuple[str, ...] = ()
    parameters: int | None = None
    created_at: float | None = None
    updated_at: float | None = None


class HubFile(msgspec.Struct, frozen=True):
    """A file of a repository; `sha256` only of large ones."""

    path: str
    size_bytes: int | None = None
    sha256: str | None = None


class Need(msgspec.Struct, frozen=True):
    """What loading takes. `basis`: "headers" of the files, as a load counts it before it begins,
    or only their "sizes", where the headers could not be read. `is_pickled`: its weights are
    pickles."""

    need_bytes: int
    basis: Literal["headers", "sizes"]
    is_pickled: bool = False


class Fit(msgspec.Struct, frozen=True):
    """Whether a model fits into the memory for models when nothing else is in it; `reason` is a
    sentence, there when it does not, is not loaded here, or when that is unknown."""

    fits: bool | None = None
    need_bytes: int | None = None
    budget_bytes: int | None = None
    basis: Literal["headers", "sizes"] | None = None
    reason: str | None = None


class HubDetails(msgspec.Struct, frozen=True):
    """A model with its files. `dtypes` counts the parameters of each number format."""

    model: HubModel
    files: tuple[HubFile, ...] = ()
    dtypes: tuple[tuple[str, int], ...] = ()
    architecture: str | None = None
    context_length: int | None = None
    need: Need | None = None

    @property
    def size_bytes(self) -> int:
        """All files together, as far as their sizes are known."""
        return sum(file.size_bytes or 0 for file in self.files)


class Freshness(msgspec.Struct, frozen=True):
    """Where an answer comes from: the Hub just now, or the cache of `age_s`. `stale` is why the
    Hub was not asked although that is older than it should be."""

    age_s: float = 0.0
    is_cached: bool = False
    stale: GatewayError | None = None


class HubListing(msgspec.Struct, frozen=True):
    models: tuple[HubModel, ...]
    freshness: Freshness


class HubReport(msgspec.Struct, frozen=True):
    """The details of one model, and whether it fits here."""

    details: HubDetails
    fit: Fit
    freshness: Freshness


class TokenSource(StrEnum):
    """Where the token in use comes from; a stored one wins over the environment's."""

    STORED = "stored"
    ENVIRONMENT = "environment"
    NONE = "none"


class HubAccount(msgspec.Struct, frozen=True):
    """Whose token it is and what it may. `role` is read, write or fineGrained."""

    name: str
    role: str | None = None
    scopes: tuple[str, ...] = ()
    organizations: tuple[str, ...] = ()


class TokenReport(msgspec.Struct, frozen=True):
    """What may be told of the token. `valid` is None where the Hub was not asked."""

    source: TokenSource
    updated_at: float | None = None
    valid: bool | None = None
    account: HubAccount | None = None


class StoredSecret(msgspec.Struct, frozen=True):
    """A secret as it comes out of the store."""

    text: str
    updated_at: float


class Remembered(msgspec.Struct, frozen=True):
    """What the Hub said, as bytes that the one who asked understands."""

    body: bytes
    fetched_at: float


def require_query(query: HubQuery) -> None:
    """Raise InvalidRequest for texts or a limit that make no sense."""
    for name in ("search", "author", "task", "library"):
        text: str = getattr(query, name)
        require_clean_text(text, name)
        if len(text) > MAX_TEXT:
            raise InvalidRequest(f"'{name}' has at most {MAX_TEXT} characters.", param=name)
    if not 1 <= query.limit <= MAX_LIMIT:
        raise InvalidRequest(f"'limit' is 1 to {MAX_LIMIT:,}.", param="limit")


def require_token(text: str) -> str:
    """Return the token in `text` without the blanks around it; the error never shows it."""
    token = text.strip()
    if len(token) > MAX_TOKEN_LENGTH or not _TOKEN.fullmatch(token):
        raise InvalidRequest(
            "The token is empty, too long, or holds characters that no token has.", param="token"
        )
    return token


def judge_fit(need: Need | None, budget_bytes: int | None, trust: Trust) -> Fit:
    """Return whether what is needed is there, for a model to which `trust` is allowed."""
    if need is None:
        return Fit(budget_bytes=budget_bytes, reason="It holds no weights that can be loaded here.")
    if budget_bytes is None:
        return Fit(
            need_bytes=need.need_bytes,
            basis=need.basis,
            reason="The gateway runs no models itself.",
        )
    if need.is_pickled and not trust.pickle:
        return Fit(
            need_bytes=need.need_bytes,
            budget_bytes=budget_bytes,
            basis=need.basis,
            reason=f"Its weights are pickles, which {ALLOW_PICKLE} does not allow to this model.",
        )
    fits = need.need_bytes <= budget_bytes
    reason = None
    if not fits:
        reason = (
            f"It needs {need.need_bytes / 1e9:,.1f} GB; there are {budget_bytes / 1e9:,.1f} GB "
            "for models."
        )
    return Fit(fits, need.need_bytes, budget_bytes, need.basis, reason)
