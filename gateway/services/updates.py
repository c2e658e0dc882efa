"""Whether the Hub has something newer than the models that are here."""

from collections.abc import Mapping, Sequence

from gateway.core.library import ShelvedModel
from gateway.core.ports import HubRevisions
from gateway.services.catalog import ProviderFault

HUB = "hub"
"""Whose fault it is that updates are not told."""


class Updates:
    """What is newest by what the Hub said; `revisions` None: nobody knows."""

    def __init__(self, revisions: HubRevisions | None) -> None:
        self._revisions = revisions

    async def look_up(self, models: Sequence[ShelvedModel]) -> ProviderFault | None:
        """Ask the Hub, unless its answer is remembered; return why it could not be asked."""
        if self._revisions is None:
            return None
        error = await self._revisions.look_up(_repositories(models))
        return None if error is None else ProviderFault(HUB, error)

    async def latest_commits(self, models: Sequence[ShelvedModel]) -> Mapping[str, str]:
        """Return the newest commits of their repositories that are known, by name."""
        if self._revisions is None:
            return {}
        return await self._revisions.latest_commits(_repositories(models))


def is_outdated(model: ShelvedModel, commits: Mapping[str, str]) -> bool | None:
    """Tell whether the branch that the model is of has gone on; None: unknown."""
    latest = commits.get(model.repository or "") if "main" in model.refs else None
    return None if latest is None else latest != model.model.revision


def _repositories(models: Sequence[ShelvedModel]) -> set[str]:
    """Return the repositories of which an update could be told."""
    return {each.repository for each in models if each.repository and "main" in each.refs}
