"""Which files that downloads left may go: those that nobody may still want."""

import pytest

from gateway.core.downloads import Download, DownloadState, parse_order
from gateway.core.leftovers import Leftover, plan_leftovers

S = DownloadState


def download(state: DownloadState, updated_at: float = 0.0, place: str = "here") -> Download:
    return Download("d", parse_order("o/n"), place, state, 0.0, updated_at)


def gone(*downloads: Download, changed_at: float = 10.0) -> tuple[list[str], list[str]]:
    """Return the repositories whose leftovers go, and the downloads that are forgotten."""
    plan = plan_leftovers([Leftover("o/n", 7, changed_at)], downloads, "here", before=50.0)
    return [each.repository for each in plan.leftovers], [each.id for each in plan.forgotten]


def test_what_nobody_wants_goes_once_it_is_old() -> None:
    assert gone() == (["o/n"], [])
    assert gone(changed_at=50.0) == ([], [])


@pytest.mark.parametrize("state", [S.QUEUED, S.RUNNING, S.PAUSED])
def test_what_a_download_is_to_go_on_with_stays_however_old(state: DownloadState) -> None:
    assert gone(download(state)) == ([], [])
    assert gone(download(state, place="elsewhere")) == (["o/n"], [])


def test_one_that_failed_lately_keeps_its_files_and_one_of_before_goes_with_them() -> None:
    assert gone(download(S.FAILED, updated_at=50.0)) == ([], [])
    assert gone(download(S.FAILED, updated_at=49.0)) == (["o/n"], ["d"])
    assert gone(download(S.FAILED), download(S.FAILED, updated_at=60.0)) == ([], [])
    assert gone(download(S.FAILED, place="elsewhere")) == (["o/n"], [])
