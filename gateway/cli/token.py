"""`gateway token`: the token that the Hub is asked with, straight in the database.

So it can be set before the gateway runs; a running one uses it within two seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gateway.cli.client import as_json_option, print_json

if TYPE_CHECKING:
    from gateway.core.hub import TokenReport
    from gateway.services.hub_token import HubTokenService

T = TypeVar("T")

EXIT_INVALID = 1


@click.group()
def token() -> None:
    """The token of the Hugging Face Hub. It is stored encrypted and never shown."""


@token.command("set")
@click.option("--no-validate", is_flag=True, help="Do not ask the Hub whether it is valid.")
@as_json_option
def set_token(no_validate: bool, as_json: bool) -> None:
    """Store the token that is typed, or that comes on standard input."""
    is_typed = sys.stdin.isatty()
    text = click.prompt("Token", hide_input=True) if is_typed else sys.stdin.read(4096)
    report = _run(lambda service: service.set(text, validate=not no_validate))
    _print(report, as_json)


@token.command()
@as_json_option
def show(as_json: bool) -> None:
    """Say where the token comes from.

    The token itself is shown to nobody.
    """
    _print(_run(lambda service: service.report()), as_json)


@token.command()
@as_json_option
def validate(as_json: bool) -> None:
    """Ask the Hub whose the token is and what it may.

    Exits with 1 if it is none of its.
    """
    report = _run(lambda service: service.report(validate=True))
    _print(report, as_json)
    if not report.valid:
        sys.exit(EXIT_INVALID)


@token.command()
@as_json_option
def delete(as_json: bool) -> None:
    """Forget the stored token; HF_TOKEN is used then, if there is one."""
    _print(_run(lambda service: service.delete()), as_json)


def _run(work: Callable[[HubTokenService], Awaitable[T]]) -> T:
    """Return what `work` does with the token of the settings' database."""
    import anyio

    from gateway.bootstrap.hub import open_hub
    from gateway.preflight import find_mistakes
    from gateway.settings import load_settings
    from gateway.store import migrate
    from gateway.store.database import Database

    settings = load_settings(find_mistakes=find_mistakes)
    url = settings.resolved_database_url
    migrate.require_head(url)

    async def run() -> T:
        async with Database(url) as database:
            hub = await open_hub(settings, database)
            try:
                return await work(hub.tokens)
            finally:
                await hub.client.aclose()

    return anyio.run(run)


def _print(report: TokenReport, as_json: bool) -> None:
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(report))
        return
    for line in _describe(report):
        click.echo(line)


def _describe(report: TokenReport) -> list[str]:
    where: dict[str, str] = {
        "stored": "A stored token is used.",
        "environment": "The token of HF_TOKEN is used.",
        "none": "There is no token: the Hub is asked anonymously.",
    }
    lines = [where[report.source]]
    if report.valid is False:
        lines.append("The Hub does not know it.")
    account: Any = report.account
    if account is not None:
        lines.append(f"It is {account.name}'s, for {account.role or 'unknown use'}.")
        if account.scopes:
            lines.append(f"It may: {', '.join(account.scopes)}.")
    return lines
