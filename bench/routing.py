"""Which models stay in memory, and what it costs to decide who answers.

    python -m bench.routing             # all of it, about three minutes
    python -m bench.routing --policies  # only counts of loads: no timings
    python -m bench.routing --decision  # only the cost of a decision

The policies are the ones of the gateway, driven by traces; the optimum is exact.
"""

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import msgspec

from bench.tables import markdown, out, say
from gateway.core.catalogue import Catalogue
from gateway.core.eviction import Demand, EvictionPolicy, choose_victims
from gateway.core.messages import GenerateRequest, Message
from gateway.core.models import Capability, ModelInfo, Resident
from gateway.core.names import ModelRef
from gateway.core.plan import plan_routes
from gateway.core.virtual import Candidate, VirtualModel

POLICIES: tuple[EvictionPolicy, ...] = ("lru", "lrfu")
MODELS, SLOTS, REQUESTS, SEEDS = 8, 6, 5000, 8
CATALOGUE = 10_000

Trace = list[int]


class House(msgspec.Struct, frozen=True):
    """Models by number: bytes and seconds of a load of each, and the bytes for all."""

    sizes: tuple[int, ...]
    load_s: tuple[float, ...]
    budget: int


def alike(rng: random.Random) -> House:
    """Models of one size, of which SLOTS fit."""
    return House((1,) * MODELS, (1.0,) * MODELS, SLOTS)


