# SPDX-License-Identifier: Apache-2.0
"""
Rows of ``cilium_lb_bind_v1``: NodePorts, which a socket that binds every address of the node would cover.

Who binds one address is judged by the frontends themselves.
"""

from collections.abc import Iterable

from ciliumd import abi
from ciliumd.desired.services import ServedFrontend
from ciliumd.model.service import PROTOCOL_NUMBERS, ServiceKind

_TAKEN = (1).to_bytes(4, "little")


def bind_rows(served: Iterable[ServedFrontend]) -> dict[bytes, bytes]:
    """A row for each NodePort."""
    return {
        bind_key(one.frontend.port, PROTOCOL_NUMBERS[one.frontend.protocol]): _TAKEN
        for one in served
        if one.frontend.kind is ServiceKind.NODE_PORT
    }


def bind_key(port: int, protocol: int) -> bytes:
    """The key of a NodePort's row."""
    return abi.LbBindKey(port, protocol).pack()
