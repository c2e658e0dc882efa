"""Schema revisions: upgrade, downgrade, and the check that a gateway and its database agree.

Blocking functions, for the CLI and for threads. alembic is imported only when one is called.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from gateway.core.errors import WrongRevision
from gateway.store.database import create_sync_engine, parse_url, translated_faults

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

_ADVISORY_LOCK = 0x6D6F64656C677721  # any number that only this gateway's migrations use
_TIMEOUT_S = 10.0
_UPGRADE = "gateway db upgrade"


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the database up to `revision`, all of it or nothing; one migrator at a time."""
    from alembic import command

    _migrate(url, lambda config: command.upgrade(config, revision))


def downgrade(url: str, revision: str) -> None:
    """Take the database back to `revision`; `base` removes every table and its data."""
    from alembic import command

    _migrate(url, lambda config: command.downgrade(config, revision))


def current(url: str) -> str | None:
    """Return the revision of the database; None before the first migration."""
    target = parse_url(url)
    if target.get_backend_name() == "sqlite" and _is_missing_file(target.database):
        return None  # connecting would leave an empty file
    with _connected(url) as connection:
        return _read_revision(connection)


def head() -> str:
    """Return the newest revision that this version of the gateway knows."""
    revision = _scripts().get_current_head()
    if revision is None:
        raise AssertionError("the migrations directory is empty")
    return revision


def require_head(url: str) -> None:
    """Raise WrongRevision, with the way out, unless the database is at this version's revision."""
    found, wanted = current(url), head()
    if found == wanted:
        return
    if found is not None and not _is_known(found):
        raise _newer_than_gateway(found, wanted)
    state = f"is at revision {found}" if found else "has no schema yet"
    raise WrongRevision(
        f"The database {state}; this version of the gateway needs revision {wanted}.",
        hint=f"Run `{_UPGRADE}`.",
    )


def find_migrations() -> Path:
    """Return the migrations directory: of the source tree, else of the installed package."""
    package = Path(__file__).resolve().parents[1]
    root = package.parent
    # Beside an installed package, in site-packages, "migrations" may be anybody's.
    if (root / "pyproject.toml").is_file() and (root / "migrations" / "env.py").is_file():
        return root / "migrations"
    return package / "_migrations"


def _migrate(url: str, command: Callable[["Config"], None]) -> None:
    from alembic.util import CommandError

    with _connected(url, writes=True) as connection:
        _wait_for_other_migrators(connection)
        config = _config()
        config.attributes["connection"] = connection
        try:
            command(config)
        except CommandError as error:
            found = _read_revision(connection)
            if found is not None and not _is_known(found):
                raise _newer_than_gateway(found, head()) from error
            raise WrongRevision(f"{error}.", hint=f"The newest revision is {head()}.") from error


def _read_revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _wait_for_other_migrators(connection: Connection) -> None:
    # SQLite's lock is already held: the transaction began as IMMEDIATE.
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})


@contextmanager
def _connected(url: str, *, writes: bool = False) -> Iterator[Connection]:
    parsed = parse_url(url)
    with translated_faults(parsed):
        engine = create_sync_engine(parsed, _TIMEOUT_S)
        try:
            with engine.execution_options(writes=writes).begin() as connection:
                yield connection
        finally:
            engine.dispose()


def _scripts() -> "ScriptDirectory":
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(_config())


def _config() -> "Config":
    from alembic.config import Config

    config = Config()
    # "%" would be read as an interpolation.
    config.set_main_option("script_location", str(find_migrations()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _is_known(revision: str) -> bool:
    return any(script.revision == revision for script in _scripts().walk_revisions())


def _is_missing_file(database: str | None) -> bool:
    return database is not None and not database.startswith("file:") and not Path(database).exists()


def _newer_than_gateway(found: str, wanted: str) -> WrongRevision:
    return WrongRevision(
        f"The database is at revision {found}, which is newer than this version of the gateway "
        f"({wanted}).",
        hint="Run the newer gateway, or take the database back with it: `gateway db downgrade`.",
    )
