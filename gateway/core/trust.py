"""What the operator lets the files of a model do beside being read: pickles, code of their own."""

from collections.abc import Sequence

import msgspec

ALL = "*"
ALLOW_PICKLE = "GATEWAY_HF_ALLOW_PICKLE"
TRUST_REPOSITORY = "GATEWAY_HF_TRUSTED_REPOSITORIES"


class Trust(msgspec.Struct, frozen=True):
    """What is allowed to one model: weights in pickles, and to run the code that it brings."""

    pickle: bool = False
    code: bool = False

    @property
    def allowed(self) -> list[str]:
        """The names of what is allowed."""
        return ["pickle"] * self.pickle + ["code"] * self.code

    @property
    def mark(self) -> str:
        """Text that differs between what is allowed and what is not; empty where nothing is."""
        return "".join(f"+{name}" for name in self.allowed)


class TrustRules(msgspec.Struct, frozen=True):
    """Whose pickles are read (`*`: everybody's), and whose code is run: names as models have them,
    of repositories also `name@commit`, which trusts that commit only."""

    pickles: Sequence[str] = ()
    repositories: Sequence[str] = ()

    def of(self, name: str, revision: str | None) -> Trust:
        """Return what is allowed to the model `name`, of that commit if it has one."""
        names = {name, f"{name}@{revision}"}
        return Trust(
            pickle=ALL in self.pickles or not names.isdisjoint(self.pickles),
            code=not names.isdisjoint(self.repositories),
        )
