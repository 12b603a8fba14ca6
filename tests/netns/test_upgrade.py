# SPDX-License-Identifier: Apache-2.0
"""
Upgrade figures: from this version to the next and back, again and again, under load.

The next version (``lab.nextversion``) lays conntrack rows, NAT rows and backends out otherwise, and has
one program more and one less.  Numbered packets, ever new flows that ask and want an answer, and
connections that were open before; nothing may be lost, every row must be carried either way.  A next
version that cannot carry a row, or cannot make its map, changes nothing.
"""

import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Final

import pytest

from ciliumd import abi
from ciliumd.bpf.map import Map
from ciliumd.reconcile import gc
from lab import manifests, nextversion
from lab.load import Connections, Load
from lab.node import Node
from lab.pod import Pod
from lab.probers import BEHIND_SERVICE, receiver_policy
from lab.waiting import eventually
from lab.world import World

pytestmark = pytest.mark.netns

CYCLES: Final = int(os.environ.get("CILIUMD_TEST_UPGRADES", "2"))
VIP: Final = "10.96.0.30"
START_SECONDS: Final = 30
SILENT: Final = 10
TALKING: Final = 10
SIGNALS: Final = (signal.SIGTERM, signal.SIGKILL)
GENERATION, HOOKS = "cilium_node_state_v1", "cilium_hooks_v1"
STATE: Final = ("cilium_ct", "cilium_snat")
# Rows are compared by key before and after: nobody may tidy up meanwhile, and no map be too small.
OPTIONS: Final = {
    "conntrack-gc-interval": "3600",
    "bpf-ct-max": "262144",
    "bpf-nat-max": "131072",
}

Rows = dict[bytes, bytes]


