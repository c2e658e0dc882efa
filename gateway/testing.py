"""In-memory doubles for tests. Each passes the same contract suite as the part it stands for."""

import time
from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import asdict, replace

from gateway.core.collections import Collection, CollectionChange, CollectionOrder, SavedConfig
from gateway.core.decision_records import DecisionFilter, DecisionRecord, describe_session
from gateway.core.downloads import LEGAL_SOURCES, SETTLED, Download, DownloadState, Progress
from gateway.core.drift import StateDrift, find_drift
from gateway.core.errors import CollectionExists
from gateway.core.events import Timings, Usage
from gateway.core.hub import Remembered, StoredSecret
from gateway.core.keys import StoredKey
from gateway.core.library import FileRecord
from gateway.core.loading import ModelConfig
from gateway.core.models import ModelStateChange, ProviderStatus
from gateway.core.names import ModelRef
from gateway.core.ports import DownloadChange, RotationLook, SessionStore, Worker
from gateway.core.rotation import (
    Rotation,
    RotationOrder,
    Source,
    Step,
    StepState,
    Trigger,
    find_trigger,
    schedule,
)
from gateway.core.rules import RuleDraft, StoredRule
from gateway.core.sessions import Session, SessionClosed, SessionOpened, SessionRecord
from gateway.core.states import StreamEnd
from gateway.store.hub_cache import MAX_ENTRIES
from gateway.store.rules import require_version
from gateway.store.sessions import UNKNOWN_NODE, UNSEEN_S, opening_of
from gateway.store.tables import MAX_ID_LENGTH, MAX_MESSAGE_LENGTH, clean_count, clean_text


class MemorySessionStore:
    """A SessionStore that forgets everything with the process."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        """`now` is the database's clock."""
        self._now = now
        self._sessions: dict[str, Session] = {}
        self._noted: dict[str, Usage] = {}
        self._seen: dict[str, float] = {}

    async def write(self, opened: Sequence[SessionOpened], closed: Sequence[SessionClosed]) -> None:
        for opening in opened:
            opening = replace(opening, opened_at=_to_microseconds(opening.opened_at))
            known = self._sessions.get(opening.id)
            if known is None:
                self._sessions[opening.id] = Session(opening)
            elif known.opened.node == UNKNOWN_NODE:
                self._sessions[opening.id] = _served_last(replace(known, opened=opening))
        for end in closed:
            end = _as_stored(end)
            known = self._sessions.get(end.id, Session(opening_of(end)))
            if known.closed is None:
                self._sessions[end.id] = _served_last(replace(known, closed=end))

    async def note_usage(self, used: Mapping[str, Usage]) -> None:
        for name, usage in used.items():
            if name in self._sessions and self._sessions[name].closed is None:
                self._noted[name] = usage

    async def interrupt_orphans(self, node: str, closed_at: float, *, boot: str) -> int:
        opened = [s.opened for s in self._sessions.values() if s.closed is None]
        orphans = [o for o in opened if o.node == node and o.boot != boot]
        await self.write([], [self._interrupted(orphan, closed_at) for orphan in orphans])
        return len(orphans)

    async def beat(self, node: str, boot: str) -> None:
        self._seen[boot] = self._now()

    async def interrupt_expired(self, lease_s: float) -> int:
        now = self._now()
        expired = {boot for boot, seen_at in self._seen.items() if seen_at < now - lease_s}
        opened = [s.opened for s in self._sessions.values() if s.closed is None]
        orphans = [
            each
            for each in opened
            if each.boot in expired
            or (each.boot not in self._seen and each.opened_at < now - UNSEEN_S)
        ]
        await self.write([], [self._interrupted(orphan, now) for orphan in orphans])
        for boot in expired:
            del self._seen[boot]
        return len(orphans)

    async def purge(self, opened_before: float, limit: int) -> int:
        by_age = sorted(self._sessions.values(), key=lambda session: session.opened.opened_at)
        old = [s.opened.id for s in by_age if s.opened.opened_at < opened_before][:limit]
        for session_id in old:
            del self._sessions[session_id]
        return len(old)

    async def recent(self, limit: int) -> Sequence[Session]:
        newest = sorted(
            self._sessions.values(), key=lambda s: (s.opened.opened_at, s.opened.id), reverse=True
        )
        return newest[:limit]

    async def find(self, session_id: str) -> Session | None:
        return self._sessions.get(session_id)

    def _interrupted(self, opened: SessionOpened, closed_at: float) -> SessionClosed:
        return SessionClosed(
            id=opened.id,
            provider=opened.provider,
            model=opened.model,
            end=StreamEnd.INTERRUPTED,
            closed_at=closed_at,
            usage=self._noted.get(opened.id, Usage()),
            timings=Timings(),
        )


