"""Who is let in: so many in all, so many of one address, and this machine as it likes."""

from gateway.http.connections import ConnectionGuard, ConnectionLimits


def test_an_address_has_so_many_and_leaves_room_for_others() -> None:
    guard = ConnectionGuard(ConnectionLimits(most=10, most_of_peer=2))
    assert [guard.enter("192.0.2.1") for _ in range(3)] == [True, True, False]
    assert guard.enter("192.0.2.2")
    guard.leave("192.0.2.1")
    assert guard.enter("192.0.2.1")
    assert guard.count == 3


def test_this_machine_is_bounded_by_the_whole_alone() -> None:
    guard = ConnectionGuard(ConnectionLimits(most=3, most_of_peer=1))
    assert [guard.enter("127.0.0.1") for _ in range(4)] == [True, True, True, False]


def test_zero_is_no_limit_of_an_address() -> None:
    guard = ConnectionGuard(ConnectionLimits(most=100))
    assert all(guard.enter("192.0.2.1") for _ in range(100))


def test_nothing_is_kept_of_who_left() -> None:
    guard = ConnectionGuard(ConnectionLimits(most=10))
    for number in range(100):
        assert guard.enter(f"192.0.2.{number}")
        guard.leave(f"192.0.2.{number}")
    assert (guard.count, len(guard._of_peer)) == (0, 0)
