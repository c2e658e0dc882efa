"""A stranger downloads models by HTTP, GraphQL and the command; kills and full disks happen."""

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from huggingface_hub import snapshot_download

from tests.integration.disks import fill_up, tiny_disk
from tests.integration.hub_peer.files import HubFile, Plan
from tests.integration.hub_peer.server import HubPeer
from tests.integration.process.conftest import GatewayProcess, Migrate, environment_of, run_gateway

Serve = Callable[..., GatewayProcess]
MODEL = "org/model"
PATH = "model.safetensors"
WEIGHTS = random.Random(5).randbytes(6_000_000)


class Hub:
    """A HubPeer that runs in a thread of its own."""

    def __init__(self, peer: HubPeer, portal: BlockingPortal) -> None:
        self.peer = peer
        self.files = peer.files
        self.portal = portal

    def hold(self, path: str, after: int) -> Callable[[], None]:
        """Stop the next answer with that file after so many bytes; returns what lets it go on."""
        gate = asyncio.Event()
        self.files.plan(path, Plan(hold_after=after, hold=gate))
        return lambda: self.portal.call(gate.set)

    def until_asked(self, path: str, index: int = 0) -> None:
        """Wait until the bytes of the file were asked for."""
        self.portal.call(self.peer.request, path, index, "cdn")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with start_blocking_portal() as portal:
        peer = HubPeer()
        with portal.wrap_async_context_manager(peer):
            yield Hub(peer, portal)


@pytest.fixture
def environment(tmp_path: Path, models_folder: Path, hub: Hub) -> dict[str, str]:
    return environment_of(tmp_path, models_folder) | {
        "GATEWAY_HUB_ENDPOINT": hub.peer.url,
        "GATEWAY_DOWNLOAD_RESERVE_BYTES": "0",
        "GATEWAY_PROVIDERS": "ollama",  # to download takes no torch
    }


def cache_of(environment: dict[str, str]) -> Path:
    return Path(environment["HF_HOME"]) / "hub"


def order(gateway: GatewayProcess, repo: str = MODEL, **body: Any) -> dict[str, Any]:
    reply = gateway.client.post("/api/v1/downloads", json={"repo": repo, **body})
    assert reply.status_code == 202, reply.text
    answer: dict[str, Any] = reply.json()
    assert reply.headers["location"] == f"/api/v1/downloads/{answer['id']}"
    return answer


def events(gateway: GatewayProcess, download_id: str) -> list[tuple[str, dict[str, Any]]]:
    """Return every event until the stream's end."""
    told = []
    path = f"/api/v1/downloads/{download_id}/events"
    with gateway.client.stream("GET", path) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        name = ""
        for line in reply.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                told.append((name, json.loads(line.removeprefix("data: "))))
    return told


def outcome(gateway: GatewayProcess, download_id: str) -> dict[str, Any]:
    return events(gateway, download_id)[-1][1]


def until_written(gateway: GatewayProcess, download_id: str, least: int) -> None:
    while True:
        found = gateway.client.get(f"/api/v1/downloads/{download_id}").json()
        assert found["state"] in ("QUEUED", "RUNNING"), found
        if found["bytes_done"] >= least:
            return
        time.sleep(0.02)


def test_a_downloaded_model_answers(
    serve: Serve, hub: Hub, models_folder: Path, environment: dict[str, str]
) -> None:
    files = [path for path in (models_folder / "smol").iterdir() if path.is_file()]
    hub.files.add(MODEL, *(HubFile(f.name, f.read_bytes(), lfs=f.name == PATH) for f in files))
    gateway = serve(GATEWAY_PROVIDERS="huggingface")
    plan = gateway.client.post("/api/v1/downloads", json={"repo": MODEL, "dryRun": True})
    assert plan.status_code == 200
    assert plan.json()["bytes_to_fetch"] == sum(file.stat().st_size for file in files)
    assert [path.name for path in cache_of(environment).iterdir()] == [".locks"]

    download = order(gateway)
    told = events(gateway, download["id"])
    name, done = told[-1]
    assert (name, done["state"]) == ("completed", "SUCCEEDED")
    amounts = [each["bytes_done"] for _, each in told]
    assert amounts == sorted(amounts) and amounts[-1] == done["bytes_total"]
    assert (
        snapshot_download(
            MODEL, revision=done["commit"], cache_dir=cache_of(environment), local_files_only=True
        )
        == done["path"]
    )
    assert gateway.generate(f"huggingface/{MODEL}", "hello", max_tokens=3)["text"]

    again = outcome(gateway, order(gateway)["id"])
    assert (again["state"], again["path"]) == ("SKIPPED", done["path"])
    assert again["message"]
    ended = gateway.client.get(
        f"/api/v1/downloads/{done['id']}/events", headers={"last-event-id": "end"}
    )
    assert ended.status_code == 204
    listed = gateway.client.get("/api/v1/downloads", params={"state": "skipped"}).json()
    assert [each["id"] for each in listed["downloads"]] == [again["id"]]


