"""Request bodies: read within a bound, decoded into typed structs, their texts checked.

What the fields mean is for the faces; see `wire.py`.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import anyio
import anyio.to_thread
import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request

from gateway.core.errors import GatewayError, InvalidRequest, InvalidText, PayloadTooLarge
from gateway.core.messages import require_clean_text
from gateway.http.headers import find_header

OFF_LOOP_BYTES = 32 * 2**10
"""Bodies above it are decoded in a thread: the loop must not stall for their many values."""
BODY_DEADLINE_S = 60.0
"""How long a body may take to arrive."""
MAX_DISCARD_BYTES = 256 * 2**20
DISCARD_S = 10.0
"""How much of a refused body is read, and for how long, so that its sender reads the answer."""

MAX_DEPTH = 100
MAX_VALUES = 200_000
_BIGGEST_INT = 2**64
_ESCAPE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
_ONE_DIGIT = bytes.maketrans(b"123456789", b"000000000")
_LONG_NUMBER = b"0" * 20
"""Without such an escape, and so many digits in a row, a body holds no NUL, no surrogate and no
integer beyond 64 bits: the decoder takes none of them as they are."""
_BOM = b"\xef\xbb\xbf"
_AT = re.compile(r"(?P<what>.*) - at `(?P<path>[^`]*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<field>[^`]*)`")

T = TypeVar("T")


async def read_request(request: Request, max_bytes: int, parse: Callable[[bytes], T]) -> T:
    """Return `parse` of the body, run in a thread when the body is big."""
    data = await read_body(request, max_bytes)
    if len(data) > OFF_LOOP_BYTES:
        return await anyio.to_thread.run_sync(parse, data)
    return parse(data)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the body; raise PayloadTooLarge as soon as it is known to be larger than allowed.

    What is left of a body that is too large is discarded by the server, so that the client gets
    the reply and may go on using its connection.
    """
    media_type = (find_header(request.scope, b"content-type") or "").partition(";")[0]
    media_type = media_type.strip().lower()
    if media_type.startswith("multipart/") or media_type == "application/x-www-form-urlencoded":
        raise HTTPException(415, f"The body is {media_type}; send JSON as application/json.")
    declared = find_header(request.scope, b"content-length") or ""
    if declared.isdecimal() and int(declared) > max_bytes:
        await _discard(request)
        raise _too_large(max_bytes)
    return await _collect(request, max_bytes)


async def _collect(request: Request, max_bytes: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    try:
        with anyio.fail_after(BODY_DEADLINE_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size > max_bytes:
                    await _discard(request)
                    raise _too_large(max_bytes)
                chunks.append(chunk)
    except TimeoutError:
        message = f"The body did not arrive within {BODY_DEADLINE_S:g} s."
        raise HTTPException(408, message, {"Connection": "close"}) from None
    return b"".join(chunks)


async def _discard(request: Request) -> None:
    """Take in, within limits, what a client sends that will close: it would not read the reply
    before it is done, and closing on it would reset the connection."""
    if request.headers.get("connection", "").lower() != "close":
        return
    size = 0
    with anyio.move_on_after(DISCARD_S):
        while size < MAX_DISCARD_BYTES:
            message = await request.receive()
            size += len(message.get("body", b""))
            if not message.get("more_body"):
                return


def decode_body(
    data: bytes, decoder: msgspec.json.Decoder[T], *, max_values: int = MAX_VALUES
) -> T:
    """Return the decoded body.

    Raises InvalidRequest with a sentence that names the place of the first mistake, and
    InvalidText for text that nobody could store.
    """
    if not data.strip():
        raise InvalidRequest("The body is empty.", hint="Send a JSON object.")
    if data.startswith(_BOM):
        raise InvalidRequest("The body begins with a byte order mark.", hint="Send plain UTF-8.")
    try:
        body = decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None
    except RecursionError:
        raise _too_deep() from None
    except UnicodeDecodeError:
        raise InvalidRequest("The body is not UTF-8.") from None
    except msgspec.DecodeError as error:
        _raise_malformed(data, str(error))
    if not is_surely_clean(data, max_values):
        require_clean(body, max_values)
    return body


def convert_body(values: dict[str, Any], kind: type[T], *, max_values: int = MAX_VALUES) -> T:
    """Return a body whose JSON was read already; raises as `decode_body` does."""
    try:
        body = msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None
    except RecursionError:
        raise _too_deep() from None
    require_clean(body, max_values)
    return body


def is_surely_clean(data: bytes, max_values: int) -> bool:
    """Tell whether the bytes alone show that `require_clean` would find nothing, as most do."""
    return (
        len(data) <= max_values
        and data.count(b"{") + data.count(b"[") < MAX_DEPTH
        and _ESCAPE.search(data) is None
        # Much quicker than an expression that looks for digits.
        and _LONG_NUMBER not in data.translate(_ONE_DIGIT)
    )


def require_clean(body: object, max_values: int = MAX_VALUES) -> None:
    """Raise for a NUL or a lone surrogate in any text, for integers beyond 64 bits, and for more
    levels or values than anybody means to send."""
    pending: list[tuple[object, str, int]] = [(body, "", 0)]
    seen = 0
    while pending:
        value, path, depth = pending.pop()
        seen += 1
        if depth > MAX_DEPTH:
            raise _too_deep()
        if seen > max_values:
            raise InvalidRequest(f"The body holds more than {max_values} values.")
        if isinstance(value, str):
            require_clean_text(value, path)
        elif isinstance(value, int) and abs(value) >= _BIGGEST_INT:
            raise InvalidRequest(f"The number at `$.{path}` is too large.", param=path)
        else:
            pending.extend((item, where, depth + 1) for where, item in _children(value, path))


def _children(value: object, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield f"{path}[{index}]", item
    elif isinstance(value, dict):
        for key, item in value.items():
            require_clean_text(key, path)
            yield f"{path}.{key}" if path else key, item
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield f"{path}.{name}" if path else name, getattr(value, name)


def _raise_malformed(data: bytes, reason: str) -> NoReturn:
    if b"\\ud" in data or b"\\uD" in data:
        # The decoder does not tell a lone surrogate from broken JSON; this one reads it.
        try:
            require_clean(json.loads(data))
        except InvalidText:
            raise
        except (ValueError, RecursionError, GatewayError):
            pass
    raise InvalidRequest(f"The body is not JSON: {reason.removeprefix('JSON is malformed: ')}.")


def _explain(reason: str) -> InvalidRequest:
    """Turn msgspec's "Expected `str`, got `int` - at `$.model`" into a sentence."""
    match = _AT.fullmatch(reason)
    what, path = (match["what"], match["path"]) if match else (reason, "$")
    missing = _MISSING.fullmatch(what)
    if missing:
        path, what = f"{path}.{missing['field']}", "it is missing"
    return InvalidRequest(
        f"The body is wrong at `{path}`: {what[:1].lower()}{what[1:]}.",
        param=path.removeprefix("$").removeprefix(".") or None,
    )


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"The body is nested deeper than {MAX_DEPTH} levels.")


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body is larger than {max_bytes} bytes.")
