# SPDX-License-Identifier: Apache-2.0
"""Where a search begins without a corpus: the stock of malformed.py on every way of a hook."""

from __future__ import annotations

from datapath.malformed import frames
from datapath.shapes import at_port
from datapath.ways import WAYS, macs_of
from fuzz.programs.corpus import Script


def seeds(hook: str) -> list[Script]:
    """One frame each."""
    return [
        (frame,)
        for source, target, port in WAYS[hook]
        for frame in at_port(frames(*macs_of(hook, source, target), source.ip, target.ip), port).values()
    ]
