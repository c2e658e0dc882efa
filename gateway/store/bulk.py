"""Rows by the hundred: an INSERT whose text is made once, its values handed to the driver as they
are. SQLAlchemy takes several times as long for a row as the database does.

What the types of the columns do to values still happens; what is special is only the way there.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import Column, Dialect, Insert
from sqlalchemy.ext.asyncio import AsyncConnection

Row = Sequence[object]


class BulkInsert:
    """`statement` for rows with a value for each of `columns`, in their order.

    Nothing else in the statement may be a parameter.
    """

    def __init__(self, statement: Insert, columns: Sequence[Column[Any]]) -> None:
        self._statement = statement
        self._columns = columns
        self._compiled: _Compiled | None = None

    async def execute(self, connection: AsyncConnection, rows: Iterable[Row]) -> None:
        if self._compiled is None:
            self._compiled = _Compiled(self._statement, self._columns, connection.dialect)
        compiled = self._compiled
        values = [compiled.bind(row) for row in rows]
        if compiled.is_positional:
            await connection.exec_driver_sql(compiled.text, values)
        else:
            named = [dict(zip(compiled.names, each, strict=True)) for each in values]
            await connection.exec_driver_sql(compiled.text, named)


class _Compiled:
    """What a statement is to one kind of database."""

    def __init__(self, statement: Insert, columns: Sequence[Column[Any]], dialect: Dialect) -> None:
        names = [column.name for column in columns]
        compiled = statement.compile(dialect=dialect, column_keys=names)
        self.text = str(compiled)
        self.is_positional = compiled.positiontup is not None
        self.names = list(compiled.positiontup or names)
        if sorted(self.names) != sorted(names) or set(compiled.params) != set(names):
            raise ValueError(f"the statement has other parameters than {names}: {self.names}")
        # The statement has them in the order of the table, whatever order the rows have.
        self._values: list[tuple[int, Callable[[Any], Any]]] = [
            (place, columns[place].type.dialect_impl(dialect).bind_processor(dialect) or _as_it_is)
            for place in map(names.index, self.names)
        ]

    def bind(self, row: Row) -> tuple[Any, ...]:
        """Return the values of a row as the driver takes them, in the order of `names`."""
        return tuple([process(row[place]) for place, process in self._values])


def _as_it_is(value: Any) -> Any:
    return value
