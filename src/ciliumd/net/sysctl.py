# SPDX-License-Identifier: Apache-2.0
"""
Settings under /proc/sys/net of the calling thread's namespace.

Of devices only those of our own are written, never ``all`` or ``default``: those belong to the machine.
"""

from collections.abc import Iterator
from pathlib import Path

from ciliumd.net.errors import LinkGone, NetError

QUIET_IPV6 = {"accept_ra": "0", "accept_dad": "0", "addr_gen_mode": "1", "disable_ipv6": "0"}
"""No routers are believed, no addresses are tried out, none is made from the MAC; the switch last."""


class _Where:
    """Set once, before the first device is made."""

    root = Path("/proc/sys/net")


def write_below(procfs: Path) -> None:
    """Use this mount of procfs from now on: a container's own is read-only below ``sys``."""
    _Where.root = procfs / "sys/net"


def forward_through(name: str, *, ipv6: bool = False, stack_ipv6: bool = False) -> None:
    """
    Let the stack forward the IPv4 that arrives on device *name*, from any source address.

    The stack itself speaks no IPv6 there, unless *stack_ipv6*: switched off, it would lose its addresses and
    routes.  With *ipv6* programs may look up routes for what arrives there.
    """
    _write(f"ipv4/conf/{name}/forwarding", "1")
    # Pods' addresses are not routed to their veth, so a reverse path check would drop all they send.
    _write(f"ipv4/conf/{name}/rp_filter", "0")
    # The stack's own router solicitations and multicast reports would count as dropped packets.
    (quiet_ipv6 if stack_ipv6 else disable_ipv6)(name)
    if ipv6:
        _write(f"ipv6/conf/{name}/forwarding", "1")


def quiet_ipv6(name: str) -> None:
    """IPv6 on device *name*, with no address nor route but those it is given, and nothing said unasked."""
    for knob, value in QUIET_IPV6.items():
        _write(f"ipv6/conf/{name}/{knob}", value)


def disable_ipv6(name: str) -> None:
    """No IPv6 on device *name*, not even a link-local address."""
    path = f"ipv6/conf/{name}/disable_ipv6"
    if (_Where.root / path).exists():
        _write(path, "1")


def reserve_ports(first: int, last: int) -> bool:
    """
    Have sockets that name no port never get one of these; whether that took a change.

    Nothing is changed where they could not get one anyhow, or are kept from them already.  What else is
    reserved stays so.  NetError when the setting cannot be read or written.
    """
    low, high = (int(word) for word in _read("ipv4/ip_local_port_range").split())
    reserved = _read("ipv4/ip_local_reserved_ports")
    given = set(range(max(first, low), min(last, high) + 1))
    if given <= set(_ports(reserved)):
        return False
    _write("ipv4/ip_local_reserved_ports", ",".join(filter(None, (reserved, f"{first}-{last}"))))
    return True


def _ports(text: str) -> Iterator[int]:
    """The ports of a list like ``8080,9000-9100``."""
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def reverse_path_conflict() -> str | None:
    """
    Why this machine's own settings would drop pods' packets, or None.

    The stricter of ``all`` and the device counts; only the strict mode is in the way.
    """
    path = _Where.root / "ipv4/conf/all/rp_filter"
    try:
        strict = path.read_text("ascii").strip() == "1"
    except OSError:
        return None
    if not strict:
        return None
    return (
        "net.ipv4.conf.all.rp_filter is 1 and overrides the devices' setting: packets from pods to the "
        "host and beyond are dropped; set it to 0 or 2"
    )


def _read(key: str) -> str:
    path = _Where.root / key
    try:
        return path.read_text("ascii").strip()
    except OSError as error:
        raise NetError(f"read sysctl {path}", error.strerror or str(error), errno=error.errno or 0) from error


def _write(key: str, value: str) -> None:
    path = _Where.root / key
    try:
        # Equal values are left alone: a read-only /proc/sys that is right is no problem.
        if path.read_text("ascii").strip() != value:
            path.write_text(value, "ascii")
    except FileNotFoundError as error:
        raise LinkGone(f"set sysctl {path}", "the device is gone") from error
    except OSError as error:
        raise NetError(f"set sysctl {path}", error.strerror or str(error), errno=error.errno or 0) from error
