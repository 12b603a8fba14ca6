# SPDX-License-Identifier: Apache-2.0
"""The stages of a round over maps in memory: what is written before what, and what waits for what."""

from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import pairwise

import pytest

from ciliumd import abi
from ciliumd.daemon import stages
from ciliumd.desired.ipcache import address_row
from ciliumd.model.net import addr16
from ciliumd.model.service import Backend, Frontend, ServiceKind
from ciliumd.tables import EndpointSliceRow, NamespaceRow
from unit.daemon import nodes
from unit.daemon.kernel import Kernel, service


def refuse(number):
    """Reserves nothing."""
    raise OSError(f"{number} cannot be reserved")


def test_a_pod_is_written_in_an_order_no_packet_can_misread():
    """Numbers are kept first; the policy comes before the word that names it, addresses after that word."""
    kernel = Kernel()
    nodes.add_pod(kernel.tables, 1, {"app": "web"})
    kernel.tables.services.set(("shop", "web"), service())
    kernel.round()
    order = (
        *(stages.IDENTITY_FILE, stages.ENDPOINT_FILE, stages.POLICY, stages.STATES, stages.FACTS),
        *(stages.IPCACHE, stages.LXC, stages.IFINDEX, stages.BACKENDS, stages.REVNAT),
        *(stages.SERVICE_SLOTS, stages.SERVICES),
    )
    for earlier, later in pairwise(order):
        assert kernel.last(earlier) < kernel.first(later)


def test_a_pod_is_taken_away_in_the_reverse_order():
    """Nothing leads to a row that is gone."""
    kernel = Kernel()
    nodes.add_pod(kernel.tables, 1, {"app": "web"})
    kernel.tables.services.set(("shop", "web"), service())
    kernel.round()
    kernel.tables.endpoints.delete(1)
    kernel.tables.services.delete(("shop", "web"))
    kernel.round(4)
    order = (
        *(stages.SERVICES, stages.SERVICE_SLOTS, stages.REVNAT, stages.BACKENDS),
        *(stages.IFINDEX, stages.LXC, stages.IPCACHE),
        *(stages.FACTS, stages.STATES, stages.ENDPOINT_FILE, stages.POLICY),
    )
    for earlier, later in pairwise(order):
        assert kernel.last(earlier, deleted=True) < kernel.first(later, deleted=True)
    assert all(
        not kernel.maps[name].rows for name in (stages.POLICY, stages.FACTS, stages.LXC, stages.SERVICES)
    )


def counted_and_there(kernel):
    """How many slots the frontend of the service counts, and how many it has."""
    heads = [abi.LbService.unpack(row) for row in kernel.maps[stages.SERVICES].rows.values()]
    return sum(head.target for head in heads), len(kernel.maps[stages.SERVICE_SLOTS].rows)


def test_a_frontend_counts_no_slot_that_did_not_fit():
    """With the map full a service keeps the backends it has; packets are sent to no slot that is missing."""
    kernel = Kernel()
    kernel.tables.services.set(("shop", "web"), service())
    nodes.add_pod(kernel.tables, 1, {"app": "web"})
    kernel.round()
    slots = kernel.maps[stages.SERVICE_SLOTS]
    slots.fail = lambda key: None if key in slots.rows else OSError(7, "map is full")
    nodes.add_pod(kernel.tables, 2, {"app": "web"})
    kernel.round(3)
    full = counted_and_there(kernel)
    slots.fail = lambda _: None
    kernel.round(40)

    assert full == (1, 1)
    assert counted_and_there(kernel) == (2, 2)


def balanced(*ranges):
    """The service with an address of a balancer and these source ranges."""
    one = service()
    outside = Frontend(ip_address("192.0.2.10"), 80, "TCP", ServiceKind.LOAD_BALANCER)
    return replace(one, frontends=(*one.frontends, outside), source_ranges=ranges, denies_sources=True)


def restricted(kernel):
    """Whether the balancer's frontend says that it has ranges, and how many there are."""
    heads = kernel.maps[stages.SERVICES].rows
    flags = [abi.LbService.unpack(row).flags for key, row in heads.items() if key[:16] == addr16(BALANCER)]
    denies = abi.LbServiceFlags.LB_F_SOURCES_DENY
    return [bool(one & denies) for one in flags], len(kernel.maps[stages.SOURCES].rows)


