# SPDX-License-Identifier: Apache-2.0
"""Policy versions in maps of a real kernel: hung whole, grown, taken down, and found again."""

from __future__ import annotations

import contextlib
import errno
import itertools
from dataclasses import replace
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest

from ciliumd import abi
from ciliumd.bpf import Map, Object
from ciliumd.bpf.errors import BpfError, NoSpace
from ciliumd.bpf.policy_maps import CLASSES, RULES, PolicyMaps, flat_key, split_key
from ciliumd.desired.policy import EndpointRules, MapState, packed_classes, packed_rules, resolve
from ciliumd.model.identity import cidr_labels
from ciliumd.model.policy import Direction, PeerCIDR, PortRule, Rule
from datapath.harness import SMALL
from datapath.pinned import own_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CLASSES_MAP, RULES_MAP = "cilium_policy_classes_v1", "cilium_policy_rules_v1"
LOCAL = 1 << 24


def content(*ports: int, identities: int = 1) -> MapState:
    """A version that allows some ports from some prefixes."""
    known = {LOCAL + n: cidr_labels(ip_network(f"10.{n}.0.0/16")) for n in range(identities)}
    peers = tuple(PeerCIDR(ip_network(f"10.{n}.0.0/16")) for n in range(identities))
    rule = Rule(Direction.INGRESS, False, peers, tuple(PortRule("TCP", port) for port in ports), "cnp:a/b/0")
    return resolve(EndpointRules((rule,), ("cnp:a/b",)), known)


def rows(version: int, state: MapState) -> dict[bytes, bytes]:
    """The flat rows of a version."""
    return {
        flat_key(version, which, key): value
        for which, packed in ((RULES, packed_rules(state)), (CLASSES, packed_classes(state)))
        for key, value in packed.items()
    }


class Node:
    """The two outer maps of a loaded object, and a directory of pins."""

    def __init__(self, outer: tuple[Map, Map], pins: Path) -> None:
        self.classes, self.rules = outer
        self.pins = pins

    def policies(self) -> PolicyMaps:
        """A fresh reader and writer, as after a restart."""
        return PolicyMaps(self.classes, self.rules, self.pins)

    def hung(self) -> tuple[set[int], set[int]]:
        """Versions in each outer map."""
        return _versions(self.classes), _versions(self.rules)

    def pinned(self) -> set[str]:
        """Names of pins."""
        return {path.name for path in self.pins.iterdir()}

    def clear(self) -> None:
        """Nothing hangs."""
        for outer in (self.classes, self.rules):
            outer.delete_batch(list(outer.keys()))


def _versions(outer: Map) -> set[int]:
    return {int.from_bytes(key, "little") for key in outer.keys()}  # noqa: SIM118


@contextlib.contextmanager
def outer_maps(*, classes: int = 64, rules: int = 64) -> Iterator[tuple[Map, Map]]:
    """Outer maps of these sizes, as an object of the datapath makes them."""
    with Object.open("lxc") as source:
        for name in source.map_names:
            if name in SMALL:
                source.set_max_entries(name, SMALL[name])
        source.set_max_entries(CLASSES_MAP, classes)
        source.set_max_entries(RULES_MAP, rules)
        source.load()
        with source.map(CLASSES_MAP) as one, source.map(RULES_MAP) as two:
            yield one, two


@pytest.fixture(scope="module")
def roomy() -> Iterator[tuple[Map, Map]]:
    """Outer maps with room for every version of a test."""
    with outer_maps() as made:
        yield made


@pytest.fixture
def node(roomy: tuple[Map, Map]) -> Iterator[Node]:
    """Empty maps and no pins."""
    with own_directory() as pins:
        made = Node(roomy, pins)
        made.clear()
        yield made
        made.clear()


@pytest.fixture
def policies(node: Node) -> Iterator[PolicyMaps]:
    """The maps of an agent that starts with nothing."""
    made = node.policies()
    assert made.load() == {}
    yield made
    made.close()


