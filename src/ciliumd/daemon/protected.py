# SPDX-License-Identifier: Apache-2.0
"""
Addresses this node itself depends on: of the API server it asks, and of its resolvers.

No service may take them (``desired.guard``).  They are read once, at the start: a name that does not resolve
then is not guarded, and an API server that is a node or an endpoint of its service is known anyway.
"""

import socket
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from ciliumd.model.net import Addr

RESOLV_CONF = Path("/etc/resolv.conf")
API_SERVER, RESOLVER = "an address of the API server", "a resolver of this node"

log = structlog.get_logger("agent")


def protected_addresses(api_server: str, resolv_conf: Path = RESOLV_CONF) -> tuple[tuple[Addr, str], ...]:
    """Each address and whose it is; *api_server* is a URL, or empty.  Blocks while a name is resolved."""
    return (
        *((addr, API_SERVER) for addr in _of_host(urlsplit(api_server).hostname or "")),
        *((addr, RESOLVER) for addr in resolvers(resolv_conf)),
    )


def resolvers(resolv_conf: Path) -> tuple[Addr, ...]:
    """The name servers in a resolv.conf(5); none if there is no such file."""
    try:
        lines = resolv_conf.read_text(errors="replace").splitlines()
    except OSError:
        return ()
    words = (line.split() for line in lines)
    found = (_address(one[1]) for one in words if len(one) > 1 and one[0] == "nameserver")
    return tuple(addr for addr in found if addr is not None)


def _of_host(host: str) -> tuple[Addr, ...]:
    if not host:
        return ()
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # a label may be too long for DNS
        log.warning("agent.api_server_unresolved", host=host, error=str(error))
        return ()
    addresses = (_address(str(sockaddr[0])) for *_, sockaddr in found)
    return tuple(addr for addr in dict.fromkeys(addresses) if addr is not None)


def _address(text: str) -> Addr | None:
    try:
        return ip_address(text.partition("%")[0])
    except ValueError:
        return None
