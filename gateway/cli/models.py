"""`gateway models`: lists, loads, unloads and configures the models of the running gateway.

What concerns their files is in `library`.
"""

from __future__ import annotations

import json
import sys
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
    show_duration,
    show_size,
)
from gateway.cli.library import clean, files, remove, verify

LOOK_EVERY_S = 0.2
_BAR_STEPS = 1000
_LOAD_KEYS = ("device", "dtype", "quantization", "context_length")
_OWN_KEYS = ("keep_alive", "pinned")


@click.group()
def models() -> None:
    """The models of the running gateway."""


for command in (files, verify, remove, clean):
    models.add_command(command)


@models.command("list")
@as_json_option
def list_models(as_json: bool) -> None:
    """List the models of every provider.

    Providers that do not answer are told on standard error.
    """
    listing = client().get("/api/v1/models")
    if as_json:
        print_json(listing)
        return
    for model in listing["models"]:
        can = ",".join(model["capabilities"])
        size = show_size(model["size_bytes"])
        click.echo(f"{model['id']:<48} {model['state']:<11} {size:>13}  {can}")
    for fault in listing["provider_errors"]:
        click.echo(f"{fault['provider']}: {fault['message']}", err=True)


@models.command()
@click.argument("model")
@click.option("--device", help="cpu, cuda, cuda:1, mps; auto is the best there is.")
@click.option("--dtype", help="float32, bfloat16, float16; auto is the files' own.")
@click.option("--quantization", help="none, int8 or int4: the bits of the weights, on a CPU.")
@click.option("--context-length", type=int, help="Most tokens of prompt and answer together.")
@click.option("--pin/--unpin", "pinned", default=None, help="Keep it in memory, or no longer.")
@click.option("--keep-alive", help="How long it stays once idle: seconds, 5m, -1 for ever.")
@click.option("--dry-run", is_flag=True, help="Only say what it would take.")
@click.option("--no-wait", is_flag=True, help="Do not wait until it is loaded.")
@as_json_option
def load(model: str, dry_run: bool, no_wait: bool, as_json: bool, **wanted: Any) -> None:
    """Load MODEL and wait until it is there.

    Exits with 1 when it fails.
    """
    config = {key: wanted[key] for key in _LOAD_KEYS if wanted[key] is not None}
    body = {key: wanted[key] for key in _OWN_KEYS if wanted[key] is not None}
    body |= {"model": model, "dry_run": dry_run} | ({"config": config} if config else {})
    gateway = client()
    answer = gateway.post("/api/v1/models/load", body)
    if dry_run:
        print_json(answer) if as_json else click.echo(_describe_plan(answer))
        return
    if not no_wait:
        # One that is loaded in another way goes first, once its streams have finished.
        answer = _watch(gateway, answer, "LOADING", "UNLOADING")
    print_json(answer) if as_json else click.echo(_describe_status(answer))
    _exit_unless(answer, "LOADING" if no_wait else "LOADED", "LOADED")


@models.command()
@click.argument("model")
@click.option("--force", is_flag=True, help="End the streams that use it.")
@click.option("--no-wait", is_flag=True, help="Do not wait until it is gone.")
@as_json_option
def unload(model: str, force: bool, no_wait: bool, as_json: bool) -> None:
    """Unload MODEL and wait until it is gone.

    Its streams may finish first. Of a model that failed, the failure is cleared.
    """
    gateway = client()
    before = gateway.get("/api/v1/models/status", model=model)
    answer = gateway.post("/api/v1/models/unload", {"model": model, "force": force})
    if not no_wait:
        answer = _watch(gateway, answer, "UNLOADING")
    print_json(answer) if as_json else click.echo(_describe_status(answer))
    if before["error"] is not None and answer["error"] is None:
        click.echo(f"Its failure is cleared: {before['error']['message']}", err=True)
    _exit_unless(answer, "UNLOADING" if no_wait else "NOT_LOADED", "NOT_LOADED")


@models.command()
@click.argument("model", required=False)
@as_json_option
def status(model: str | None, as_json: bool) -> None:
    """Show what is in memory or on its way there, or one MODEL."""
    gateway = client()
    query = {} if model is None else {"model": model}
    answer = gateway.get("/api/v1/models/status", **query)
    if as_json:
        print_json(answer)
        return
    statuses = [answer] if model is not None else answer["models"]
    for each in statuses:
        click.echo(_describe_status(each))
    if not statuses:
        click.echo("No model is loaded.")


