"""Talks to the running gateway as any client does, and says in words what went wrong."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import httpx

    from gateway.settings import Settings

TIMEOUT_S = 60.0
"""The first look at a device imports torch, which takes seconds."""


class GatewayClient:
    """Sends JSON to the gateway that the settings name, and returns the JSON it answers.

    Raises click.ClickException with the gateway's own sentence, or how to start one.
    """

    def __init__(self, settings: Settings) -> None:
        host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
        key = settings.api_key.get_secret_value()
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._url = f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"

    def get(self, path: str, **query: str) -> Any:
        return self._send("GET", path, params=query)

    def post(
        self, path: str, body: dict[str, Any], *, timeout_s: float = TIMEOUT_S, **query: str
    ) -> Any:
        return self._send("POST", path, json=body, params=query, timeout=timeout_s)

    def put(
        self, path: str, body: dict[str, Any], *, if_match: int | None = None, **query: str
    ) -> Any:
        return self._send("PUT", path, if_match=if_match, json=body, params=query)

    def patch(self, path: str, body: dict[str, Any]) -> Any:
        return self._send("PATCH", path, json=body)

    def delete(self, path: str, *, if_match: int | None = None, **query: str) -> Any:
        return self._send("DELETE", path, if_match=if_match, params=query)

    def _send(
        self,
        method: str,
        path: str,
        timeout: float = TIMEOUT_S,
        if_match: int | None = None,
        **content: Any,
    ) -> Any:
        import httpx

        headers = {} if if_match is None else {"If-Match": f'"{if_match}"'}
        try:
            reply = httpx.request(
                method,
                self._url + path,
                headers=self._headers | headers,
                timeout=timeout,
                trust_env=False,
                **content,
            )
            answer = reply.json()
        except (httpx.HTTPError, ValueError) as error:
            raise click.ClickException(
                f"the gateway at {self._url} did not answer: {error}\n"
                "Start it with `gateway serve`."
            ) from None
        if reply.is_error:
            raise click.ClickException(_refusal(reply, answer))
        return answer


def client() -> GatewayClient:
    """Return a client for the gateway of these settings; raises Misconfigured."""
    from gateway.settings import load_settings

    return GatewayClient(load_settings())


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def print_line(value: Any) -> None:
    click.echo(json.dumps(value))


def show_size(size_bytes: int | None) -> str:
    """Return a size for people; `-` is unknown."""
    if size_bytes is None:
        return "-"
    if size_bytes < 1e5:
        return f"{size_bytes:,} bytes"
    return f"{size_bytes / 1e6:,.1f} MB" if size_bytes < 1e9 else f"{size_bytes / 1e9:,.1f} GB"


def show_time(seconds: float) -> str:
    """Return a moment (Unix seconds) for people, in UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%SZ}"


def show_duration(seconds: float) -> str:
    """Return a length of time for people, in its largest unit."""
    for name, unit in (("days", 86400.0), ("hours", 3600.0), ("min", 60.0)):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"


def describe_error(error: dict[str, Any]) -> str:
    """Return an error object of the gateway as text: the sentence, and the hint below it."""
    hint = error.get("hint")
    return f"{error['message']}\n{hint}" if hint else str(error["message"])


def _refusal(reply: httpx.Response, answer: Any) -> str:
    try:
        said = describe_error(answer["error"])
        return f"{said}\nThis command sends GATEWAY_API_KEY." if reply.status_code == 401 else said
    except (KeyError, TypeError):
        return f"{reply.request.url} answered {reply.status_code}"