def test_a_download_is_paused_resumed_and_cancelled(
    serve: Serve, hub: Hub, environment: dict[str, str]
) -> None:
    hub.files.add(MODEL, HubFile(PATH, WEIGHTS))
    hub.hold(PATH, 4_000_000)
    hub.hold(PATH, 1_500_000)
    gateway = serve()
    download_id = order(gateway)["id"]
    until_written(gateway, download_id, 2_000_000)

    def act(verb: str) -> httpx.Response:
        return gateway.client.post(f"/api/v1/downloads/{download_id}/{verb}")

    paused = act("pause").json()
    assert paused["state"] == "PAUSED" and paused["bytes_done"] >= 2_000_000
    assert act("pause").status_code == 409
    assert act("resume").json()["state"] == "QUEUED"
    hub.until_asked(PATH, 1)
    assert hub.peer.seen("cdn")[1].headers["range"].startswith("bytes=")
    assert act("cancel").json()["state"] == "CANCELLED"
    assert not list(cache_of(environment).rglob("*.incomplete"))
    assert act("resume").status_code == 409
    assert gateway.client.get("/api/v1/downloads/none").json()["error"]["code"] == (
        "download_not_found"
    )


@pytest.mark.parametrize("phase", ["queued", "bytes", "last bytes"])
def test_a_download_goes_on_after_a_kill(serve: Serve, hub: Hub, phase: str) -> None:
    hub.files.add(MODEL, HubFile("a.bin", b"a" * 10), HubFile(PATH, WEIGHTS))
    if phase == "queued":
        hub.peer.fail_api("/api/models", 503)
    else:
        hub.hold(PATH, 3_000_000 if phase == "bytes" else len(WEIGHTS) - 1)
    gateway = serve()
    download_id = order(gateway)["id"]
    if phase != "queued":
        until_written(gateway, download_id, 1_100_000 if phase == "bytes" else 4_000_000)
    gateway.kill()

    gateway = serve()
    done = outcome(gateway, download_id)
    if done["state"] == "FAILED":  # it had failed before it was killed
        assert phase == "queued"
        gateway.client.post(f"/api/v1/downloads/{download_id}/resume")
        done = outcome(gateway, download_id)
    assert done["state"] == "SUCCEEDED"
    assert (Path(done["path"]) / PATH).read_bytes() == WEIGHTS
    if phase != "queued":
        assert hub.peer.seen("cdn", path=PATH)[-1].headers["range"].startswith("bytes=")


def test_kills_at_random_leave_nothing_that_is_not_whole(
    serve: Serve, hub: Hub, environment: dict[str, str]
) -> None:
    chosen = random.Random(2)
    files = {f"{n}.bin": chosen.randbytes(chosen.randrange(1, 400_000)) for n in range(40)}
    hub.files.add(MODEL, *(HubFile(name, data) for name, data in files.items()))
    gateway = serve()
    download_id = order(gateway)["id"]
    total = sum(map(len, files.values()))
    for share in (0.1, 0.4, 0.7):
        while True:
            found = gateway.client.get(f"/api/v1/downloads/{download_id}").json()
            if found["state"] == "SUCCEEDED" or found["bytes_done"] > share * total:
                break
            time.sleep(0.005)
        gateway.kill()
        for blob in cache_of(environment).glob("models--*/blobs/*"):
            if blob.suffix != ".incomplete":
                assert any(HubFile("x", data).sha256 == blob.name for data in files.values())
                assert HubFile("x", blob.read_bytes()).sha256 == blob.name
        gateway = serve()
    done = outcome(gateway, download_id)
    assert done["state"] in ("SUCCEEDED", "SKIPPED")
    for name, data in files.items():
        assert (Path(done["path"]) / name).read_bytes() == data


