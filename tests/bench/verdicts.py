# SPDX-License-Identifier: Apache-2.0
"""
P7: what a verdict costs by the number of rules, for new flows and for known ones.

The receiver's ingress policy has 1 to 10,000 rules, the packet matches one of them.  "ports": rules of one
class that differ by port; "peers": each rule has an identity, and so a class, of its own.  A datapath whose
conntrack rows of UDP expire at once (ct_timeout_any 0) judges every packet of a batch anew; otherwise all
packets but the first are of a known flow.  Receiver and sender have each other's MACs in their rows, or a
frame could not be run twice.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from bench.result import Figure, Goal, Section
from bench.samples import ratio
from ciliumd import abi
from ciliumd.bpf import Map
from ciliumd.desired.policy.maprows import class_check
from datapath.harness import QUIET, REDIRECT, Datapath
from datapath.rows import ALLOW, ALLOW_ALL, INGRESS, POD_ONE, POD_TWO, Rule, u32
from fixtures.packets import from_pod, pod_one, pod_two, udp

SIZES: Final = (1, 100, 1000, 10000)
LIMIT: Final = Goal(at_most=1.10)
PORT: Final = 5353
UDP: Final = 17
# A hop is taken from the frame in every run of a batch.
TTL: Final = 255
BATCH: Final = 200
BATCHES: Final = 20
SEED: Final = 7
FIRST_IDENTITY: Final = 2000
FIRST_VERSION: Final = 1000
SENDER: Final = POD_ONE
RECEIVER: Final = replace(POD_TWO, place=replace(pod_two, node_mac=pod_one.mac))
FRAME: Final = from_pod(pod_one, pod_two.ip, udp(40000, PORT, bytes(18)), ttl=TTL)

Rows = tuple[list[Rule], dict[int, int]]


def by_ports(count: int) -> Rows:
    """Rules of everybody's class that differ by port."""
    others = [port for port in range(1, 65536) if port != PORT]
    chosen = [PORT, *random.Random(SEED).sample(others, count - 1)]
    return [Rule(INGRESS, ALLOW, UDP, port, cookie=port) for port in chosen], {}


def by_peers(count: int) -> Rows:
    """One class and one rule for every identity; the sender's is among them."""
    identities = [SENDER.identity, *range(FIRST_IDENTITY, FIRST_IDENTITY + count - 1)]
    classes = {identity: number for number, identity in enumerate(identities, start=1)}
    return [Rule(INGRESS, ALLOW, UDP, PORT, class_id=number) for number in classes.values()], classes


SHAPES: Final[dict[str, Callable[[int], Rows]]] = {"ports": by_ports, "peers": by_peers}


@contextmanager
def versions(datapath: Datapath) -> Iterator[dict[tuple[str, int], int]]:
    """Hang up a policy version of every shape and size; their numbers."""
    made: dict[str, dict[bytes, Map]] = {"policy_classes": {}, "policy_rules": {}}
    numbers = {}
    try:
        for shape, build in SHAPES.items():
            for size in SIZES:
                number = numbers[shape, size] = FIRST_VERSION + len(numbers)
                rules, classes = build(size)
                for name, rows in (
                    ("policy_rules", {rule.key.pack(): rule.entry.pack() for rule in rules}),
                    ("policy_classes", dict(_class_row(*one) for one in classes.items())),
                ):
                    inner = abi.MAPS[datapath.map(name).name].inner
                    assert inner is not None
                    made[name][u32(number)] = Map.create(inner)
                    assert not made[name][u32(number)].update_batch(rows)
        for name, inner_maps in made.items():
            assert not datapath.map(name).update_inner(inner_maps)
        yield numbers
    finally:
        for inner_maps in made.values():
            for one in inner_maps.values():
                one.close()


def _class_row(identity: int, number: int) -> tuple[bytes, bytes]:
    key = abi.PolicyClassKey(identity, INGRESS)
    return key.pack(), abi.PolicyClass(class_check(identity, INGRESS, number), number).pack()


def take(datapath: Datapath, *, rounds: int) -> dict[tuple[str, int], list[float]]:
    """ns per packet, a column for every shape and size, all of them in every round."""
    datapath.reset()
    datapath.add_endpoint(SENDER, *ALLOW_ALL)
    datapath.add_endpoint(RECEIVER, *ALLOW_ALL)
    program = datapath.generation.entries["entry_from_container"]
    ifindex = SENDER.ifindex
    columns: dict[tuple[str, int], list[float]] = {}
    with versions(datapath) as numbers:
        for turn in range(rounds):
            order = list(numbers.items())
            for which, number in order if turn % 2 == 0 else reversed(order):
                datapath.use_version(RECEIVER, number)
                first = program.test_run(FRAME, ifindex=ifindex)
                assert first.retval == REDIRECT, f"{which}: the packet is not forwarded"
                runs = [program.test_run(FRAME, repeat=BATCH, ifindex=ifindex) for _ in range(BATCHES)]
                columns.setdefault(which, []).append(min(run.duration_ns for run in runs))
    return columns


def measure(state_dir: Path, *, rounds: int) -> Section:
    """New and known flows under policies of all sizes."""
    section = Section("verdicts", "P7  verdict by number of rules", case="P7")
    flows: dict[str, dict[str, int]] = {"new flow": {"ct_timeout_any": 0}, "established": {}}
    best: dict[str, float] = {}
    for flow, options in flows.items():
        with Datapath.loaded(state_dir, silent=QUIET, **options) as datapath:
            columns = take(datapath, rounds=rounds)
        for shape in SHAPES:
            for size in SIZES:
                best[f"{flow} {shape} {size}"] = min(columns[shape, size])
            largest, single = columns[shape, SIZES[-1]], columns[shape, SIZES[0]]
            section.add(
                Figure.of_ratio(
                    f"{flow}, {shape}: {SIZES[-1]} rules / 1 rule",
                    ratio(largest, single, higher_is_better=False),
                    goal=LIMIT,
                )
            )
        section.data[flow] = {f"{shape} {size}": column for (shape, size), column in columns.items()}
    for flow in flows:
        for shape in SHAPES:
            sizes = " / ".join(f"{best[f'{flow} {shape} {size}']:.0f}" for size in SIZES)
            note = f"whole packet, best of {rounds} rounds; {' / '.join(map(str, SIZES))} rules"
            section.add(Figure.of(f"{flow}, {shape}", sizes, "ns", note=note))
    return section
