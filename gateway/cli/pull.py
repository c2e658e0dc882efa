"""`gateway pull` and `gateway downloads`: models to this machine, by the running gateway."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from gateway.cli.client import (
    GatewayClient,
    as_json_option,
    client,
    describe_error,
    print_json,
    print_line,
    show_size,
)

LOOK_EVERY_S = 0.25
EXIT_INTERRUPTED = 130
_ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELLED")
_FINE = ("SUCCEEDED", "SKIPPED")
_PATH = "/api/v1/downloads"

Show = Callable[[dict[str, Any]], None]


@click.command()
@click.argument("repo")
@click.option("--revision", help="A branch, a tag or a commit; main.")
@click.option("--include", "patterns", multiple=True, metavar="PATTERN", help="Only such files.")
@click.option("--force", is_flag=True, help="Fetch what is there already, too.")
@click.option("--dry-run", is_flag=True, help="Only say what it would take.")
@click.option("--no-wait", is_flag=True, help="Queue it, and do not wait until it has ended.")
@click.option("--progress", is_flag=True, help="With --json: print each change, on a line.")
@as_json_option
def pull(
    repo: str,
    revision: str | None,
    patterns: tuple[str, ...],
    force: bool,
    dry_run: bool,
    no_wait: bool,
    progress: bool,
    as_json: bool,
) -> None:
    """Download REPO and wait until it is there.

    REPO is owner/name on the Hub, or ollama/NAME, which Ollama fetches. Ctrl-C leaves the download
    running; the same command joins it again, and goes on with one that failed. Exits with 1 when
    it failed, was paused or cancelled.
    """
    body = {"repo": repo, "revision": revision, "patterns": list(patterns), "force": force}
    gateway = client()
    answer = gateway.post(_PATH, body | {"dry_run": dry_run})
    if dry_run:
        print_json(answer) if as_json else click.echo(_describe_plan(answer))
        return
    if not no_wait:
        answer = _wait(gateway, answer, as_lines=as_json and progress, quiet=as_json)
    if not as_json:
        # Why it failed is said below, with what to do about it.
        click.echo(_describe(answer | {"error": None}))
    elif not progress or no_wait:
        print_json(answer)
    if not no_wait and answer["state"] not in _FINE:
        if answer["error"] is not None:
            raise click.ClickException(describe_error(answer["error"]))
        raise click.ClickException(f"{answer['model']} is {answer['state']}")


@click.group()
def downloads() -> None:
    """The downloads of the running gateway."""


@downloads.command("list")
@as_json_option
def list_downloads(as_json: bool) -> None:
    """List the downloads, newest first."""
    listing = client().get(_PATH)
    if as_json:
        print_json(listing)
        return
    for download in listing["downloads"]:
        click.echo(_describe(download))
    if not listing["downloads"]:
        click.echo("There is no download.")


@downloads.command()
@click.argument("id")
@as_json_option
def pause(id: str, as_json: bool) -> None:
    """Stop a download for now; what was fetched is kept."""
    _act(id, "pause", as_json)


@downloads.command()
@click.argument("id")
@as_json_option
def resume(id: str, as_json: bool) -> None:
    """Queue a download again that is paused or has failed."""
    _act(id, "resume", as_json)


@downloads.command()
@click.argument("id")
@as_json_option
def cancel(id: str, as_json: bool) -> None:
    """Stop a download for good and delete what is not whole."""
    _act(id, "cancel", as_json)


@downloads.command("rm")
@click.argument("id")
@as_json_option
def remove(id: str, as_json: bool) -> None:
    """Take a download that has ended off the list.

    What a failed one left is deleted.
    """
    from urllib.parse import quote

    gone = client().delete(f"{_PATH}/{quote(id, safe='')}")
    print_json(gone) if as_json else click.echo(f"{gone['id']} is off the list.")


def _act(download_id: str, verb: str, as_json: bool) -> None:
    from urllib.parse import quote

    answer = client().post(f"{_PATH}/{quote(download_id, safe='')}/{verb}", {})
    print_json(answer) if as_json else click.echo(_describe(answer))


def _wait(
    gateway: GatewayClient, download: dict[str, Any], *, as_lines: bool, quiet: bool
) -> dict[str, Any]:
    """Look at the download until it has ended or somebody paused it."""
    shown = print_line if as_lines else None
    try:
        with _bar(download["model"], quiet) as show:
            while True:
                (shown or show)(download)
                if download["state"] in (*_ENDED, "PAUSED"):
                    return download
                time.sleep(LOOK_EVERY_S)
                download = gateway.get(f"{_PATH}/{download['id']}")
    except KeyboardInterrupt:
        click.echo(
            f"\nIt goes on. Come back to it with the same command, or stop it:\n"
            f"  gateway downloads cancel {download['id']}",
            err=True,
        )
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None


@contextmanager
def _bar(name: str, quiet: bool) -> Iterator[Show]:
    """Give a function that shows a download as a bar on stderr, if that is a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, disable=hidden, transient=True) as progress:
        task = progress.add_task(name, total=None)

        def show(download: dict[str, Any]) -> None:
            progress.update(
                task,
                description=f"{name}  {download['state'].lower()}",
                completed=download["bytes_done"],
                total=download["bytes_total"],
            )

        yield show


def _describe(download: dict[str, Any]) -> str:
    parts = [f"{download['id']}  {download['state']:<9}  {download['model']}"]
    total = download["bytes_total"]
    if total is not None:
        parts.append(f"{show_size(download['bytes_done'])} of {show_size(total)}")
    parts += [download[key] for key in ("path", "message") if download[key]]
    if download["error"] is not None:
        parts.append(download["error"]["message"])
    return "  ".join(parts)


def _describe_plan(plan: dict[str, Any]) -> str:
    if plan["bytes_total"] is None:
        return f"{plan['model']}: only doing it tells how much it is."
    lines = [f"{show_size(file['size_bytes']):>14}  {file['path']}" for file in plan["files"]]
    fits = "" if plan["fits"] else ", which is too little"
    lines.append(
        f"{plan['model']} at {plan['commit'][:12]}: "
        f"{show_size(plan['bytes_to_fetch'])} of {show_size(plan['bytes_total'])} to fetch; "
        f"{show_size(plan['free_bytes'])} are free{fits}."
    )
    return "\n".join(lines)