BALANCER = ip_address("192.0.2.10")


def test_a_round_touches_the_rows_of_the_services_that_changed():
    """One that something else asked for touches none."""
    kernel = Kernel()
    for number in range(1, 4):
        kernel.tables.services.set(("shop", f"web{number}"), service(address=f"10.96.0.{number}"))
    kernel.round()
    tracker = kernel.reconciler.tracker(stages.SERVICES)
    asked = []
    set_desired = tracker.set_desired
    tracker.set_desired = lambda updates, removals: (
        asked.append({key[12:16] for key in (*updates, *removals)}),
        set_desired(updates, removals),
    )

    kernel.tables.namespaces.set("elsewhere", NamespaceRow("elsewhere", {"a": "b"}))
    kernel.round(3)
    assert not any(asked)

    kernel.tables.services.set(("shop", "web1"), service(address="10.96.0.9"))
    kernel.round()
    there, gone = ip_address("10.96.0.9").packed, ip_address("10.96.0.1").packed
    assert {there, gone} in asked
    assert not set().union(*asked) - {there, gone}
    assert there in {key[12:16] for key in kernel.maps[stages.SERVICES].rows}
    assert gone not in {key[12:16] for key in kernel.maps[stages.SERVICES].rows}


@pytest.mark.parametrize("gone", [0, 4, 9])
def test_one_endpoint_touches_three_entries(gone):
    """Whoever goes or comes: the others stay in their slots, but one that takes an empty place."""
    kernel = Kernel()
    kernel.node.plan.services.restore_slots(stages.slots_made(kernel.reconciler))
    kernel.tables.services.set(("shop", "web"), service())
    backends = [("", Backend(ip_address(f"10.0.0.{number}"), 8080, "TCP", "far")) for number in range(1, 11)]

    def entries(listed):
        before = {name: dict(kernel.maps[name].rows) for name in stages_of_services}
        kernel.tables.slices.set(("shop", "web-1"), EndpointSliceRow("shop", "web-1", "web", tuple(listed)))
        kernel.round()
        written = [
            (name, key)
            for name in stages_of_services
            for key, value in kernel.maps[name].rows.items()
            if before[name].get(key) != value
        ]
        return len(written), sum(
            len(before[name].keys() - kernel.maps[name].rows) for name in stages_of_services
        )

    stages_of_services = (stages.BACKENDS, stages.SERVICE_SLOTS, stages.SERVICES)
    entries(backends)
    fewer = [one for number, one in enumerate(backends) if number != gone]
    written, deleted = entries(fewer)
    assert (written, deleted) == (1 if gone == 9 else 2, 2)
    assert entries(backends) == (3, 0)


def test_a_frontend_is_there_after_all_its_ranges():
    """Half of a deny list would let in whom it names; a full map holds back that frontend alone."""
    kernel = Kernel()
    nodes.add_pod(kernel.tables, 1, {"app": "web"})
    ranges = kernel.maps[stages.SOURCES]
    first, second = ip_network("203.0.113.0/24"), ip_network("198.51.100.0/24")
    kernel.tables.services.set(("shop", "web"), balanced(first, second))
    ranges.fail = lambda _: OSError(7, "map is full") if ranges.rows else None
    kernel.round(3)
    full = restricted(kernel), counted_and_there(kernel)
    ranges.fail = lambda _: None
    kernel.round(40)

    assert full == (([], 1), (1, 2)), "the cluster address is served"
    assert restricted(kernel) == ([True], 2)

    kernel.tables.services.set(("shop", "web"), balanced())
    kernel.round(4)
    assert restricted(kernel) == ([False], 0)
    assert kernel.last(stages.SERVICES) < kernel.first(stages.SOURCES, deleted=True)


def test_a_slot_stays_while_its_frontend_counts_it():
    """A frontend that cannot be told that a backend has gone keeps the slot, and the backend behind it."""
    kernel = Kernel()
    kernel.tables.services.set(("shop", "web"), service())
    for number in (1, 2):
        nodes.add_pod(kernel.tables, number, {"app": "web"})
    kernel.round()
    kernel.maps[stages.SERVICES].fail = lambda _: OSError(12, "no memory")
    kernel.tables.endpoints.delete(2)
    kernel.round(3)
    failing = counted_and_there(kernel), len(kernel.maps[stages.BACKENDS].rows)
    kernel.maps[stages.SERVICES].fail = lambda _: None
    kernel.round(40)

    assert failing == ((2, 2), 2)
    assert counted_and_there(kernel) == (1, 1)
    assert len(kernel.maps[stages.BACKENDS].rows) == 1


