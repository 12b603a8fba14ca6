# SPDX-License-Identifier: Apache-2.0
"""All tables together: sync and the indexes between them."""

from ipaddress import IPv4Address

import pytest

from ciliumd.model.service import Backend
from ciliumd.tables import EndpointSliceRow, PodRow, Tables

pytestmark = pytest.mark.unit


def pod(namespace: str, name: str) -> PodRow:
    """A pod about which nothing else matters."""
    return PodRow(namespace, name, {}, "default", None, host_network=False, node=None, named_ports={})


def test_in_sync_only_when_every_source_has_reported() -> None:
    """One source that is still reading means that absence proves nothing."""
    tables = Tables()
    sources = [
        tables.namespaces,
        tables.pods,
        tables.services,
        tables.slices,
        tables.policies,
        tables.cidr_groups,
        tables.nodes,
        tables.remote_endpoints,
        tables.cluster_identities,
        tables.endpoints,
    ]
    for source in sources:
        assert not tables.in_sync
        source.mark_initialized()

    assert tables.in_sync


def test_indexes_name_what_belongs_to_a_service_and_a_namespace() -> None:
    """A change of one object leads to what it touches without a search."""
    tables = Tables()
    backend = Backend(IPv4Address("10.0.0.1"), 80, "TCP")
    for name in ("web-1", "web-2"):
        row = EndpointSliceRow("shop", name, "web", (("http", backend),))
        tables.slices.set(("shop", name), row)
        tables.pods.set(("shop", name), pod("shop", name))

    assert tables.slices_of_service.get(("shop", "web")) == (("shop", "web-1"), ("shop", "web-2"))
    assert tables.slices_of_service.get(("other", "web")) == ()
    assert tables.pods_of_namespace.get("shop") == (("shop", "web-1"), ("shop", "web-2"))
