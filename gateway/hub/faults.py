"""What the Hub's refusals mean: status and `X-Error-Code` to our errors.

Source: `hf_raise_for_status` of huggingface_hub. A 401 without a code is a repository that is not
there, or is not shown to who asks; with a token that the Hub does not know it says so.
"""

import re
from http import HTTPStatus
from typing import NoReturn

import httpx2

from gateway.core.errors import (
    GatedRepository,
    HubProtocolError,
    HubTokenRejected,
    HubUnavailable,
    RepositoryNotFound,
)

_BAD_TOKEN = ("Invalid credentials in Authorization header", "Invalid username or password.")
_REPOSITORY = re.compile(
    r"/api/models/(?P<api>[^/]+(?:/(?!(?:revision|tree)/)[^/]+)?)"
    r"|/(?P<file>[^/]+(?:/[^/]+)?)/resolve/"
)


def raise_for_status(reply: httpx2.Response, path: str, *, had_token: bool) -> None:
    """Raise what an answer of 400 or more means; `path` is what was asked for, `had_token`
    whether a token was sent. 429 is for the RateGate."""
    if reply.status_code >= 400:
        _raise(reply, path, had_token)


def _raise(reply: httpx2.Response, path: str, had_token: bool) -> NoReturn:
    code = reply.headers.get("X-Error-Code", "")
    said = reply.headers.get("X-Error-Message", "")
    if code == "GatedRepo":
        raise _gated(path, had_token)
    if code in ("RevisionNotFound", "EntryNotFound"):
        what = "revision" if code == "RevisionNotFound" else "file"
        raise RepositoryNotFound(
            f"The Hub has no such {what} of '{_name(path)}'.",
            hint="The repository's page on the Hub lists its branches, tags and files.",
        )
    status = reply.status_code
    if status >= 500 or status == HTTPStatus.REQUEST_TIMEOUT:
        raise HubUnavailable(f"The Hub answered {status}.")
    is_of_a_token = said in _BAD_TOKEN or "whoami" in path
    if status == HTTPStatus.UNAUTHORIZED and had_token and is_of_a_token:
        raise HubTokenRejected("The Hub does not know the token.")
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND):
        raise RepositoryNotFound(f"The Hub has no repository '{_name(path)}'.")
    if status == HTTPStatus.FORBIDDEN:
        raise GatedRepository(f"The Hub does not give access to '{_name(path)}'.")
    raise HubProtocolError(f"The Hub refused the request: {status}.")


def _gated(path: str, had_token: bool) -> GatedRepository:
    name = _name(path)
    if had_token:
        hint = f"Ask for access at the page of '{name}', or set a token that has it."
    else:
        hint = f"Ask for access at the page of '{name}', then `gateway token set`."
    return GatedRepository(f"Access to '{name}' is gated.", hint=hint)


def _name(path: str) -> str:
    """Return the repository that a path is about."""
    found = _REPOSITORY.search(path)
    return found["api"] or found["file"] if found else path
