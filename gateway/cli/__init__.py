"""The command line: serving, checking, the database, keys, models, the Hub and its token.

Only click is imported at the start, so that `--help` answers at once; commands import the rest.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from gateway import __version__
from gateway.cli.collections import collections
from gateway.cli.decisions import decisions
from gateway.cli.hub import hub, search
from gateway.cli.keys import keys
from gateway.cli.memory import memory
from gateway.cli.models import models
from gateway.cli.pull import downloads, pull
from gateway.cli.rotations import rotations
from gateway.cli.routes import routes
from gateway.cli.token import token
from gateway.core.errors import GatewayError, Misconfigured

if TYPE_CHECKING:
    from gateway.settings import Settings

EXIT_FAILED = 1
EXIT_MISCONFIGURED = 2


class _Reporting(click.Group):
    """Turns the gateway's errors into sentences on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Misconfigured as error:
            for mistake in error.mistakes:
                click.echo(f"gateway: {mistake}", err=True)
            ctx.exit(EXIT_MISCONFIGURED)
        except GatewayError as error:
            click.echo(f"gateway: {error.message}", err=True)
            if error.hint:
                click.echo(error.hint, err=True)
            ctx.exit(EXIT_FAILED)


@click.group(cls=_Reporting)
@click.version_option(__version__, prog_name="gateway")
def main() -> None:
    """One gateway in front of Ollama and of transformers models in its own process."""


@main.command()
def serve() -> None:
    """Serve until SIGINT or SIGTERM.

    GATEWAY_HOST and GATEWAY_PORT say where; docs/configuration.md has all settings. At the first
    signal running streams get time to finish, the second ends them.
    """
    settings = _checked_settings(with_devices=True)
    from gateway.bootstrap.server import serve as run_server

    run_server(settings)


@main.command()
def check() -> None:
    """Report every mistake in the settings at once.

    Exits with 2 when there is one.
    """
    _checked_settings(with_devices=True)
    click.echo("The settings are right.")


@main.group()
def db() -> None:
    """The database schema."""


@db.command()
@click.argument("revision", default="head")
def upgrade(revision: str) -> None:
    """Bring the schema up to REVISION (the newest by default)."""
    from gateway.store import migrate

    url = _database_url()
    migrate.upgrade(url, revision)
    click.echo(f"The database is at revision {migrate.current(url)}.")


@db.command()
@click.argument("revision")
@click.option("--yes", is_flag=True, help="Do not ask.")
def downgrade(revision: str, yes: bool) -> None:
    """Bring the schema down to REVISION; `base` empties the database. Records are lost."""
    from gateway.store import migrate

    url = _database_url()
    if not yes:
        click.confirm(f"Records will be lost. Go down to {revision}?", abort=True)
    migrate.downgrade(url, revision)
    click.echo(f"The database is at revision {migrate.current(url)}.")


@db.command()
def revision() -> None:
    """Show the revision of the database and the newest one."""
    from gateway.store import migrate

    click.echo(f"database: {migrate.current(_database_url())}\nnewest:   {migrate.head()}")


main.add_command(keys)
main.add_command(models)
main.add_command(collections)
main.add_command(decisions)
main.add_command(routes)
main.add_command(search)
main.add_command(hub)
main.add_command(token)
main.add_command(downloads)
main.add_command(pull)
main.add_command(rotations)
main.add_command(memory)


def _checked_settings(*, with_devices: bool = False) -> Settings:
    """Return the settings; the commands that run no model need not wait for torch's import."""
    from gateway.preflight import find_mistakes
    from gateway.settings import load_settings

    return load_settings(find_mistakes=partial(find_mistakes, with_devices=with_devices))


def _database_url() -> str:
    return _checked_settings().resolved_database_url
