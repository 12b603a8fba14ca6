# SPDX-License-Identifier: Apache-2.0
"""Label sets get numbers, each name once."""

import asyncio
import random

import pytest

from ciliumd.kubernetes.claims import CONDEMNED
from ciliumd.kubernetes.identities import IdentityAllocator, NoNumberLeft, NumbersTaken, document
from ciliumd.kubernetes.kinds import CILIUM_IDENTITY
from ciliumd.model.identity import CLUSTER_MAX, CLUSTER_MIN
from ciliumd.model.labels import Label
from ciliumd.resources import parse
from ciliumd.tables import Tables
from unit.kubernetes.fake_api import FakeApi

WEB = frozenset({Label("k8s", "app", "web"), Label("k8s", "io.kubernetes.pod.namespace", "shop")})
DB = frozenset({Label("k8s", "app", "db")})


class Lab:
    """An allocator, what it is asked for, and a watch that shows what there is when told to."""

    def __init__(self, *, seed=1):
        self.api = FakeApi()
        self.tables = Tables()
        self.tables.cluster_identities.mark_initialized()
        self.wanted = {}
        self.now = 0.0
        self.allocator = IdentityAllocator(
            self.api,
            self.tables,
            unallocated=lambda: self.wanted,
            chance=random.Random(seed),
            clock=lambda: self.now,
        )

    def work(self):
        """One run."""
        asyncio.run(self.allocator.work())

    def numbers(self):
        """What the API server holds: labels by number."""
        found = {}
        for one in self.api.of(CILIUM_IDENTITY).values():
            ((_, number, labels),) = parse(one).rows()
            found[number] = labels
        return found


@pytest.fixture
def lab():
    """A cluster without identities."""
    return Lab()


def test_object_can_be_read_and_selected_by_labels():
    """The labels are in it twice: for agents with their source, for Kubernetes without."""
    made = document(300, WEB)
    assert made["metadata"] == {
        "name": "300",
        "labels": {"app": "web", "io.kubernetes.pod.namespace": "shop"},
    }
    assert [("cluster_identities", 300, WEB)] == parse(made).rows()


def test_labels_kubernetes_does_not_allow_are_left_out_of_its_own():
    """With our prefix a key of a namespace's label may be too long."""
    long = "io.cilium.k8s.namespace.labels." + "a" * 250 + "/b"
    made = document(300, frozenset({Label("k8s", long, "x"), Label("k8s", "a", "b")}))
    assert made["metadata"]["labels"] == {"a": "b"}
    assert made["security-labels"][f"k8s:{long}"] == "x"


def test_pod_cannot_condemn_its_own_identity():
    """Its labels are labels of the object, except the one that is the operator's."""
    made = document(300, frozenset({Label("k8s", CONDEMNED, "true"), Label("k8s", "a", "b")}))
    assert made["metadata"]["labels"] == {"a": "b"}
    assert made["security-labels"] == {f"k8s:{CONDEMNED}": "true", "k8s:a": "b"}


def test_each_label_set_gets_a_number_once(lab):
    """However often it is asked for before the watch shows it."""
    lab.wanted = {WEB: None, DB: None}
    for _ in range(5):
        lab.work()
    numbers = lab.numbers()
    assert {WEB, DB} == set(numbers.values())
    assert len(numbers) == 2
    assert all(CLUSTER_MIN <= number <= CLUSTER_MAX for number in numbers)


def test_number_in_use_is_preferred(lab):
    """Somebody deleted the object of a number that is in the maps."""
    lab.wanted = {WEB: 4711}
    lab.work()
    assert lab.numbers() == {4711: WEB}


def test_taken_name_leads_to_another_number(lab):
    """The watch is late, or another node was faster."""
    lab.api.put(CILIUM_IDENTITY, document(4711, DB))
    lab.wanted = {WEB: 4711}
    lab.work()
    numbers = lab.numbers()
    assert numbers.pop(4711) == DB
    assert list(numbers.values()) == [WEB]


def test_own_object_of_an_attempt_that_seemed_to_fail_is_recognized(lab):
    """No second number for the same labels."""
    lab.api.put(CILIUM_IDENTITY, document(4711, WEB))
    lab.wanted = {WEB: 4711}
    lab.work()
    assert lab.numbers() == {4711: WEB}


def test_asked_again_when_the_watch_never_shows_it(lab):
    """Somebody deleted it at once."""
    lab.wanted = {WEB: None}
    lab.work()
    lab.api.objects.clear()
    lab.work()
    assert lab.numbers() == {}
    lab.now += 60
    lab.work()
    assert list(lab.numbers().values()) == [WEB]


def test_object_that_was_shown_and_deleted_is_made_again_at_once(lab):
    """However soon after it was made."""
    lab.wanted = {WEB: 4711}
    for _ in range(3):
        lab.work()
        assert lab.numbers() == {4711: WEB}
        lab.tables.cluster_identities.set(4711, WEB)
        lab.api.objects.clear()
        lab.tables.cluster_identities.delete(4711)


def test_watch_may_be_faster_than_the_answer(lab):
    """What it has shown by then is not awaited: if it is gone, somebody deleted it."""
    create = lab.api.create

    async def shown(kind, made):
        answer = await create(kind, made)
        lab.tables.cluster_identities.set(4711, WEB)
        return answer

    lab.api.create = shown
    lab.wanted = {WEB: 4711}
    for _ in range(2):
        lab.work()
        assert lab.numbers() == {4711: WEB}
        lab.api.objects.clear()
        lab.tables.cluster_identities.delete(4711)


def test_nothing_before_the_identities_of_the_cluster_are_known(lab):
    """Most label sets have a number."""
    lab.tables.cluster_identities.initialized = False
    lab.wanted = {WEB: None}
    lab.work()
    assert lab.api.asked == []


def test_last_free_number_is_found_and_none_left_is_said(lab):
    """The operator has to collect; others are asked for again later."""
    for number in range(CLUSTER_MIN, CLUSTER_MAX + 1):
        if number != 33333:
            lab.tables.cluster_identities.set(number, frozenset({Label("k8s", "n", str(number))}))
    lab.wanted = {WEB: None}
    lab.work()
    assert lab.numbers() == {33333: WEB}
    lab.tables.cluster_identities.set(33333, WEB)
    news = []
    lab.allocator.refused_changed = lambda: news.append(lab.allocator.refused)
    lab.wanted = {DB: None}
    for _ in range(2):
        with pytest.raises(NoNumberLeft, match="every number between 256 and 65535 is taken"):
            lab.work()
    assert news == [{DB}]

    lab.tables.cluster_identities.delete(400)
    lab.work()
    assert news == [{DB}, set()]
    assert lab.numbers()[400] == DB


def test_a_watch_that_is_late_is_not_a_range_that_is_full(lab):
    """Nobody is shut for it."""
    for number in range(CLUSTER_MIN, CLUSTER_MAX + 1):
        lab.api.put(CILIUM_IDENTITY, document(number, DB))
    lab.wanted = {WEB: None}
    with pytest.raises(NumbersTaken):
        lab.work()
    assert lab.allocator.refused == frozenset()
