import pytest

from gateway.core.errors import Unauthenticated
from gateway.core.keys import (
    ApiKey,
    Caller,
    KeyScope,
    Peppers,
    StoredKey,
    make_key_text,
    read_credential,
    read_key_id,
)

OLD, NEW = b"o" * 32, b"n" * 32


def stored(peppers: Peppers) -> tuple[StoredKey, str]:
    key_id, text = make_key_text()
    key = ApiKey(key_id, "a", (KeyScope.INFER,), 0.0)
    return StoredKey(key, peppers.digest(text), peppers.newest), text


def test_a_key_names_its_id_and_has_256_bits_that_nobody_else_has() -> None:
    made = [make_key_text() for _ in range(50)]
    assert all(read_key_id(text) == key_id for key_id, text in made)
    secrets = {text.rpartition("-")[2] for _, text in made}
    assert len(secrets) == 50 and all(len(bytes.fromhex(secret)) == 32 for secret in secrets)


@pytest.mark.parametrize("text", ["", "gw-", "sk-abc", "gw-0123456789ab-", "x" * 100_000])
def test_what_is_no_key_has_no_id(text: str) -> None:
    assert read_key_id(text) == ""


def test_only_the_whole_key_is_recognised() -> None:
    peppers = Peppers([OLD])
    key, text = stored(peppers)
    assert peppers.recognise(key, text)
    for wrong in (text[:-1], text + "0", text.upper(), text.replace("gw-", "gx-"), "", "\ud800"):
        assert not peppers.recognise(key, wrong)


def test_a_key_that_is_not_there_is_never_recognised() -> None:
    peppers = Peppers([OLD])
    assert not peppers.recognise(None, stored(peppers)[1])


def test_while_the_pepper_changes_keys_of_both_are_recognised_and_new_ones_have_the_new() -> None:
    key, text = stored(Peppers([OLD]))
    both = Peppers([NEW, OLD])
    assert both.recognise(key, text)
    newer, newer_text = stored(both)
    assert Peppers([NEW]).recognise(newer, newer_text)
    assert not Peppers([NEW]).recognise(key, text)


def test_a_key_whose_record_lost_its_pepper_is_not_recognised_by_another() -> None:
    peppers = Peppers([OLD])
    key, text = stored(peppers)
    forged = StoredKey(key.key, key.digest, "another")
    assert not peppers.recognise(forged, text)


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", "Bearer k")],
        [("authorization", "bearer   k ")],
        [("X-Api-Key", "k")],
        [("x-api-key", " k "), ("authorization", "Bearer k")],
        [("authorization", "Basic dTpw"), ("x-api-key", "k")],
    ],
)
def test_both_carriers_bring_the_same_key(headers: list[tuple[str, str]]) -> None:
    assert read_credential(headers) == "k"


@pytest.mark.parametrize("headers", [[], [("authorization", "Bearer ")], [("x-api-key", "")]])
def test_an_empty_credential_is_none(headers: list[tuple[str, str]]) -> None:
    assert read_credential(headers) is None


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", "Bearer a"), ("x-api-key", "b")],
        [("authorization", "Bearer a"), ("authorization", "Bearer b")],
        [("x-api-key", "a"), ("x-api-key", "b")],
        [("authorization", "Basic dTpw")],
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(headers: list[tuple[str, str]]) -> None:
    with pytest.raises(Unauthenticated):
        read_credential(headers)


def test_an_admin_may_everything_and_the_others_what_their_scopes_open() -> None:
    infer, admin = (Caller("a", frozenset({KeyScope(scope)})) for scope in ("infer", "admin"))
    assert infer.may({KeyScope.INFER, KeyScope.MANAGE})
    assert not infer.may({KeyScope.MANAGE})
    assert not infer.may(set())
    assert admin.may({KeyScope.MANAGE}) and admin.may(set())


def test_peppers_show_nothing_of_themselves() -> None:
    assert "ooo" not in repr(Peppers([OLD])) + Peppers([OLD]).newest
