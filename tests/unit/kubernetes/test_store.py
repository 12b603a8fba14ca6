# SPDX-License-Identifier: Apache-2.0
"""What is in force after any story a watch may tell: the same as after a fresh listing."""

import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ciliumd.kubernetes.kinds import NETWORK_POLICY
from ciliumd.kubernetes.store import Change, Event, KindStore
from ciliumd.tables import Problem

BAD = Problem("spec", "is wrong")
KEY = ("shop", "a")


def event(version, *, name="a", uid="1", gone=False, bad=False):
    """An event of the object *name*; its row's value is its uid and version."""
    rows = () if gone or bad else (("policies", ("shop", name), f"{uid}@{version}"),)
    return Event(NETWORK_POLICY, "shop", name, uid, version, gone, rows, BAD if bad else None)


def row(version, uid="1"):
    """The row of an event."""
    return ("policies", KEY, f"{uid}@{version}")


GONE = (("policies", KEY),)


def test_older_and_equal_versions_are_no_news():
    """A watch that begins again repeats itself."""
    store = KindStore()
    assert Change(KEY, rows=(row(5),)) == store.apply(event(5))
    assert store.apply(event(5)) is None
    assert store.apply(event(4)) is None
    assert store.apply(event(4, gone=True)) is None
    assert Change(KEY, rows=(row(6),)) == store.apply(event(6))


def test_deleted_object_does_not_come_back_by_an_older_event():
    """Late news of something that is gone."""
    store = KindStore()
    store.apply(event(5))
    assert Change(KEY, gone=GONE) == store.apply(event(7, gone=True))
    assert store.apply(event(6)) is None
    assert store.apply(event(7, gone=True)) is None
    assert Change(KEY, rows=(row(9, "2"),)) == store.apply(event(9, uid="2"))


def test_invalid_version_leaves_the_last_good_one_in_force():
    """But not if another object has taken the name."""
    store = KindStore()
    store.apply(event(5))
    assert Change(KEY, problem=BAD, stays=True) == store.apply(event(6, bad=True))
    assert Change(KEY, gone=GONE, problem=BAD) == store.apply(event(7, uid="2", bad=True))


def test_complete_only_when_all_that_is_listed_has_come():
    """Before that absence means nothing."""
    store = KindStore()
    assert not store.complete
    store.sweep(9, {KEY: ("1", 5), ("shop", "b"): ("2", 6)}, asked_at=0)
    store.apply(event(5))
    assert not store.complete
    store.apply(event(6, name="b", uid="2", bad=True))
    assert store.complete, "an invalid object is known, too"


def test_deletion_of_what_is_awaited_completes():
    """Who watches from before the listing hears of the deletion only."""
    store = KindStore()
    store.sweep(9, {KEY: ("1", 5)}, asked_at=0)
    store.apply(event(11, gone=True))
    assert store.complete


def test_listing_deletes_what_it_does_not_show():
    """Deletions a watch has lost; what is younger than the listing stays."""
    store = KindStore()
    store.apply(event(5))
    store.apply(event(12, name="b"))
    sweep = store.sweep(10, {}, asked_at=5)
    assert (Change(KEY, gone=GONE),) == sweep.changes
    assert len(store) == 1
    assert store.apply(event(8)) is None, "older than the listing that does not show it"


def test_listing_shows_a_newer_version_than_is_known():
    """It is awaited: the rows that are there stay until it comes."""
    store = KindStore()
    store.apply(event(5))
    assert store.sweep(10, {KEY: ("2", 8)}, asked_at=5).changes == ()
    assert not store.complete
    assert Change(KEY, rows=(row(8, "2"),)) == store.apply(event(8, uid="2"))
    assert store.complete


def test_listing_that_shows_less_than_it_must_have_seen():
    """History was put back and has gone on past the version it was put back from."""
    store = KindStore()
    store.apply(event(50))
    assert store.sweep(60, {KEY: ("1", 45)}, asked_at=50).reset


def test_listing_older_than_the_news_shows_that_history_was_put_back():
    """Nothing is concluded from it; after forgetting, older versions are news."""
    store = KindStore()
    store.apply(event(50))
    assert store.sweep(20, {}, asked_at=50).reset
    assert len(store) == 1
    store.forget()
    assert Change(KEY, rows=(row(15),)) == store.apply(event(15))
    store.apply(event(16, name="b"))
    assert (Change(KEY, gone=GONE),) == store.sweep(20, {("shop", "b"): ("1", 16)}, asked_at=16).changes


@pytest.mark.parametrize("version", [0, 7])
def test_versions_that_are_no_numbers_count_in_order_of_arrival(version):
    """As the API says of versions: opaque; then a listing deletes nothing."""
    store = KindStore()
    store.apply(event(version))
    assert Change(KEY, rows=(row(0, "2"),)) == store.apply(event(0, uid="2"))
    assert store.sweep(0, {}, asked_at=version).changes == ()


