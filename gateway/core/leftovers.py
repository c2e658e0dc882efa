"""What downloads that did not end well left behind, and what of it may go. Pure."""

from collections.abc import Iterable, Sequence

import msgspec

from gateway.core.downloads import Download


class Leftover(msgspec.Struct, frozen=True):
    """Files of one repository that no snapshot shows; `changed_at` (Unix seconds) is when one of
    them grew last."""

    repository: str
    size_bytes: int
    changed_at: float


class LeftoverPlan(msgspec.Struct, frozen=True):
    """What goes, and the ids of failed downloads that are forgotten with it: resuming them would
    find nothing."""

    leftovers: tuple[Leftover, ...] = ()
    forgotten: tuple[Download, ...] = ()


def plan_leftovers(
    found: Iterable[Leftover], downloads: Sequence[Download], place: str, before: float
) -> LeftoverPlan:
    """Return what nobody added to since `before` (Unix seconds) and nobody may still want.

    `downloads` are those that have not ended, or failed. Of those to `place`, one that has not
    ended keeps what is there, and so does one that failed since.
    """
    here = [each for each in downloads if each.place == place]
    wanted = {d.order.repo for d in here if not d.ended or d.updated_at >= before}
    going = [each for each in found if each.changed_at < before and each.repository not in wanted]
    names = {each.repository for each in going}
    return LeftoverPlan(tuple(going), tuple(d for d in here if d.order.repo in names))