def small_inner(monkeypatch: pytest.MonkeyPatch, name: str, entries: int) -> None:
    """Versions made from now on have this little room in one of their maps."""
    inner = abi.MAPS[name].inner
    assert inner is not None
    smaller = replace(abi.MAPS[name], inner=replace(inner, max_entries=entries))
    monkeypatch.setitem(abi.MAPS, name, smaller)


def test_a_version_is_written_hung_and_read_back(node: Node, policies: PolicyMaps) -> None:
    """Both of its maps, pinned by its number, with every row."""
    expected = rows(7, content(80, 443))
    assert policies.update(expected) == {}
    assert node.hung() == ({7}, {7})
    assert node.pinned() == {"7_classes", "7_rules"}
    assert policies.load() == expected
    assert policies.versions() == {7}
    with node.rules.open_inner((7).to_bytes(4, "little")) as inner:
        assert dict(inner.items()) == packed_rules(content(80, 443))


def test_many_versions_arrive_in_one_call(node: Node, policies: PolicyMaps) -> None:
    """Each with its own content."""
    expected = {key: value for n in range(1, 21) for key, value in rows(n, content(n, 1000 + n)).items()}
    assert policies.update(expected) == {}
    assert node.hung() == (set(range(1, 21)), set(range(1, 21)))
    assert policies.load() == expected


def test_a_version_grows_in_place(node: Node, policies: PolicyMaps) -> None:
    """The same two maps, more rows: packets never miss the version."""
    small, large = rows(7, content(80)), rows(7, content(80, identities=3))
    policies.update(small)
    before = policies.inner_ids()
    assert small.items() < large.items()
    assert policies.update({key: large[key] for key in large.keys() - small.keys()}) == {}
    assert policies.inner_ids() == before
    assert policies.load() == large


