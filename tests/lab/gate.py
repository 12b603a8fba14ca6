# SPDX-License-Identifier: Apache-2.0
"""
A door in front of a TCP server: who connects through it can be cut off while the server runs on.

Bytes pass unchanged, so TLS does.
"""

import contextlib
import socket
import threading
from typing import Final, Self

_CHUNK: Final = 65536


class Gate:
    """Passes connections to 127.0.0.1:*target* as long as it is open; a context manager."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._open = False
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        with socket.create_server(("127.0.0.1", 0)) as first:
            self.port: int = first.getsockname()[1]
        self.accepted = 0

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.shut()

    def open(self) -> Self:
        """Let connections through."""
        self._listener = socket.create_server(("127.0.0.1", self.port), reuse_port=False)
        self._open = True
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        return self

    def shut(self) -> None:
        """Cut every connection and refuse new ones."""
        if not self._open:
            return
        self._open = False
        # A thread in accept() keeps the socket alive until it is woken.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for pair in self._pairs:
                for one in pair:
                    with contextlib.suppress(OSError):
                        one.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            self.accepted += 1
            with self._lock:
                self._pairs.add((client, server))
            threading.Thread(target=self._pass, args=(client, server), daemon=True).start()

    def _pass(self, client: socket.socket, server: socket.socket) -> None:
        back = threading.Thread(target=_copy, args=(server, client), daemon=True)
        back.start()
        _copy(client, server)
        back.join()
        with self._lock:
            self._pairs.discard((client, server))
        client.close()
        server.close()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            sink.sendall(data)
    for one in (source, sink):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
