# SPDX-License-Identifier: Apache-2.0
"""Packet sockets in other namespaces: whole frames go out as they are, and come in as they were."""

import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

from lab.netns import entered

ETH_P_ALL: Final = 3
OUTGOING: Final = 4  # PACKET_OUTGOING: what leaves by the device of the listener
ROOM: Final = 16 << 20  # bytes that may wait to be read
RCVBUFFORCE: Final = 33


def _opened(namespace: Path, device: str) -> socket.socket:
    with entered(namespace):
        end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        end.setsockopt(socket.SOL_SOCKET, RCVBUFFORCE, ROOM)
        end.bind((device, ETH_P_ALL))
        end.setblocking(False)
        return end


class RawEnd:
    """One device, in both directions.  A context manager."""

    def __init__(self, namespace: Path, device: str) -> None:
        self._socket = _opened(namespace, device)

    def send(self, frames: Iterable[bytes]) -> int:
        """How many were sent; a device that is full is waited for."""
        self._socket.setblocking(True)
        count = 0
        for frame in frames:
            self._socket.send(frame)
            count += 1
        self._socket.setblocking(False)
        return count

    def received(self, having: bytes) -> list[bytes]:
        """Frames so far that came in by the device and have these bytes somewhere; others are forgotten."""
        found = []
        while True:
            try:
                frame, place = self._socket.recvfrom(65535)
            except BlockingIOError:
                return found
            if place[2] != OUTGOING and having in frame:
                found.append(frame)

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
