# SPDX-License-Identifier: Apache-2.0
"""Load-balancer rows: what the datapath finds in them is what was meant."""

from dataclasses import replace
from ipaddress import ip_address, ip_network
from struct import Struct

import pytest
from hypothesis import given

from ciliumd import abi
from ciliumd.desired.lbrows import DanglingRowError, LbRows, backends_in_rows, lb_rows, service_model
from ciliumd.desired.services import (
    ServedFrontend,
    allocate_backend_ids,
    allocate_service_ids,
    served_frontends,
)
from ciliumd.flows.maprows import decode_row
from ciliumd.model.net import addr16, addr_from16
from ciliumd.model.service import (
    BackendKey,
    BackendState,
    Frontend,
    FrontendKey,
    Place,
    Service,
    ServiceKind,
    TrafficPolicy,
)
from ciliumd.tables import EndpointSliceRow
from unit.desired.worlds import SERVICES, SLICES, backend, endpoint_slice, service

pytestmark = pytest.mark.unit

U32 = Struct("<I")
FRONTEND = FrontendKey(ip_address("10.96.0.1"), 80, "TCP")


def served(services: list[Service], slices: list[EndpointSliceRow]) -> tuple[list[ServedFrontend], LbRows]:
    """Frontends and their rows, with the ids of a node that starts empty."""
    found, _ = served_frontends(services, slices)
    return found, lb_rows(
        found, allocate_service_ids({}, found).assigned, allocate_backend_ids({}, found).assigned
    )


def key(slot: int) -> bytes:
    """The key of a slot of 10.96.0.1:80/TCP."""
    return abi.LbServiceKey(addr16(FRONTEND.addr), 80, 6, 0, slot).pack()


WHOLE_ADDRESS = abi.LbServiceKey(addr16(FRONTEND.addr), 0, 0, 0, 0).pack()
"""The row that keeps what no port takes from following the default route."""


def test_rows_of_a_service_with_two_backends() -> None:
    """Count, slots, backends and the way back, all with the service's id."""
    _, rows = served(
        [service("web", "10.96.0.1")], [endpoint_slice("web", backend("10.0.0.1"), backend("10.0.0.2"))]
    )

    def row(target: int) -> bytes:
        return abi.LbService(target, rev_nat=1, flags=1, affinity_timeout=0).pack()

    nobody = abi.LbService(0, rev_nat=0, flags=1, affinity_timeout=0).pack()
    assert rows.services == {key(1): row(1), key(2): row(2), key(0): row(2), WHOLE_ADDRESS: nobody}
    assert rows.backends == {
        U32.pack(number): abi.LbBackend(number, 8080, 6, 0, addr16(ip_address(f"10.0.0.{number}"))).pack()
        for number in (1, 2)
    }
    assert rows.revnat == {U32.pack(1): abi.LbRevnat(1, 80, addr16(FRONTEND.addr)).pack()}
    assert rows.problems == []


def test_clients_may_keep_what_new_connections_may_choose() -> None:
    """A backend that is shutting down is kept by nobody; without affinity there are no such rows."""
    leaving = backend("10.0.0.3", state=BackendState.TERMINATING)
    slices = [endpoint_slice("web", backend("10.0.0.1"), backend("10.0.0.2"), leaving)]
    found, rows = served([service("web", "10.96.0.1", affinity_timeout=60)], slices)

    ids = allocate_backend_ids({}, found).assigned
    assert {abi.LbAffinityMatch.unpack(key) for key in rows.matches} == {
        abi.LbAffinityMatch(ids[one.key], 1) for one in found[0].chosen
    }
    assert abi.LbService.unpack(rows.services[key(0)]).affinity_timeout == 60
    assert served([service("web", "10.96.0.1")], slices)[1].matches == {}


def test_count_is_written_after_the_slots_it_counts() -> None:
    """Slot 0 is the last row of its frontend, so no reader counts a slot that is not there yet."""
    _, rows = served([service("web", "10.96.0.1")], [endpoint_slice("web", backend("10.0.0.1"))])

    assert list(rows.services) == [key(1), key(0), WHOLE_ADDRESS]


def test_frontend_without_backends_is_kept_to_be_refused() -> None:
    """Slot 0 with a count of zero, not no row."""
    _, rows = served([service("web", "10.96.0.1")], [])

    assert list(rows.services) == [key(0), WHOLE_ADDRESS]
    assert abi.LbService.unpack(rows.services[key(0)]).target == 0
    assert backends_in_rows(FRONTEND, rows.services, rows.backends) == ()
    assert len(rows.revnat) == 1


def test_frontend_that_others_could_serve_is_kept_from_saying_no() -> None:
    """In slot 0, as long as nobody here is chosen."""
    one = service("web", "10.96.0.1", internal_policy=TrafficPolicy.LOCAL)

    def flags(*nodes: str) -> int:
        backends = [backend(f"10.0.0.{number}", node=node) for number, node in enumerate(nodes, 1)]
        found, _ = served_frontends([one], [endpoint_slice("web", *backends)], here=Place("here"))
        rows = lb_rows(found, {FRONTEND: 7}, allocate_backend_ids({}, found).assigned)
        return abi.LbService.unpack(rows.services[key(0)]).flags & abi.LbServiceFlags.LB_F_ELSEWHERE

    assert flags("there")
    assert not flags("there", "here")
    assert not flags()


