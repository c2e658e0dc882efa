"""What the command says: summaries that fit a terminal, lengths of time, moments."""

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from gateway.cli import main
from gateway.cli.client import show_duration, show_time


def groups(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from groups(command, (*path, name))


@pytest.mark.parametrize("path", list(groups(main)), ids=lambda path: "-".join(path) or "gateway")
def test_every_summary_fits_a_terminal_of_80_columns(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(main, [*path, "--help"], terminal_width=80)
    summaries = shown.output.partition("Commands:\n")[2].splitlines()
    assert summaries and [line for line in summaries if line.endswith("...")] == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (119, "119 s"),
        (300, "5 min"),
        (7300, "2 hours"),
        (3_479_686, "40 days"),
    ],
)
def test_a_length_of_time_is_told_in_its_largest_unit(seconds: float, text: str) -> None:
    assert show_duration(seconds) == text


def test_a_moment_names_its_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    assert show_time(1_795_248_192.5) == "2026-11-21 08:03:12Z"
