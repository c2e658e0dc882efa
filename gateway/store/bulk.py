"""Rows by the hundred: an INSERT whose text is made once, its values bound column by column.
SQLAlchemy takes several times as long for a row as the database does.

SQLite gets many rows a statement: its driver gives the interpreter up for each one, and gets it
back only after 5 ms where the event loop is busy. PostgreSQL gets all of them as one JSON text, of
which it makes a table: a message for each row costs more than reading it. What the types of the
columns do to values still happens; what is special is only the way there.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import msgspec
from sqlalchemy import (
    JSON,
    Column,
    Connection,
    Dialect,
    FromClause,
    Insert,
    bindparam,
    column,
    func,
    select,
)
from sqlalchemy.types import TypeEngine

from gateway.store.tables import ColumnType

Values = Sequence[object]
"""Of one row."""
Bind = Callable[[Sequence[Any]], Sequence[Any]]
MOST_ROWS = 256
"""Of one statement, a power of two. SQLite takes 32,766 values in one, since 3.32."""


class BulkInsert:
    """`statement` for rows with a value for each of `columns`, in their order.

    Nothing else in the statement may be a parameter. PostgreSQL takes a key once only in a call.
    """

    def __init__(self, statement: Insert, columns: Sequence[Column[Any]]) -> None:
        self._statement = statement
        self._columns = columns
        self._compiled: _Rows | _Table | None = None

    def execute(self, connection: Connection, rows: Sequence[Values]) -> None:
        """Insert the rows, of which there is at least one."""
        if self._compiled is None:
            kind = _Table if connection.dialect.name == "postgresql" else _Rows
            self._compiled = kind(self._statement, self._columns, connection.dialect)
        for text, values in self._compiled.statements(rows):
            connection.exec_driver_sql(text, values)


class _Rows:
    """What a statement is to SQLite: an INSERT of 256 rows, of 128, and so on. So the driver has
    nine texts prepared, whatever the number of rows."""

    def __init__(self, statement: Insert, columns: Sequence[Column[Any]], dialect: Dialect) -> None:
        names = [column.name for column in columns]
        compiled = statement.compile(dialect=dialect, column_keys=names)
        places = compiled.positiontup or []
        if sorted(places) != sorted(names):
            raise ValueError(f"the statement has other parameters than {names}: {places}")
        # The statement has them in the order of the table, whatever order the rows have.
        self._places = [names.index(name) for name in places]
        self._binds = [_binder(columns[place].type, dialect) for place in self._places]
        row = f"({', '.join('?' * len(names))})"
        before, after = str(compiled).split(row)
        each_once = _sizes(2 * MOST_ROWS - 1)
        self._texts = {size: before + ", ".join([row] * size) + after for size in each_once}

    def statements(self, rows: Sequence[Values]) -> Iterator[tuple[str, Any]]:
        values = list(zip(*rows, strict=True))
        bound = [bind(values[place]) for place, bind in zip(self._places, self._binds, strict=True)]
        ordered = list(zip(*bound, strict=True))
        done = 0
        for size in _sizes(len(ordered)):
            part = ordered[done : done + size]
            yield self._texts[size], tuple(chain.from_iterable(part))
            done += size


def given_rows(columns: Sequence[Column[Any]], backend: str) -> FromClause:
    """Return the parameter `rows`, a list of objects, as a table that has these columns."""
    rows = bindparam("rows", type_=JSON)
    if backend == "postgresql":
        table = func.json_to_recordset(rows).table_valued(
            *(column(each.name, each.type) for each in columns)
        )
        return table.render_derived(name="given", with_types=True)
    row = func.json_each(rows).table_valued("value").c.value
    return select(
        *(func.json_extract(row, f"$.{each.name}").label(each.name) for each in columns)
    ).subquery("given")


def _sizes(count: int) -> Iterator[int]:
    """Return powers of two, the greatest first, whose sum is `count`."""
    size = MOST_ROWS
    while count:
        while size > count:
            size //= 2
        yield size
        count -= size


class _Table:
    """What a statement is to PostgreSQL: an INSERT from a table that is one parameter."""

    def __init__(self, statement: Insert, columns: Sequence[Column[Any]], dialect: Dialect) -> None:
        self._names = [column.name for column in columns]
        # A value of the type JSON is one within the text already.
        self._binds = [
            _as_they_are if isinstance(each.type, JSON) else _binder(each.type, dialect)
            for each in columns
        ]
        source = select(given_rows(columns, dialect.name))
        compiled = statement.from_select(self._names, source).compile(dialect=dialect)
        if set(compiled.params) != {"rows"}:
            raise ValueError(f"the statement has parameters of its own: {compiled.params}")
        self._text = str(compiled)

    def statements(self, rows: Sequence[Values]) -> Iterator[tuple[str, Any]]:
        values = zip(*rows, strict=True)
        bound = [bind(each) for bind, each in zip(self._binds, values, strict=True)]
        named = [dict(zip(self._names, row, strict=True)) for row in zip(*bound, strict=True)]
        yield self._text, {"rows": msgspec.json.encode(named).decode()}


def _binder(kind: TypeEngine[Any], dialect: Dialect) -> Bind:
    """Return what makes the values of a column those that the driver takes."""
    if isinstance(kind, ColumnType):
        return partial(kind.bind_column, dialect=dialect)
    process = kind.dialect_impl(dialect).bind_processor(dialect)
    return partial(_each, process) if process else _as_they_are


def _each(process: Callable[[Any], Any], values: Sequence[Any]) -> Sequence[Any]:
    return [process(value) for value in values]


def _as_they_are(values: Sequence[Any]) -> Sequence[Any]:
    return values
