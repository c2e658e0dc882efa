"""store.vault: where its keys come from, and which mistakes are told."""

from pathlib import Path

import pytest

from gateway.core.errors import Misconfigured, SecretUnreadable
from gateway.store.vault import Vault, load_vault


def test_what_is_locked_reads_back_and_never_looks_alike() -> None:
    vault = Vault([b"k" * 32])
    first, second = vault.lock("secret"), vault.lock("secret")
    assert first != second
    assert vault.open(first) == vault.open(second) == "secret"


def test_what_was_changed_cannot_be_read() -> None:
    vault = Vault([b"k" * 32])
    locked = vault.lock("secret")
    for changed in (locked[:-8] + "AAAAAAA=", "", "é", locked[4:]):
        with pytest.raises(SecretUnreadable):
            vault.open(changed)


def test_the_key_file_is_made_once_for_this_user_only(tmp_path: Path) -> None:
    file = tmp_path / "data" / "secret-key"
    locked = load_vault("", file).lock("x")
    assert file.stat().st_mode & 0o777 == 0o600
    assert load_vault("", file).open(locked) == "x"


def test_a_key_that_is_given_wins_and_the_first_one_locks(tmp_path: Path) -> None:
    old, new = "o" * 32, "n" * 32
    both = load_vault(f"{new},{old}", tmp_path / "k")
    assert not (tmp_path / "k").exists()
    assert both.open(load_vault(old, tmp_path / "k").lock("x")) == "x"
    assert load_vault(new, tmp_path / "k").open(both.lock("x")) == "x"


@pytest.mark.parametrize("content", [b"", b" \n", b"short", b"\xff\xfe", None])
def test_a_file_that_cannot_be_used_is_a_mistake_and_not_shown(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "k"
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(Misconfigured, match="GATEWAY_SECRET_KEY_FILE") as caught:
        load_vault("", file)
    assert "short" not in str(caught.value)
