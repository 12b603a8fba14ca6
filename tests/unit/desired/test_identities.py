# SPDX-License-Identifier: Apache-2.0
"""Which identity an endpoint carries, and which label sets need one."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciliumd.desired.identities import (
    INIT_LABELS,
    UNMANAGED_LABELS,
    adopt_identities,
    allocate_identities,
    allocate_prefixes,
    endpoint_identities,
    endpoint_labels,
    identity_of,
    known_identities,
    labels_of_prefixes,
    named_ports_by_identity,
    wanted_identities,
)
from ciliumd.model.identity import CLUSTER_MAX, CLUSTER_MIN, LOCAL_MIN, Reserved, cidr_labels, reserved_labels
from ciliumd.model.labels import Label, Labels, pod_labels
from ciliumd.model.policy import NamedPort
from ciliumd.tables import NamespaceRow
from unit.desired.worlds import endpoint, pod

pytestmark = pytest.mark.unit

WEB = pod_labels("shop", {"app": "web"}, {}, "default")
DB = pod_labels("shop", {"app": "db"}, {}, "default")


def test_endpoint_without_a_pod_is_init() -> None:
    """No label speaks for it, so no policy takes it for somebody."""
    assert endpoint_labels(endpoint(1), {}, {}) == {Label("reserved", "init")}
    assert identity_of(INIT_LABELS, {}) == Reserved.INIT


def test_endpoint_has_its_pods_labels() -> None:
    """Pod and namespace together."""
    pods = {("shop", "pod-1"): pod("pod-1", {"app": "web"})}
    namespaces = {"shop": NamespaceRow("shop", {"env": "prod"})}

    expected = pod_labels("shop", {"app": "web"}, {"env": "prod"}, "default")
    assert endpoint_labels(endpoint(1), pods, namespaces) == expected


def test_namespace_nobody_described_has_its_name() -> None:
    """A selector by kubernetes.io/metadata.name works without a Namespace document."""
    pods = {("shop", "pod-1"): pod("pod-1", {})}

    assert endpoint_labels(endpoint(1), pods, {}) == pod_labels(
        "shop", {}, {"kubernetes.io/metadata.name": "shop"}, "default"
    )


def test_reserved_label_sets_need_no_number() -> None:
    """They have one for good."""
    assert wanted_identities([WEB, INIT_LABELS, WEB, reserved_labels(Reserved.HOST)]) == {WEB}


def test_replicas_share_an_identity() -> None:
    """Equal label sets are one identity, whoever has them."""
    assigned = allocate_identities({}, wanted_identities([WEB, DB, WEB])).assigned

    assert sorted(assigned.values()) == [CLUSTER_MIN, CLUSTER_MIN + 1]
    assert endpoint_identities({1: WEB, 2: WEB, 3: DB}, assigned) == {
        1: assigned[WEB],
        2: assigned[WEB],
        3: assigned[DB],
    }


def test_endpoint_without_a_number_is_left_out() -> None:
    """It gets no rows until it has an identity."""
    assert endpoint_identities({1: WEB, 2: INIT_LABELS}, {}) == {2: Reserved.INIT}


@given(st.sets(st.sampled_from("abcdefgh"), min_size=1), st.sets(st.sampled_from("abcdefgh")))
def test_vanished_label_sets_keep_their_number(first: set[str], second: set[str]) -> None:
    """Who comes later never gets the number of a set that was not released."""
    sets = {name: pod_labels("shop", {"app": name}, {}, "default") for name in "abcdefgh"}
    existing = allocate_identities({}, {sets[name] for name in first}).assigned

    later = allocate_identities(existing, {sets[name] for name in second}).assigned

    assert set(later.values()) & set(existing.values()) == set()
    assert set(later) == {sets[name] for name in second - first}


def test_cluster_identities_run_out_loudly() -> None:
    """The range is full: who is left without is named."""
    existing = {
        frozenset({Label("k8s", "n", str(number))}): number for number in range(CLUSTER_MIN, CLUSTER_MAX)
    }

    result = allocate_identities(existing, [WEB, DB])

    assert sorted(result.assigned.values()) == [CLUSTER_MAX]
    assert len(result.refused) == 1


def test_prefixes_get_local_numbers() -> None:
    """Above every cluster identity, stable by address."""
    prefixes = [ip_network("fd00::/8"), ip_network("10.1.0.0/16"), ip_network("10.0.0.0/8")]

    assert allocate_prefixes({}, prefixes).assigned == {
        ip_network("10.0.0.0/8"): LOCAL_MIN,
        ip_network("10.1.0.0/16"): LOCAL_MIN + 1,
        ip_network("fd00::/8"): LOCAL_MIN + 2,
    }


def test_known_identities_are_all_policy_has_to_judge() -> None:
    """Reserved ones, label sets and prefixes, each with its labels."""
    prefix = ip_network("10.0.0.0/8")

    known = known_identities({WEB: 256}, {prefix: LOCAL_MIN}, {256: WEB, 300: WEB})

    assert known[256] == known[300] == WEB
    assert known[LOCAL_MIN] == cidr_labels(prefix)
    assert known[Reserved.WORLD] == reserved_labels(Reserved.WORLD)
    assert len(known) == len(Reserved) - 1 + 3


@pytest.mark.parametrize(
    ("prefix", "labels"),
    [
        ("10.1.0.2/31", UNMANAGED_LABELS),
        ("10.1.0.0/24", UNMANAGED_LABELS),
        ("fd00:1::7/128", UNMANAGED_LABELS),
        ("10.1.0.0/16", cidr_labels(ip_network("10.1.0.0/16"))),
        ("10.2.0.0/24", cidr_labels(ip_network("10.2.0.0/24"))),
    ],
)
def test_prefix_in_a_network_of_pods_is_no_part_of_the_world(prefix: str, labels: Labels) -> None:
    """A rule for what is around would let in whoever has an address there and is not published."""
    pods = [ip_network("10.1.0.0/24"), ip_network("fd00:1::/112")]

    assert labels_of_prefixes({ip_network(prefix): LOCAL_MIN}, pods) == {LOCAL_MIN: labels}


def test_pods_of_one_identity_pool_their_named_ports() -> None:
    """A name stands for every number a pod of the identity uses it for; unknown pods have none."""
    pods = {
        ("shop", "pod-1"): pod("pod-1", {}, named_ports={"http": ("TCP", 80)}),
        ("shop", "pod-2"): pod("pod-2", {}, named_ports={"http": ("TCP", 8080)}),
        ("shop", "pod-3"): pod("pod-3", {}),
    }
    endpoints = [endpoint(number) for number in (1, 2, 3, 4)]

    assert named_ports_by_identity(endpoints, pods, {1: 256, 2: 256, 3: 257, 4: 5}) == {
        256: {NamedPort("http", "TCP", 80), NamedPort("http", "TCP", 8080)}
    }


WEB, DB = (frozenset({Label("k8s", "app", name)}) for name in ("web", "db"))


def test_numbers_of_the_cluster_are_taken_over() -> None:
    """Of two numbers for the same labels the lower one, unless the other one is in use here."""
    cluster = {300: WEB, 400: WEB, 500: DB}

    assert adopt_identities({}, cluster, [WEB]).numbers == {WEB: 300}
    assert adopt_identities({WEB: 400}, cluster, [WEB]).numbers == {WEB: 400}
    assert adopt_identities({}, cluster, [WEB, DB]).missing == {}


def test_labels_without_an_object_are_missing() -> None:
    """A number in use outlives its object, but not its being given to somebody else."""
    assert adopt_identities({}, {}, [WEB]).missing == {WEB: None}
    deleted = adopt_identities({WEB: 300}, {}, [WEB])
    assert (deleted.numbers, deleted.missing) == ({WEB: 300}, {WEB: 300})
    taken = adopt_identities({WEB: 300}, {300: DB}, [WEB])
    assert (taken.numbers, taken.missing) == ({}, {WEB: None})
