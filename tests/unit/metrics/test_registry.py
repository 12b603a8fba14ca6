# SPDX-License-Identifier: Apache-2.0
"""Metrics carry Cilium's names, live values, and survive a provider that fails."""

import json
from types import SimpleNamespace

import pytest

from ciliumd.metrics.collectors import MapUsage, Providers, TrafficRow, short_map_name
from ciliumd.metrics.registry import build_registry, exposition, samples
from ciliumd.metrics.tally import Level, Tallies, Tally


def providers(**changes):
    """Providers of a small node, with *changes*."""
    defaults = {
        "version": "1.18.0-ciliumd.0.1.0",
        "traffic": lambda: [
            TrafficRow(0, 1, 10, 1000),
            TrafficRow(0, 2, 20, 2000),
            TrafficRow(133, 1, 3, 222),
            TrafficRow(158, 3, 1, 60),
        ],
        "map_usage": lambda: [MapUsage("cilium_ct_v1", 50, 200), MapUsage("cilium_metrics_v1", 0, 0)],
        "endpoint_states": lambda: {"ready": 3, "regenerating": 1},
        "enforcement": lambda: {"none": 3, "ingress": 1},
        "identities": lambda: {"reserved": 11, "cluster_local": 2, "node_local": 0},
        "identity_shares": lambda: {"cluster": 0.5},
        "unrealized": lambda: {"policy": 2},
        "services": lambda: 4,
        "ipcache_entries": lambda: 9,
        "policies": lambda: 2,
        "policy_revision": lambda: 7,
        "controllers_failing": lambda: 0,
        "addresses": lambda: {"ipv4": 5},
        "nat_saturation": lambda: {"ipv4": 0.75},
        "ring": lambda: SimpleNamespace(seen=100, lost=4, subscriber_lost=2),
    }
    return Providers(**defaults | changes)


def values(registry, name):
    """Value by labels (as sorted text) of every sample called *name*."""
    return {
        ",".join(f"{key}={value}" for key, value in sorted(row["labels"].items())): row["value"]
        for row in samples(registry)
        if row["name"] == name
    }


@pytest.fixture
def registry():
    """A registry over the small node."""
    return build_registry(providers(), Tallies())


def test_drops_and_forwards_by_reason_and_direction(registry):
    """Reason texts and upper-case directions, as dashboards and the connectivity test match them."""
    assert values(registry, "cilium_drop_count_total") == {
        "direction=INGRESS,reason=Policy denied": 3,
        "direction=SERVICE,reason=Service backend not found": 1,
    }
    assert values(registry, "cilium_drop_bytes_total")["direction=INGRESS,reason=Policy denied"] == 222
    assert values(registry, "cilium_forward_count_total") == {"direction=INGRESS": 10, "direction=EGRESS": 20}
    assert values(registry, "cilium_forward_bytes_total") == {
        "direction=INGRESS": 1000,
        "direction=EGRESS": 2000,
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cilium_version", {"version=1.18.0-ciliumd.0.1.0": 1}),
        ("cilium_bpf_map_pressure", {"map_name=ct": 0.25}),
        ("cilium_endpoint", {"": 4}),
        ("cilium_endpoint_state", {"endpoint_state=ready": 3, "endpoint_state=regenerating": 1}),
        ("cilium_policy_endpoint_enforcement_status", {"enforcement=none": 3, "enforcement=ingress": 1}),
        ("cilium_identity", {"type=reserved": 11, "type=cluster_local": 2, "type=node_local": 0}),
        ("cilium_ip_addresses", {"family=ipv4": 5}),
        ("cilium_nat_endpoint_max_connection", {"family=ipv4": 0.75}),
        ("ciliumd_identity_range_used", {"range=cluster": 0.5}),
        ("ciliumd_endpoints_not_realized", {"reason=policy": 2}),
        ("cilium_services", {"": 4}),
        ("cilium_ipcache_entries", {"": 9}),
        ("cilium_policy", {"": 2}),
        ("cilium_policy_max_revision", {"": 7}),
        ("cilium_controllers_failing", {"": 0}),
        ("ciliumd_monitor_events_total", {"": 100}),
        ("ciliumd_monitor_lost_events_total", {"source=ring_buffer": 4, "source=subscriber_queue": 2}),
    ],
)
def test_state_is_read_from_its_provider(registry, name, expected):
    """Each family shows what its provider says now."""
    assert values(registry, name) == expected


def test_values_are_read_at_every_scrape():
    """A scrape after a change shows the change."""
    count = [1]
    registry = build_registry(providers(services=lambda: count[0]), Tallies())
    before = values(registry, "cilium_services")
    count[0] = 2

    assert (before, values(registry, "cilium_services")) == ({"": 1}, {"": 2})