@pytest.fixture(scope="module")
def next_abi() -> ModuleType:
    """The next version, built, and its codecs, which are a module without imports."""
    path = nextversion.build() / "src" / "ciliumd" / "abi.py"
    spec = importlib.util.spec_from_file_location("next_abi", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["next_abi"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def node(world: World) -> Iterator[Node]:
    """A node whose rows stay."""
    with Node(world, name="upgraded", options=OPTIONS) as node:
        yield node.start()


@pytest.fixture(scope="module")
def pods(node: Node, world: World) -> tuple[Pod, Pod, Pod]:
    """A receiver behind a service, a sender who may, and a stranger who may not."""
    receiver = node.pod("receiver", {"app": "receiver"}).serve(tcp=(80,), udp=(53,))
    sender = node.pod("sender", {"app": "sender"})
    stranger = node.pod("stranger", {"app": "stranger"})
    world.actor.call("serve_tcp", name="far", port=80, address=world.far)
    world.actor.call("serve_udp", name="far", port=53, address=world.far)
    ports = [("UDP", 9100, BEHIND_SERVICE), ("UDP", 53, 53), ("TCP", 80, 80)]
    node.apply("service", manifests.service("receiver", VIP, {"app": "receiver"}, ports=ports))
    node.wait_service(f"{VIP}:9100", 1)
    node.wait_service(f"{VIP}:80", 1)
    node.apply_policy("receiver", receiver_policy())
    return receiver, sender, stranger


# -- versions ----------------------------------------------------------------------------------


def use(node: Node, version: int) -> None:
    """What is started next: 1 is this checkout, 2 the next version."""
    node.agent.wrapper = [] if version == 1 else ["/usr/bin/env", f"PYTHONPATH={nextversion.python_path()}"]


def dump(node: Node, name: str) -> Rows:
    """Every row of a pinned map."""
    with Map.from_pin(node.bpf_root / "maps" / name) as opened:
        return dict(opened.items())


def state(node: Node, version: int) -> dict[str, Rows]:
    """Conntrack and NAT rows as a version keeps them."""
    return {name: dump(node, f"{name}_v{version}") for name in STATE}


def pinned(node: Node) -> set[str]:
    """Names of the pinned maps."""
    return {path.name for path in (node.bpf_root / "maps").iterdir()}


def generation(node: Node) -> int:
    """The active generation of programs."""
    return int.from_bytes(dump(node, GENERATION)[bytes(4)], "little")


def calls(node: Node) -> set[int]:
    """Rows of the tail-call table of the active generation that lead somewhere."""
    with Map.from_pin(node.bpf_root / f"gen_{generation(node)}" / "calls") as table:
        rows = range(table.info.max_entries)
        return {row for row in rows if table.lookup(row.to_bytes(4, "little"))}


def missed_tail_calls(node: Node) -> int:
    """Packets dropped because a program was not there."""
    with Map.from_pin(node.bpf_root / "maps" / "cilium_metrics_v1") as metrics:
        rows = [
            abi.DropReason.DROP_MISSED_TAIL_CALL * abi.Direction.DIR_MAX + direction
            for direction in range(abi.Direction.DIR_MAX)
        ]
        return sum(metrics.lookup_sums(row.to_bytes(4, "little"))[0] for row in rows)


# -- what is asked of rows ---------------------------------------------------------------------

CODECS: Final = {"cilium_ct": "CtEntry", "cilium_snat": "NatEntry"}


def in_use(rows: dict[str, Rows], version: ModuleType) -> dict[str, set[bytes]]:
    """
    Keys of the rows that will not have had their time when an agent has started: it takes those away.

    A NAT row is as good as the flow it serves.
    """
    now = int(time.monotonic()) + START_SECONDS
    live = {key for key, raw in rows["cilium_ct"].items() if version.CtEntry.unpack(raw).expires > now}

    def serves(key: bytes, raw: bytes) -> bool:
        flow = gc.flow_of_nat(abi.NatKey.unpack(key), version.NatEntry.unpack(raw))
        return flow is None or flow.pack() in live

    return {
        "cilium_ct": live,
        "cilium_snat": {key for key, raw in rows["cilium_snat"].items() if serves(key, raw)},
    }


def lost_rows(wanted: dict[str, set[bytes]], after: dict[str, Rows]) -> list[str]:
    """Keys that are not there any more."""
    return [f"{name} {key.hex()}" for name in STATE for key in wanted[name] - after[name].keys()]


def changed_rows(
    ours: dict[str, Rows], theirs: dict[str, Rows], next_abi: ModuleType, silent: set[int]
) -> list[str]:
    """Rows of silent connections whose fields are not the same in both layouts; there must be some."""
    found, compared = [], dict.fromkeys(STATE, 0)
    for name, codec in CODECS.items():
        for key, raw in ours[name].items():
            if name == "cilium_ct":
                row_key = abi.CtKey.unpack(key)
                port, kind = row_key.local_port, row_key.protocol
            else:
                nat_key = abi.NatKey.unpack(key)
                port, kind = nat_key.sport, nat_key.protocol
            if port not in silent or kind != 6:
                continue
            one, other = getattr(abi, codec).unpack(raw), getattr(next_abi, codec).unpack(theirs[name][key])
            fields = [field for field in type(one).__match_args__ if not field.startswith("pad")]
            differ = [field for field in fields if getattr(one, field) != getattr(other, field)]
            found += [f"{name} {key.hex()} {differ}"] if differ else []
            compared[name] += 1
    assert compared["cilium_ct"] >= SILENT, compared
    assert compared["cilium_snat"] >= SILENT, compared
    return found


# -- tests -------------------------------------------------------------------------------------


def test_upgrades_and_rollbacks_lose_nothing(
    node: Node,
    world: World,
    pods: tuple[Pod, Pod, Pod],
    next_abi: ModuleType,
    record_property: Callable[[str, object], None],
) -> None:
    """N to N+1 and back: packets lost 0, answers missing 0, connections broken 0, rows not carried 0."""
    _, sender, _ = pods
    talking, silent = (Connections(sender, (VIP, world.far), count) for count in (TALKING, SILENT))
    survived, carried, seconds = 0, 0, []
    missing: list[str] = []
    changed: list[str] = []
    first = missed_tail_calls(node)
    with Load(world, pods, VIP, talking) as load:
        load.go_on()
        for number in range(2 * CYCLES):
            old, new = (1, 2) if number % 2 == 0 else (2, 1)
            node.agent.stop(SIGNALS[number // 2 % 2])
            before = state(node, old)
            codecs = {1: abi, 2: next_abi}[old]
            use(node, new)
            started = time.monotonic()
            node.agent.start()
            seconds.append(round(time.monotonic() - started, 1))
            after = state(node, new)
            wanted = in_use(before, codecs)
            missing += lost_rows(wanted, after)
            carried += sum(map(len, wanted.values()))
            if new == 2:
                changed += changed_rows(state(node, 1), after, next_abi, silent.ports)
                assert {next_abi.Call.CALL_FRONTEND} == calls(node) - set(abi.Call)
                assert abi.Call.CALL_SERVICE not in calls(node)
                told = node.agent.get("healthz")["datapath"]["rows carried"]
                assert "cilium_ct_v2 " in told
                assert "cilium_snat_v2 " in told
            else:
                assert next_abi.Call.CALL_FRONTEND not in calls(node)
                assert abi.Call.CALL_SERVICE in calls(node)
                eventually(lambda: pinned(node) == set(pinned(node)) & set(abi.MAPS), "maps of N+1 are gone")
            load.go_on()
            survived += node.agent.healthy()
        figures = load.stop()
    broken = talking.broken() + silent.broken()
    missed = missed_tail_calls(node) - first
    record_property(
        "figure",
        f"upgrades and rollbacks {2 * CYCLES}, survived {survived}, packets lost {figures['lost']} of "
        f"{figures['packets']}, answers wrong or missing {figures['unanswered']} of {figures['asked']} on "
        f"{figures['flows']} flows, wrongly allowed {figures['wrongly_allowed']}, connections broken "
        f"{len(broken)} of {2 * (TALKING + SILENT)}, rows not carried {len(missing)} of {carried}, missed "
        f"tail calls {missed}; seconds {seconds}",
    )
    data = {
        "case": "F3",
        "injected": 2 * CYCLES,
        "survived": survived,
        **{name: value for name, value in figures.items() if isinstance(value, int)},
        "connections": 2 * (TALKING + SILENT),
        "connections broken": len(broken),
        "rows carried": carried,
        "rows not carried": len(missing),
        "rows changed": len(changed),
        "missed tail calls": missed,
        "most seconds to ready": max(seconds),
    }
    record_property("data", json.dumps(data))

    assert figures["lost"] == 0, "\n".join(figures["told"])
    assert figures["unanswered"] == 0, "\n".join(figures["told"])
    assert figures["wrongly_allowed"] == 0, "\n".join(figures["told"])
    assert broken == []
    assert survived == 2 * CYCLES
    assert missing == []
    assert changed == []
    assert missed == 0
    assert carried > 0


def test_an_upgrade_that_cannot_carry_a_row_changes_nothing(
    node: Node, world: World, pods: tuple[Pod, Pod, Pod], next_abi: ModuleType
) -> None:
    """The next version ends and says which map and why; packets go on by the programs and rows of before."""
    del next_abi
    _, sender, _ = pods
    talking = Connections(sender, (VIP, world.far), TALKING)
    key = b"no row of ours".ljust(40, b".")
    entry = abi.CtEntry(
        **dict.fromkeys(abi.CtEntry.__match_args__, 0) | {"flags": 0x4000, "expires": 2**32 - 1}
    )
    with Load(world, pods, VIP, talking) as load:
        load.go_on()
        node.agent.stop()
        before = generation(node), pinned(node), calls(node), dump(node, HOOKS)
        with Map.from_pin(node.bpf_root / "maps" / "cilium_ct_v1") as rows:
            rows.update(key, entry.pack())
        use(node, 2)
        node.agent.launch()
        assert node.agent.process is not None
        assert node.agent.process.wait(30) == 1
        assert (generation(node), pinned(node), calls(node), dump(node, HOOKS)) == before
        load.go_on()
        with Map.from_pin(node.bpf_root / "maps" / "cilium_ct_v1") as rows:
            assert rows.delete(key)
        use(node, 1)
        node.agent.start()
        load.go_on()
        figures = load.stop()
    (line,) = [line for line in node.agent.log_text().splitlines() if "agent.failed" in line]

    for word in (
        "carry the rows of cilium_ct_v1 into cilium_ct_v2",
        key.hex(),
        "0x4000",
        "go on with cilium_ct_v1",
    ):
        assert word in line
    assert figures["lost"] == figures["unanswered"] == figures["wrongly_allowed"] == 0, "\n".join(
        figures["told"]
    )
    assert talking.broken() == []
    assert missed_tail_calls(node) == 0
