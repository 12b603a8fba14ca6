# SPDX-License-Identifier: Apache-2.0
"""``GET /hello`` over HTTP/1.1: asked of other nodes, answered at the addresses of this one."""

import asyncio
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from ciliumd.model.net import Addr, host_port

READ_SECONDS: Final = 5.0
REQUEST_BYTES: Final = 8192
_OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_NOT_FOUND: Final = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Unwell(Exception):
    """It answered, but not that it is well."""


async def ask(address: Addr, port: int) -> float:
    """
    Seconds until *address* said that it is well, however long that takes.

    OSError when it cannot be reached, :class:`Unwell` when it answers something else.
    """
    started = time.monotonic()
    reader, writer = await asyncio.open_connection(str(address), port)
    try:
        writer.write(
            f"GET /hello HTTP/1.1\r\nHost: {host_port(address, port)}\r\nConnection: close\r\n\r\n".encode()
        )
        status = await reader.readline()
    finally:
        writer.close()
    version, _, rest = status.decode("ascii", "replace").strip().partition(" ")
    if not version.startswith("HTTP/1.") or rest.partition(" ")[0] != str(HTTPStatus.OK.value):
        raise Unwell(f"answered {rest or 'nothing'!r}")
    return time.monotonic() - started


class Responder:
    """Answers at addresses of the node, which may change."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._servers: dict[Addr, asyncio.Server] = {}
        self.problem = ""
        """Why it does not listen at an address it should; empty when all is well."""

    async def listen(self, addresses: Iterable[Addr]) -> None:
        """Answer at *addresses* and no others, as far as possible."""
        wanted = set(addresses)
        for address in self._servers.keys() - wanted:
            self._servers.pop(address).close()
        problems = []
        for address in sorted(wanted - self._servers.keys(), key=str):
            try:
                self._servers[address] = await asyncio.start_server(
                    _serve, str(address), self._port, limit=REQUEST_BYTES
                )
            except OSError as error:
                where = host_port(address, self._port)
                problems.append(f"cannot listen at {where}: {error.strerror or error}")
        self.problem = "; ".join(problems)

    def close(self) -> None:
        """Answer nowhere any more."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        async with asyncio.timeout(READ_SECONDS):
            request = await reader.readuntil(b"\r\n\r\n")
            writer.write(_OK if request.startswith(b"GET /hello ") else _NOT_FOUND)
            await writer.drain()
    except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
        return  # whoever asked has gone, or does not speak HTTP
    finally:
        writer.close()
