"""The tables of `bench.gateway`: medians, with what they are beside ours and beside no gateway."""

from collections.abc import Callable, Iterable, Sequence
from itertools import product

from bench import tables
from bench.cells import TOKENS, Cell, Kind
from bench.costs import Closing, Costs, Found, median
from bench.held import CLOSE_S
from bench.proxies import TITLES

OURS, DIRECT = "gateway", "direct"
HEADS: dict[Kind, str] = {
    "piece": f"Answers of {TOKENS['piece']} tokens in one piece",
    "burst": f"Streams of {TOKENS['burst']} tokens that come at once",
    "paced": f"Streams of {TOKENS['paced']} tokens at a model's pace",
}
Column = tuple[str, Callable[["Line"], str]]


class Line:
    """One row: a peer under a load, beside ours and beside no gateway under the same."""

    def __init__(self, found: Found, name: str, cell: Cell) -> None:
        self._found, self._name, self.cell = found, name, cell
        self.measured = found.loads[name, cell]
        costs = self.of(name, cell)
        assert costs is not None, "a row without figures"
        self.costs: Costs = costs

    def of(self, name: str, cell: Cell) -> Costs | None:
        measured = self._found.loads.get((name, cell))
        return median(measured.rounds) if measured and measured.rounds else None

    def added(self, figure: str) -> str:
        """Return how much more a figure is than without a gateway."""
        direct = self.of(DIRECT, self.cell)
        own, base = getattr(self.costs, figure), getattr(direct, figure, None)
        return "" if self._name == DIRECT or None in (own, base) else number(own - base)

    def ours(self, figure: str) -> str:
        """Return how many times a figure ours is."""
        ours = self.of(OURS, self.cell)
        if ours is None or self._name == OURS:
            return ""
        return f"{getattr(ours, figure) / getattr(self.costs, figure):.2g}x"

    def cpu_us_token(self) -> str:
        """Return what a token of a stream takes beyond what the same request in one piece does."""
        piece = self.of(self._name, self.cell._replace(kind="piece"))
        if piece is None or piece.cpu_us_answer is None or self.costs.cpu_us_answer is None:
            return ""
        return number((self.costs.cpu_us_answer - piece.cpu_us_answer) / TOKENS[self.cell.kind])

    def rounds(self) -> str:
        said = str(len(self.measured.rounds))
        if self.costs.lost:
            said += f", {self.costs.lost:,.0f} lost"
        return said + (f", then {self.measured.failure}" if self.measured.failure else "")


STOLEN: Column = ("stolen", lambda line: percent(line.costs.stolen))
COLUMNS: dict[Kind, Sequence[Column]] = {
    "piece": (
        ("requests/s", lambda line: number(line.costs.requests_per_s)),
        ("ours is", lambda line: line.ours("requests_per_s")),
        ("CPU us/request", lambda line: number(line.costs.cpu_us_answer)),
        ("p50 ms", lambda line: number(line.costs.p50_ms)),
        ("p99 ms", lambda line: number(line.costs.p99_ms)),
        ("added p50 ms", lambda line: line.added("p50_ms")),
        ("added p99 ms", lambda line: line.added("p99_ms")),
    ),
    "burst": (
        ("tokens/s", lambda line: number(line.costs.tokens_per_s)),
        ("ours is", lambda line: line.ours("tokens_per_s")),
        ("CPU us/token", Line.cpu_us_token),
        ("TTFT p50 ms", lambda line: number(line.costs.ttft_p50_ms)),
        ("TTFT p99 ms", lambda line: number(line.costs.ttft_p99_ms)),
    ),
    "paced": (
        ("tokens/s", lambda line: number(line.costs.tokens_per_s)),
        ("CPU us/token", Line.cpu_us_token),
        ("core", lambda line: percent(line.costs.cpu_share)),
        ("TTFT p50 ms", lambda line: number(line.costs.ttft_p50_ms)),
        ("TTFT p99 ms", lambda line: number(line.costs.ttft_p99_ms)),
        ("added p50 ms", lambda line: line.added("ttft_p50_ms")),
        ("gap p50 ms", lambda line: number(line.costs.gap_p50_ms)),
        ("gap p99 ms", lambda line: number(line.costs.gap_p99_ms)),
        ("MB above idle", lambda line: number(line.costs.above_idle_mb)),
    ),
}


def report(found: Found, peers: Sequence[str]) -> str:
    """Return a table for each kind of load, one of still streams, and what could not be run."""
    cells = list(dict.fromkeys(cell for _, cell in found.loads))
    parts = [
        _of_kind(found, kind, [cell for cell in cells if cell.kind == kind], peers)
        for kind in HEADS
    ]
    parts.append(_of_stillness(found, peers))
    parts += [f"{TITLES[name]}: {reason}" for name, reason in found.failures.items()]
    return "\n\n".join(parts)


def _of_kind(found: Found, kind: Kind, cells: Sequence[Cell], peers: Iterable[str]) -> str:
    columns = (*COLUMNS[kind], STOLEN)
    rows = []
    for cell, name in product(cells, peers):
        head = [TITLES[name], f"{cell.connections:,}"]
        measured = found.loads[name, cell]
        if measured.rounds:
            line = Line(found, name, cell)
            rows.append([*head, *(write(line) for _, write in columns), line.rounds()])
        else:
            rows.append([*head, measured.failure or "not measured", *[""] * len(columns)])
    names = [name for name, _ in columns]
    return f"{HEADS[kind]}\n\n" + tables.markdown(["peer", "at once", *names, "rounds"], rows)


def _of_stillness(found: Found, peers: Iterable[str]) -> str:
    head = [
        "peer", "idle MB", "silent streams", "KB each",
        "speaking: abort to close p50 ms", "p99 ms", "silent: p50 ms", "p99 ms",
    ]  # fmt: skip
    rows = []
    for name in peers:
        still = found.still.get(name)
        if still is None:
            rows.append([TITLES[name], "not measured", *[""] * 6])
            continue
        held = [number(still.idle_mb), f"{still.streams:,}", number(still.kb_each)]
        rows.append([TITLES[name], *held, *_of_closing(still.speaking), *_of_closing(still.silent)])
    return "Streams that are held or aborted\n\n" + tables.markdown(head, rows)


def _of_closing(closing: Closing) -> tuple[str, str]:
    missed = f"{closing.missed} of {closing.missed + closing.closed} not in {CLOSE_S:.0f} s"
    p99 = number(closing.p99_ms)
    return number(closing.p50_ms), f"{p99} {missed}".strip() if closing.missed else p99


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