def test_unknown_frontend_is_not_a_refused_one() -> None:
    """What no service claims is none of the load balancer's."""
    assert backends_in_rows(FRONTEND, {}, {}) is None


def test_terminating_backend_keeps_its_row_without_a_slot() -> None:
    """Its connections go on, new ones go elsewhere."""
    leaving = backend("10.0.0.1", state=BackendState.TERMINATING)
    _, rows = served([service("web", "10.96.0.1")], [endpoint_slice("web", leaving, backend("10.0.0.2"))])

    states = {
        abi.LbBackend.unpack(row).addr: abi.LbBackend.unpack(row).state for row in rows.backends.values()
    }
    assert states == {addr16(leaving.addr): 1, addr16(ip_address("10.0.0.2")): 0}
    assert backends_in_rows(FRONTEND, rows.services, rows.backends) == (backend("10.0.0.2").key,)


def test_backend_shared_by_services_has_one_row_at_its_best() -> None:
    """A backend leaving one service may be fit for another."""
    leaving = backend("10.0.0.1", state=BackendState.TERMINATING)
    _, rows = served(
        [service("web", "10.96.0.1"), service("api", "10.96.0.2")],
        [endpoint_slice("web", leaving), endpoint_slice("api", backend("10.0.0.1"))],
    )

    assert [abi.LbBackend.unpack(row).state for row in rows.backends.values()] == [0]


def test_affinity_is_in_every_row() -> None:
    """Flag and timeout are the frontend's, whichever row is read."""
    _, rows = served(
        [service("web", "10.96.0.1", affinity_timeout=60)], [endpoint_slice("web", backend("10.0.0.1"))]
    )

    found = [abi.LbService.unpack(row) for name, row in rows.services.items() if name != WHOLE_ADDRESS]
    expected = abi.LbServiceFlags.LB_F_CLUSTER_IP | abi.LbServiceFlags.LB_F_AFFINITY
    assert [(row.flags, row.affinity_timeout) for row in found] == [(expected, 60)] * 2


def test_cluster_addresses_are_opened_by_the_option_and_nothing_else_is() -> None:
    """In every row of theirs; what is reached from outside anyway is not marked."""
    one = service("web", "10.96.0.1")
    balancer = Frontend(ip_address("192.0.2.10"), 80, "TCP", ServiceKind.LOAD_BALANCER)
    found, _ = served_frontends([replace(one, frontends=(*one.frontends, balancer))], [])
    ids = allocate_service_ids({}, found).assigned

    def opened(*, external: bool) -> set[str]:
        rows = lb_rows(found, ids, {}, external_cluster_ip=external).services
        return {
            str(addr_from16(abi.LbServiceKey.unpack(key).addr))
            for key, row in rows.items()
            if abi.LbService.unpack(row).flags & abi.LbServiceFlags.LB_F_OPEN
        }

    assert opened(external=True) == {"10.96.0.1"}
    assert opened(external=False) == set()


RANGES = (ip_network("203.0.113.0/24"), ip_network("2001:db8::/32"))


def restricted(*, denies: bool, kind: ServiceKind) -> tuple[Service, Frontend]:
    """A service with two source ranges, and 80/TCP of 192.0.2.10 outside."""
    one = service("web", "10.96.0.1")
    outside = Frontend(ip_address("192.0.2.10"), 80, "TCP", kind)
    made = replace(one, frontends=(*one.frontends, outside), source_ranges=RANGES, denies_sources=denies)
    return made, outside


@pytest.mark.parametrize("denies", [False, True])
def test_source_ranges_are_rows_of_load_balancer_frontends(denies: bool) -> None:
    """Of both families, what they mean in each of them and in slot 0."""
    made, outside = restricted(denies=denies, kind=ServiceKind.LOAD_BALANCER)
    found, _ = served_frontends([made], [endpoint_slice("web", backend("10.0.0.1"))])
    rows = lb_rows(found, {FRONTEND: 7, outside.key: 8}, allocate_backend_ids({}, found).assigned)

    wanted = abi.LbServiceFlags.LB_F_SOURCES_DENY if denies else abi.LbServiceFlags.LB_F_SOURCES_ALLOW
    assert [abi.LbSourceKey.unpack(row) for row in rows.sources] == [
        abi.LbSourceKey(32 + 96 + 24, 8, wanted, addr16(ip_address("203.0.113.0"))),
        abi.LbSourceKey(32 + 32, 8, wanted, addr16(ip_address("2001:db8::"))),
    ]
    assert [
        decode_row("cilium_lb_source_range_v1", *one)["key"]["prefix"] for one in rows.sources.items()
    ] == [str(one) for one in RANGES]
    flags = {
        abi.LbServiceKey.unpack(name).slot: abi.LbService.unpack(row).flags & _EITHER
        for name, row in rows.services.items()
        if abi.LbServiceKey.unpack(name).addr == addr16(outside.addr)
    }
    assert flags == {0: wanted, 1: 0}
    cluster_ip = abi.LbService.unpack(rows.services[key(0)])
    assert not cluster_ip.flags & _EITHER


