"""store.pepper: made once, whole, for this user only; and the mistakes that are told."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.core.errors import Misconfigured
from gateway.core.keys import Peppers
from gateway.settings import load_settings
from gateway.store.pepper import load_peppers


def recognises(peppers: Peppers, by: Peppers) -> bool:
    return by.newest in peppers


def test_it_is_made_once_for_this_user_only(tmp_path: Path) -> None:
    file = tmp_path / "data" / "key-pepper"
    mask = os.umask(0)
    try:
        first = load_peppers("", file)
    finally:
        os.umask(mask)
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(bytes.fromhex(file.read_text().strip())) == 32
    assert load_peppers("", file).newest == first.newest
    assert [each.name for each in file.parent.iterdir()] == ["key-pepper"]


def test_many_who_make_it_at_once_have_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        made = threads.map(lambda _: load_peppers("", tmp_path / "p").newest, range(32))
    assert len(set(made)) == 1


def test_what_is_given_wins_and_no_file_is_made(tmp_path: Path) -> None:
    old, new = "o" * 32, "n" * 32
    both = load_peppers(f"{new},{old}", tmp_path / "p")
    assert recognises(both, load_peppers(old, tmp_path / "p"))
    assert both.newest == load_peppers(new, tmp_path / "p").newest
    assert not (tmp_path / "p").exists()


def test_a_file_has_one_on_each_line(tmp_path: Path) -> None:
    (tmp_path / "p").write_text(f"{'n' * 32}\n{'o' * 32}\n")
    peppers = load_peppers("", tmp_path / "p")
    assert recognises(peppers, load_peppers("o" * 32, tmp_path / "p"))


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe", None])
def test_a_file_that_cannot_be_used_is_a_mistake_and_not_shown(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "p"
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(Misconfigured, match="GATEWAY_KEY_PEPPER_FILE"):
        load_peppers("", file)


@pytest.mark.parametrize("given", ["hunter2", f"{'o' * 32},hunter2", ","])
def test_a_short_pepper_is_a_mistake_that_does_not_show_it(tmp_path: Path, given: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        load_settings({"GATEWAY_KEY_PEPPER": given}, config_dir=tmp_path, dotenv=tmp_path / ".env")
    assert "GATEWAY_KEY_PEPPER" in str(caught.value)
    assert "hunter2" not in str(caught.value)
