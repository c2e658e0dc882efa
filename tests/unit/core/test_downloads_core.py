"""What may be downloaded, which transitions are legal, and progress that never runs backwards."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.downloads import (
    ENDED,
    LEGAL_SOURCES,
    DownloadOrder,
    DownloadState,
    Meter,
    Progress,
    RemoteFile,
    Tally,
    choose_files,
    parse_order,
)
from gateway.core.errors import InvalidRequest


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("owner/name", DownloadOrder("huggingface", "owner/name")),
        ("huggingface/owner/name", DownloadOrder("huggingface", "owner/name")),
        ("huggingface/CodeBERTa", DownloadOrder("huggingface", "huggingface/CodeBERTa")),
        ("gpt2", DownloadOrder("huggingface", "gpt2")),
        ("o/n@refs/pr/1", DownloadOrder("huggingface", "o/n", "refs/pr/1")),
        ("ollama/llama3.2", DownloadOrder("ollama", "llama3.2:latest")),
        ("ollama/user/m:7b", DownloadOrder("ollama", "user/m:7b")),
    ],
)
def test_names_say_where_from(name: str, order: DownloadOrder) -> None:
    assert parse_order(name) == order
    if "/" in order.repo or order.source == "ollama":
        assert parse_order(order.name) == order


HOSTILE = [
    "",
    "/",
    "..",
    "../x",
    "a/..",
    "a/b/c",
    "/etc/passwd",
    "a/b/../../c",
    "a\\b",
    "a/b\x00",
    "a/b\n",
    "a/%2e%2e",
    "a/.hidden",
    "a--b/c",
    "a/b.git",
    "a/b?x=1",
    "a/b#x",
    "http://evil/x",
    "a" * 97,
    "ollama/",
    "ollama/../x",
    "huggingface/",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_could_do_harm_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_order(name)


@pytest.mark.parametrize(
    "revision", ["..", "a/../b", "/a", "a//b", "-x", "a\x00", "a b", "x" * 300, "a/.", "./a", "a?b"]
)
def test_a_revision_that_could_do_harm_is_refused(revision: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_order("o/n", revision=revision)


@given(st.text(max_size=60))
def test_whatever_is_accepted_is_one_folder_below_the_cache(name: str) -> None:
    try:
        order = parse_order(name)
    except InvalidRequest:
        return
    if order.source == "huggingface":
        folder = f"models--{order.repo.replace('/', '--')}"
        assert "/" not in folder and "\0" not in folder and folder.isprintable()
        parts = (order.revision or "main").split("/")
        assert all(part not in ("", ".", "..") for part in parts)


@pytest.mark.parametrize("patterns", [[""], ["x" * 300], ["*" * 5], ["a"] * 33, ["a\n"]])
def test_patterns_are_bounded(patterns: list[str]) -> None:
    with pytest.raises(InvalidRequest):
        parse_order("o/n", patterns=patterns)


def test_patterns_match_as_the_hub_s_do() -> None:
    names = ["config.json", "a/model.safetensors", "a/b/x.json", "A.JSON"]
    files = [RemoteFile(name, 1, "0" * 40) for name in names]

    def chosen(*patterns: str) -> list[str]:
        return [file.path for file in choose_files(files, patterns)]

    assert chosen() == names
    assert chosen("*.json") == ["config.json", "a/b/x.json"]
    assert chosen("a/") == ["a/model.safetensors", "a/b/x.json"]
    assert chosen("config.json", "a/m*") == ["config.json", "a/model.safetensors"]


def test_an_end_is_left_only_by_resuming_a_failure() -> None:
    leaves = {
        (source, target)
        for target, sources in LEGAL_SOURCES.items()
        for source in sources
        if source in ENDED
    }
    failed = DownloadState.FAILED
    assert leaves == {(failed, DownloadState.QUEUED), (failed, DownloadState.CANCELLED)}


steps = st.tuples(
    st.floats(0.01, 10), st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 500)
)


@given(st.lists(steps, max_size=30), st.integers(0, 3000))
def test_progress_never_runs_backwards(
    turns: list[tuple[float, int, int, int]], shown: int
) -> None:
    tally, now = Tally(), 0.0
    before = Progress(bytes_done=shown, bytes_total=max(shown, 1000))
    meter = Meter(now, before)
    for span, fetched, lost, total in turns:
        now += span
        tally.bytes_fetched += fetched
        tally.bytes_lost += min(lost, tally.bytes_done)
        tally.bytes_total = total + tally.bytes_done
        progress = meter.read(tally, now)
        assert progress.bytes_done >= before.bytes_done
        assert progress.bytes_total is not None
        assert progress.bytes_done <= progress.bytes_total
        assert progress.rate is None or progress.rate >= 0
        assert progress.eta_s is None or progress.eta_s >= 0
        before = progress


def test_a_steady_rate_is_told_and_so_is_when_it_will_be_done() -> None:
    tally, meter = Tally(), Meter(0.0, Progress())
    tally.bytes_total = 100_000
    for second in range(1, 51):
        tally.bytes_fetched += 1000
        progress = meter.read(tally, float(second))
    assert progress.rate == pytest.approx(1000)
    assert progress.eta_s == pytest.approx(50)


def test_what_was_there_already_is_no_speed() -> None:
    tally, meter = Tally(), Meter(0.0, Progress())
    tally.bytes_total, tally.bytes_present = 1000, 900
    progress = meter.read(tally, 1.0)
    assert (progress.bytes_done, progress.rate, progress.eta_s) == (900, 0, None)
