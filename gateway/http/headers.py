"""Headers of a request, read where every request passes: as the server gives them."""

from starlette.types import Scope


def find_header(scope: Scope, name: bytes) -> str | None:
    """Return the first header of that name, which is in lower case as ASGI has them."""
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return None