def test_an_identity_gets_no_address_before_every_endpoint_knows_it():
    """While a word still names a policy that takes the newcomer for anybody, nobody carries its identity."""
    kernel = Kernel()
    nodes.add_pod(kernel.tables, 1, {"app": "web", "tier": "front"})
    nodes.add_pod(kernel.tables, 2, {"app": "web", "tier": "back"})
    deny = nodes.rule(nodes.app("db"), deny=True)
    nodes.add_policy(kernel.tables, nodes.policy("all", subject=nodes.subject(), ingress=False))
    nodes.add_policy(
        kernel.tables, nodes.policy("deny", deny, subject=nodes.subject(tier="front"), ingress=False)
    )
    kernel.round()
    versions = kernel.node.plan.policy.versions
    assert versions[1] == versions[2]

    kernel.maps[stages.STATES].failures[bytes(4)] = OSError(5, "no")
    newcomer = nodes.add_pod(kernel.tables, 3, {"app": "db"})
    kernel.round()
    key, row = address_row(newcomer.ipv4, kernel.node.plan.identities[3])
    assert kernel.node.plan.policy.versions[1] != versions[1]
    assert key not in kernel.maps[stages.IPCACHE].rows

    kernel.maps[stages.STATES].failures.clear()
    kernel.round(3)
    assert kernel.maps[stages.IPCACHE].rows[key] == row


def test_a_pod_shows_a_new_identity_only_when_every_endpoint_knows_it():
    """The same for the packets a relabelled pod sends: its facts wait for everybody's policy."""
    kernel = Kernel()
    for number, tier in ((1, "front"), (2, "back")):
        nodes.add_pod(kernel.tables, number, {"app": "web", "tier": tier})
    deny = nodes.rule(nodes.app("db"), deny=True)
    for name, one in (("all", nodes.subject()), ("deny", nodes.subject(tier="front"))):
        rules = (deny,) if name == "deny" else ()
        nodes.add_policy(kernel.tables, nodes.policy(name, *rules, subject=one, ingress=False))
    kernel.round()
    slot = (1).to_bytes(4, "little")
    before = kernel.maps[stages.FACTS].rows[slot]

    kernel.maps[stages.STATES].failures[bytes(4)] = OSError(5, "no")
    kernel.tables.pods.set(("shop", "pod-2"), nodes.pod("pod-2", {"app": "db", "tier": "back"}))
    kernel.round()
    assert kernel.maps[stages.FACTS].rows[slot] == before
    kernel.maps[stages.STATES].failures.clear()
    kernel.round(3)
    after = abi.Endpoint.unpack(kernel.maps[stages.FACTS].rows[slot])
    assert after.identity == kernel.node.plan.identities[2] != abi.Endpoint.unpack(before).identity


def test_a_policy_version_stays_while_a_word_still_names_it():
    """Its time is up, but an endpoint could not be moved: its packets still find their policy."""
    kernel = Kernel()
    nodes.add_pod(kernel.tables, 1, {"app": "web"})
    kernel.round()
    before = kernel.maps[stages.POLICY].rows.copy()
    kernel.maps[stages.STATES].failures[bytes(4)] = OSError(5, "no")
    nodes.add_policy(kernel.tables, nodes.policy("deny", subject=nodes.subject()))
    kernel.round(10)
    assert len(kernel.node.plan.policy.states) == 1
    assert before.items() < kernel.maps[stages.POLICY].rows.items()
    kernel.maps[stages.STATES].failures.clear()
    kernel.round(40)
    assert kernel.maps[stages.POLICY].rows == kernel.node.plan.policy_rows


