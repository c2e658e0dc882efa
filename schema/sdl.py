"""The schema as text, for clients' code generators and for reviewing what changes."""

from pathlib import Path

from schema.root import build_schema

SDL_FILE = Path(__file__).with_name("schema.graphql")


def render_sdl() -> str:
    """Return the schema in GraphQL's schema definition language."""
    return build_schema().as_str() + "\n"