def test_a_full_disk_fails_the_download_and_nothing_else(
    serve: Serve, hub: Hub, tmp_path: Path
) -> None:
    hub.files.add(MODEL, HubFile(PATH, WEIGHTS))
    go_on = hub.hold(PATH, 2_000_000)
    with tiny_disk(tmp_path / "disk", "8m") as disk:
        gateway = serve(HF_HUB_CACHE=str(disk / "hub"))
        download_id = order(gateway)["id"]
        until_written(gateway, download_id, 1_000_000)
        ballast = fill_up(disk)
        go_on()
        failed = outcome(gateway, download_id)
        assert failed["state"] == "FAILED"
        assert failed["error"]["code"] == "insufficient_storage"
        assert not list(disk.glob("hub/models--*/snapshots"))
        refused = gateway.client.post("/api/v1/downloads", json={"repo": MODEL, "dry_run": True})
        assert refused.json()["fits"] is False
        assert gateway.client.get("/health/ready").status_code == 200
        ballast.unlink()
        gateway.client.post(f"/api/v1/downloads/{download_id}/resume")
        done = outcome(gateway, download_id)
        assert done["state"] == "SUCCEEDED"
        assert (Path(done["path"]) / PATH).read_bytes() == WEIGHTS
        assert hub.peer.seen("cdn")[-1].headers["range"].startswith("bytes=")
        gateway.close()


def test_two_gateways_on_one_cache_fetch_a_file_once(
    hub: Hub,
    environment: dict[str, str],
    tmp_path: Path,
    migrated: Migrate,
) -> None:
    hub.files.add(MODEL, HubFile(PATH, WEIGHTS))
    go_on = hub.hold(PATH, 3_000_000)
    gateways = []
    with ExitStack() as stack:
        for node in ("one", "two"):
            chosen = environment | {
                "GATEWAY_NODE": node,
                "GATEWAY_DATA_DIR": str(tmp_path / node),
            }
            migrated(chosen)
            gateways.append(GatewayProcess(chosen))
            stack.callback(gateways[-1].close)
        first, second = gateways
        ids = [order(first)["id"]]
        until_written(first, ids[0], 1_000_000)
        ids.append(order(second)["id"])
        while second.client.get(f"/api/v1/downloads/{ids[1]}").json()["files_total"] is None:
            time.sleep(0.05)
        go_on()
        ends = [outcome(gateway, each) for gateway, each in zip(gateways, ids, strict=True)]
    assert [end["state"] for end in ends] == ["SUCCEEDED", "SUCCEEDED"]
    assert ends[0]["path"] == ends[1]["path"]
    assert sum(seen.sent_bytes for seen in hub.peer.seen("cdn")) == len(WEIGHTS)


def test_another_gateway_takes_over_and_the_first_finds_out_when_it_goes_on(
    hub: Hub,
    environment: dict[str, str],
    rows: Callable[[str], list[tuple[Any, ...]]],
    migrated: Migrate,
) -> None:
    """The first is stopped in mid-file, with the file's lock, until after its lease."""
    hub.files.add(MODEL, HubFile(PATH, WEIGHTS))
    go_on = hub.hold(PATH, 3_000_000)
    migrated(environment)
    database = Path(environment["GATEWAY_DATA_DIR"]) / "gateway.db"
    who = "SELECT node, state FROM downloads"
    with ExitStack() as stack:
        first, second = (
            GatewayProcess(
                environment
                | {"GATEWAY_NODE": node, "GATEWAY_DATABASE_URL": f"sqlite:///{database}"}
            )
            for node in ("one", "two")
        )
        for gateway in (first, second):
            stack.callback(gateway.close)
        runs = {"one": first, "two": second}
        download_id = order(first)["id"]
        until_written(first, download_id, 1_000_000)
        [(node, _)] = rows(who)
        stopped, other = runs.pop(node), *runs.values()
        os.kill(stopped.pid, signal.SIGSTOP)
        stack.callback(os.kill, stopped.pid, signal.SIGCONT)
        connection = sqlite3.connect(database, timeout=30)
        stack.callback(connection.close)
        connection.execute("UPDATE downloads SET leased_until = '2000-01-01 00:00:00.000000'")
        connection.commit()
        while rows(who) == [(node, "RUNNING")]:
            time.sleep(0.05)
        os.kill(stopped.pid, signal.SIGCONT)
        done = outcome(other, download_id)
        seen = outcome(stopped, download_id)
        go_on()
        assert rows(who) != [(node, "SUCCEEDED")]
    assert (done["state"], seen["state"]) == ("SUCCEEDED", "SUCCEEDED")
    snapshot = Path(done["path"])
    assert [path.name for path in snapshot.iterdir()] == [PATH]
    assert (snapshot / PATH).read_bytes() == WEIGHTS
    assert sum(seen.sent_bytes for seen in hub.peer.seen("cdn")) <= len(WEIGHTS) + 2 * 2**20


