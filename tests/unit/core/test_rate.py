import pytest

from gateway.core.errors import RateLimited
from gateway.core.rate import Bucket, require, spend


def test_a_minute_s_requests_may_come_at_once_and_not_one_more() -> None:
    bucket = None
    for left in (2, 1, 0):
        bucket, allowance = spend(bucket, 3, now=10.0)
        assert (allowance.remaining, allowance.wait_s) == (left, None)
    bucket, allowance = spend(bucket, 3, now=10.0)
    assert allowance.wait_s == pytest.approx(20)
    assert allowance.reset_s == pytest.approx(60)


def test_the_bucket_fills_evenly_and_never_beyond_its_size() -> None:
    empty = Bucket(0.0, at=0.0)
    _, early = spend(empty, 60, now=0.5)
    assert early.wait_s == pytest.approx(0.5)
    _, late = spend(empty, 60, now=1.0)
    assert late.wait_s is None
    _, much_later = spend(empty, 60, now=10_000.0)
    assert much_later.remaining == 59


def test_who_is_refused_loses_nothing_by_asking() -> None:
    bucket = Bucket(0.0, at=0.0)
    for _ in range(100):
        bucket, _ = spend(bucket, 60, now=0.9)
    assert spend(bucket, 60, now=1.0)[1].wait_s is None


def test_the_refusal_says_when_to_come_back() -> None:
    _, allowance = spend(Bucket(0.0, at=0.0), 6, now=0.0)
    with pytest.raises(RateLimited) as refused:
        require(allowance)
    assert refused.value.retry_after_s == pytest.approx(10)
