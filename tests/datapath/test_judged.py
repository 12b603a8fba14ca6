# SPDX-License-Identifier: Apache-2.0
"""
A pod that policies judge by another number than its identity, as where its address lies in a block they name.

Verdicts go by that number; all that is told, or carried to other nodes, by the identity.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ciliumd.abi import Direction, DropReason, EventType
from datapath.harness import REDIRECT
from datapath.openworld6 import SIX_ONE, SIX_TWO
from datapath.rows import ALLOW, DEFAULT_DENY, EGRESS, INGRESS, POD_ONE, Pod, Rule
from datapath.tunnel import AWAY, inner, node_two
from fixtures import packets, packets6
from fixtures.packets import from_pod, pod_away, pod_one, tcp

if TYPE_CHECKING:
    from types import ModuleType

    from datapath.harness import Datapath, Result
    from datapath.tunnel import Tunnel

pytestmark = pytest.mark.datapath

PART, OTHER = (3 << 24) + 5, (3 << 24) + 6


def only(number: int) -> tuple[tuple[Rule, ...], dict[tuple[int, Direction], int]]:
    """Rules by which one number may pass, either way, and nobody else."""
    rules = (
        *(Rule(direction, DEFAULT_DENY) for direction in (INGRESS, EGRESS)),
        *(Rule(direction, ALLOW, class_id=1) for direction in (INGRESS, EGRESS)),
    )
    return rules, {(number, direction): 1 for direction in (INGRESS, EGRESS)}


def sent(family: ModuleType, layer: object) -> bytes:
    """By pod one to pod two."""
    return family.from_pod(family.pod_one, family.pod_two.ip, layer)


def known_as(pod: Pod, family: ModuleType, number: int) -> Pod:
    """The pod, judged by *number* under its address of that family, and by another one under the other."""
    four, six = (number, OTHER) if family is packets else (OTHER, number)
    return replace(pod, judged_ipv4=four, judged_ipv6=six)


def between_pods(two_sixes: Datapath, family: ModuleType, judge: Direction, number: int) -> Result:
    """Pod one sends to pod two; who judges lets PART pass alone, and takes the other for *number*."""
    rules, classes = only(PART)
    two_sixes.policy(90, *rules, classes=classes)
    one, two = SIX_ONE, SIX_TWO
    if judge == EGRESS:
        two_sixes.use_version(one, 90)
        two_sixes.add_endpoint(known_as(two, family, number))
    else:
        two_sixes.use_version(two, 90)
        two_sixes.add_endpoint(known_as(one, family, number))
    return two_sixes.send(one, sent(family, tcp(30000, 80)))


@pytest.fixture(params=[packets, packets6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> ModuleType:
    """What one of both families sends."""
    return request.param


@pytest.mark.parametrize("judge", [EGRESS, INGRESS])
def test_neighbour_is_judged_by_the_number_of_its_address(
    two_sixes: Datapath, family: ModuleType, judge: Direction
) -> None:
    """Of the packet's family; what is told names identities."""
    result = between_pods(two_sixes, family, judge, PART)
    assert result.action == REDIRECT
    told = result.of_type(EventType.EVENT_POLICY_VERDICT)
    assert {(one.src_identity, one.dst_identity) for one in told} == {(SIX_ONE.identity, SIX_TWO.identity)}


@pytest.mark.parametrize("number", [0, OTHER])
@pytest.mark.parametrize("judge", [EGRESS, INGRESS])
def test_neighbour_with_another_number_is_refused(
    two_sixes: Datapath, family: ModuleType, judge: Direction, number: int
) -> None:
    """Be it its identity, where the row has no other."""
    assert between_pods(two_sixes, family, judge, number).drop.reason == DropReason.DROP_POLICY


def test_new_number_is_judged_at_once(two_sixes: Datapath, family: ModuleType) -> None:
    """An established connection, too: its row remembers whom it was let through for."""
    assert between_pods(two_sixes, family, INGRESS, PART).action == REDIRECT
    two_sixes.add_endpoint(known_as(SIX_ONE, family, OTHER))
    later = two_sixes.send(SIX_ONE, sent(family, tcp(30000, 80, "A")))
    assert later.drop.reason == DropReason.DROP_POLICY


def test_pod_of_another_node_is_judged_by_its_row(tunnel: Tunnel) -> None:
    """The tunnel carries its identity both ways, which still must be that of the row."""
    rules, classes = only(PART)
    tunnel.datapath.policy(99, *rules, classes=classes)
    tunnel.datapath.use_version(POD_ONE, 99)
    fresh = inner(pod_away, pod_one.ip, tcp(30000, 80))
    assert tunnel.tunnel_brings(node_two.ip, AWAY, fresh).reasons == [DropReason.DROP_POLICY]

    tunnel.datapath.ipcache(f"{pod_away.ip}/32", AWAY, tunnel=node_two.ip, judged=PART)
    assert len(tunnel.tunnel_brings(node_two.ip, AWAY, fresh).pod) == 1
    other = AWAY + 1
    assert tunnel.tunnel_brings(node_two.ip, other, fresh).reasons == [DropReason.DROP_INVALID_IDENTITY]
    opened = tunnel.pod_sends(from_pod(pod_one, pod_away.ip, tcp(40000, 80)))
    assert len(opened.wire) == 1


def test_pod_behind_the_network_is_judged_by_its_row(two_sixes: Datapath, family: ModuleType) -> None:
    """Without a tunnel, and for what comes by the node's own stack."""
    rules, classes = only(PART)
    two_sixes.policy(90, *rules, classes=classes)
    two_sixes.use_version(SIX_TWO, 90)
    away = family.pod_away
    probe = family.from_stack(away.ip, family.pod_two.ip, tcp(30000, 80))
    two_sixes.ipcache(f"{away.ip}/{away.address.max_prefixlen}", AWAY)
    assert two_sixes.run("from_host", probe, "cilium_net").drop.reason == DropReason.DROP_POLICY
    two_sixes.ipcache(f"{away.ip}/{away.address.max_prefixlen}", AWAY, judged=PART)
    assert two_sixes.run("from_host", probe, "cilium_net").action == REDIRECT