class MemoryDecisionStore:
    """A DecisionStore that forgets everything with the process."""

    def __init__(self, sessions: SessionStore | None = None) -> None:
        self._sessions = sessions or MemorySessionStore()
        self._records: dict[str, DecisionRecord] = {}

    async def write(self, records: Sequence[DecisionRecord]) -> None:
        for record in records:
            assert record.id is not None
            self._records.setdefault(record.id, replace(record, source="database"))

    async def find(self, decision_id: str) -> DecisionRecord | None:
        if decision_id in self._records:
            return self._records[decision_id]
        session = await self._sessions.find(decision_id)
        return describe_session(session) if session else None

    async def recent(self, wanted: DecisionFilter) -> Sequence[DecisionRecord]:
        found = list(self._records.values())
        for session in await self._sessions.recent(2**31):
            if session.opened.id not in self._records and session.opened.node != UNKNOWN_NODE:
                found.append(describe_session(session))
        fitting = [each for each in found if _is_wanted(each, wanted)]
        fitting.sort(key=lambda each: (each.opened_at, each.id), reverse=True)
        return fitting[: wanted.limit]

    async def purge(self, opened_before: float, limit: int) -> int:
        by_age = sorted(self._records.values(), key=lambda record: record.opened_at)
        old = [each.id for each in by_age if each.opened_at < opened_before][:limit]
        for decision_id in old:
            assert decision_id is not None
            del self._records[decision_id]
        return len(old)


class MemoryRuleStore:
    """A RuleStore that forgets everything with the process."""

    def __init__(self) -> None:
        self._rules: dict[str, StoredRule] = {}
        self._version = 0

    async def put(
        self,
        draft: RuleDraft,
        check: Callable[[Sequence[StoredRule]], None],
        *,
        expected: int | None,
        at: float,
        by: str,
    ) -> StoredRule:
        require_version(list(self._rules.values()), draft.name, expected)
        check(await self.all())
        self._version += 1
        written = self._rules[draft.name] = StoredRule(draft, self._version, at, by)
        return written

    async def remove(self, name: str, *, expected: int | None) -> bool:
        require_version(list(self._rules.values()), name, expected)
        self._version += 1
        return self._rules.pop(name, None) is not None

    async def all(self) -> Sequence[StoredRule]:
        return sorted(self._rules.values(), key=lambda rule: rule.draft.name)

    async def stamp(self) -> int:
        return self._version


class MemoryJournal:
    """A SessionJournal that forgets everything with the process."""

    def __init__(self) -> None:
        self._records: list[SessionRecord] = []
        self._read = 0

    @property
    def backlog(self) -> bool:
        return bool(self._records)

    @property
    def size_bytes(self) -> int:
        return len(self._records)

    async def append(self, records: Sequence[SessionRecord]) -> None:
        self._records += records

    async def read(self, limit: int) -> Sequence[SessionRecord]:
        self._read = min(limit, len(self._records))
        return self._records[: self._read]

    async def release(self) -> None:
        del self._records[: self._read]
        self._read = 0


class MemoryModelStateStore:
    """A ModelStateStore that forgets everything with the process."""

    def __init__(self) -> None:
        self._changes: dict[tuple[str, ModelRef], ModelStateChange] = {}

    async def apply(self, node: str, changes: Sequence[ModelStateChange], at: float) -> None:
        for change in changes:
            size_bytes = None if change.size_bytes is None else clean_count(change.size_bytes)
            message = _message(change.message)
            stored = replace(change, size_bytes=size_bytes, message=message, reason=None)
            self._changes[node, change.ref] = stored

    async def reconcile(
        self, node: str, provider: str, truth: Sequence[ModelStateChange], at: float
    ) -> Sequence[StateDrift]:
        mine = [key for key in self._changes if key[0] == node and key[1].provider == provider]
        recorded = {key[1]: self._changes.pop(key).state for key in mine}
        await self.apply(node, truth, at)
        return find_drift(recorded, truth)

    async def all(self, node: str) -> Sequence[ModelStateChange]:
        mine = [change for (owner, _), change in self._changes.items() if owner == node]
        return sorted(mine, key=lambda change: str(change.ref))


