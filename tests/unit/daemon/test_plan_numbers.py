# SPDX-License-Identifier: Apache-2.0
"""Numbers that the whole cluster gives: when an endpoint has one, and what it does until then."""

from dataclasses import replace

from ciliumd.model.identity import lost_labels
from ciliumd.model.labels import Label
from unit.daemon import nodes


def clustered():
    """A node of a cluster with one pod, whose labels have the number 300, which is in use."""
    node = nodes.Planned(nodes.filled())
    node.plan.node = replace(node.plan.node, allocates=False)
    nodes.add_pod(node.tables, 1, {"app": "web"})
    node.refresh()
    ((web, prefer),) = node.plan.unallocated.items()
    assert prefer is None
    node.tables.cluster_identities.set(300, web)
    node.refresh()
    return node, web


def test_number_of_the_cluster_is_used_when_somebody_has_taken_it_up():
    """Until then it is asked for."""
    node, web = clustered()
    assert (node.plan.unclaimed, node.plan.unallocated, node.plan.identities) == ({web: 300}, {}, {})
    node.tables.identities.set(web, 300)
    node.refresh()
    assert (node.plan.unclaimed, node.plan.identities) == ({}, {1: 300})
    node.tables.cluster_identities.delete(300)
    node.refresh()
    assert (node.plan.unallocated, node.plan.identities) == ({web: 300}, {1: 300})


def test_endpoint_goes_on_under_its_old_labels_until_the_new_ones_have_a_number():
    """No packet is lost to a change of labels; the old number is let go of then."""
    node, web = clustered()
    node.tables.identities.set(web, 300)
    node.refresh()
    nodes.add_pod(node.tables, 1, {"app": "new"})
    node.refresh()
    assert (node.plan.identities, node.plan.labels) == ({1: 300}, {1: web})
    (new,) = node.plan.unallocated
    node.tables.cluster_identities.set(301, new)
    node.refresh()
    assert (node.plan.identities, node.plan.unclaimed) == ({1: 300}, {new: 301})
    node.tables.identities.set(new, 301)
    node.refresh()
    assert (node.plan.identities, node.plan.labels) == ({1: 301}, {1: new})
    assert dict(node.tables.identities.items()) == {new: 301}


def test_number_that_means_something_else_by_now_is_let_go_of_at_once():
    """Also by an endpoint that waits for another one."""
    node, web = clustered()
    node.tables.identities.set(web, 300)
    node.refresh()
    nodes.add_pod(node.tables, 1, {"app": "new"})
    node.tables.cluster_identities.set(300, frozenset({Label("k8s", "app", "other")}))
    node.refresh()
    assert node.plan.identities == {}
    assert len(node.tables.identities) == 0


def test_condemned_number_is_not_asked_for():
    """Its labels get another one; who has it keeps it."""
    node, web = clustered()
    node.plan.condemned = lambda: frozenset({300})
    node.refresh()
    assert (node.plan.unclaimed, node.plan.unallocated) == ({}, {web: None})
    node.tables.identities.set(web, 300)
    node.refresh()
    assert (node.plan.identities, node.plan.unallocated) == ({1: 300}, {})


def test_a_lost_number_is_the_clusters_when_an_object_says_whose_it_is():
    """Pods of other nodes have it, so no file of this node knew; where nobody says, it stays taken."""
    node = nodes.Planned(nodes.filled())
    nodes.add_pod(node.tables, 1, {"app": "web"})
    for number in (300, 301):
        node.tables.identities.set(lost_labels(number), number)
    far = frozenset({Label("k8s", "app", "far")})
    node.tables.cluster_identities.set(300, far)
    node.refresh()

    assert node.plan.known_identities[300] == far
    assert node.plan.known_identities[301] == lost_labels(301)
