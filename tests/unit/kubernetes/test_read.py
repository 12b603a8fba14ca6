# SPDX-License-Identifier: Apache-2.0
"""What is kept of an event."""

import pytest

from ciliumd.kubernetes.kinds import CILIUM_NETWORK_POLICY, NAMESPACE, NODE, SERVICE
from ciliumd.kubernetes.read import NODE_OBJECTS, read_event
from ciliumd.model.objects import NamespaceRow


def raw(kind, name, *, event="ADDED", version="7", **rest):
    """A watch event."""
    metadata = {"name": name, "uid": "u1", "resourceVersion": version}
    return {
        "type": event,
        "object": {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, **rest},
    }


def test_object_becomes_rows():
    """And its version a number."""
    event = read_event(NAMESPACE, raw(NAMESPACE, "shop", event=None))
    row = NamespaceRow("shop", {"kubernetes.io/metadata.name": "shop"})
    assert event.rows == (("namespaces", "shop", row),)
    assert (event.key, event.uid, event.version, event.gone) == (("", "shop"), "u1", 7, False)


def test_deleted_object_is_not_read():
    """Whatever it was."""
    event = read_event(SERVICE, raw(SERVICE, "web", event="DELETED", spec=3))
    assert (event.gone, event.rows, event.problem) == (True, (), None)


def test_invalid_object_is_a_problem_with_its_field():
    """The object stays known."""
    event = read_event(SERVICE, raw(SERVICE, "web", spec={"type": "Funny"}))
    assert event.rows == ()
    assert event.problem.field == "spec.type"


def test_node_is_told_as_it_is():
    """It has no table."""
    ((table, name, node),) = read_event(NODE, raw(NODE, "n1", spec={}, status={})).rows
    assert (table, name, node.uid) == (NODE_OBJECTS, "n1", "u1")


@pytest.mark.parametrize("version", ["", "abc", "-3", "٣", None])
def test_version_that_is_no_number_is_unknown(version):
    """Not an error: versions are opaque."""
    assert read_event(NAMESPACE, raw(NAMESPACE, "shop", version=version)).version == 0


def test_version_of_thousands_of_digits_is_unknown():
    """Python refuses to make a number of it."""
    assert read_event(NAMESPACE, raw(NAMESPACE, "shop", version="9" * 5000)).version == 0


def test_policy_that_is_too_deep_to_be_kept_is_a_policy_all_the_same():
    """What is not read of it may be as deep as it likes; the memory of last good policies does without it."""
    deep = []
    for _ in range(5000):
        deep = [deep]
    spec = {"endpointSelector": {}, "labels": [deep]}
    event = read_event(CILIUM_NETWORK_POLICY, raw(CILIUM_NETWORK_POLICY, "shop", spec=spec))
    assert (len(event.rows), event.problem, event.document) == (1, None, "")
