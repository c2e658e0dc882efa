"""`gateway search` and `gateway hub`: what the Hugging Face Hub has, by the running gateway."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from gateway.cli.client import as_json_option, client, print_json, show_size

_SORTS = ("downloads", "likes", "created", "updated", "trending")


@click.command()
@click.argument("text", default="")
@click.option("--author", help="Whose models.")
@click.option("--task", help="Such as text-generation.")
@click.option("--library", help="Such as transformers or gguf.")
@click.option("--sort", type=click.Choice(_SORTS), default="downloads", show_default=True)
@click.option("--limit", type=int, default=20, show_default=True, help="Up to 1000.")
@as_json_option
def search(text: str, limit: int, as_json: bool, **wanted: str | None) -> None:
    """Search the Hub for models with TEXT in their name."""
    query = {name: value for name, value in wanted.items() if value}
    answer = client().get("/api/v1/hub/models", search=text, limit=str(limit), **query)
    if as_json:
        print_json(answer)
        return
    if answer["models"]:
        _print_models(answer["models"])
    else:
        click.echo("The Hub has no model that fits.", err=True)
    _say_stale(answer)


@click.group()
def hub() -> None:
    """Models of the Hugging Face Hub."""


@hub.command()
@click.argument("name")
@as_json_option
def show(name: str, as_json: bool) -> None:
    """Show the model NAME, its files, and whether it fits here.

    NAME is owner/name.
    """
    from urllib.parse import quote

    answer = client().get(f"/api/v1/hub/models/{quote(name)}")
    if as_json:
        print_json(answer)
        return
    for line in _describe(answer):
        click.echo(line)
    _print_files(answer["files"])
    _say_stale(answer)


@hub.command()
@as_json_option
def recommended(as_json: bool) -> None:
    """List the models to begin with."""
    answer = client().get("/api/v1/hub/recommended")
    if as_json:
        print_json(answer)
        return
    for name in answer["models"]:
        click.echo(name)


def _print_models(models: list[dict[str, Any]]) -> None:
    rows = [
        (
            model["id"],
            model["task"] or "",
            _count(model["parameters"]),
            _count(model["downloads"]),
            _count(model["likes"]),
            model["license"] or "",
            model["gated"] or "",
        )
        for model in models
    ]
    titles = ("model", "task", "parameters", "downloads", "likes", "license", "gated")
    _print_table(titles, rows, numbers={2, 3, 4})


def _print_files(files: list[dict[str, Any]]) -> None:
    rows = [(file["path"], show_size(file["size_bytes"])) for file in files]
    _print_table(("file", "size"), rows, numbers={1})


def _print_table(
    titles: tuple[str, ...], rows: Sequence[tuple[str, ...]], numbers: set[int]
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, title in enumerate(titles):
        is_number = index in numbers
        table.add_column(title, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_visible(cell)) for cell in row))
    console = Console()
    # What is read by a program is not cut to the width of a terminal that is not there.
    console.print(table, width=None if console.is_terminal else 200, crop=False)


def _describe(answer: dict[str, Any]) -> list[str]:
    lines = [f"{answer['id']}  {show_size(answer['size_bytes'])}"]
    for title, name in (
        *(("task", "task"), ("library", "library"), ("architecture", "architecture")),
        *(("license", "license"), ("gated", "gated"), ("commit", "sha")),
    ):
        if answer[name]:
            lines.append(f"{title + ':':<14}{_visible(answer[name])}")
    numbers = (("parameters", "parameters"), ("context", "context_length"))
    for title, name in (*numbers, ("downloads", "downloads"), ("likes", "likes")):
        if answer[name] is not None:
            lines.append(f"{title + ':':<14}{answer[name]:,}")
    lines.append(f"{'fits:':<14}{_describe_fit(answer['fit'])}")
    return lines


def _describe_fit(fit: dict[str, Any]) -> str:
    if fit["fits"]:
        by = ", by the sizes of its files" if fit["basis"] == "sizes" else ""
        needs, budget = show_size(fit["need_bytes"]), show_size(fit["budget_bytes"])
        return f"yes, it needs {needs} of {budget}{by}"
    return fit["reason"] if fit["fits"] is None else f"no: {fit['reason']}"


def _say_stale(answer: dict[str, Any]) -> None:
    if answer["stale"] is not None:
        age = f"{answer['age_s']:,.0f} s old"
        click.echo(f"{answer['stale']['message']} This is what it said before, {age}.", err=True)


def _visible(text: str) -> str:
    """Return a text of the Hub without what a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"
