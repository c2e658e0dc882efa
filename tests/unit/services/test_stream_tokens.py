"""StreamTokens: for one stream, for a while, and by nobody else's making."""

import pytest

from gateway.services.stream_tokens import StreamTokens
from tests.hand_clock import HandClock


async def test_a_token_admits_to_its_stream_until_it_is_too_old() -> None:
    clock = HandClock()
    tokens = StreamTokens(b"secret", lifetime_s=60, clock=clock)
    token = tokens.issue("a")
    assert tokens.admits("a", token)
    assert not tokens.admits("b", token)
    await clock.turn(59)
    assert tokens.admits("a", token)
    await clock.turn(1)
    assert not tokens.admits("a", token)


def test_a_token_of_another_secret_admits_nobody() -> None:
    token = StreamTokens(b"other", lifetime_s=60).issue("a")
    assert not StreamTokens(b"secret", lifetime_s=60).admits("a", token)


@pytest.mark.parametrize("token", ["", ".", "1.", "9" * 5000 + ".x", "\u0661.x", "-1.x", "\ud800"])
def test_what_is_no_token_admits_nobody(token: str) -> None:
    assert not StreamTokens(b"secret", lifetime_s=60).admits("a", token)


def test_neither_a_later_expiry_nor_a_cut_signature_is_believed() -> None:
    tokens = StreamTokens(b"secret", lifetime_s=60)
    expiry, _, signature = tokens.issue("a").partition(".")
    assert not tokens.admits("a", f"{int(expiry) + 1}.{signature}")
    assert not tokens.admits("a", f"{expiry}.{signature[:-1]}")
    assert not tokens.admits("a", f"0{expiry}.{signature}")