class MemoryProviderStore:
    """A ProviderStore that forgets everything with the process."""

    def __init__(self) -> None:
        self._statuses: dict[tuple[str, str], ProviderStatus] = {}

    async def put(self, node: str, statuses: Sequence[ProviderStatus]) -> None:
        for status in statuses:
            known = self._statuses.get((node, status.name))
            seen = status.last_seen_at
            if seen is None and known is not None:
                seen = known.last_seen_at
            self._statuses[node, status.name] = replace(
                status,
                checked_at=_to_microseconds(status.checked_at),
                last_seen_at=None if seen is None else _to_microseconds(seen),
                error_message=_message(status.error_message),
            )

    async def all(self, node: str) -> Sequence[ProviderStatus]:
        mine = [status for (owner, _), status in self._statuses.items() if owner == node]
        return sorted(mine, key=lambda status: status.name)


class MemoryKeyStore:
    """A KeyStore that forgets everything with the process."""

    def __init__(self) -> None:
        self._keys: dict[str, StoredKey] = {}

    async def add(self, stored: StoredKey) -> None:
        self._keys[stored.key.id] = stored

    async def revoke(self, key_id: str, at: float) -> StoredKey | None:
        stored = self._keys.get(key_id)
        if stored is None:
            return None
        if stored.key.revoked_at is None:
            stored = replace(stored, key=replace(stored.key, revoked_at=at))
        self._keys[key_id] = stored
        return stored

    async def all(self) -> Sequence[StoredKey]:
        return sorted(self._keys.values(), key=lambda s: (s.key.created_at, s.key.id))

    async def stamp(self) -> tuple[int, int]:
        revoked = [s for s in self._keys.values() if s.key.revoked_at is not None]
        return len(self._keys), len(revoked)


