"""A budget to take memory from, that remembers."""


class Ledger:
    """Has `room` bytes; `taken` are out now and `most` is the most there ever were."""

    def __init__(self, room: int = 2**40) -> None:
        self.room = room
        self.taken = 0
        self.most = 0

    def reserve(self, size_bytes: int, *, is_needed: bool = True) -> bool:
        if self.taken + size_bytes > self.room:
            return False
        self.taken += size_bytes
        self.most = max(self.most, self.taken)
        return True

    def release(self, size_bytes: int) -> None:
        self.taken -= size_bytes