@models.command()
@click.argument("model")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Decide something.")
@click.option("--unset", "removed", multiple=True, metavar="KEY", help="Go back to the default.")
@as_json_option
def config(model: str, changes: tuple[str, ...], removed: tuple[str, ...], as_json: bool) -> None:
    """Show what is decided for MODEL, or decide more of it.

    KEY is device, dtype, quantization or context_length (true after a reload), keep_alive, pinned,
    or an option such as temperature, which then is the default of new requests.
    """
    gateway = client()
    path = "/api/v1/models/config"
    answer = gateway.get(path, model=model)
    if changes or removed:
        body = _change(answer["config"], changes, removed)
        answer = gateway.put(path, body, model=model)
    if as_json:
        print_json(answer)
        return
    click.echo(json.dumps(answer["config"], indent=2))
    if answer["requires_reload"]:
        click.echo("It is loaded in another way: load it again to make this true.", err=True)


def _change(
    config: dict[str, Any], changes: tuple[str, ...], removed: tuple[str, ...]
) -> dict[str, Any]:
    """Return `config` with the changes, as a whole."""
    given = dict(_read_pair(pair) for pair in changes)
    for key, value in {**given, **dict.fromkeys(removed)}.items():
        part = config if key in _OWN_KEYS else config["load" if key in _LOAD_KEYS else "defaults"]
        part[key] = False if key == "pinned" and value is None else value
    return config


def _read_pair(pair: str) -> tuple[str, Any]:
    key, separator, text = pair.partition("=")
    if not separator or not key:
        raise click.UsageError(f"'{pair}' is not of the form KEY=VALUE")
    try:
        return key, json.loads(text)
    except ValueError:
        return key, text


def _watch(gateway: GatewayClient, status: dict[str, Any], *passing: str) -> dict[str, Any]:
    """Look at the model until it is no longer on its way; show how far it is meanwhile."""
    with _bar(status) as show:
        while status["state"] in passing:
            show(status)
            time.sleep(LOOK_EVERY_S)
            status = gateway.get("/api/v1/models/status", model=status["model"])
    return status


@contextmanager
def _bar(status: dict[str, Any]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give a function that shows a status as a bar on stderr, if that is a terminal."""
    with click.progressbar(
        length=_BAR_STEPS,
        label=status["model"],
        file=sys.stderr,
        show_eta=False,
        update_min_steps=0,
        hidden=not sys.stderr.isatty(),
    ) as bar:

        def show(now: dict[str, Any]) -> None:
            done = int(_BAR_STEPS * (now["fraction"] or 0.0))
            eta_s = now["eta_s"]
            text = now["state"].lower() if eta_s is None else f"{eta_s:.1f} s left"
            bar.label = f"{now['model']}  {text}"
            bar.update(max(0, done - bar.pos))

        yield show


def _exit_unless(status: dict[str, Any], *fine: str) -> None:
    if status["state"] in fine:
        return
    if status["error"] is not None:
        raise click.ClickException(describe_error(status["error"]))
    raise click.ClickException(f"{status['model']} is {status['state']}")


def _describe_status(status: dict[str, Any]) -> str:
    parts = [f"{status['model']:<48} {status['state']:<11}"]
    if status["memory_bytes"]:
        parts.append(show_size(status["memory_bytes"]))
    if status["device"]:
        parts.append(f"on {status['device']}")
    if status["leases"]:
        parts.append(f"in use by {status['leases']}")
    if status["queued"]:
        parts.append(f"{status['queued']} waiting")
    if status["fraction"] is not None:
        parts.append(f"{status['fraction']:.0%}")
    if status["pinned"]:
        parts.append("pinned")
    if status["expires_in_s"] is not None:
        parts.append(f"for {show_duration(status['expires_in_s'])} more")
    if status["error"] is not None:
        parts.append(status["error"]["message"])
    return "  ".join(parts)


def _describe_plan(plan: dict[str, Any]) -> str:
    if plan["already_loaded"]:
        return f"{plan['model']} is loaded already."
    lines = [f"{plan['model']} needs {show_size(plan['need_bytes'])}"]
    if plan["budget_bytes"] is not None:
        lines[0] += (
            f"; free are {show_size(plan['free_bytes'])} of {show_size(plan['budget_bytes'])}"
        )
    lines += [f"unloads {name}" for name in plan["evictions"]]
    if plan["reason"]:
        lines.append(plan["reason"])
    return "\n".join(lines)
