# SPDX-License-Identifier: Apache-2.0
"""Connectivity as Prometheus reads it."""

from prometheus_client import CollectorRegistry, generate_latest

from ciliumd.health.metrics import HealthMetrics
from unit.health.samples import SILENT, node, result


def page(*results):
    """The exposition after *results* came in once."""
    made = HealthMetrics(local=lambda: node("a", "192.0.2.1"), results=lambda: iter(results))
    for one in results:
        made.probed(one)
    registry = CollectorRegistry()
    registry.register(made)
    return generate_latest(registry).decode()


def test_what_does_not_answer_is_counted():
    """Nodes and endpoints apart, and by type and status."""
    text = page(result("a"), result("b", host=SILENT), result("c", endpoint=SILENT))
    where = 'source_cluster="default",source_node_name="a"'

    assert "\ncilium_unreachable_nodes 1.0\n" in text
    assert "\ncilium_unreachable_health_endpoints 1.0\n" in text
    status = "cilium_node_health_connectivity_status"
    assert f'{status}{{{where},status="reachable",type="node"}} 2.0' in text
    assert f'{status}{{{where},status="unreachable",type="endpoint"}} 1.0' in text


def test_latencies_of_answers_fill_buckets():
    """315 microseconds lie below half a millisecond; silence has no latency."""
    text = page(result("a", endpoint=SILENT))
    samples = [line for line in text.splitlines() if "connectivity_latency_seconds" in line]

    def value(name, *labels):
        (found,) = [one for one in samples if f"{name}{{" in one and all(label in one for label in labels)]
        return float(found.split()[-1])

    of_node = ('protocol="icmp"', 'type="node"', 'address_type="primary"')
    assert value("_bucket", *of_node, 'le="0.0001"') == 0.0
    assert value("_bucket", *of_node, 'le="0.0005"') == 1.0
    assert value("_bucket", *of_node, 'le="+Inf"') == 1.0
    assert value("_count", 'protocol="icmp"', 'type="endpoint"') == 1.0
    assert not [one for one in samples if 'protocol="http"' in one and 'type="endpoint"' in one]


def test_an_empty_cluster_has_no_unreachable_nodes():
    """Zeros, not gaps: an alert must not lose its series."""
    assert "\ncilium_unreachable_nodes 0.0\n" in page()
