"""Revisions on real databases: there and back, one migrator at a time, and the refusal to start."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, text
from sqlalchemy.exc import IntegrityError

from gateway.core.errors import WrongRevision
from gateway.problems import describe
from gateway.store import migrate
from gateway.store.database import create_sync_engine, parse_url
from gateway.store.tables import metadata

ROOT = Path(__file__).parents[3]
TABLES = {
    "alembic_version",
    "api_keys",
    "boots",
    "collection_models",
    "collections",
    "decisions",
    "downloads",
    "hub_metadata",
    "model_configs",
    "model_files",
    "models",
    "providers",
    "routing_rules",
    "routing_stamp",
    "rotation_steps",
    "rotations",
    "secrets",
    "stream_sessions",
}


def connect(url: str) -> Engine:
    return create_sync_engine(parse_url(url), timeout_s=5.0)


def tables(url: str) -> set[str]:
    return set(inspect(connect(url)).get_table_names())


def stamp(url: str, revision: str) -> None:
    with connect(url).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :r"), {"r": revision})


def test_an_upgrade_makes_every_table(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    assert tables(empty_url) == TABLES
    assert migrate.current(empty_url) == migrate.head()


def test_down_to_nothing_and_up_again(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    migrate.downgrade(empty_url, "base")
    assert tables(empty_url) == {"alembic_version"}
    assert migrate.current(empty_url) is None
    migrate.upgrade(empty_url)
    assert tables(empty_url) == TABLES
    migrate.require_head(empty_url)


def test_an_upgrade_at_head_changes_nothing(database_url: str) -> None:
    with connect(database_url).begin() as connection:
        connection.execute(
            text("INSERT INTO models VALUES ('a', 'p', 'm', '', 'LOADED', 1, NULL, :at)"),
            {"at": "2026-01-01 00:00:00"},
        )
    migrate.upgrade(database_url)
    with connect(database_url).connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM models")).scalar() == 1


def test_the_migrations_and_the_tables_agree(database_url: str) -> None:
    with connect(database_url).connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, metadata) == []


def test_the_migrations_and_the_tables_agree_on_checks(database_url: str) -> None:
    found = inspect(connect(database_url))
    for table in metadata.sorted_tables:
        wanted = {str(check.name) for check in table.constraints if "ck_" in f"{check.name}"}
        named = {f"ck_{table.name}_{name}" if "ck_" not in name else name for name in wanted}
        assert {check["name"] for check in found.get_check_constraints(table.name)} == named


def test_open_sessions_are_found_by_a_partial_index(database_url: str) -> None:
    indexes = inspect(connect(database_url)).get_indexes("stream_sessions")
    partial = next(index for index in indexes if index["name"] == "ix_stream_sessions_open")
    where = partial["dialect_options"]
    assert "end_reason IS NULL" in str(next(iter(where.values())))


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO models VALUES ('a', 'p', 'm', '', 'BUSY', NULL, NULL, '2026-01-01 00:00:00')",
        "UPDATE providers SET state = 'SLEEPY'",
        "UPDATE stream_sessions SET end_reason = 'bored', closed_at = opened_at",
        "UPDATE stream_sessions SET end_reason = 'stop'",
    ],
)
def test_the_database_refuses_unknown_states(database_url: str, statement: str) -> None:
    with connect(database_url).begin() as connection:
        connection.execute(
            text(
                "INSERT INTO providers (node, name, kind, state, checked_at, capabilities) "
                "VALUES ('a', 'p', 'k', 'UP', '2026-01-01 00:00:00', '[]')"
            )
        )
        connection.execute(
            text(
                "INSERT INTO stream_sessions (id, request_id, node, requested_model, face, "
                "opened_at) VALUES ('s', 'r', 'a', 'm', 'f', '2026-01-01 00:00:00')"
            )
        )
    with pytest.raises(IntegrityError), connect(database_url).begin() as connection:
        connection.execute(text(statement))


def test_an_empty_database_is_refused_with_the_command(empty_url: str) -> None:
    with pytest.raises(WrongRevision) as refused:
        migrate.require_head(empty_url)
    assert refused.value.message == (
        "The database has no schema yet; this version of the gateway needs revision "
        f"{migrate.head()}."
    )
    assert refused.value.hint == "Run `gateway db upgrade`."


def test_looking_at_a_missing_file_does_not_make_it(tmp_path: Path) -> None:
    file = tmp_path / "nothing.db"
    assert migrate.current(f"sqlite:///{file}") is None
    assert not file.exists()


def test_an_older_revision_is_refused_with_both_revisions_and_the_command(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = migrate.head()
    monkeypatch.setattr(migrate, "head", lambda: "0999")
    with pytest.raises(WrongRevision, match=rf"{found}.*0999") as refused:
        migrate.require_head(database_url)
    assert refused.value.hint == "Run `gateway db upgrade`."


def test_a_newer_revision_is_refused_without_sending_people_to_upgrade(database_url: str) -> None:
    stamp(database_url, "9999")
    with pytest.raises(WrongRevision, match=r"9999, which is newer.*" + migrate.head()) as refused:
        migrate.require_head(database_url)
    assert "upgrade" not in str(describe(refused.value).hint)


def test_a_newer_revision_is_not_migrated(database_url: str) -> None:
    stamp(database_url, "9999")
    with pytest.raises(WrongRevision, match="newer than this version"):
        migrate.upgrade(database_url)
    with pytest.raises(WrongRevision, match="newer than this version"):
        migrate.downgrade(database_url, "base")
    assert migrate.current(database_url) == "9999"


def test_an_unknown_target_is_refused(database_url: str) -> None:
    with pytest.raises(WrongRevision, match="nonsense"):
        migrate.upgrade(database_url, "nonsense")
    migrate.require_head(database_url)


MIGRATOR = """
import sys
from gateway.store import migrate
migrate.head()
print("ready", flush=True)
sys.stdin.readline()
migrate.upgrade(sys.argv[1])
"""


@contextmanager
def migrators(url: str, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are about to migrate; those still there at the end are killed."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with ExitStack() as started:
        found = []
        for _ in range(count):
            command = [sys.executable, "-c", MIGRATOR, url]
            process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
            started.enter_context(process)
            started.callback(process.kill)
            found.append(process)
        for process in found:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield found


def wait_until_all_wait(url: str, count: int) -> None:
    """Return once so many of PostgreSQL's clients wait for others; of SQLite's nobody can tell."""
    if url.startswith("sqlite"):
        return
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    give_up_at = time.monotonic() + 30
    engine = connect(url).execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        while connection.execute(waiting).scalar() != count:
            assert time.monotonic() < give_up_at
    engine.dispose()


def test_migrators_that_start_together_take_turns(empty_url: str) -> None:
    engine = connect(empty_url).execution_options(writes=True)
    with migrators(empty_url, 2) as processes:
        with engine.connect() as connection:
            # Whoever is let in comes to here, has looked what there is, and waits.
            connection.execute(text("CREATE TABLE alembic_version (version_num TEXT)"))
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
            wait_until_all_wait(empty_url, len(processes))
            connection.rollback()
        said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    migrate.require_head(empty_url)


def test_a_migration_that_fails_leaves_nothing_behind(empty_url: str) -> None:
    with connect(empty_url).begin() as connection:
        connection.execute(text("CREATE TABLE stream_sessions (unlike TEXT)"))
    with pytest.raises(Exception, match="stream_sessions"):
        migrate.upgrade(empty_url)
    assert tables(empty_url) <= {"stream_sessions", "alembic_version"}
    assert migrate.current(empty_url) is None


def test_the_working_directory_does_not_matter(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    migrate.upgrade(sqlite_url)
    migrate.require_head(sqlite_url)


def test_importing_the_module_does_not_import_alembic() -> None:
    code = "import sys, gateway.store.migrate; sys.exit('alembic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_an_installed_package_finds_its_own_migrations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "site-packages" / "gateway"
    (tmp_path / "site-packages" / "migrations").mkdir(parents=True)
    (tmp_path / "site-packages" / "migrations" / "env.py").touch()  # somebody else's
    monkeypatch.setattr(migrate, "__file__", str(installed / "store" / "migrate.py"))
    assert migrate.find_migrations() == (installed / "_migrations").resolve()
