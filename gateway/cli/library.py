"""`gateway models files | verify | rm | clean`: the files of models, by the running gateway."""

from __future__ import annotations

from typing import Any

import click

from gateway.cli.client import as_json_option, client, print_json, show_size, show_time

EXIT_NOT_SOUND = 3
HOUR_S = 3600.0


@click.command()
@click.option("--updates", is_flag=True, help="Ask the Hub whether it has something newer.")
@as_json_option
def files(updates: bool, as_json: bool) -> None:
    """List the files of models, and what is no model.

    With their size, the verdict on them, and when they were used.
    """
    found = client().get("/api/v1/models/available", updates=str(updates).lower())
    if as_json:
        print_json(found)
        return
    for model in (*found["local_models"], *found["cached_hub_models"]):
        click.echo(_describe(model))
    for model in found["ollama_models"]:
        click.echo(f"{model['id']:<56} {show_size(model['size_bytes']):>13}")
    for disk in found["disks"]:
        click.echo(_describe_disk(disk))
    for odd in found["oddities"]:
        click.echo(f"{odd['path']}: {odd['reason']}", err=True)
    for fault in found["provider_errors"]:
        click.echo(f"{fault['provider']}: {fault['message']}", err=True)


@click.command()
@click.argument("model")
@click.option(
    "--check",
    type=click.Choice(["headers", "checksums", "load"]),
    default="checksums",
    show_default=True,
    help="How far to go; load also loads it, in a process that may die of it.",
)
@click.option("--force", is_flag=True, help="Look anew where the result is kept.")
@as_json_option
def verify(model: str, check: str, force: bool, as_json: bool) -> None:
    """Look whether the files of MODEL are whole.

    Exits with 3 when they are not.
    """
    body = {"model": model, "check": check, "force": force}
    found = client().post("/api/v1/models/verify", body, timeout_s=HOUR_S)
    verdict = found["verification"]
    if as_json:
        print_json(found)
    else:
        kept = "" if found["fresh"] else " (kept)"
        click.echo(f"{found['id']}: {verdict['verdict']} by {verdict['check']}{kept}")
        if verdict["reason"]:
            click.echo(verdict["reason"])
        for warning in found["warnings"]:
            click.echo(warning, err=True)
    if verdict["verdict"] != "ok":
        click.get_current_context().exit(EXIT_NOT_SOUND)


@click.command("rm")
@click.argument("model")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json_option
def remove(model: str, yes: bool, as_json: bool) -> None:
    """Remove the files of MODEL.

    Of a repository's plain name, all of its revisions.
    """
    if not yes:
        click.confirm(f"The files of {model} will be lost. Remove them?", abort=True, err=True)
    gone = client().post("/api/v1/models/delete", {"model": model}, timeout_s=HOUR_S)
    if as_json:
        print_json(gone)
    else:
        freed = gone["freed_bytes"]  # Ollama does not tell
        told = "" if freed is None else f"; that freed {show_size(freed)}"
        click.echo(f"{gone['model']} is removed{told}.")


@click.command()
@click.option("--unused-days", type=float, help="Remove what nobody used for so many days.")
@click.option("--max-bytes", type=int, help="Remove the least recently used until this is all.")
@click.option(
    "--unfinished-days",
    type=float,
    help="Remove what downloads left that failed, if nothing came for so many days.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json_option
def clean(dry_run: bool, yes: bool, as_json: bool, **rule: float | None) -> None:
    """Remove models of the Hub's cache by age and size.

    And what downloads left there.
    """
    if all(value is None for value in rule.values()):
        raise click.UsageError("say --unused-days, --max-bytes or --unfinished-days")
    gateway = client()
    body = {**rule, "dry_run": True}
    plan = gateway.post("/api/v1/models/clean", body)
    if not dry_run and (plan["removed"] or plan["unfinished"]):
        if not yes:
            click.echo(_describe_cleaning(plan), err=True)
            click.confirm("Remove them?", abort=True, err=True)
        plan = gateway.post("/api/v1/models/clean", {**body, "dry_run": False}, timeout_s=HOUR_S)
    print_json(plan) if as_json else click.echo(_describe_cleaning(plan))


def _describe(model: dict[str, Any]) -> str:
    found, used = model["verification"], model["last_used"]
    parts = [
        f"{model['id']:<56} {show_size(model['size_bytes']):>13}",
        f"{found['verdict'] if found else '-':<8}",
        "never used" if used is None else f"used {show_time(used)}",
    ]
    if model["update_available"]:
        parts.append("update available")
    if model["allowed"]:
        parts.append(f"allowed: {', '.join(model['allowed'])}")
    if found and found["reason"]:
        parts.append(found["reason"])
    return "  ".join(parts)


def _describe_disk(disk: dict[str, Any]) -> str:
    used, free = disk["models_bytes"], disk["free_bytes"]
    models = f"{show_size(used)} of models" if used else "no models"
    # What is free is not known of a folder that is not there.
    return f"{disk['path']}: {models}" + ("" if free is None else f", {show_size(free)} free")


def _describe_cleaning(plan: dict[str, Any]) -> str:
    would = "would go" if plan["dry_run"] else "went"
    lines = [
        f"{each['model']} {would} ({each['reason']}): {show_size(each['freed_bytes'])}"
        for each in plan["removed"]
    ]
    lines += [f"{name} is in use and stays" for name in plan["kept_in_use"]]
    lines += [
        f"what is left of {each['repository']} {would}: {show_size(each['freed_bytes'])}"
        for each in plan["unfinished"]
    ]
    before, after = show_size(plan["before_bytes"]), show_size(plan["after_bytes"])
    return "\n".join([*lines, f"The cache's models: {before} before, {after} after."])
