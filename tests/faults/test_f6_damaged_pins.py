# SPDX-License-Identifier: Apache-2.0
"""
F6: pinned state is damaged by somebody else: pins go or lead elsewhere, values flip, links are detached.

All of it is noticed and repaired within 30 s, and nobody gets through who must not.  A packet that meets a
changed policy row is dropped (docs/decisions/0014).
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ciliumd import abi
from ciliumd.bpf.map import Map
from lab import manifests, maps
from lab.figures import Figures
from lab.meaning import meaning
from lab.node import Node
from lab.probers import Probers
from lab.waiting import eventually
from lab.world import World

REPAIRED_WITHIN = 30.0
PER_MAP, PER_MAP_LONG = 2, 60
SEED = 6
SERVED_BY_NODE = 8081
# What packets write, and rows nobody can tell from theirs.
NOT_FLIPPED = maps.LIVELY | {"cilium_layout_v1"} | set(maps.INNER)
# Each of the probers is under a policy of its own.
PODS = 3


@pytest.fixture(scope="module")
def node(world: World) -> Iterator[Node]:
    """A node whose agent compares its maps every two seconds, to save time: by default it is every 30."""
    with Node(world, options={"drift-interval": "2"}) as node:
        yield node.start()


@pytest.fixture(scope="module")
def probers(node: Node) -> Probers:
    """Who must get through all the while, and who must not; the stranger may not even reach the node."""
    probers = Probers(node)
    node.outside.call("serve_tcp", name="node", port=SERVED_BY_NODE)
    node.apply_policy(
        "stranger",
        manifests.cilium_policy(
            "stranger",
            {
                "endpointSelector": {"matchLabels": {"app": "stranger"}},
                "egress": [{"toEndpoints": [{"matchLabels": {"app": "receiver"}}]}],
            },
        ),
    )
    return probers


def ids(node: Node) -> dict[str, int]:
    """Which map every pin leads to, inner maps of policies too."""
    found = {}
    for directory in ("maps", "policies"):
        for pin in (node.bpf_root / directory).iterdir():
            with Map.from_pin(pin) as opened:
                found[f"{directory}/{pin.name}"] = opened.info.id
    return found


def versions(node: Node) -> set[str]:
    """Policy versions that have maps."""
    return {pin.name.partition("_")[0] for pin in (node.bpf_root / "policies").iterdir()}


def test_removed_and_replaced_pins_lead_back(
    node: Node, probers: Probers, record_property: Callable[[str, object], None]
) -> None:
    """A pin that is gone, or leads to a map of another type and size, is the agent's own map's again."""
    figures = Figures("F6-pins removed or replaced")
    # One that nobody uses any more goes after a while, and then its pins come back for nobody.
    eventually(lambda: len(versions(node)) == PODS, "a version for each pod and no other", seconds=30.0)
    before = ids(node)
    with probers:
        for number, name in enumerate(sorted(before)):
            pin = node.bpf_root / name
            pin.unlink()
            if number % 2:
                with Map.create(abi.MAPS["cilium_ifindex_v1"], max_entries=7) as other:
                    other.pin(pin)
            figures.injected += 1
        eventually(lambda: ids(node) == before, "every pin is back", seconds=REPAIRED_WITHIN)
        figures.survived = figures.injected
        # The next agent finds all of it.
        rows = maps.dump(node.bpf_root)
        node.agent.restart()
        probers.stop(figures)
    eventually(lambda: maps.differences(rows, maps.dump(node.bpf_root)) == [], "all rows are as before")
    figures.record(record_property)

    figures.assert_harmless()


def test_unpinned_links_let_nobody_through(
    node: Node, probers: Probers, record_property: Callable[[str, object], None]
) -> None:
    """The pins of all links are removed: no program comes off, and the pins are made again."""
    figures = Figures("F6-links unpinned")
    pins = maps.link_pins(node.bpf_root)
    with probers:
        for pin in pins:
            pin.unlink()
            figures.injected += 1
        figures.wrongly_allowed += sum(
            probers.stranger.reaches(node.address, SERVED_BY_NODE) for _ in range(4)
        )
        eventually(
            lambda: maps.link_pins(node.bpf_root) == pins, "every link is pinned", seconds=REPAIRED_WITHIN
        )
        figures.survived = len(maps.link_pins(node.bpf_root))
        probers.stop(figures)
    eventually(node.agent.healthy, "all is well again", seconds=REPAIRED_WITHIN)
    figures.record(record_property)

    figures.assert_harmless()


def test_detached_links_are_attached_again(
    node: Node, probers: Probers, record_property: Callable[[str, object], None]
) -> None:
    """
    Every link is detached by hand: all hang again within seconds, also where nobody is told of it.

    Until then there is no program to judge a packet; what it lets through to other pods is judged there.
    """
    figures = Figures("F6-links detached")
    with probers:
        for pin in maps.link_pins(node.bpf_root):
            maps.detach([pin])
            figures.injected += 1
        reached = 0

        def repaired() -> bool:
            nonlocal reached
            reached += probers.stranger.reaches(node.address, SERVED_BY_NODE, timeout=0.1)
            return node.agent.healthy()

        eventually(repaired, "all hang again", seconds=REPAIRED_WITHIN)
        figures.survived = len(maps.link_pins(node.bpf_root))
        fates = probers.stop(figures)
    outage = max(fates[name].longest_silence for name in ("pod to pod", "through ClusterIP"))
    figures.more["connections of a pod to its node meanwhile"] = reached
    figures.more["longest silence ms"] = int(outage * 1000)
    figures.record(record_property)

    assert figures.survived == figures.injected
    assert figures.wrongly_allowed == 0, figures
    assert not probers.stranger.reaches(node.address, SERVED_BY_NODE)


def flip(pin: Path, chance: random.Random, count: int) -> int:
    """Flip bits in values of a map, rows chosen at random; how many rows were changed."""
    flipped = 0
    with Map.from_pin(pin) as opened:
        rows = [(key, value) for key, value in opened.items() if any(value)]
        for key, value in chance.sample(rows, min(count, len(rows))):
            changed = bytearray(value)
            bit = chance.randrange(len(changed) * 8)
            changed[bit // 8] ^= 1 << bit % 8
            opened.update(key, bytes(changed))
            flipped += 1
    return flipped


def test_flipped_values_are_written_again(
    node: Node, probers: Probers, is_long: bool, record_property: Callable[[str, object], None]
) -> None:
    """Bits of rows of every map flip, of policies too: after the next comparison all is as written."""
    figures = Figures("F6-values flipped")
    chance = random.Random(SEED)
    rows, before = maps.dump(node.bpf_root), meaning(maps.dump(node.bpf_root))
    pins = sorted((node.bpf_root / "maps").iterdir()) + sorted((node.bpf_root / "policies").iterdir())
    with probers:
        for _ in range(PER_MAP_LONG // PER_MAP if is_long else 1):
            for pin in pins:
                if pin.name not in NOT_FLIPPED:
                    figures.injected += flip(pin, chance, PER_MAP)
            eventually(
                lambda: maps.differences(rows, maps.dump(node.bpf_root)) == [],
                "every row is as it was",
                seconds=REPAIRED_WITHIN,
            )
        figures.survived = figures.injected
        probers.stop(figures)
    eventually(node.agent.healthy, "all is well again", seconds=REPAIRED_WITHIN)
    figures.record(record_property)

    assert meaning(maps.dump(node.bpf_root)).differences(before) == []
    assert figures.injected >= 20
    assert figures.wrongly_allowed == 0, figures


def test_a_start_over_flipped_values_ends_as_written(
    node: Node, record_property: Callable[[str, object], None]
) -> None:
    """Values flip while no agent is there: the next one writes what the manifests say."""
    figures = Figures("F6-values flipped before a start")
    chance = random.Random(SEED + 1)
    before = meaning(maps.dump(node.bpf_root))
    node.agent.stop()
    for pin in sorted((node.bpf_root / "maps").iterdir()) + sorted((node.bpf_root / "policies").iterdir()):
        if pin.name not in NOT_FLIPPED:
            figures.injected += flip(pin, chance, PER_MAP)
    node.agent.start()
    eventually(
        lambda: meaning(maps.dump(node.bpf_root)).differences(before) == [],
        "all means what it meant",
        seconds=REPAIRED_WITHIN,
    )
    figures.survived = figures.injected
    figures.record(record_property)

    assert figures.injected >= 20


def test_a_map_of_another_kind_is_refused_at_a_start(
    node: Node, probers: Probers, record_property: Callable[[str, object], None]
) -> None:
    """A start does not read it as what it is not: it says which pin, and packets go on as they were."""
    node.agent.stop()
    pin = node.bpf_root / "maps" / "cilium_lxc_v1"
    aside = pin.with_name("aside")
    with Map.from_pin(pin) as real:
        real.pin(aside)
        pin.unlink()
        with Map.create(abi.MAPS["cilium_ifindex_v1"], max_entries=7) as other:
            other.pin(pin)
    figures = Figures("F6-map of another kind before a start", injected=1)
    with probers:
        node.agent.launch()
        assert node.agent.process is not None
        code = node.agent.process.wait(60.0)
        probers.stop(figures)
    pin.unlink()
    with Map.from_pin(aside) as real:
        real.pin(pin)
    aside.unlink()
    named = "cilium_lxc_v1" in str(node.agent.log_text().splitlines()[-40:])
    node.agent.start()
    figures.survived = int(code == 1 and named)
    figures.record(record_property)

    assert code == 1
    assert named
    figures.assert_harmless()