_EITHER = abi.LbServiceFlags.LB_F_SOURCES_ALLOW | abi.LbServiceFlags.LB_F_SOURCES_DENY


def test_source_ranges_are_of_no_other_frontend() -> None:
    """Neither node ports nor external addresses, as Kubernetes means them."""
    made, outside = restricted(denies=False, kind=ServiceKind.EXTERNAL_IP)
    found, _ = served_frontends([made], [])
    rows = lb_rows(found, {FRONTEND: 7, outside.key: 8}, {})

    assert rows.sources == {}
    assert all(not abi.LbService.unpack(row).flags & _EITHER for row in rows.services.values())


def test_frontend_without_an_id_is_left_out_and_reported() -> None:
    """A full range of ids harms only who came last."""
    found, _ = served_frontends([service("web", "10.96.0.1"), service("api", "10.96.0.2")], [])

    rows = lb_rows(found, {FRONTEND: 7}, {})

    assert list(rows.services) == [key(0), WHOLE_ADDRESS]
    assert [problem.service for problem in rows.problems] == [("shop", "api")]


def test_backend_without_an_id_is_left_out_and_reported() -> None:
    """No row leads to a backend that has none."""
    slices = [endpoint_slice("web", backend("10.0.0.1"), backend("10.0.0.2"))]
    found, _ = served_frontends([service("web", "10.96.0.1")], slices)

    rows = lb_rows(found, {FRONTEND: 7}, {backend("10.0.0.2").key: 9})

    assert backends_in_rows(FRONTEND, rows.services, rows.backends) == (backend("10.0.0.2").key,)
    assert [problem.message for problem in rows.problems] == ["10.96.0.1:80/TCP: 1 backends have no id"]


def test_dangling_rows_are_found() -> None:
    """A missing slot and a missing backend are told from a refused frontend."""
    _, rows = served([service("web", "10.96.0.1")], [endpoint_slice("web", backend("10.0.0.1"))])

    with pytest.raises(DanglingRowError, match="no slot 1"):
        backends_in_rows(FRONTEND, {key(0): rows.services[key(0)]}, rows.backends)
    with pytest.raises(DanglingRowError, match="no backend 1"):
        backends_in_rows(FRONTEND, rows.services, {})


@given(SERVICES, SLICES)
def test_rows_lead_every_client_to_who_was_chosen(
    services: list[Service], slices: list[EndpointSliceRow]
) -> None:
    """Read back as the datapath reads them, rows of all services together say what was meant."""
    found, rows = served(services, slices)

    for one in found:
        expected = tuple(chosen.key for chosen in one.chosen)
        assert backends_in_rows(one.frontend.key, rows.services, rows.backends) == expected
    assert rows.problems == []
    assert len(rows.revnat) == len(found)
    keys = [abi.LbServiceKey.unpack(row) for row in rows.services]
    assert sum(1 for one in keys if one.port and one.slot == 0) == len(found)
    assert {one.addr for one in keys if not one.port} == {addr16(one.frontend.addr) for one in found}


def test_service_is_shown_as_users_know_it() -> None:
    """Names, nesting and order of ``service get -o json``."""
    found, rows = served([service("web", "10.96.0.1")], [endpoint_slice("web", backend("10.0.0.1"))])
    realized = backends_in_rows(FRONTEND, rows.services, rows.backends)

    expected = {
        "backend-addresses": [
            {"ip": "10.0.0.1", "nodeName": "one", "port": 8080, "protocol": "TCP", "state": "active"}
        ],
        "flags": {
            "extTrafficPolicy": "Cluster",
            "intTrafficPolicy": "Cluster",
            "name": "web",
            "namespace": "shop",
            "natPolicy": "None",
            "trafficPolicy": "Cluster",
            "type": "ClusterIP",
        },
        "frontend-address": {"ip": "10.96.0.1", "port": 80, "protocol": "TCP", "scope": "external"},
        "id": 1,
    }
    model = service_model(found[0], 1, realized=realized)
    assert model == {"spec": expected, "status": {"realized": expected}}
    assert [list(part) for part in (model["spec"], model["spec"]["flags"])] == [
        ["backend-addresses", "flags", "frontend-address", "id"],
        [
            *("extTrafficPolicy", "intTrafficPolicy", "name", "namespace"),
            *("natPolicy", "trafficPolicy", "type"),
        ],
    ]


def test_realized_is_what_the_maps_say() -> None:
    """A row not written yet, or an old one still there, shows as such."""
    found, _ = served([service("web", "10.96.0.1")], [endpoint_slice("web", backend("10.0.0.1"))])
    old = BackendKey(ip_address("10.0.0.9"), 8080, "TCP")

    assert service_model(found[0], 1, realized=None)["status"] == {}
    assert service_model(found[0], 1, realized=[old])["status"]["realized"]["backend-addresses"] == [
        {"ip": "10.0.0.9", "nodeName": "", "port": 8080, "protocol": "TCP", "state": "terminating"}
    ]
