"""`gateway keys`: makes, lists and revokes API keys, straight in the database.

So the first key can be made before the gateway runs, and the last one replaced when it is lost.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import click

from gateway.cli.client import as_json_option, print_json, show_time

if TYPE_CHECKING:
    from gateway.core.keys import ApiKey
    from gateway.services.keys import KeyService

T = TypeVar("T")


@click.group()
def keys() -> None:
    """API keys. Once there is one, every request needs one."""


@keys.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(["infer", "manage", "admin"]),
    multiple=True,
    default=("infer",),
    show_default=True,
    help="What it may: generate and embed; load and configure models; everything. May be repeated.",
)
@click.option("--max-streams", type=int, help="Streams and embedding requests at once.")
@click.option("--requests-per-minute", type=int, help="Requests a minute.")
@as_json_option
def create(
    name: str,
    scopes: tuple[str, ...],
    max_streams: int | None,
    requests_per_minute: int | None,
    as_json: bool,
) -> None:
    """Make a key for NAME and print it: it is never shown again."""
    from gateway.core.keys import KeyOrder, KeyScope

    order = KeyOrder(name, tuple(map(KeyScope, scopes)), max_streams, requests_per_minute)
    key, text = _run(lambda service: service.create(order))
    if as_json:
        print_json({**_as_dict(key), "key": text})
        return
    click.echo(text)
    click.echo(f"Key {key.id} of '{key.name}'. Keep it: it is not shown again.", err=True)


@keys.command("list")
@as_json_option
def list_keys(as_json: bool) -> None:
    """List the keys, revoked ones too. None of them can be shown."""
    found = _run(lambda service: service.all())
    if as_json:
        print_json({"keys": [_as_dict(key) for key in found]})
        return
    for key in found:
        click.echo(_describe(key))
    if not found:
        click.echo("There is no key: the gateway serves its own machine only.")


@keys.command()
@click.argument("id")
def revoke(id: str) -> None:
    """Revoke the key of that ID.

    Its live streams end within two seconds.
    """
    key = _run(lambda service: service.revoke(id))
    click.echo(f"Key {key.id} of '{key.name}' is revoked.")


def _run(work: Callable[[KeyService], Awaitable[T]]) -> T:
    """Return what `work` does with the keys of the settings' database."""
    import anyio

    from gateway.preflight import find_mistakes
    from gateway.services.keys import KeyService
    from gateway.settings import load_settings
    from gateway.store import migrate
    from gateway.store.database import Database
    from gateway.store.keys import DatabaseKeyStore
    from gateway.store.pepper import load_peppers

    settings = load_settings(find_mistakes=find_mistakes)
    url = settings.resolved_database_url
    migrate.require_head(url)
    peppers = load_peppers(settings.key_pepper.get_secret_value(), settings.resolved_pepper_file)

    async def run() -> T:
        async with Database(url) as database:
            return await work(KeyService(DatabaseKeyStore(database), peppers))

    return anyio.run(run)


def _describe(key: ApiKey) -> str:
    parts = [key.id, f"{','.join(key.scopes):<18}", f"made {show_time(key.created_at)}"]
    if key.max_streams is not None:
        parts.append(f"{key.max_streams} streams")
    if key.requests_per_minute is not None:
        parts.append(f"{key.requests_per_minute} requests/min")
    if key.revoked_at is not None:
        parts.append(f"revoked {show_time(key.revoked_at)}")
    return "  ".join([*parts, key.name])


def _as_dict(key: ApiKey) -> dict[str, object]:
    import msgspec

    return msgspec.structs.asdict(key)
