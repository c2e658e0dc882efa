"""The database's clock: what leases and schedules of several gateways go by."""

from sqlalchemy import Float, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

_NOW = {
    # SQLite before 3.42 has no unixepoch('subsec').
    "sqlite": select((func.julianday("now") - 2440587.5) * 86400.0),
    "postgresql": select(func.extract("epoch", func.clock_timestamp()).cast(Float)),
}


async def read_clock(connection: AsyncConnection) -> float:
    """Return the database's time in Unix seconds."""
    return float((await connection.execute(_NOW[connection.dialect.name])).scalar_one())
