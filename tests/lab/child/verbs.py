# SPDX-License-Identifier: Apache-2.0
"""
What a client can do: connect, exchange a datagram, speak HTTP, ping, keep a connection open.

Every verb ends by its deadline and says how: ``answered``, ``refused`` (an RST or an ICMP error came
back), ``timeout`` (nothing did), ``reset``, ``unreachable``, ``forbidden`` (the kernel said no),
``destroyed`` (somebody ended the socket), ``in use`` (another has the address).
"""

import contextlib
import errno
import http.client
import itertools
import json
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from lab.waiting import PATIENCE

Json = dict[str, Any]

OUTCOMES = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.EPERM: "forbidden",
    errno.EACCES: "forbidden",
    errno.ETIMEDOUT: "timeout",
    errno.ECONNABORTED: "destroyed",
    errno.EADDRINUSE: "in use",
    errno.EAGAIN: "timeout",
}
ICMP_ECHO, ICMP_ECHO_REPLY = 8, 0
ICMPV6_ECHO, ICMPV6_ECHO_REPLY = 128, 129
ANY = "0.0.0.0"
ANY6 = "::"

_kept: dict[int, socket.socket] = {}
_kept_http: dict[int, http.client.HTTPConnection] = {}
_handles = itertools.count(1)
_idents = itertools.count(os.getpid() & 0xFFFF)


def verb(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a function that requests may name."""
    function.is_verb = True  # type: ignore[attr-defined]
    return function


def _outcome(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "timeout"
    return OUTCOMES.get(error.errno or 0, os.strerror(error.errno or 0))


def _line(stream: socket.socket) -> str:
    """What comes up to a newline or the end."""
    data = b""
    while not data.endswith(b"\n"):
        piece = stream.recv(65536)
        if not piece:
            break
        data += piece
    return data.decode()


def family_of(address: str) -> socket.AddressFamily:
    """Which of the two an address is of, by its look."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _bound(
    kind: int, source_port: int, timeout: float, source: str = ANY, address: str = ANY
) -> socket.socket:
    """A socket for *address*, bound if it is said to what."""
    sock = socket.socket(family_of(address), kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.settimeout(timeout * PATIENCE)
    if source_port or source != ANY:
        six = source == ANY and sock.family == socket.AF_INET6
        sock.bind((ANY6 if six else source, source_port))
    return sock


@verb
def tcp_connect(address: str, port: int, timeout: float = 2.0, source_port: int = 0) -> Json:
    """Connect and read the server's greeting: who it is and whom it sees."""
    started = time.monotonic()
    reply: Json = {}
    with _bound(socket.SOCK_STREAM, source_port, timeout, address=address) as sock:
        try:
            sock.connect((address, port))
            reply["peer"] = sock.getpeername()
            reply["local"] = sock.getsockname()
            greeting = _line(sock)
            reply["outcome"] = "answered" if greeting else "reset"
            reply["answer"] = json.loads(greeting) if greeting else None
        except OSError as error:
            reply["outcome"] = _outcome(error)
    reply["seconds"] = time.monotonic() - started
    return reply


@verb
def udp_exchange(
    address: str,
    port: int,
    payload: str = "?",
    timeout: float = 1.0,
    connected: bool = True,
    source_port: int = 0,
    source: str = ANY,
) -> Json:
    """Send a datagram and wait for its answer; only a connected socket learns of a refusal."""
    started = time.monotonic()
    reply: Json = {}
    with _bound(socket.SOCK_DGRAM, source_port, timeout, source, address) as sock:
        try:
            if connected:
                sock.connect((address, port))
                reply["peer"] = sock.getpeername()
                sock.send(payload.encode())
            else:
                sock.sendto(payload.encode(), (address, port))
            data, sender = sock.recvfrom(65536)
            reply["outcome"] = "answered"
            reply["answer"] = json.loads(data)
            reply["sender"] = sender
        except OSError as error:
            reply["outcome"] = _outcome(error)
    reply["seconds"] = time.monotonic() - started
    return reply


@verb
def bind(port: int, address: str = ANY) -> Json:
    """Bind a TCP port for a moment."""
    try:
        with _bound(socket.SOCK_STREAM, port, 1.0, address):
            return {"outcome": "bound"}
    except OSError as error:
        return {"outcome": _outcome(error)}


@verb
def udp_crowd(address: str, port: int, count: int, first_port: int = 10_000) -> Json:
    """One datagram from each of *count* ports: as many flows, none of which is ever answered."""
    sent = 0
    for source_port in range(first_port, first_port + count):
        with _bound(socket.SOCK_DGRAM, source_port, 1.0) as sock:
            sent += sock.sendto(b"?", (address, port))
    return {"sent": sent}


@verb
def http_request(
    address: str, port: int, method: str = "GET", path: str = "/", host: str = "", timeout: float = 2.0
) -> Json:
    """One HTTP request."""
    connection = http.client.HTTPConnection(address, port, timeout=timeout * PATIENCE)
    try:
        connection.request(method, path, headers={"Host": host} if host else {})
        response = connection.getresponse()
        return {"outcome": "answered", "status": response.status, "body": response.read().decode()}
    except OSError as error:
        return {"outcome": _outcome(error)}
    finally:
        connection.close()


@verb
def http_open(address: str, port: int, timeout: float = 5.0) -> Json:
    """An HTTP connection that stays open; ``handle`` names it in :func:`http_ask`."""
    connection = http.client.HTTPConnection(address, port, timeout=timeout * PATIENCE)
    # A connection that broke must stay broken, not be made again unseen.
    connection.auto_open = 0
    try:
        connection.connect()
    except OSError as error:
        return {"outcome": _outcome(error)}
    handle = next(_handles)
    _kept_http[handle] = connection
    return {"outcome": "answered", "handle": handle}


@verb
def http_ask(handle: int, method: str = "GET", path: str = "/") -> Json:
    """A request on an open HTTP connection."""
    connection = _kept_http[handle]
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return {"outcome": "answered", "status": response.status, "body": response.read().decode()}
    except (OSError, http.client.HTTPException) as error:
        return {"outcome": _outcome(error) if isinstance(error, OSError) else type(error).__name__}


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) // 2 * 2]))
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@verb
def ping(
    address: str, count: int = 1, timeout: float = 1.0, size: int = 56, dont_fragment: bool = False
) -> Json:
    """Echo requests one after the other; which came back, and from where."""
    ident = next(_idents) & 0xFFFF
    answered = 0
    senders = set()
    outcome = "timeout"
    six = family_of(address) == socket.AF_INET6
    protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
    asked, answer = (ICMPV6_ECHO, ICMPV6_ECHO_REPLY) if six else (ICMP_ECHO, ICMP_ECHO_REPLY)
    with socket.socket(family_of(address), socket.SOCK_RAW, protocol) as sock:
        if dont_fragment:
            level, option = (socket.IPPROTO_IPV6, 23) if six else (socket.IPPROTO_IP, 10)
            sock.setsockopt(level, option, 2)  # (IPV6_)MTU_DISCOVER, PMTUDISC_DO
        sock.connect((address, 0))
        for sequence in range(count):
            body = struct.pack("!BBHHH", asked, 0, 0, ident, sequence) + b"c" * size
            # The kernel makes the sum of ICMPv6, which covers addresses.
            body = body if six else body[:2] + struct.pack("!H", _checksum(body)) + body[4:]
            try:
                sock.send(body)
            except OSError as error:
                outcome = "too-big" if error.errno == errno.EMSGSIZE else _outcome(error)
                continue
            deadline = time.monotonic() + timeout * PATIENCE
            while (left := deadline - time.monotonic()) > 0:
                if not select.select([sock], [], [], left)[0]:
                    break
                try:
                    packet, (sender, *_) = sock.recvfrom(65536)
                except OSError as error:
                    outcome = _outcome(error)
                    break
                icmp = packet if six else packet[(packet[0] & 15) * 4 :]
                if icmp[0] == answer and struct.unpack_from("!HH", icmp, 4) == (ident, sequence):
                    answered += 1
                    senders.add(sender)
                    break
    if answered == count:
        outcome = "answered"
    return {"outcome": outcome, "sent": count, "answered": answered, "senders": sorted(senders)}


