"""`python -m schema` prints the schema; `python -m schema --write` updates schema.graphql."""

import sys

from schema.sdl import SDL_FILE, render_sdl


def main(arguments: list[str]) -> None:
    """Print the schema, or write it to its file."""
    if arguments == ["--write"]:
        SDL_FILE.write_text(render_sdl(), encoding="utf-8")
    else:
        sys.stdout.write(render_sdl())


main(sys.argv[1:])
