"""`gateway decisions`: why the running gateway sent requests where they went."""

from __future__ import annotations

from typing import Any

import click

from gateway.cli.client import as_json_option, client, print_json, show_time

URL = "/api/v1/decisions"


@click.group()
def decisions() -> None:
    """Why requests went where they went."""


@decisions.command("list")
@click.option("--model", "requested_model", help="The model as the caller wrote it.")
@click.option("--provider", help="Who was asked last.")
@click.option(
    "--outcome",
    type=click.Choice(["running", "answered", "failed", "cancelled", "interrupted"]),
    help="What became of the request.",
)
@click.option("--error", help="The code of its error.")
@click.option("--caller", help="Id of the key that asked.")
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True)
@as_json_option
def list_decisions(as_json: bool, limit: int, **wanted: str | None) -> None:
    """List the newest decisions, newest first."""
    given = {name: value for name, value in wanted.items() if value is not None}
    found = client().get(URL, limit=str(limit), **given)
    if as_json:
        print_json(found)
        return
    for each in found["decisions"]:
        click.echo(_head(each))
    if not found["decisions"]:
        click.echo("There is no decision.")


@decisions.command()
@click.argument("id")
@as_json_option
def show(id: str, as_json: bool) -> None:
    """Show the decision of that ID.

    It is the stream's own, or what X-Gateway-Decision told.
    """
    found = client().get(f"{URL}/{id}")
    print_json(found) if as_json else click.echo(describe_decision(found))


def describe_decision(decision: dict[str, Any]) -> str:
    """Return a decision as lines of text."""
    lines = [_head(decision)]
    if decision["rule"]:
        version = decision["rule_version"]
        lines.append(f"  by {decision['rule']}{f', version {version}' if version else ''}")
    for each in decision["candidates"]:
        became = "" if decision["outcome"] == "planned" else f" [{each['outcome']}]"
        lines.append(f"  {each['verdict']:<8}{each['model']}  {each['reason']}{became}")
        for number, attempt in enumerate(each["attempts"], 1):
            said = f"{attempt['error']}: {attempt['message']}" if attempt["error"] else "asked"
            lines.append(f"    {number}. after {attempt['at_ms']:.1f} ms: {said}")
    for each in decision["memory"]:
        why = f" ({each['reason']})" if each["reason"] else ""
        lines.append(f"  {each['change']} of {each['model']} after {each['at_ms']:.1f} ms{why}")
    if decision["message"]:
        lines.append(f"  {decision['message']}")
    return "\n".join(lines)


def _head(decision: dict[str, Any]) -> str:
    chosen = f"{decision['provider']}/{decision['model']}" if decision["provider"] else "nobody"
    parts = [decision["id"] or "dry run", show_time(decision["opened_at"]), decision["outcome"]]
    if decision["error"]:
        parts.append(decision["error"])
    return "  ".join([*parts, f"{decision['requested_model']} -> {chosen}"])
