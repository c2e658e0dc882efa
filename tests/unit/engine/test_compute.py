import os
import sys
import threading
from collections.abc import Iterator

import pytest

from gateway.engine.weights.compute import ComputeThread, Inline, bound_threads


@pytest.fixture
def compute() -> Iterator[ComputeThread]:
    thread = ComputeThread()
    yield thread
    thread.close()


def test_all_work_is_done_in_one_thread_in_the_order_in_which_it_was_asked_for(
    compute: ComputeThread,
) -> None:
    gate, done = threading.Event(), []

    def work(name: str) -> None:
        done.append((name, threading.get_ident()))

    began = threading.Event()

    def wait() -> None:
        began.set()
        gate.wait()

    askers = [threading.Thread(target=compute.run, args=(wait,))]
    askers += [
        threading.Thread(target=compute.run, args=(lambda name=name: work(name),)) for name in "abc"
    ]
    for number, asker in enumerate(askers):
        asker.start()
        began.wait()
        while number and compute._jobs.qsize() < number:
            pass
    gate.set()
    for asker in askers:
        asker.join()
    assert [name for name, _ in done] == ["a", "b", "c"]
    assert len({thread for _, thread in done} - {threading.get_ident()}) == 1


def test_what_work_returns_or_raises_is_the_askers(compute: ComputeThread) -> None:
    def fail() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        compute.run(fail)
    assert compute.run(lambda: 7) == 7
    compute.close()
    assert compute.run(lambda: 8) == 8


@pytest.mark.parametrize("kind", [Inline, ComputeThread])
def test_small_work_has_one_thread_and_other_work_all_there_are(
    kind: type[Inline | ComputeThread],
) -> None:
    import torch

    place = kind(2)
    before = torch.get_num_threads()
    counts = [place.run(torch.get_num_threads, is_small=small) for small in (False, True, False)]
    assert counts == [bound_threads(2), 1, bound_threads(2)]
    if isinstance(place, ComputeThread):
        place.close()
    torch.set_num_threads(before)


def test_no_more_threads_than_cores() -> None:
    assert bound_threads(1) == 1
    assert bound_threads(10**6) == bound_threads(0) >= 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the whole process has it")
def test_a_thread_that_stands_back_does_so_alone() -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    mine, behind = priority(), ComputeThread(1, nice=10)
    try:
        assert behind.run(priority) == max(mine, 10)
        assert priority() == mine
    finally:
        behind.close()
