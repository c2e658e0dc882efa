"""`gateway memory`: what models hold of the memory of the running gateway's machine."""

from __future__ import annotations

from typing import Any

import click

from gateway.cli.client import as_json_option, client, print_json, show_size


@click.command()
@as_json_option
def memory(as_json: bool) -> None:
    """Show who holds how much of which device, over all providers."""
    report = client().get("/api/v1/memory")
    if as_json:
        print_json(report)
        return
    for device in report["devices"]:
        click.echo(_describe_device(device))
        for model in device["models"]:
            click.echo(_describe_model(model))
    for each in report["evictions"]:
        click.echo(f"evicted from {each['provider']} ({each['reason']}): {each['count']}")
    if report["elsewhere"]:
        click.echo(f"not in this memory: {', '.join(report['elsewhere'])}")


def _describe_device(device: dict[str, Any]) -> str:
    parts = [f"{device['device']:<8} {show_size(device['used_bytes'])} held"]
    if device["reserved_bytes"]:
        parts.append(f"{show_size(device['reserved_bytes'])} of it reserved")
    if device["overhead_bytes"]:
        parts.append(f"{show_size(device['overhead_bytes'])} of it by libraries, once for all")
    if device["budget_bytes"] is not None:
        free, budget = show_size(device["free_bytes"]), show_size(device["budget_bytes"])
        parts.append(f"{free} free of {budget}")
    return ", ".join(parts)


def _describe_model(model: dict[str, Any]) -> str:
    notes = [model["basis"]]
    if model["in_use"]:
        notes.append("in use")
    if model["pinned"]:
        notes.append("pinned")
    return f"  {model['model']:<48} {show_size(model['memory_bytes']):>13}  {', '.join(notes)}"