def test_a_token_is_used_and_never_told(
    environment: dict[str, str],
    hub: Hub,
    tmp_path: Path,
    migrated: Migrate,
) -> None:
    canary = "hf_canaryCANARYcanary"
    repo = hub.files.add(MODEL, HubFile(PATH, b"weights"))
    repo.gated, repo.granted = True, {canary}
    hub.peer.tokens[canary] = "user"
    chosen = environment | {"HF_TOKEN": canary, "GATEWAY_LOG_LEVEL": "debug"}
    migrated(chosen)
    with (tmp_path / "log").open("wb") as log:
        gateway = GatewayProcess(chosen, log)
        done = outcome(gateway, order(gateway)["id"])
        gateway.close()
    assert done["state"] == "SUCCEEDED"
    assert canary in {seen.token for seen in hub.peer.seen("hub")}
    assert canary not in str([seen.headers for seen in hub.peer.seen("cdn")])
    assert canary not in json.dumps(done)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "gateway.db" for path in written)
    assert not [path for path in written if canary.encode() in path.read_bytes()]


def test_the_command_pulls_and_says_how_it_went(
    serve: Serve, hub: Hub, environment: dict[str, str]
) -> None:
    hub.files.add(MODEL, HubFile(PATH, WEIGHTS), HubFile("config.json", b"{}", lfs=False))
    gateway = serve()
    at = environment | {"GATEWAY_PORT": gateway.url.rpartition(":")[2]}

    plan = run_gateway(at, "pull", MODEL, "--dry-run")
    assert plan.returncode == 0 and "6.0 MB to fetch" in plan.stdout.replace("6.0 MB of ", "")
    done = run_gateway(at, "pull", MODEL, "--include", "*.json", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "SUCCEEDED"
    assert hub.peer.seen("cdn") == []
    lines = run_gateway(at, "pull", MODEL, "--json", "--progress").stdout.splitlines()
    assert json.loads(lines[-1])["state"] == "SUCCEEDED"
    missing = run_gateway(at, "pull", "org/none")
    assert missing.returncode == 1 and "org/none" in missing.stderr
    again = run_gateway(at, "pull", "org/none")
    assert again.returncode == 1 and again.stdout.split()[0] == missing.stdout.split()[0]
    wrong = run_gateway(at, "pull", "../etc")
    assert wrong.returncode == 1 and "not the name of a repository" in wrong.stderr
    assert run_gateway(at, "pull").returncode == 2
    listed = run_gateway(at, "downloads", "list")
    assert listed.stdout.count("SUCCEEDED") == 2 and listed.stdout.count("FAILED") == 1
    for line in listed.stdout.splitlines():
        assert run_gateway(at, "downloads", "rm", line.split()[0]).returncode == 0
    assert "There is no download" in run_gateway(at, "downloads", "list").stdout


def test_ctrl_c_leaves_the_download_running(
    serve: Serve, hub: Hub, environment: dict[str, str]
) -> None:
    hub.files.add(MODEL, HubFile(PATH, WEIGHTS))
    go_on = hub.hold(PATH, 1_000_000)
    gateway = serve()
    at = environment | {"GATEWAY_PORT": gateway.url.rpartition(":")[2]}
    command = subprocess.Popen(
        [sys.executable, "-m", "gateway", "pull", MODEL, "--json", "--progress"],
        env=at,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs tests in the background has them, and their children, ignore it.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert command.stdout is not None
    download = json.loads(command.stdout.readline())
    hub.until_asked(PATH)
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=30)
    assert command.returncode == 130
    assert f"gateway downloads cancel {download['id']}" in said
    threading.Timer(0, go_on).start()
    assert outcome(gateway, download["id"])["state"] == "SUCCEEDED"


def test_graphql_orders_watches_and_cancels(serve: Serve, hub: Hub) -> None:
    hub.files.add(MODEL, HubFile(PATH, WEIGHTS))
    go_on = hub.hold(PATH, 3_000_000)
    gateway = serve()

    def ask(query: str, **variables: Any) -> Any:
        reply = gateway.client.post("/graphql", json={"query": query, "variables": variables})
        return reply.json()

    plan = ask(
        "query($i: DownloadInput!) { planDownload(input: $i) { bytesToFetch fits path files "
        "{ path sizeBytes } } }",
        i={"repo": MODEL},
    )["data"]["planDownload"]
    assert plan["bytesToFetch"] == len(WEIGHTS) and plan["path"] is None
    start = "mutation($i: DownloadInput!) { startDownload(input: $i) { id state } }"
    begun = ask(start, i={"repo": MODEL})["data"]["startDownload"]
    query = "subscription($ids: [ID!]) { downloadProgress(ids: $ids) { id state bytesDone path } }"
    told = []
    with gateway.client.stream(
        "POST",
        "/graphql",
        json={"query": query, "variables": {"ids": [begun["id"]]}},
        headers={"accept": "text/event-stream"},
    ) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                told.append(json.loads(line[6:])["data"]["downloadProgress"])
                if len(told) == 1:
                    go_on()
    assert told[0]["state"] in ("QUEUED", "RUNNING")
    assert told[-1]["state"] == "SUCCEEDED" and told[-1]["path"]
    found = ask("query($id: ID!) { download(id: $id) { state } downloads { id } }", id=begun["id"])
    assert found["data"] == {"download": {"state": "SUCCEEDED"}, "downloads": [{"id": begun["id"]}]}
    late = ask("mutation($id: ID!) { cancelDownload(id: $id) { state } }", id=begun["id"])
    assert late["errors"][0]["extensions"]["code"] == "stale_transition"
    forgotten = ask("mutation($id: ID!) { deleteDownload(id: $id) { state } }", id=begun["id"])
    assert forgotten["data"] == {"deleteDownload": {"state": "SUCCEEDED"}}
    assert ask("{ downloads { id } }")["data"] == {"downloads": []}
    bad = ask(start, i={"repo": "../x"})
    assert bad["errors"][0]["extensions"]["code"] == "invalid_request"


def test_what_was_for_another_cache_says_so_and_is_had_here_when_it_is_resumed(
    serve: Serve, hub: Hub, environment: dict[str, str], tmp_path: Path
) -> None:
    """The gateway is killed while it fetches, and HF_HUB_CACHE names another folder afterwards."""
    hub.files.add(MODEL, HubFile(PATH, WEIGHTS))
    go_on = hub.hold(PATH, 3_000_000)
    gateway = serve()
    download = order(gateway)
    until_written(gateway, download["id"], 2_000_000)
    gateway.kill()
    go_on()
    again = serve(HF_HUB_CACHE=str(tmp_path / "new"))
    path = f"/api/v1/downloads/{download['id']}"
    while (found := again.client.get(path).json())["state"] != "QUEUED":
        assert found["state"] == "RUNNING"
        time.sleep(0.02)
    assert "resume" in found["message"]
    assert again.client.post(f"{path}/resume").status_code == 202
    done = outcome(again, download["id"])
    assert (done["state"], done["bytes_done"]) == ("SUCCEEDED", len(WEIGHTS))
    assert done["path"].startswith(str(tmp_path / "new"))
    assert list(cache_of(environment).glob("models--*/blobs/*.incomplete"))


def test_an_update_on_the_hub_is_told_to_who_asks(serve: Serve, hub: Hub) -> None:
    config = HubFile("config.json", b'{"architectures":["LlamaForCausalLM"]}', lfs=False)
    repo = hub.files.add(MODEL, config, HubFile(PATH, WEIGHTS))
    gateway = serve()
    assert outcome(gateway, order(gateway)["id"])["state"] == "SUCCEEDED"
    repo.commit(HubFile(PATH, WEIGHTS[:-1]))
    command = [sys.executable, "-m", "gateway", "models", "files"]
    environment = gateway.environment | {"GATEWAY_PORT": gateway.url.rpartition(":")[2]}
    told = [
        subprocess.run(
            [*command, *option], env=environment, capture_output=True, text=True, check=True
        ).stdout
        for option in ([], ["--updates"], [])
    ]
    # It is remembered once it was asked for.
    assert ["update available" in text for text in told] == [False, True, True]