@dataclass
class Cluster:
    """A kind in an API server: its history, its objects, and what a watch would tell."""

    version: int = 10
    objects: dict = field(default_factory=dict)
    told: list = field(default_factory=list)
    uids: int = 0

    def change(self, name, action):
        """Create, spoil, correct or delete an object."""
        self.version += random.Random(self.version).randint(1, 3)
        key, before = ("shop", name), self.objects.get(("shop", name))
        if action == "delete":
            if before is not None:
                del self.objects[key]
                self.told.append(replace(before, version=self.version, gone=True, rows=(), problem=None))
            return
        if action == "replace" and before is not None:
            self.change(name, "delete")
            self.version += 1
            before = None
        if before is None:
            self.uids += 1
        uid = before.uid if before else str(self.uids)
        now = event(self.version, name=name, uid=uid, bad=action == "spoil")
        self.objects[key] = now
        self.told.append(now)

    def listing(self):
        """Version and names of what exists."""
        return self.version, {key: (one.uid, one.version) for key, one in self.objects.items()}


@dataclass
class Node:
    """A store and the rows it leads to."""

    store: KindStore = field(default_factory=KindStore)
    rows: dict = field(default_factory=dict)

    def write(self, change):
        """Make the rows follow."""
        for _, key in change.gone if change else ():
            del self.rows[key]
        for _, key, value in change.rows if change else ():
            self.rows[key] = value

    def hear(self, told):
        """Events, in this order."""
        for one in told:
            self.write(self.store.apply(one))

    def sweep(self, listing, asked_at):
        """Compare with a listing."""
        sweep = self.store.sweep(*listing, asked_at=asked_at)
        for change in sweep.changes:
            self.write(change)
        return sweep


ACTIONS = st.tuples(
    st.sampled_from("abc"), st.sampled_from(["create", "correct", "spoil", "delete", "replace"])
)


@settings(max_examples=600, deadline=None)
@given(
    history=st.lists(ACTIONS, max_size=25),
    chance=st.randoms(use_true_random=False),
    sweeps=st.sets(st.integers(0, 25), max_size=4),
)
def test_any_story_ends_as_a_fresh_listing(history, chance, sweeps):
    """Late, twice, out of order, lost: after the watch began again and a listing, all is as it is."""
    cluster, node = Cluster(), Node()
    pending = []
    for step, (name, action) in enumerate(history):
        cluster.change(name, action)
        pending += [one for one in cluster.told if chance.random() < 0.8]
        cluster.told.clear()
        pending += [one for one in pending if chance.random() < 0.2]
        chance.shuffle(pending)
        told, pending = pending[: len(pending) // 2], pending[len(pending) // 2 :]
        node.hear(told)
        if step in sweeps:
            asked_at = node.store.highest
            listing = cluster.listing()
            assert not node.sweep(listing, asked_at).reset
            assert node.store.complete or node.store.awaited <= listing[1].keys()
            assert set(node.rows) <= listing[1].keys(), "the listing is the truth of its moment"
    again = list(cluster.objects.values())
    chance.shuffle(again)
    asked_at = node.store.highest
    node.hear(again)
    node.sweep(cluster.listing(), asked_at)
    chance.shuffle(pending)
    node.hear(pending)
    _check_equal(node, cluster)


@settings(max_examples=300, deadline=None)
@given(
    before=st.lists(ACTIONS, max_size=12),
    lost=st.lists(ACTIONS, min_size=1, max_size=12),
    after=st.lists(ACTIONS, max_size=6),
)
def test_cluster_that_was_put_back_ends_as_a_fresh_listing(before, lost, after):
    """Objects vanish and return, and every version is older than before."""
    cluster, node = Cluster(), Node()
    for name, action in before:
        cluster.change(name, action)
    version, objects, uids = cluster.version, dict(cluster.objects), cluster.uids
    for name, action in lost:
        cluster.change(name, action)
    node.hear(cluster.told)
    node.sweep(cluster.listing(), node.store.highest)
    lost_versions = {(one.key, one.uid, one.version): one for one in cluster.told}

    # New objects never get a uid again that was used in the lost future.
    cluster = Cluster(version, objects, uids=uids + 1000)
    for name, action in after:
        cluster.change(name, action)
    # A version that the same object had in both histories, with other content, is the one thing that
    # neither events nor listings can tell apart.
    assume(all(lost_versions.get((one.key, one.uid, one.version), one) == one for one in cluster.told))
    node.hear(cluster.told)
    for _ in range(2):
        # What the source does: listings, and new watches as long as something is missing.
        if node.sweep(cluster.listing(), node.store.highest).reset:
            node.store.forget()
        if not node.store.complete:
            node.hear(cluster.objects.values())
    node.sweep(cluster.listing(), node.store.highest)
    _check_same_names(node, cluster)


def _check_equal(node, cluster):
    """Rows are those of valid objects as they are, and at most last good ones of the others."""
    _check_same_names(node, cluster)
    for key, one in cluster.objects.items():
        if one.problem is None:
            assert node.rows[key] == one.rows[0][2]
        elif key in node.rows:
            assert node.rows[key].startswith(f"{one.uid}@")
    assert node.store.complete


def _check_same_names(node, cluster):
    valid = {key for key, one in cluster.objects.items() if one.problem is None}
    assert valid <= set(node.rows) <= set(cluster.objects)