class MemoryFileStore:
    """A FileStore that forgets everything with the process."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, str], FileRecord] = {}

    async def put(self, node: str, records: Sequence[FileRecord]) -> None:
        for record in records:
            known = self._records.get((node, record.path))
            if known is not None:
                times = [at for at in (known.last_used, record.last_used) if at is not None]
                last_used = max(times, default=None)
                record = replace(record, first_seen=known.first_seen, last_used=last_used)
            self._records[node, record.path] = record

    async def forget(self, node: str, paths: Sequence[str]) -> None:
        for path in paths:
            self._records.pop((node, path), None)

    async def all(self, node: str) -> Sequence[FileRecord]:
        mine = [record for (owner, _), record in self._records.items() if owner == node]
        return sorted(mine, key=lambda record: record.path)


class MemoryCollectionStore:
    """A CollectionStore that forgets everything with the process."""

    def __init__(self, rules: MemoryRuleStore | None = None) -> None:
        """`rules` is where routes are, which an import brings, too."""
        self._rules = rules or MemoryRuleStore()
        self._collections: dict[str, Collection] = {}
        self._configs: dict[str, ModelConfig] = {}

    async def collections(self) -> Sequence[Collection]:
        return sorted(self._collections.values(), key=lambda each: each.name)

    async def add(self, collection: Collection) -> None:
        self._require_new(collection.name, collection.id)
        self._collections[collection.id] = collection

    async def change(self, id: str, change: CollectionChange, at: float) -> bool:
        if id not in self._collections:
            return False
        if change.name is not None:
            self._require_new(change.name, id)
        given = {name: value for name, value in asdict(change).items() if value is not None}
        self._collections[id] = replace(self._collections[id], updated_at=at, **given)
        return True

    async def remove(self, id: str) -> bool:
        return self._collections.pop(id, None) is not None

    async def add_model(self, id: str, model: str, at: float) -> bool:
        if id not in self._collections:
            return False
        known = self._collections[id]
        models = tuple(dict.fromkeys((*known.models, model)))
        self._collections[id] = replace(known, models=models, updated_at=at)
        return True

    async def remove_model(self, id: str, model: str, at: float) -> bool:
        known = self._collections.get(id)
        if known is None or model not in known.models:
            return False
        models = tuple(each for each in known.models if each != model)
        self._collections[id] = replace(known, models=models, updated_at=at)
        return True

    async def configs(self) -> Mapping[str, ModelConfig]:
        return dict(sorted(self._configs.items()))

    async def put_config(self, saved: SavedConfig, at: float) -> None:
        self._configs[saved.model] = saved.config

    async def put_all(
        self,
        collections: Sequence[tuple[str, CollectionOrder]],
        configs: Sequence[SavedConfig],
        routes: Sequence[RuleDraft],
        check: Callable[[Sequence[StoredRule]], None],
        *,
        at: float,
        by: str,
    ) -> None:
        if routes:
            check(await self._rules.all())
        for draft in routes:
            await self._rules.put(draft, lambda _: None, expected=None, at=at, by=by)
        for new_id, order in collections:
            known = next((c for c in self._collections.values() if c.name == order.name), None)
            kept = (new_id, at) if known is None else (known.id, known.created_at)
            self._collections[kept[0]] = Collection(
                id=kept[0], created_at=kept[1], updated_at=at, **asdict(order)
            )
        for saved in configs:
            await self.put_config(saved, at)

    def _require_new(self, name: str, id: str) -> None:
        if any(each.name == name and each.id != id for each in self._collections.values()):
            raise CollectionExists(f"There is a collection '{name}' already.", param="name")


class MemoryHubCache:
    """A HubCache that forgets everything with the process."""

    def __init__(self, *, max_entries: int = MAX_ENTRIES) -> None:
        self._entries: dict[str, Remembered] = {}
        self._max_entries = max_entries

    async def get(self, key: str) -> Remembered | None:
        return self._entries.get(key)

    async def get_all(self, keys: Sequence[str]) -> Mapping[str, Remembered]:
        return {key: self._entries[key] for key in keys if key in self._entries}

    async def put(self, key: str, remembered: Remembered) -> None:
        fetched_at = _to_microseconds(remembered.fetched_at)
        self._entries[key] = replace(remembered, fetched_at=fetched_at)
        newest = sorted(self._entries, key=lambda name: -self._entries[name].fetched_at)
        for old in newest[self._max_entries :]:
            del self._entries[old]

    async def clear(self) -> None:
        self._entries.clear()


class MemorySecretStore:
    """A SecretStore that forgets everything with the process; nothing in it is at rest."""

    def __init__(self, *, now: Callable[[], float] = time.time) -> None:
        self._secrets: dict[str, StoredSecret] = {}
        self._now = now

    async def put(self, name: str, text: str) -> None:
        self._secrets[name] = StoredSecret(text, _to_microseconds(self._now()))

    async def get(self, name: str) -> StoredSecret | None:
        return self._secrets.get(name)

    async def delete(self, name: str) -> bool:
        return self._secrets.pop(name, None) is not None


class MemoryDownloadStore:
    """A DownloadStore that forgets everything with the process."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._downloads: dict[str, Download] = {}
        self._workers: dict[str, tuple[Worker, float | None]] = {}

    async def add(self, download: Download) -> None:
        self._downloads[download.id] = download

    async def find(self, download_id: str) -> Download | None:
        return self._downloads.get(download_id)

    async def newest(self, limit: int, states: Sequence[DownloadState] = ()) -> Sequence[Download]:
        wanted = [d for d in self._downloads.values() if not states or d.state in states]
        return sorted(wanted, key=lambda d: (d.created_at, d.id), reverse=True)[:limit]

    async def claim(self, worker: Worker, places: Sequence[str]) -> Download | None:
        oldest = sorted(self._downloads.values(), key=lambda d: (d.created_at, d.id))
        for download in oldest:
            is_left = download.state is DownloadState.RUNNING and self._is_free(download, worker)
            if is_left and download.place not in places:
                given_back = replace(download, state=DownloadState.QUEUED, updated_at=self._now())
                self._downloads[download.id] = given_back
        for download in oldest:
            if download.place in places and self._is_free(download, worker):
                self._workers[download.id] = (worker, self._now() + worker.lease_s)
                change = DownloadChange(DownloadState.RUNNING)
                return self._put(download, change)
        return None

    async def keep(
        self, download_id: str, worker: Worker, progress: Progress, commit: str | None
    ) -> bool:
        download = self._downloads.get(download_id)
        if download is None or not self._is_run_by(download, worker):
            return False
        self._workers[download_id] = (worker, self._now() + worker.lease_s)
        progress = replace(progress, rate=None, eta_s=None)
        self._downloads[download_id] = replace(
            download, progress=progress, commit=commit, updated_at=self._now()
        )
        return True

    async def move(
        self,
        download_id: str,
        change: DownloadChange,
        worker: Worker | None = None,
        *,
        sources: Sequence[DownloadState] = (),
    ) -> Download | None:
        download = self._downloads.get(download_id)
        if download is None or download.state not in LEGAL_SOURCES[change.state]:
            return None
        if sources and download.state not in sources:
            return None
        if worker is not None and not self._is_run_by(download, worker):
            return None
        return self._put(download, change)

    async def remove(self, download_id: str) -> bool:
        found = self._downloads.get(download_id)
        if found is None or not found.ended:
            return False
        del self._downloads[download_id]
        return True

    async def purge(self, changed_before: float, limit: int) -> int:
        settled = [d for d in self._downloads.values() if d.state in SETTLED]
        old = sorted(
            (d for d in settled if d.updated_at < changed_before), key=lambda d: d.updated_at
        )
        for download in old[:limit]:
            del self._downloads[download.id]
        return len(old[:limit])

    def _put(self, download: Download, change: DownloadChange) -> Download:
        progress = change.progress or download.progress
        moved = self._downloads[download.id] = replace(
            download,
            state=change.state,
            message=change.message,
            error=change.error,
            place=change.place or download.place,
            path=change.path or download.path,
            commit=change.commit or download.commit,
            progress=replace(progress, rate=None, eta_s=None),
            updated_at=self._now(),
        )
        return moved

    def _is_free(self, download: Download, worker: Worker) -> bool:
        if download.state is not DownloadState.RUNNING:
            return download.state is DownloadState.QUEUED
        by, until = self._workers[download.id]
        is_left = by.node == worker.node and by.boot != worker.boot
        return is_left or until is None or until < self._now()

    def _is_run_by(self, download: Download, worker: Worker) -> bool:
        if download.state is not DownloadState.RUNNING:
            return False
        by, _ = self._workers[download.id]
        return (by.node, by.boot) == (worker.node, worker.boot)


