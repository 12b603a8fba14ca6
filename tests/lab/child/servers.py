# SPDX-License-Identifier: Apache-2.0
"""
Servers that answer with their name: a test proves which backend was reached, not that one was.

TCP greets with a line of JSON (server, client, local) and echoes lines after it; UDP answers each
datagram with such a line; HTTP answers every path with a fixed text.
"""

import contextlib
import http.server
import json
import socket
import socketserver
import threading
from typing import Any, TypeVar

from lab.child.verbs import ANY, family_of, verb

Server = TypeVar("Server", bound=socketserver.TCPServer)

_running: dict[tuple[str, int], socketserver.BaseServer] = {}


class _Tcp(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


class _Udp(socketserver.UDPServer):
    allow_reuse_address = True
    max_packet_size = 65536


class _Http(http.server.ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True


def _of(server: type[Server], address: str) -> type[Server]:
    """That kind of server, of the address's family."""
    return type(server.__name__, (server,), {"address_family": family_of(address)})


def _start(kind: str, port: int, server: socketserver.BaseServer) -> None:
    _running[kind, port] = server
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


def _greeting(name: str, client: Any, local: Any, **more: Any) -> bytes:
    return json.dumps({"server": name, "client": client, "local": local, **more}).encode() + b"\n"


@verb
def serve_tcp(name: str, port: int, address: str = ANY) -> None:
    """Greet and echo."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                self.wfile.write(_greeting(name, self.client_address, self.request.getsockname()))
                for line in self.rfile:
                    self.wfile.write(line)

    _start("tcp", port, _of(_Tcp, address)((address, port), Handler))


@verb
def serve_udp(name: str, port: int, address: str = ANY) -> None:
    """Answer each datagram."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, sock = self.request
            reply = _greeting(name, self.client_address, sock.getsockname(), payload=data.decode())
            with contextlib.suppress(OSError):
                sock.sendto(reply, self.client_address)

    server = _of(_Udp, address)((address, port), Handler, bind_and_activate=False)
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    server.server_bind()
    _start("udp", port, server)


@verb
def serve_http(name: str, port: int, body: str, address: str = ANY) -> None:
    """Answer every request with *body*."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            data = body.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Server-Name", name)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = _answer  # noqa: N815 - names the base class looks for

        def log_message(self, *_: Any) -> None:
            """Standard error is not ours to write to."""

    _start("tcp", port, _Http((address, port), Handler))


@verb
def stop_server(kind: str, port: int) -> None:
    """Stop listening; open connections stay."""
    server = _running.pop((kind, port))
    server.shutdown()
    server.server_close()
