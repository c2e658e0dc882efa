"""A gateway that may open few files: it refuses connections before it has none left."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx

from tests.integration.process.conftest import GatewayProcess, Migrate

FILES = 300
MANY = 350


@contextmanager
def connected(gateway: GatewayProcess, count: int) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        address = ("127.0.0.1", int(gateway.url.rpartition(":")[2]))
        yield [stack.enter_context(socket.create_connection(address)) for _ in range(count)]


def cpu_ticks(gateway: GatewayProcess) -> int:
    with open(f"/proc/{gateway.pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_gateway_out_of_files_refuses_and_recovers(
    environment: dict[str, str], migrated: Migrate
) -> None:
    """F45"""
    environment = environment | {"GATEWAY_HEAD_TIMEOUT_S": "600"}
    migrated(environment)
    limited = ["sh", "-c", f'ulimit -n {FILES}; exec "$@"', "sh"]
    gateway = GatewayProcess(environment, wrapper=limited)
    try:
        gateway.generate("huggingface/smol", "hi", max_tokens=1)
        with connected(gateway, MANY) as sockets:
            # The last came when the gateway was full: told so, each of them.
            for refused in sockets[-50:]:
                refused.settimeout(20)
                assert refused.recv(100).startswith(b"HTTP/1.1 503 ")
            # And who was in is served: there are files left for what is done.
            first = sockets[0]
            first.settimeout(20)
            first.sendall(b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert first.recv(100).startswith(b"HTTP/1.1 200 ")
            before = cpu_ticks(gateway)
            with httpx.Client(base_url=gateway.url, trust_env=False, timeout=20) as client:
                replies = [client.get("/health/live").status_code for _ in range(100)]
            assert set(replies) == {503}
            spent = cpu_ticks(gateway) - before
        assert spent < 150, "refusing took more than a second of the processor"
        with httpx.Client(base_url=gateway.url, trust_env=False, timeout=20) as client:
            while client.get("/health/live").status_code != 200:
                time.sleep(0.05)
        gateway.generate("huggingface/smol", "hi", max_tokens=1)
    finally:
        gateway.close()
