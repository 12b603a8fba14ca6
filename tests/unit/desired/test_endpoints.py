# SPDX-License-Identifier: Apache-2.0
"""Endpoint rows: complete or absent, and what leads to them."""

from ipaddress import ip_address
from struct import Struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciliumd import abi
from ciliumd.desired.endpoints import EndpointRows, complete_of, endpoint_rows, state_rows, state_word
from ciliumd.model.net import addr16, fold32
from unit.desired.worlds import endpoint

pytestmark = pytest.mark.unit

U32, U64 = Struct("<I"), Struct("<Q")


def test_endpoint_has_facts_addresses_device_and_state() -> None:
    """Every row leads to its slot, and the state names slot generation and policy."""
    one = endpoint(3, ipv6="fd00::3")
    rows = endpoint_rows([one], {3: 300})

    slot = U32.pack(103)
    assert abi.Endpoint.unpack(rows.facts[slot]) == abi.Endpoint(
        identity=300,
        id=3,
        flags=0,
        ifindex=1003,
        slot_gen=10,
        ipv4=0x0A000003,
        ipv6=ip_address("fd00::3").packed,
        mac=bytes.fromhex("020000000003"),
        node_mac=bytes.fromhex("020000000103"),
        judged_ipv4=0,
        judged_ipv6=0,
    )
    assert state_rows([one], {3: 9}) == {slot: U64.pack(10 << 32 | 9)}
    assert rows.devices == {U32.pack(1003): slot}
    assert rows.namespaces == {U64.pack(4003): slot}
    assert {
        abi.LxcKey.unpack(key).addr: abi.LxcValue.unpack(value) for key, value in rows.addresses.items()
    } == {
        addr: abi.LxcValue(fold32(addr), 103)
        for addr in (addr16(ip_address("10.0.0.3")), addr16(ip_address("fd00::3")))
    }


@pytest.mark.parametrize(("identities", "versions"), [({}, {1: 5}), ({1: 256}, {}), ({2: 256}, {2: 5})])
def test_incomplete_endpoint_has_no_rows(identities: dict[int, int], versions: dict[int, int]) -> None:
    """Without identity or policy nothing leads to it: packets are refused, not judged by a guess."""
    complete = complete_of([endpoint(1)], identities, versions)
    rows = endpoint_rows(complete, identities)

    assert complete == []
    assert (rows.facts, rows.addresses, rows.devices, state_rows(complete, versions)) == ({}, {}, {}, {})
    assert complete_of([endpoint(1)], {1: 256}, {1: 5}) == [endpoint(1)]


def test_audited_endpoint_is_flagged() -> None:
    """Only the endpoint asked for."""
    rows = endpoint_rows([endpoint(1), endpoint(2)], {1: 256, 2: 256}, audited={2})

    assert flags(rows) == {1: 0, 2: abi.EndpointFlags.ENDPOINT_F_AUDIT}


def test_pods_are_told_what_is_denied_where_the_node_says_so() -> None:
    """All of them, whoever is audited."""
    endpoints = [endpoint(1), endpoint(2)]
    rows = endpoint_rows(endpoints, {1: 256, 2: 256}, audited={2}, answers_denied=True)

    told = abi.EndpointFlags.ENDPOINT_F_DENY_RESPONSE
    assert flags(rows) == {1: told, 2: told | abi.EndpointFlags.ENDPOINT_F_AUDIT}


def flags(rows: EndpointRows) -> dict[int, int]:
    """The flags of every endpoint, by its id."""
    facts = [abi.Endpoint.unpack(value) for value in rows.facts.values()]
    return {one.id: one.flags for one in facts}


def test_nodes_addresses_are_the_nodes() -> None:
    """Even when an endpoint claims one."""
    node = ip_address("10.0.0.1")
    rows = endpoint_rows([endpoint(1)], {1: 256}, host_addresses=[node, ip_address("fd00::fe")])

    slots = {key: abi.LxcValue.unpack(value).slot for key, value in rows.addresses.items()}
    assert slots == {
        abi.LxcKey(addr16(node)).pack(): abi.Slot.SLOT_HOST,
        abi.LxcKey(addr16(ip_address("fd00::fe"))).pack(): abi.Slot.SLOT_HOST,
    }


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_state_word_keeps_both_halves(slot_gen: int, version: int) -> None:
    """Neither number leaks into the other."""
    word = state_word(slot_gen, version)

    assert (word >> 32, word & 0xFFFFFFFF) == (slot_gen, version)
    assert word < 2**64


@given(st.permutations([1, 2, 3, 4]))
def test_order_of_endpoints_does_not_matter(order: list[int]) -> None:
    """Rows are a function of what exists."""
    numbers = [1, 2, 3, 4]
    identities, versions = dict.fromkeys(numbers, 256), dict.fromkeys(numbers, 1)

    assert endpoint_rows(map(endpoint, order), identities) == endpoint_rows(
        map(endpoint, numbers), identities
    )
    assert state_rows(map(endpoint, order), versions) == state_rows(map(endpoint, numbers), versions)
