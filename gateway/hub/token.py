"""Asks the Hub whose a token is and what it may."""

from typing import Any

import msgspec

from gateway.core.errors import HubProtocolError
from gateway.core.hub import HubAccount
from gateway.hub.client import HubClient

_MAX_BYTES = 2**20


class _Named(msgspec.Struct):
    name: str


class _Scope(msgspec.Struct):
    entity: dict[str, Any] = {}
    permissions: list[str] = []


class _Fine(msgspec.Struct, rename="camel"):
    can_read_gated_repos: bool = False
    scoped: list[_Scope] = []


class _AccessToken(msgspec.Struct, rename="camel"):
    role: str | None = None
    fine_grained: _Fine | None = None


class _Auth(msgspec.Struct, rename="camel"):
    access_token: _AccessToken | None = None


class _WhoAmI(msgspec.Struct):
    name: str
    orgs: list[_Named] = []
    auth: _Auth = msgspec.field(default_factory=_Auth)


_DECODER = msgspec.json.Decoder(_WhoAmI)


async def ask_whoami(client: HubClient, token: str) -> HubAccount:
    """Return the account of `token`. Raises HubTokenRejected for one that the Hub does not know."""
    reply = await client.get("/api/whoami-v2", token=token, max_bytes=_MAX_BYTES)
    try:
        who = _DECODER.decode(reply.data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise HubProtocolError("The Hub does not say whose the token is.") from error
    about = who.auth.access_token or _AccessToken()
    return HubAccount(
        name=who.name,
        role=about.role,
        scopes=tuple(_scopes(about.fine_grained)),
        organizations=tuple(organization.name for organization in who.orgs),
    )


def _scopes(fine: _Fine | None) -> list[str]:
    """Return what a fine-grained token may, each as `permission` or `permission on entity`."""
    if fine is None:
        return []
    found = ["gated-repos.read"] if fine.can_read_gated_repos else []
    for scope in fine.scoped:
        name = scope.entity.get("name")
        where = f" on {name}" if isinstance(name, str) else ""
        found += [f"{permission}{where}" for permission in scope.permissions]
    return found
