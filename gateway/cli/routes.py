"""`gateway routes`: aliases and virtual models at the running gateway."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from gateway.cli.client import as_json_option, client, print_json
from gateway.cli.decisions import describe_decision

URL = "/api/v1/routes"

_version_option = click.option(
    "--version", type=int, help="The version that is meant; another one is left as it is."
)


@click.group()
def routes() -> None:
    """Names that mean other models: aliases and virtual models."""


@routes.command("list")
@as_json_option
def list_routes(as_json: bool) -> None:
    """List them, those of the configuration too."""
    found = client().get(URL)
    if as_json:
        print_json(found)
        return
    for each in found["routes"]:
        click.echo(_describe(each))
    if not found["routes"]:
        click.echo("There is no route.")


@routes.command()
@click.argument("name")
@as_json_option
def show(name: str, as_json: bool) -> None:
    """Show what NAME means."""
    _say(client().get(_url(name)), as_json)


@routes.command("set")
@click.argument("name")
@click.argument("models", nargs=-1, required=True)
@click.option(
    "--order",
    type=click.Choice(["listed", "weighted", "warm_first"]),
    help="Who is asked first of several MODELS.",
)
@click.option(
    "--continue-on-failure", "goes_on", is_flag=True, help="Have another go on when one breaks."
)
@_version_option
@as_json_option
def set_route(
    name: str,
    models: tuple[str, ...],
    order: str | None,
    goes_on: bool,
    version: int | None,
    as_json: bool,
) -> None:
    """Let NAME mean MODELS.

    One makes an alias, several or an order make a virtual model. MODEL=9 gives a weight.
    """
    candidates = [_candidate(model, order == "weighted") for model in models]
    body: dict[str, Any] = {"candidates": candidates, "order": order or "listed"}
    if goes_on:
        body["continue_on_failure"] = True
    elif len(models) == 1 and order is None:
        body = {"model": models[0]}
    _say(client().put(_url(name), body, if_match=version), as_json)


@routes.command("rm")
@click.argument("name")
@_version_option
@as_json_option
def remove(name: str, version: int | None, as_json: bool) -> None:
    """Let NAME mean nothing any more."""
    gone = client().delete(_url(name), if_match=version)
    print_json(gone) if as_json else click.echo(f"{gone['name']} means nothing any more.")


@routes.command()
@click.argument("model")
@click.option("--prompt", default="Hello.", show_default=True, help="What would be asked.")
@click.option(
    "--image",
    "images",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="A file; may be repeated.",
)
@click.option("--tools", is_flag=True, help="As if there were a tool to call.")
@click.option("--embed", is_flag=True, help="Ask for embeddings.")
@as_json_option
def explain(
    model: str, prompt: str, images: tuple[Path, ...], tools: bool, embed: bool, as_json: bool
) -> None:
    """Tell who would answer a request for MODEL, and why.

    Nobody is asked.
    """
    body: dict[str, Any] = {"model": model, "prompt": prompt}
    if embed:
        body = {"model": model, "input": prompt}
    if images:
        body["images"] = [base64.b64encode(image.read_bytes()).decode() for image in images]
    if tools:
        body["tools"] = [{"type": "function", "function": {"name": "any"}}]
    found = client().post(f"{URL}/explain", body)
    print_json(found) if as_json else click.echo(describe_decision(found))


def _candidate(text: str, has_weight: bool) -> dict[str, Any]:
    model, _, weight = text.rpartition("=")
    if not (has_weight and model):
        return {"model": text}
    try:
        return {"model": model, "weight": float(weight)}
    except ValueError:
        raise click.BadParameter(f"'{weight}' is no weight") from None


def _url(name: str) -> str:
    return f"{URL}/{quote(name, safe='')}"


def _say(route: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(route)
        return
    click.echo(_describe(route))
    for warning in route.get("warnings", ()):
        click.echo(f"warning: {warning}", err=True)


def _describe(route: dict[str, Any]) -> str:
    where = "config" if route["source"] == "config" else f"version {route['version']}"
    if "model" in route:
        text = f"{route['name']}  ({where})  means {route['model']}"
    else:
        shown = [_show_candidate(each, route["order"]) for each in route["candidates"]]
        text = f"{route['name']}  ({where})  {route['order']}: {', '.join(shown)}"
    return f"{text}\n  does not hold: {route['problem']}" if route["problem"] else text


def _show_candidate(candidate: dict[str, Any], order: str) -> str:
    model = str(candidate["model"])
    return f"{model}={candidate['weight']:g}" if order == "weighted" else model
