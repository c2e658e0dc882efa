"""`gateway collections`: collections of models at the running gateway, and their file."""

from __future__ import annotations

import json
from typing import IO, Any
from urllib.parse import quote

import click

from gateway.cli.client import as_json_option, client, print_json

URL = "/api/v1/collections"


@click.group()
def collections() -> None:
    """Collections of models. COLLECTION is a name or an id."""


@collections.command("list")
@click.option("--category", help="Only those of this category.")
@as_json_option
def list_collections(category: str | None, as_json: bool) -> None:
    """List the collections and their models."""
    found = client().get(URL, **({} if category is None else {"category": category}))
    if as_json:
        print_json(found)
        return
    for each in found["collections"]:
        click.echo(_describe(each))
    if not found["collections"]:
        click.echo("There is no collection.")


@collections.command()
@click.argument("collection")
@as_json_option
def show(collection: str, as_json: bool) -> None:
    """Show one COLLECTION."""
    _say(client().get(_url(collection)), as_json)


@collections.command()
@click.argument("name")
@click.option("--category", default="", help="Free text.")
@click.option("--description", default="", help="Free text.")
@click.option("--model", "models", multiple=True, help="May be repeated.")
@as_json_option
def create(
    name: str, category: str, description: str, models: tuple[str, ...], as_json: bool
) -> None:
    """Make a collection called NAME."""
    body = {"name": name, "category": category, "description": description, "models": list(models)}
    _say(client().post(URL, body), as_json)


@collections.command()
@click.argument("collection")
@click.argument("name")
@as_json_option
def rename(collection: str, name: str, as_json: bool) -> None:
    """Call COLLECTION NAME from now on."""
    _say(client().patch(_url(collection), {"name": name}), as_json)


@collections.command("rm")
@click.argument("collection")
@as_json_option
def remove(collection: str, as_json: bool) -> None:
    """Remove COLLECTION; its models stay."""
    gone = client().delete(_url(collection))
    print_json(gone) if as_json else click.echo(f"{gone['name']} is removed; its models stay.")


@collections.command()
@click.argument("collection")
@click.argument("model")
@as_json_option
def add(collection: str, model: str, as_json: bool) -> None:
    """Add MODEL to COLLECTION."""
    _say(client().post(f"{_url(collection)}/models", {"model": model}), as_json)


@collections.command("drop")
@click.argument("collection")
@click.argument("model")
@as_json_option
def drop_model(collection: str, model: str, as_json: bool) -> None:
    """Take MODEL out of COLLECTION."""
    _say(client().delete(f"{_url(collection)}/models", model=model), as_json)


@collections.command()
def export() -> None:
    """Print collections, configs and routes as one file.

    The configs of models, and the routes of the database: what `import` takes.
    """
    print_json(client().get("/api/v1/export"))


@collections.command("import")
@click.argument("file", type=click.File("rb"))
@click.option("--dry-run", is_flag=True, help="Only say what it would do.")
@as_json_option
def read_in(file: IO[bytes], dry_run: bool, as_json: bool) -> None:
    """Take over the collections, configs and routes of FILE.

    All of it or nothing; - is standard input. Files of older gateways are read, too.
    """
    try:
        body = json.load(file)
    except ValueError as error:
        raise click.ClickException(f"{file.name} is no JSON: {error}") from None
    report = client().post("/api/v1/import", body, dry_run=str(dry_run).lower())
    if as_json:
        print_json(report)
        return
    for verb in ("creates", "replaces", "configures"):
        for name in report[verb]:
            click.echo(f"{verb} {name}")
    for name in report["routes"]:
        click.echo(f"routes {name}")
    click.echo(f"{len(report['unchanged'])} collections are the same.")


def _url(collection: str) -> str:
    return f"{URL}/{quote(collection, safe='')}"


def _say(collection: dict[str, Any], as_json: bool) -> None:
    print_json(collection) if as_json else click.echo(_describe(collection))


def _describe(collection: dict[str, Any]) -> str:
    head = f"{collection['id']}  {collection['name']}"
    if collection["category"]:
        head += f"  [{collection['category']}]"
    return "\n".join([head, *(f"  {model}" for model in collection["models"])])
