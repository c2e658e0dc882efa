"""Wrong keys by address: the bucket, the bound of the table, who counts as one sender."""

import pytest

from gateway.core.errors import RateLimited
from gateway.services.wrong_keys import WrongKeys, name_network
from tests.hand_clock import HandClock


def spent(wrong_keys: WrongKeys, address: str) -> int:
    """Return how many attempts `address` has until it is refused."""
    for count in range(1000):
        try:
            wrong_keys.count(address)
        except RateLimited:
            return count
    raise AssertionError("nobody was refused")


def test_attempts_come_back_evenly() -> None:
    clock = HandClock()
    wrong_keys = WrongKeys(6, clock=clock)
    assert spent(wrong_keys, "192.0.2.7") == 6
    clock.now += 20
    assert spent(wrong_keys, "192.0.2.7") == 2


def test_no_limit_refuses_nobody_and_remembers_nobody() -> None:
    wrong_keys = WrongKeys(0)
    for _ in range(100):
        wrong_keys.count("192.0.2.7")
    assert len(wrong_keys) == 0


def test_the_table_is_bounded_and_forgets_who_was_quiet_for_longest() -> None:
    wrong_keys = WrongKeys(2, max_addresses=3, clock=HandClock())
    for address in ("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.1", "192.0.2.4"):
        wrong_keys.count(address)
    assert len(wrong_keys) == 3
    assert spent(wrong_keys, "192.0.2.1") == 0
    assert spent(wrong_keys, "192.0.2.2") == 2


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("a" * 10_000, ""),
        ("", ""),
    ],
)
def test_one_sender_is_an_ipv4_address_or_an_ipv6_network(address: str, network: str) -> None:
    assert name_network(address) == network