def test_nothing_is_changed_or_deleted_before_every_source_is_in_sync():
    """What an earlier agent wrote stays as it is."""
    kernel = Kernel(in_sync=False)
    nodes.add_pod(kernel.tables, 1, {"app": "web"})
    left = {name: {b"\1" * 4: b"\2" * 8} for name in (stages.POLICY, stages.STATES, stages.SERVICES)}
    for name, rows in left.items():
        kernel.maps[name].rows.update(rows)
    kernel.round(3)
    assert {name: kernel.maps[name].rows for name in left} == left
    assert kernel.maps[stages.ENDPOINT_FILE].rows, "the state of a new endpoint is kept at once"


def test_a_failed_plan_holds_nothing_but_is_tried_again():
    """The stages that read the plan keep writing what was planned before."""
    kernel = Kernel()
    nodes.add_pod(kernel.tables, 1, {"app": "web"})
    kernel.round()
    policies = kernel.node.plan._policies
    reserve, policies._reserve_version = policies._reserve_version, refuse
    nodes.add_policy(kernel.tables, nodes.policy("deny", subject=nodes.subject()))
    kernel.round()
    before = kernel.maps[stages.POLICY].rows.copy()
    policies._reserve_version = reserve
    kernel.round()
    assert before.items() < kernel.maps[stages.POLICY].rows.items()
    assert kernel.reconciler.status().in_sync


def test_what_could_not_be_planned_yet_is_no_wish_to_delete_it():
    """The first plan of an agent fails: what an earlier agent left carries traffic on."""
    kernel = Kernel()
    nodes.add_pod(kernel.tables, 1, {"app": "web"})
    kernel.tables.services.set(("shop", "web"), service())
    nodes.add_policy(kernel.tables, nodes.policy("deny", subject=nodes.subject()))
    kernel.round()
    before = {name: one.rows.copy() for name, one in kernel.maps.items()}
    planned = (stages.POLICY, stages.STATES, stages.IPCACHE, stages.LXC, stages.BACKENDS, stages.SERVICES)
    assert all(before[name] for name in planned)

    again = Kernel()
    for name, one in again.maps.items():
        one.rows.update(before[name])
    nodes.add_pod(again.tables, 1, {"app": "web"})
    again.tables.services.set(("shop", "web"), service())
    policies = again.node.plan._policies
    reserve, policies._reserve_version = policies._reserve_version, refuse
    nodes.add_policy(again.tables, nodes.policy("deny", subject=nodes.subject()))
    again.round(3)
    assert {name: again.maps[name].rows for name in planned} == {name: before[name] for name in planned}
    assert not again.reconciler.status().in_sync

    policies._reserve_version = reserve
    again.round(8)
    assert again.reconciler.status().in_sync
    assert again.maps[stages.SERVICES].rows == before[stages.SERVICES]


def test_changes_of_policies_reach_the_map_row_by_row():
    """Growth, new versions and retirement, told as changes, leave what the plan holds."""
    kernel = Kernel()
    for number in range(1, 6):
        nodes.add_pod(kernel.tables, number, {"app": "web", "revision": str(number)})
        nodes.add_policy(kernel.tables, nodes.policy(f"p{number}", nodes.rule(nodes.app("web"))))
        kernel.tables.namespaces.set("shop", NamespaceRow("shop", {"round": str(number // 2)}))
        kernel.round()
        assert kernel.maps[stages.POLICY].rows == kernel.node.plan.policy_rows
    kernel.round(4)
    assert kernel.maps[stages.POLICY].rows == kernel.node.plan.policy_rows
    assert len(kernel.node.plan.policy.states) == 1


def test_service_rows_refer_to_what_packets_are_led_to():
    """A slot to its backend, a frontend to every slot it counts, both to their revNAT row."""
    key = abi.LbServiceKey(addr16(ip_address("10.96.0.1")), port=80, protocol=6, scope=0, slot=0)
    slots = [replace(key, slot=slot).pack() for slot in (1, 2)]
    row = abi.LbService(target=2, rev_nat=9, flags=0, affinity_timeout=0).pack()
    revnat = (stages.REVNAT, (9).to_bytes(4, "little"))

    assert list(stages.frontend_refers(key.pack(), row)) == [
        revnat,
        *((stages.SERVICE_SLOTS, slot) for slot in slots),
    ]
    assert list(stages.slot_refers(slots[0], row)) == [
        revnat,
        (stages.BACKENDS, (2).to_bytes(4, "little")),
    ]
