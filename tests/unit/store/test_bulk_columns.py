"""Values that are bound a column at a time are those that SQLAlchemy binds one by one."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Dialect, TypeDecorator
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from gateway.store.tables import MAX_COUNT, CleanText, ColumnType, Count, UnixTime

DIALECTS = [SQLiteDialect_pysqlite(), PGDialect_psycopg()]


def one_by_one(
    kind: TypeDecorator[object], values: Sequence[object], dialect: Dialect
) -> list[object]:
    bind = kind.dialect_impl(dialect).bind_processor(dialect)
    return [bind(value) if bind else value for value in values]


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda each: each.name)
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (CleanText(4), ["abc", None, "", "abc"]),
        (CleanText(4), ["abc", None, "abcd", "abcde"]),
        (CleanText(4), ["abc", None, "a\x00"]),
        (CleanText(4), ["abc", "ä", "a\ud800"]),
        (CleanText(4), [None, None]),
        (Count(), [1, None, 0, MAX_COUNT]),
        (Count(), [1, None, -1]),
        (Count(), [1, MAX_COUNT + 1]),
        (Count(), [None]),
        (UnixTime(), [1_790_000_000.123456, None, 1_790_000_000.5, 1_790_000_001.0, 0.0]),
        (UnixTime(), [1_790_000_000.9999999, 1_790_000_000.0000005, -0.25]),
    ],
)
def test_a_column_is_bound_as_its_values_are(
    kind: TypeDecorator[object], values: Sequence[object], dialect: Dialect
) -> None:
    assert isinstance(kind, ColumnType)
    assert list(kind.bind_column(values, dialect)) == one_by_one(kind, values, dialect)


@given(st.lists(st.floats(-1e9, 1e11)))
def test_times_are_written_to_sqlite_as_sqlalchemy_writes_them(values: list[float]) -> None:
    kind, dialect = UnixTime(), DIALECTS[0]
    assert kind.bind_column(values, dialect) == one_by_one(kind, values, dialect)
