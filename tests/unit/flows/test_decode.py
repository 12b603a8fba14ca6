# SPDX-License-Identifier: Apache-2.0
"""Records of the ring buffer come out as the datapath meant them."""

from ipaddress import ip_address

import pytest

from ciliumd.abi import EventType, Hook, TracePoint
from ciliumd.flows import decode
from ciliumd.model.net import addr16
from unit.flows.samples import OFFSET_NS, record


def test_record_is_decoded_with_addresses_ports_and_wall_time():
    """Every field has its host meaning; the clock difference comes from the caller."""
    event = decode.decode(record(), offset_ns=OFFSET_NS)

    assert event.type is EventType.EVENT_DROP
    assert event.time_ns == OFFSET_NS + 5_000_000_001
    assert (event.src, event.sport) == (ip_address("10.0.0.1"), 1234)
    assert (event.dst, event.dport) == (ip_address("10.0.0.2"), 80)
    assert (event.src_identity, event.dst_identity) == (256, 257)
    assert (event.reason, event.line, event.endpoint_id, event.policy_version) == (133, 120, 12, 9)
    assert not event.audit


def test_ipv6_addresses_stay_ipv6():
    """Only mapped addresses become IPv4."""
    event = decode.decode(record(src=addr16(ip_address("fd00::1"))), offset_ns=0)

    assert event.src == ip_address("fd00::1")


def test_batch_keeps_order_and_counts_unknown_types():
    """A newer datapath's record is counted, and costs its neighbours nothing."""
    batch = decode.decode_batch(record(line=1) + record(type=77) + record(line=2), offset_ns=0)

    assert [event.line for event in batch.events] == [1, 2]
    assert batch.unknown == 1


def test_empty_batch_is_empty():
    """Nothing drained is nothing decoded."""
    assert decode.decode_batch(b"", offset_ns=0) == ([], 0)


@pytest.mark.parametrize("size", [1, decode.RECORD_SIZE - 1, decode.RECORD_SIZE + 1])
def test_partial_batch_is_refused(size):
    """Half a record would shift every later one."""
    with pytest.raises(ValueError, match="no whole number"):
        decode.decode_batch(bytes(size), offset_ns=0)


def test_short_record_is_refused():
    """A record of another layout is not read past its end."""
    with pytest.raises(ValueError, match="96 bytes, not 10"):
        decode.decode(bytes(10), offset_ns=0)


def test_names_of_numbers():
    """Known numbers have names, unknown ones stay numbers."""
    assert decode.hook_name(Hook.HOOK_FROM_CONTAINER) == "from-container"
    assert decode.trace_point_name(TracePoint.TRACE_TO_ENDPOINT) == "to-endpoint"
    assert decode.ct_state_name(2) == "reply"
    assert decode.direction_name(1) == "ingress"
    assert decode.file_name(1) == "lxc.bpf.c"
    assert (decode.hook_name(99), decode.trace_point_name(99), decode.ct_state_name(99)) == ("99", "99", "99")
    assert (decode.direction_name(99), decode.file_name(99)) == ("unknown", "unknown")


def test_allowed_verdicts():
    """Allow and no policy at all let through; both denials do not."""
    assert [decode.is_allowed(verdict) for verdict in range(4)] == [True, True, False, False]
