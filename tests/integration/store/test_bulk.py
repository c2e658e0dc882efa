"""Rows by the hundred, and how often a driver is asked for them."""

import pytest
from sqlalchemy import event

from gateway.core.sessions import Session
from gateway.store.database import Database
from gateway.store.sessions import DatabaseSessionStore
from tests.integration.store.test_session_store import closed, opened


class Calls:
    """The INSERTs that a driver was given."""

    def __init__(self, database: Database) -> None:
        self.count = 0
        assert database._engine is not None
        engine = database._batches or database._engine.sync_engine
        event.listen(engine, "before_cursor_execute", self.note)

    def note(self, _c: object, _cursor: object, text: str, *rest: object) -> None:
        *_, is_many = rest
        if text.startswith("INSERT"):
            assert not is_many
            self.count += 1


@pytest.mark.parametrize("count", [1, 2, 3, 255, 256, 257, 511, 777])
async def test_every_row_arrives_in_few_calls(database: Database, count: int) -> None:
    calls = Calls(database)
    store = DatabaseSessionStore(database)
    names = [f"s{number:03}" for number in range(count)]
    await store.write([opened(name) for name in names], [closed(name) for name in names])
    assert calls.count <= (10 if database.backend == "sqlite" else 1)
    recent = await store.recent(1000)
    assert recent[::-1] == [Session(opened(name), closed(name)) for name in names]