def test_rows_are_written_before_the_classes_that_lead_to_them(
    node: Node, policies: PolicyMaps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An identity never finds a class without rows; the version is hung last."""
    order = []
    original = Map.update_batch

    def note(self: Map, items: dict[bytes, bytes], flags: int = 0) -> dict[bytes, BpfError]:
        order.append(self.name)
        return original(self, items, flags)

    monkeypatch.setattr(Map, "update_batch", note)
    policies.update(dict(sorted(rows(7, content(80)).items())))
    assert order == [RULES_MAP, CLASSES_MAP, CLASSES_MAP, RULES_MAP]


def test_single_rows_are_deleted_and_the_version_stays(node: Node, policies: PolicyMaps) -> None:
    """An identity that is gone takes its class row with it, no more."""
    expected = rows(7, content(80, identities=3))
    policies.update(expected)
    gone = [key for key in expected if split_key(key)[1] == CLASSES][:1]
    assert policies.delete(gone) == {}
    assert policies.load() == {key: value for key, value in expected.items() if key not in gone}
    assert node.hung() == ({7}, {7})


def test_a_deleted_version_leaves_nothing(node: Node, policies: PolicyMaps) -> None:
    """Not in the outer maps, not on bpffs; the others stay, and deleting again is success."""
    one, two = rows(1, content(80)), rows(2, content(81))
    policies.update({**one, **two})
    assert policies.delete(one) == {}
    assert node.hung() == ({2}, {2})
    assert node.pinned() == {"2_classes", "2_rules"}
    assert policies.delete(one) == {}
    assert policies.load() == two


def test_a_version_is_deleted_in_whatever_pieces(node: Node, policies: PolicyMaps) -> None:
    """The reconciler deletes in chunks that know nothing of versions."""
    expected = rows(3, content(*range(1, 40, 2), identities=4))
    policies.update(expected)
    keys = list(expected)
    for start in range(0, len(keys), 7):
        assert policies.delete(keys[start : start + 7]) == {}
    assert node.hung() == (set(), set())
    assert node.pinned() == set()
    assert policies.load() == {}


def test_a_version_is_written_in_whatever_pieces(node: Node, policies: PolicyMaps) -> None:
    """At the end it is whole."""
    expected = rows(3, content(*range(1, 40, 2), identities=4))
    items = list(expected.items())
    for start in range(0, len(items), 5):
        assert policies.update(dict(items[start : start + 5])) == {}
    assert policies.load() == expected


def test_a_restarted_agent_reads_the_same_rows(node: Node, policies: PolicyMaps) -> None:
    """By the pins, without opening maps by id; and goes on where the other ended."""
    expected = {**rows(1, content(80)), **rows(2, content(81, identities=2))}
    policies.update(expected)
    ids = policies.inner_ids()
    policies.close()

    after = node.policies()
    assert after.load() == expected
    assert after.inner_ids() == ids
    more = rows(1, content(80, identities=2))
    assert after.update({key: more[key] for key in more.keys() - expected.keys()}) == {}
    assert after.load() == {**expected, **more}
    assert after.delete(rows(2, content(81, identities=2))) == {}
    assert node.hung() == ({1}, {1})
    after.close()


def _unhang(outer: str) -> Callable[[Node], None]:
    return lambda node: getattr(node, outer).delete((7).to_bytes(4, "little")) and None


def _unpin(kind: str) -> Callable[[Node], None]:
    return lambda node: (node.pins / f"7_{kind}").unlink()


@pytest.mark.parametrize(
    "crash",
    [_unhang("classes"), _unhang("rules"), _unpin("classes"), _unpin("rules")],
    ids=["classes-not-hung", "rules-not-hung", "classes-not-pinned", "rules-not-pinned"],
)
def test_what_a_crash_left_half_done_is_taken_down(
    node: Node, policies: PolicyMaps, crash: Callable[[Node], None]
) -> None:
    """In either outer map or on bpffs: nothing of the half version stays, the whole ones do."""
    whole = rows(6, content(80))
    policies.update({**whole, **rows(7, content(81))})
    policies.close()
    crash(node)

    after = node.policies()
    assert after.load() == whole
    assert node.hung() == ({6}, {6})
    assert node.pinned() == {"6_classes", "6_rules"}
    # The number is free for a retry of the very same version.
    assert after.update(rows(7, content(81))) == {}
    assert after.load() == {**whole, **rows(7, content(81))}
    after.close()


def test_pins_of_nobody_we_know_do_not_stop_the_agent(node: Node, policies: PolicyMaps) -> None:
    """They are left alone."""
    expected = rows(7, content(80))
    policies.update(expected)
    policies.close()
    inner = abi.MAPS[RULES_MAP].inner
    assert inner is not None
    for name in ("notes", "x_rules", "9_other"):
        with Map.create(inner) as stray:
            stray.pin(node.pins / name)
    after = node.policies()
    assert after.load() == expected
    assert node.pinned() == {"7_classes", "7_rules", "notes", "x_rules", "9_other"}
    after.close()


@pytest.mark.parametrize(("name", "which"), [(CLASSES_MAP, CLASSES), (RULES_MAP, RULES)])
def test_a_full_inner_map_is_reported_by_key_and_retried(
    node: Node, policies: PolicyMaps, monkeypatch: pytest.MonkeyPatch, name: str, which: int
) -> None:
    """The version is not shown to packets; what did not fit is tried again when there is room."""
    wanted = rows(7, content(*range(1, 20, 2), identities=6))
    of_kind = [key for key in wanted if split_key(key)[1] == which]
    small_inner(monkeypatch, name, len(of_kind) - 2)
    failed = policies.update(wanted)
    full = {key for key, error in failed.items() if isinstance(error, NoSpace)}
    assert len(full) == 2
    assert full <= set(of_kind)
    assert node.hung() == (set(), set())

    room = [key for key in of_kind if key not in failed][:2]
    policies.delete(room)
    assert policies.update({key: wanted[key] for key in failed}) == {}
    assert policies.load() == {key: value for key, value in wanted.items() if key not in room}


def test_no_class_is_led_to_rules_of_which_one_is_missing(
    node: Node, policies: PolicyMaps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that does not fit may be a deny: a version that packets meet gets no class that needs it."""
    before = rows(7, content(80))
    after = rows(7, content(80, 443, identities=3))
    assert policies.update(before) == {}
    held = policies.load()
    of_rules = [key for key in {**before, **after} if split_key(key)[1] == RULES]
    for version in node.rules.keys():  # noqa: SIM118
        with node.rules.open_inner(version) as inner:
            # Full of rows of somebody else's.
            spare = inner.info.max_entries - len(list(inner.items()))
            other = abi.PolicyKey(prefixlen=48, class_id=60_000, direction=1, protocol=6, dport=0)
            value = next(value for key, value in before.items() if split_key(key)[1] == RULES)
            fill = {replace(other, dport=port).pack(): value for port in range(spare)}
            assert inner.update_batch(fill) == {}
            new = {key: value for key, value in after.items() if before.get(key) != value}
            failed = policies.update(new)
            classes = {key for key in new if split_key(key)[1] == CLASSES}
            assert classes
            assert classes <= failed.keys()
            assert classes.isdisjoint(policies.load().keys() - held.keys())
            # Classes alone do not get in either, while the rules wait for their next attempt.
            assert policies.update({key: new[key] for key in classes}).keys() == classes
            assert inner.delete_batch(fill) == {}
    assert policies.update(new) == {}
    assert set(of_rules) & after.keys() <= policies.load().keys()


@pytest.mark.parametrize(("classes", "rules"), [(2, 64), (64, 2), (2, 2)])
def test_a_version_hangs_in_both_outer_maps_or_in_none(classes: int, rules: int) -> None:
    """One outer map is full: its rows are reported, nothing hangs half, and a retry finds the room."""
    with own_directory() as pins, outer_maps(classes=classes, rules=rules) as outer:
        node = Node(outer, pins)
        policies = node.policies()
        policies.load()
        wanted = {n: rows(n, content(80 + n)) for n in range(1, 5)}
        failed = policies.update({key: value for one in wanted.values() for key, value in one.items()})
        hung = node.hung()[0]
        assert len(hung) == 2
        assert node.hung() == (hung, hung)
        assert {split_key(key)[0] for key in failed} == wanted.keys() - hung
        assert failed.keys() == {key for n in wanted.keys() - hung for key in wanted[n]}

        for n in hung:
            policies.delete(wanted[n])
        assert (
            policies.update({key: value for n in wanted.keys() - hung for key, value in wanted[n].items()})
            == {}
        )
        assert node.hung() == (wanted.keys() - hung, wanted.keys() - hung)
        policies.close()


def test_a_version_that_cannot_be_made_leaves_nothing(
    node: Node, policies: PolicyMaps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are reported by key, the others are written."""
    calls = itertools.count(1)
    original = Map.pin

    def pin(self: Map, path: Path) -> None:
        if next(calls) == 4:
            raise BpfError("pin", str(path), errno.ENOMEM)
        original(self, path)

    monkeypatch.setattr(Map, "pin", pin)
    one, two, three = rows(1, content(80)), rows(2, content(81)), rows(3, content(82))
    failed = policies.update({**one, **two, **three})
    assert failed.keys() == two.keys()
    assert node.hung() == ({1, 3}, {1, 3})
    assert node.pinned() == {"1_classes", "1_rules", "3_classes", "3_rules"}
    monkeypatch.undo()
    assert policies.update(two) == {}
    assert policies.load() == {**one, **two, **three}


def test_an_outer_row_that_stays_keeps_its_version(
    node: Node, policies: PolicyMaps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deletion that fails is reported by key and tried again; handles and pins are there till then."""
    wanted = rows(7, content(80))
    policies.update(wanted)
    original = Map.delete_batch

    def refuse(self: Map, keys: list[bytes]) -> dict[bytes, BpfError]:
        keys = list(keys)
        if self.name == RULES_MAP and len(keys[0]) == 4:
            return {key: BpfError("delete from map", self.name, errno.EBUSY) for key in keys}
        return original(self, keys)

    monkeypatch.setattr(Map, "delete_batch", refuse)
    failed = policies.delete(wanted)
    assert failed.keys() == wanted.keys()
    monkeypatch.undo()
    assert policies.delete(wanted) == {}
    assert node.hung() == (set(), set())
    assert node.pinned() == set()
