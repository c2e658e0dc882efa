import pytest

from gateway.core.hosts import is_loopback
from gateway.http.hosts import may_be_called


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "a.localhost"])
def test_these_reach_this_machine_only(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.com", ""])
def test_these_reach_further(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "header",
    [
        "127.0.0.1:8420",
        "[::1]:8420",
        "localhost",
        "LOCALHOST:1",
        "192.168.0.7",
        "gpu:1",
        "localhost.",
        "GPU",
    ],
)
def test_addresses_localhost_and_allowed_names_may_call(header: str) -> None:
    assert may_be_called(header, {"gpu"})


@pytest.mark.parametrize(
    "header",
    ["evil.example", "evil.example:8420", "", "localhost.evil:1", "127.0.0.1]evil", "[evil]:1"],
)
def test_any_other_name_may_not(header: str) -> None:
    assert not may_be_called(header, {"gpu"})