def unlike(rng: random.Random) -> House:
    """Models of 1 to 8 GB that load at disk speed or twice as slowly; seven tenths of them fit."""
    sizes = tuple(rng.choice((1, 2, 4, 8)) * 10**9 for _ in range(MODELS))
    load_s = tuple(size / 500e6 * rng.choice((1, 2)) for size in sizes)
    return House(sizes, load_s, max(2 * max(sizes), sum(sizes) * 7 // 10))


def zipf(rng: random.Random, requests: int, order: Sequence[int] = range(MODELS)) -> Trace:
    """Requests by zipf(1.0): the first model of `order` is asked for most."""
    return rng.choices(order, [1 / rank for rank in range(1, MODELS + 1)], k=requests)


def shifting(rng: random.Random, every: int) -> Trace:
    """zipf(1.0), with another order after `every` requests."""
    trace: Trace = []
    while len(trace) < REQUESTS:
        trace += zipf(rng, every, rng.sample(range(MODELS), MODELS))
    return trace[:REQUESTS]


def swept(rng: random.Random) -> Trace:
    """zipf(1.0), and each 30 requests somebody asks every model once."""
    trace: Trace = []
    while len(trace) < REQUESTS:
        trace += [*zipf(rng, 30), *range(MODELS)]
    return trace[:REQUESTS]


WORKLOADS: dict[str, tuple[Callable[[random.Random], House], Callable[[random.Random], Trace]]] = {
    "zipf(1.0)": (alike, lambda rng: zipf(rng, REQUESTS)),
    "another zipf each 500": (alike, lambda rng: shifting(rng, 500)),
    "another zipf each 100": (alike, lambda rng: shifting(rng, 100)),
    "zipf with sweeps": (alike, swept),
    "zipf, unlike models": (unlike, lambda rng: zipf(rng, REQUESTS)),
    "each 500, unlike models": (unlike, lambda rng: shifting(rng, 500)),
}


class Count(msgspec.Struct, frozen=True):
    """What a trace cost; `seconds` of loads is what counts, and loads where all are alike."""

    loads: int
    seconds: float


def play(trace: Trace, house: House, policy: EvictionPolicy) -> Count:
    """Return what the gateway's policy makes of a trace."""
    refs = [ModelRef("huggingface", str(number)) for number in range(MODELS)]
    demand, resident, last_used = Demand(), set[int](), dict[int, int]()
    loads, seconds = 0, 0.0
    for now, wanted in enumerate(trace):
        demand.note(refs[wanted])
        last_used[wanted] = now
        if wanted in resident:
            continue
        there = [
            Resident(
                refs[each],
                house.sizes[each],
                last_used=last_used[each],
                heat=demand.heat(refs[each]),
                load_s=house.load_s[each],
            )
            for each in resident
        ]
        free = house.budget - sum(each.memory_bytes for each in there)
        gone = choose_victims(there, need_bytes=house.sizes[wanted], free_bytes=free, policy=policy)
        resident -= {int(ref.model) for ref in gone}
        resident.add(wanted)
        loads, seconds = loads + 1, seconds + house.load_s[wanted]
    return Count(loads, seconds)


def play_best_known(trace: Trace, house: House) -> Count:
    """Keep the models that are asked for most, by the true probabilities: the best that can be done
    with independent requests of one size (Aho, Denning and Ullman, 1971)."""
    resident, loads = set[int](), 0
    for wanted in trace:
        if wanted not in resident:
            if len(resident) == SLOTS:
                resident.remove(max(resident))
            resident.add(wanted)
            loads += 1
    return Count(loads, float(loads))


def find_optimum(trace: Trace, house: House) -> float:
    """Return the least seconds of loads that any schedule needs which knows the whole trace, and
    loads only what is asked for: over all sets of models that could be in memory."""
    least: dict[frozenset[int], float] = {frozenset(): 0.0}
    for wanted in trace:
        following: dict[frozenset[int], float] = {}
        for there, spent in least.items():
            after = spent if wanted in there else spent + house.load_s[wanted]
            kept = [there] if wanted in there else fitting(there, wanted, house)
            for each in kept:
                if after < following.get(each, float("inf")):
                    following[each] = after
        least = following
    return min(least.values())


def fitting(there: frozenset[int], wanted: int, house: House) -> Iterator[frozenset[int]]:
    """Yield the largest sets that may stay beside a model."""
    room = house.budget - house.sizes[wanted]
    found: list[frozenset[int]] = []
    for size in range(len(there), -1, -1):
        for some in map(frozenset, combinations(sorted(there), size)):
            fits = sum(house.sizes[each] for each in some) <= room
            if fits and not any(some < larger for larger in found):
                found.append(some)
                yield some | {wanted}


def measure_policies(seeds: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for name, (build, draw) in WORKLOADS.items():
        say(name)
        optimum, cost = 0.0, dict.fromkeys(POLICIES, 0.0)
        loads, best = dict.fromkeys(POLICIES, 0), 0
        for seed in range(seeds):
            rng = random.Random(seed)
            house = build(rng)
            trace = draw(rng)
            optimum += find_optimum(trace, house)
            best += play_best_known(trace, house).loads if name == "zipf(1.0)" else 0
            for policy in POLICIES:
                count = play(trace, house, policy)
                loads[policy] += count.loads
                cost[policy] += count.seconds
        thousands = seeds * REQUESTS / 1000
        rows.append(
            {
                "workload": name,
                "optimum": optimum / thousands,
                "best_known": best / thousands / (optimum / thousands) if best else None,
                "loads": {each: loads[each] / thousands for each in POLICIES},
                "ratio": {each: cost[each] / optimum for each in POLICIES},
            }
        )
    return rows


def show_policies(rows: Sequence[dict[str, object]]) -> None:
    head = ["workload", "optimum, load s / 1,000", "LRU loads", "LRU / optimum"]
    head += ["LRFU loads", "LRFU / optimum", "best without the future"]
    lines = []
    for row in rows:
        loads, ratio, best = row["loads"], row["ratio"], row["best_known"]
        assert isinstance(loads, dict) and isinstance(ratio, dict)
        cells = [str(row["workload"]), f"{row['optimum']:,.0f}"]
        for policy in POLICIES:
            cells += [f"{loads[policy]:.0f}", f"{ratio[policy]:.2f}"]
        lines.append([*cells, f"{best:.2f}" if best else "-"])
    out(markdown(head, lines))


def measure_decision(rounds: int = 7, calls: int = 5000) -> dict[str, float]:
    """Return the microseconds of one decision, the median of several rounds."""
    models = [
        ModelInfo(
            ModelRef("huggingface", f"owner{number % 100}/model-{number}"),
            capabilities=(Capability.CHAT, Capability.COMPLETION),
            context_length=8192,
        )
        for number in range(CATALOGUE)
    ]
    catalogue = Catalogue(models)
    chain = VirtualModel(
        "chain", tuple(Candidate(models[number].id) for number in (7, 5000, 9999)), "warm_first"
    )
    asked = {
        "a full name": models[-1].id,
        "a bare name": models[-1].ref.model,
        "an alias": "little",
        "a chain of three, warm first": "chain",
    }
    figures = {}
    for label, name in asked.items():
        request = GenerateRequest(id="b", model=name, messages=(Message.user("Hello"),))
        times = []
        for _ in range(rounds):
            began = time.process_time()
            for _ in range(calls):
                plan_routes(
                    request,
                    providers=("huggingface", "ollama"),
                    catalogue=catalogue,
                    aliases={"little": models[0].id},
                    rules={"chain": chain},
                    draw=random.random,
                )
            times.append((time.process_time() - began) / calls * 1e6)
        figures[label] = statistics.median(times)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policies", action="store_true", help="only the counts of loads")
    parser.add_argument("--decision", action="store_true", help="only the cost of a decision")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    both = options.policies == options.decision
    found: dict[str, object] = {"python": platform.python_version()}
    if both or options.policies:
        found["policies"] = rows = measure_policies(options.seeds)
        show_policies(rows)
    if both or options.decision:
        found["decision_us"] = figures = measure_decision()
        cells = [[label, f"{us:.1f}"] for label, us in figures.items()]
        out(markdown(["asked for by", f"us a decision, {CATALOGUE:,} models"], cells))
    out(json.dumps(found))


if __name__ == "__main__":
    main()
