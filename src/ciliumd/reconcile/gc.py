# SPDX-License-Identifier: Apache-2.0
"""
Which conntrack and NAT rows have had their time.

Pure: rows and the time come in, keys to delete go out, in chunks so that neither the reader nor the
maps are busy for long.  A row may be taken into use again between reading and deleting, so callers
read the keys of a chunk once more and pass them through here again just before they delete.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from ciliumd import abi

Row = tuple[bytes, bytes]

CHUNK = 4096

# NAT rows of the node's own connections: nobody tracks those, and a row that goes too early is made
# again by the connection's next packet.
NODE_TCP_LIFETIME = 6 * 3600
NODE_LIFETIME = 300
# A NAT row younger than this may be of a flow whose conntrack row was not there yet when it was read.
NAT_MIN_AGE = 30

_TCP = 6
_EXPIRES = abi.place_of(abi.CtEntry, "expires")


def expired_ct(rows: Iterable[Row], now: int, *, chunk: int = CHUNK) -> Iterator[list[bytes]]:
    """Keys of conntrack rows that have expired at *now* (seconds of CLOCK_MONOTONIC)."""
    return _chunks((key for key, value in rows if not is_live_ct(value, now)), chunk)


def is_live_ct(value: bytes, now: int) -> bool:
    """Whether the datapath still goes by this conntrack row."""
    return int.from_bytes(value[_EXPIRES], "little") > now


def expired_nat(
    rows: Iterable[Row],
    now: int,
    *,
    is_live_flow: Callable[[bytes], bool],
    chunk: int = CHUNK,
) -> Iterator[list[bytes]]:
    """
    Keys of NAT rows whose flow is over.

    *is_live_flow* tells whether the conntrack row of a packed key is there and live.  Rows of the
    node's own connections have no such row and go by their age.
    """
    return _chunks((key for key, value in rows if _is_nat_over(key, value, now, is_live_flow)), chunk)


def flow_of_nat(key: abi.NatKey, entry: abi.NatEntry) -> abi.CtKey | None:
    """Conntrack key of the pod's flow a NAT row serves; None for a connection of the node itself."""
    if key.dir == abi.NatDir.NAT_OUT:
        if entry.addr == key.src:
            return None
        local, local_port, remote, remote_port = key.src, key.sport, key.dst, key.dport
    else:
        if entry.addr == key.dst:
            return None
        local, local_port, remote, remote_port = entry.addr, entry.port, key.src, key.sport
    return abi.CtKey(
        local=local,
        remote=remote,
        local_port=local_port,
        remote_port=remote_port,
        protocol=key.protocol,
        kind=abi.CtKind.CT_KIND_FLOW,
        zone=key.zone,
    )


def _is_nat_over(raw_key: bytes, raw: bytes, now: int, is_live_flow: Callable[[bytes], bool]) -> bool:
    """Whether nothing will use this NAT row any more."""
    key, entry = abi.NatKey.unpack(raw_key), abi.NatEntry.unpack(raw)
    age = now - entry.created
    if age < NAT_MIN_AGE:
        return False
    flow = flow_of_nat(key, entry)
    if flow is None:
        return age > (NODE_TCP_LIFETIME if key.protocol == _TCP else NODE_LIFETIME)
    return not is_live_flow(flow.pack())


def _chunks(keys: Iterator[bytes], size: int) -> Iterator[list[bytes]]:
    while chunk := list(islice(keys, size)):
        yield chunk
