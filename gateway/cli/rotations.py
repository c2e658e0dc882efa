"""`gateway rotations`: names that stand for one model after the other, at the running gateway."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from gateway.cli.client import as_json_option, client, print_json, show_time

URL = "/api/v1/rotations"


@click.group()
def rotations() -> None:
    """Names that stand for one model after the other.

    Requests ask for rotation/NAME.
    """


@rotations.command("list")
@as_json_option
def list_rotations(as_json: bool) -> None:
    """List the rotations, who answers, and the next step."""
    found = client().get(URL)
    if as_json:
        print_json(found)
        return
    for each in found["rotations"]:
        click.echo(_headline(each))
    if not found["rotations"]:
        click.echo("There is no rotation.")


@rotations.command()
@click.argument("name")
@as_json_option
def show(name: str, as_json: bool) -> None:
    """Show one rotation."""
    _say(client().get(_url(name)), as_json)


@rotations.command("set")
@click.argument("name")
@click.argument("models", nargs=-1, required=True)
@click.option("--every", type=float, metavar="SECONDS", help="Step each time so long after.")
@click.option("--cron", help="Step at these times: minute hour day month weekday.")
@click.option("--timezone", help="Of --cron; UTC by default.")
@click.option("--requests", type=int, help="Step after so many requests.")
@click.option("--cold", is_flag=True, help="Never have two models in memory for a step.")
@click.option("--keep", is_flag=True, help="Do not unload the model before.")
@click.option("--drain", type=float, metavar="SECONDS", help="How long its streams may finish.")
@click.option("--busy", type=int, help="Do not begin while more requests run or wait.")
@click.option("--yield", "yield_s", type=float, metavar="SECONDS", help="But begin after so long.")
@as_json_option
def set_rotation(
    name: str,
    models: tuple[str, ...],
    every: float | None,
    cron: str | None,
    timezone: str | None,
    requests: int | None,
    cold: bool,
    keep: bool,
    drain: float | None,
    busy: int | None,
    yield_s: float | None,
    as_json: bool,
) -> None:
    """Make the rotation NAME of two or more MODELS, or make it this."""
    order = {
        "interval_s": every,
        "cron": cron,
        "timezone": timezone,
        "requests": requests,
        "drain_s": drain,
        "busy_streams": busy,
        "yield_s": yield_s,
    }
    given = {key: value for key, value in order.items() if value is not None}
    body = {"models": list(models), "warm_up": not cold, "unload": not keep, **given}
    _say(client().put(_url(name), body), as_json)


@rotations.command("rm")
@click.argument("name")
@as_json_option
def remove(name: str, as_json: bool) -> None:
    """Remove a rotation and its history; its models stay as they are."""
    gone = client().delete(_url(name))
    print_json(gone) if as_json else click.echo(f"{gone['model']} is removed.")


@rotations.command()
@click.argument("name")
@as_json_option
def pause(name: str, as_json: bool) -> None:
    """Let no step begin by itself."""
    _say(client().post(f"{_url(name)}/pause", {}), as_json)


@rotations.command()
@click.argument("name")
@as_json_option
def resume(name: str, as_json: bool) -> None:
    """Undo a pause; the time to the next step begins anew."""
    _say(client().post(f"{_url(name)}/resume", {}), as_json)


@rotations.command()
@click.argument("name")
@click.option("--to", help="The model to go to; else whose turn it is.")
@as_json_option
def advance(name: str, to: str | None, as_json: bool) -> None:
    """Step to the next model now; `history` tells how it came out."""
    step = client().post(f"{_url(name)}/advance", {"to": to})
    print_json(step) if as_json else click.echo(_describe_step(step))


@rotations.command()
@click.argument("name")
@click.option("--limit", default=20, show_default=True, help="How many, newest first.")
@as_json_option
def history(name: str, limit: int, as_json: bool) -> None:
    """Show the steps of a rotation, newest first."""
    found = client().get(f"{_url(name)}/history", limit=str(limit))
    if as_json:
        print_json(found)
        return
    for step in found["steps"]:
        click.echo(_describe_step(step))
    if not found["steps"]:
        click.echo("No step was taken yet.")


def _url(name: str) -> str:
    return f"{URL}/{quote(name, safe='')}"


def _say(rotation: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(rotation)
        return
    click.echo(_headline(rotation))
    for model in rotation["models"]:
        click.echo(f"{'*' if model == rotation['current'] else ' '} {model}")
    if rotation["step"]:
        click.echo(_describe_step(rotation["step"]))


def _headline(rotation: dict[str, Any]) -> str:
    return f"{rotation['model']}  {rotation['current']}  {_describe_next(rotation)}"


def _describe_next(rotation: dict[str, Any]) -> str:
    parts = []
    if rotation["paused"]:
        parts.append("paused")
    if rotation["due_at"] is not None:
        parts.append(f"next at {show_time(rotation['due_at'])}")
    if rotation["requests"] is not None:
        parts.append(f"{rotation['counted']} of {rotation['requests']} requests")
    return ", ".join(parts) or "by hand"


def _describe_step(step: dict[str, Any]) -> str:
    state = step["phase"] if step["state"] == "RUNNING" else step["state"]
    target = step["target"] or step["wish"] or "the next"
    lines = [f"{show_time(step['asked_at'])}  {state}  {step['origin']} -> {target}"]
    lines[0] += f"  ({step['trigger'].lower()})"
    lines += [f"  passed over {each['model']}: {each['reason']}" for each in step["skipped"]]
    if step["message"]:
        lines.append(f"  {step['message']}")
    return "\n".join(lines)