def _is_wanted(record: DecisionRecord, wanted: DecisionFilter) -> bool:
    opened = SessionOpened(
        record.id or "",
        record.request_id,
        record.node,
        record.requested_model,
        record.opened_at,
        caller=record.caller,
    )
    return wanted.admits_opening(opened) and wanted.admits(record)


class MemoryRotationStore:
    """A RotationStore that forgets everything with the process."""

    def __init__(self, now: Callable[[], float] = time.time, *, kept_steps: int = 1000) -> None:
        self._now = now
        self._kept_steps = kept_steps
        self._rotations: dict[str, Rotation] = {}
        self._steps: list[Step] = []

    async def look(self) -> RotationLook:
        return RotationLook(self._now(), [self._joined(name) for name in sorted(self._rotations)])

    async def find(self, name: str) -> Rotation | None:
        return self._joined(name) if name in self._rotations else None

    async def put(self, name: str, order: RotationOrder, source: Source) -> Rotation:
        now, known = self._now(), self._rotations.get(name)
        fresh = Rotation(name, order, source, order.models[0], now, now)
        fresh = replace(fresh, due_at=schedule(order, now))
        if known is not None:
            is_same = (known.order, known.source) == (order, source)
            has_clock = known.order.clock == order.clock
            fresh = replace(
                known,
                order=order,
                source=source,
                current=known.current if known.current in order.models else fresh.current,
                due_at=known.due_at if has_clock else fresh.due_at,
                updated_at=known.updated_at if is_same else now,
            )
        self._rotations[name] = fresh
        return self._joined(name)

    async def remove(self, name: str) -> bool:
        self._steps = [step for step in self._steps if step.rotation != name]
        return self._rotations.pop(name, None) is not None

    async def pause(self, name: str) -> Rotation | None:
        now = self._now()
        for step in self._steps:
            if (step.rotation, step.state) == (name, StepState.QUEUED) and (
                step.trigger is not Trigger.HAND
            ):
                self._put_step(
                    replace(step, state=StepState.CANCELLED, ended_at=now, message="It was paused.")
                )
        return self._set(name, paused=True, due_at=None)

    async def resume(self, name: str) -> Rotation | None:
        known = self._rotations.get(name)
        if known is None or not known.paused:
            return await self.find(name)
        return self._set(name, paused=False, due_at=schedule(known.order, self._now()))

    async def count(self, requests: Mapping[str, int]) -> None:
        for name, number in requests.items():
            if name in self._rotations:
                self._set(name, counted=self._rotations[name].counted + number)

    async def ask(
        self, step_id: str, name: str, trigger: Trigger, wish: str | None = None
    ) -> Step | None:
        rotation, now = await self.find(name), self._now()
        if rotation is None or rotation.step is not None:
            return None
        if trigger is not Trigger.HAND and find_trigger(rotation, now) is not trigger:
            return None
        step = Step(step_id, name, trigger, rotation.current, asked_at=now, wish=wish)
        self._steps.append(step)
        self._set(name, counted=0)
        return step

    async def claim(self, worker: Worker, name: str) -> Step | None:
        rotation, now = await self.find(name), self._now()
        step = rotation.step if rotation is not None else None
        if step is None or not step.is_free(worker.node, worker.boot, now):
            return None
        return self._put_step(
            replace(
                step,
                state=StepState.RUNNING,
                fence=step.fence + 1,
                node=worker.node,
                boot=worker.boot,
                leased_until=now + worker.lease_s,
                begun_at=now if step.begun_at is None else step.begun_at,
            )
        )

    async def keep(self, step: Step, worker: Worker) -> bool:
        known = self._taken(step, worker)
        if known is not None:
            self._put_step(replace(known, leased_until=self._now() + worker.lease_s))
        return known is not None

    async def record(self, step: Step, worker: Worker, current: str | None = None) -> bool:
        now, known = self._now(), self._taken(step, worker)
        if known is None:
            return False
        is_running = step.state is StepState.RUNNING
        self._put_step(
            replace(
                known,
                state=step.state,
                phase=step.phase,
                target=step.target,
                skipped=step.skipped,
                message=_message(step.message),
                leased_until=now + worker.lease_s if is_running else None,
                ended_at=None if step.is_active else now,
            )
        )
        rotation = self._rotations[step.rotation]
        if current is not None:
            self._set(step.rotation, current=current)
        if not step.is_active:
            if not rotation.paused:
                self._set(step.rotation, due_at=schedule(rotation.order, now))
            kept = await self.history(step.rotation, self._kept_steps)
            self._steps = [s for s in self._steps if s.rotation != step.rotation or s in kept]
        return True

    async def history(self, name: str, limit: int) -> Sequence[Step]:
        newest = [step for step in reversed(self._steps) if step.rotation == name]
        return newest[:limit]

    def _joined(self, name: str) -> Rotation:
        active = (s for s in self._steps if s.rotation == name and s.is_active)
        return replace(self._rotations[name], step=next(active, None))

    def _set(self, name: str, **values: object) -> Rotation | None:
        if name not in self._rotations:
            return None
        self._rotations[name] = replace(self._rotations[name], **values)
        return self._joined(name)

    def _put_step(self, step: Step) -> Step:
        self._steps = [step if step.id == known.id else known for known in self._steps]
        return step

    def _taken(self, step: Step, worker: Worker) -> Step | None:
        for known in self._steps:
            mine = (step.id, StepState.RUNNING, step.fence, worker.node, worker.boot)
            if (known.id, known.state, known.fence, known.node, known.boot) == mine:
                return known
        return None


def _as_stored(closed: SessionClosed) -> SessionClosed:
    code = closed.error_code
    return replace(
        closed,
        closed_at=_to_microseconds(closed.closed_at),
        error_code=None if code is None else clean_text(code, MAX_ID_LENGTH),
    )


def _served_last(session: Session) -> Session:
    """Return the session as a row shows it: one provider and one model, those of the end."""
    if session.closed is None:
        return session
    provider, model = session.closed.provider, session.closed.model
    return replace(session, opened=replace(session.opened, provider=provider, model=model))


def _message(text: str | None) -> str | None:
    return None if text is None else clean_text(text, MAX_MESSAGE_LENGTH)


def _to_microseconds(seconds: float) -> float:
    return round(seconds, 6)
