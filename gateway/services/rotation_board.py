"""RotationBoard: the rotations as they were seen last, and who answers for each at this gateway."""

from collections.abc import Collection, Mapping

import anyio
import msgspec

from gateway.core.errors import GatewayError
from gateway.core.models import ModelInfo
from gateway.core.names import ModelRef
from gateway.core.rotation import PREFIX, RESERVED, Rotation, describe_rule
from gateway.core.routing import resolve_route
from gateway.core.states import ModelState
from gateway.core.virtual import VirtualModel
from gateway.services.catalog import Listing


class Serving(msgspec.Struct):
    """Who answers for a rotation here; `before` is in memory yet, `again_at` is when to try again
    to follow a step of another gateway."""

    model: str
    before: str | None = None
    again_at: float = 0.0


class RotationBoard:
    """On one event loop. The router reads the rules that are written here."""

    def __init__(
        self,
        rules: dict[str, VirtualModel],
        *,
        providers: Collection[str],
        aliases: Mapping[str, str],
    ) -> None:
        self._rules = rules
        self._providers = providers
        self._aliases = aliases
        self._known: dict[str, Rotation] = {}
        self._serving: dict[str, Serving] = {}
        self.changed = anyio.Event()
        """Set, and a new one in its place, when there is news for those who watch."""

    @property
    def known(self) -> Mapping[str, Rotation]:
        return self._known

    def serving(self, name: str) -> Serving | None:
        return self._serving.get(name)

    def all(self) -> list[Rotation]:
        """Return every rotation, by name."""
        return [self._known[name] for name in sorted(self._known)]

    def take(self, found: Mapping[str, Rotation], running: Collection[str]) -> None:
        """Know what was found; of those that are `running` a step here it is known better who
        answers."""
        for name in [*self._serving]:
            if name not in found:
                del self._serving[name]
                self._rules.pop(PREFIX + name, None)
        has_changed = found != self._known
        self._known = dict(found)
        for name, rotation in found.items():
            serving = self._serving.get(name)
            is_gone = serving is None or serving.model not in rotation.order.models
            if serving is None or (is_gone and name not in running):
                self.serve(name, rotation.current)
            elif has_changed:
                self.serve(name, serving.model, before=serving.before)
        if has_changed:
            self.tell()

    def serve(self, name: str, model: str, before: str | None = None) -> None:
        """Let `model` answer here; `before` is in memory yet."""
        rotation = self._known.get(name)
        if rotation is None:
            return
        kept = self._serving.get(name)
        again_at = kept.again_at if kept is not None and kept.model == model else 0.0
        self._serving[name] = Serving(model, before, again_at)
        self._rules[rotation.model] = describe_rule(rotation, model, before)

    def kept(self) -> set[str]:
        """Return the models that answer for any rotation."""
        return {serving.model for serving in self._serving.values()}

    def tell(self) -> None:
        """Wake those who watch."""
        changed, self.changed = self.changed, anyio.Event()
        changed.set()

    def listed(self, listing: Listing) -> list[ModelInfo]:
        """Return each rotation as a model of a listing: it can do what who answers now can."""
        return [self._describe(name, listing) for name in sorted(self._serving)]

    def joined(self, listing: Listing) -> Listing:
        """Return the listing with the rotations in it, to be shown."""
        return msgspec.structs.replace(listing, models=(*listing.models, *self.listed(listing)))

    def _describe(self, name: str, listing: Listing) -> ModelInfo:
        ref = ModelRef(RESERVED, name)
        current = self._serving[name].model
        metadata = (("current", current),)
        try:
            found = resolve_route(
                current,
                providers=self._providers,
                catalogue=listing.catalogue,
                aliases=self._aliases,
            ).info
        except GatewayError:
            found = None
        if found is None:
            return ModelInfo(ref, ModelState.NOT_LOADED, metadata=metadata, virtual=True)
        return msgspec.structs.replace(found, ref=ref, metadata=metadata, virtual=True)