@pytest.mark.parametrize(
    ("provider", "gone"),
    [
        ("traffic", "cilium_drop_count_total"),
        ("map_usage", "cilium_bpf_map_pressure"),
        ("endpoint_states", "cilium_endpoint"),
        ("services", "cilium_services"),
        ("identities", "cilium_identity"),
        ("ring", "ciliumd_monitor_events_total"),
    ],
)
def test_failing_provider_costs_its_own_family_only(provider, gone):
    """A map that cannot be read must not blind the whole node; the failure is counted."""

    def fail():
        raise FileNotFoundError(2, "no such map")

    tallies = Tallies()
    registry = build_registry(providers(**{provider: fail}), tallies)

    assert values(registry, gone) == {}
    assert values(registry, "cilium_policy") == {"": 2}
    assert sum(values(registry, "ciliumd_metrics_provider_errors_total").values()) >= 1


def test_what_a_provider_may_raise_is_chosen_by_the_caller():
    """Other exceptions are bugs and are not hidden."""

    def fail():
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        samples(build_registry(providers(services=fail), Tallies()))
    assert samples(build_registry(providers(services=fail, failures=(RuntimeError,)), Tallies()))


def test_tallies_are_exposed_with_their_labels():
    """What the agent counts appears under Cilium's names."""
    tallies = Tallies()
    tallies.map_ops.add("lxc", "update", "success", by=3)
    tallies.kubernetes_events.add("CiliumNetworkPolicy", "create", "success")
    tallies.resource_errors.add("CiliumNetworkPolicy", "invalid")
    tallies.policy_changes.declare("success")
    tallies.event_ts.set("k8s", "endpoint", "update", to=1700000000.5)
    tallies.bootstrap_seconds.set("bpfBase", "success", to=0.25)
    registry = build_registry(providers(), tallies)

    assert values(registry, "cilium_bpf_map_ops_total") == {
        "map_name=lxc,operation=update,outcome=success": 3
    }
    assert values(registry, "cilium_kubernetes_events_total") == {
        "action=create,scope=CiliumNetworkPolicy,status=success": 1
    }
    assert values(registry, "ciliumd_resource_errors_total") == {"kind=CiliumNetworkPolicy,reason=invalid": 1}
    assert values(registry, "cilium_policy_change_total") == {"outcome=success": 0}
    assert values(registry, "cilium_event_ts") == {"action=update,scope=endpoint,source=k8s": 1700000000.5}
    assert values(registry, "cilium_agent_bootstrap_seconds") == {"outcome=success,scope=bpfBase": 0.25}


def test_tally_refuses_wrong_labels_and_shrinking():
    """A miscounted metric is a bug where it is counted."""
    tally = Tally("cilium_things_total", "Things", ("kind",))

    with pytest.raises(ValueError, match="takes the labels kind"):
        tally.add("a", "b")
    with pytest.raises(ValueError, match="only grows"):
        tally.add("a", by=-1)
    tally.add("a")
    assert (tally.value("a"), tally.value("b")) == (1, 0)


def test_level_can_fall():
    """A gauge is what it was last set to."""
    level = Level("cilium_level", "Level", ())
    level.set(to=5)
    level.set(to=2)

    assert level.value() == 2


def test_exposition_is_prometheus_text(registry):
    """Names, types and labels as a Prometheus reads them; no generated _created series."""
    text = exposition(registry).decode()

    assert "# TYPE cilium_drop_count_total counter\n" in text
    assert 'cilium_drop_count_total{direction="INGRESS",reason="Policy denied"} 3.0\n' in text
    assert "cilium_process_cpu_seconds_total" in text
    assert "_created" not in text


def test_samples_are_json_sorted_by_name_and_labels(registry):
    """The list ``cilium metrics list -o json`` prints."""
    rows = samples(registry)

    assert json.loads(json.dumps(rows)) == rows
    assert rows == sorted(rows, key=lambda row: (row["name"], sorted(row["labels"].items())))
    assert {"name", "labels", "value"} == set(rows[0])


@pytest.mark.parametrize(
    ("name", "short"),
    [("cilium_lxc_v1", "lxc"), ("cilium_lb_services_v12", "lb_services"), ("calls", "calls")],
)
def test_map_label_is_stable_across_layouts(name, short):
    """A dashboard must not lose its series to a layout change."""
    assert short_map_name(name) == short


def test_rows_whose_labels_others_choose_are_limited():
    """The field of a refused object is its writer's word: a million of them are one row."""
    tallies = Tallies()
    for number in range(1000):
        tallies.resource_errors.add("Pod", f"spec.field{number}")
    (family,) = tallies.resource_errors.collect()
    assert len(family.samples) <= 201
    assert sum(sample.value for sample in family.samples) == 1000
    assert tallies.resource_errors.value("other", "other") == 800