@verb
def tcp_open(address: str, port: int, timeout: float = 2.0, mark: str = "") -> Json:
    """A connection that stays open; ``handle`` names it in :func:`tcp_say`."""
    sock = _bound(socket.SOCK_STREAM, 0, timeout, address=address)
    try:
        sock.connect((address, port))
        greeting = json.loads(_line(sock))
    except OSError as error:
        sock.close()
        return {"outcome": _outcome(error)}
    handle = next(_handles)
    _kept[handle] = sock
    return {
        "outcome": "answered",
        "handle": handle,
        "answer": greeting,
        "local": sock.getsockname(),
        "mark": mark,
    }


@verb
def tcp_say(handle: int, text: str = "still there?", timeout: float = 2.0) -> Json:
    """Say something on an open connection and hear it echoed."""
    sock = _kept[handle]
    sock.settimeout(timeout * PATIENCE)
    try:
        sock.sendall(text.encode() + b"\n")
        echo = _line(sock)
    except OSError as error:
        return {"outcome": _outcome(error)}
    if not echo:
        return {"outcome": "reset"}
    echo = echo.rstrip("\n")
    outcome = "answered" if echo == text else "garbled"
    return {"outcome": outcome, "echo": echo, "peer": sock.getpeername()}


@verb
def udp_open(address: str, port: int) -> Json:
    """A datagram socket that stays connected; ``handle`` names it in :func:`udp_say`."""
    sock = _bound(socket.SOCK_DGRAM, 0, 1.0)
    try:
        sock.connect((address, port))
    except OSError as error:
        sock.close()
        return {"outcome": _outcome(error)}
    handle = next(_handles)
    _kept[handle] = sock
    return {"outcome": "answered", "handle": handle}


@verb
def udp_say(handle: int, payload: str = "?", timeout: float = 1.0) -> Json:
    """Send a datagram on a socket that is connected, and wait for its answer."""
    sock = _kept[handle]
    sock.settimeout(timeout * PATIENCE)
    try:
        sock.send(payload.encode())
        return {"outcome": "answered", "answer": json.loads(sock.recv(65536))}
    except OSError as error:
        return {"outcome": _outcome(error)}


@verb
def tcp_stop(handle: int) -> None:
    """Close an open connection."""
    with contextlib.suppress(OSError):
        _kept.pop(handle).close()
