# SPDX-License-Identifier: Apache-2.0
"""Entry programs on devices of the tests' node, the way this kernel has: tcx links, else clsact filters."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from pyroute2 import IPRoute

from ciliumd.bpf import Generation, detach_device
from ciliumd.bpf.features import tcx_supported
from ciliumd.net import tc
from ciliumd.net.tc import Direction

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def attached(
    generation: Generation, ifindex: int, *, ingress: str | None = None, egress: str | None = None
) -> Iterator[None]:
    """Programs by the names of their entries; only valid inside private_node()."""
    if tcx_supported():
        generation.attach_device(ifindex, ingress=ingress, egress=egress)
        try:
            yield
        finally:
            detach_device(generation.pins, ifindex)
        return
    wanted = {Direction.INGRESS: ingress, Direction.EGRESS: egress}
    with IPRoute() as ipr:
        try:
            for direction, name in wanted.items():
                if name is not None:
                    program = generation.entries[name].fd
                    tc.attach_filter(ipr, ifindex, direction=direction, hook=name, program=program)
            yield
        finally:
            for direction in wanted:
                tc.detach_filter(ipr, ifindex, direction=direction)
