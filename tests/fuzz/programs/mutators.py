# SPDX-License-Identifier: Apache-2.0
"""Changes of scripts that know where headers lie: what random bytes alone would not meet in years."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

from datapath.malformed import IPV4, mutated
from fuzz.programs.corpus import Script

MOST_FRAMES = 4
LARGEST = 600  # bytes of a frame
IP_AT, L4_AT = 14, 34
Change = Callable[[Script, Script, random.Random], Script]


def _is_ipv4(frame: bytes) -> bool:
    return frame[12:IP_AT] == IPV4 and len(frame) >= L4_AT


def _at(script: Script, dice: random.Random) -> int:
    return dice.randrange(len(script))


def _with(script: Script, at: int, frame: bytes) -> Script:
    return (*script[:at], frame[:LARGEST], *script[at + 1 :])


def _of_ipv4(changed: Callable[[Script, int, random.Random], Script]) -> Change:
    """A change of one frame, if it is IPv4; else the script stays as it is."""

    @functools.wraps(changed)
    def change(script: Script, other: Script, dice: random.Random) -> Script:
        del other
        at = _at(script, dice)
        return changed(script, at, dice) if _is_ipv4(script[at]) else script

    return change


def changed_bytes(script: Script, other: Script, dice: random.Random) -> Script:
    """Up to four random changes of one frame."""
    del other
    at = _at(script, dice)
    return _with(script, at, mutated(script[at], dice)) if len(script[at]) > 20 else script


def spliced(script: Script, other: Script, dice: random.Random) -> Script:
    """The head of one frame, the rest of another."""
    at, more = _at(script, dice), dice.choice(other)
    cut = dice.choice((IP_AT, L4_AT, dice.randrange(IP_AT, 64)))
    return _with(script, at, script[at][:cut] + more[cut:])


def addressed(script: Script, other: Script, dice: random.Random) -> Script:
    """Another frame's addresses."""
    at, more = _at(script, dice), dice.choice(other)
    frame = script[at]
    if not (_is_ipv4(frame) and _is_ipv4(more)):
        return script
    return _with(script, at, frame[:26] + more[26:L4_AT] + frame[L4_AT:])


@_of_ipv4
def turned(script: Script, at: int, dice: random.Random) -> Script:
    """Sender and receiver, and their ports, change places."""
    del dice
    frame = script[at]
    ports = frame[36:38] + frame[34:36]
    return _with(script, at, frame[:26] + frame[30:34] + frame[26:30] + ports + frame[38:])


@_of_ipv4
def quoted(script: Script, at: int, dice: random.Random) -> Script:
    """An ICMP error about a frame of the script, to its sender or from it."""
    frame = script[at]
    about = frame[IP_AT : IP_AT + dice.choice((28, 28, 28, 40, 60, 24))]
    src, dst = frame[26:30], frame[30:34]
    if dice.random() < 0.5:
        src, dst = dst, src
    if dice.random() < 0.5:
        about = about[:12] + dst + src + about[22:24] + about[20:22] + about[24:]
    icmp = bytes([dice.choice((3, 3, 11, 12)), dice.choice((0, 3, 4)), 0, 0, 0, 0, 0, 0]) + about
    head = b"\x45\0" + (20 + len(icmp)).to_bytes(2, "big") + b"\0\1\0\0\x40\1\0\0"
    error = frame[:IP_AT] + head + src + dst + icmp
    return (*script, error)[-MOST_FRAMES:] if dice.random() < 0.7 else _with(script, at, error)


@_of_ipv4
def fragmented(script: Script, at: int, dice: random.Random) -> Script:
    """A frame becomes a first fragment, a later one, or the two of them."""
    frame = script[at]
    first = frame[:20] + b"\x20\0" + frame[22:]
    later = frame[:20] + dice.choice((b"\0\1", b"\x20\2", b"\x1f\xff")) + frame[22:]
    match dice.randrange(3):
        case 0:
            return _with(script, at, first)
        case 1:
            return _with(script, at, later)
        case _:
            return (*script[:at], first, later, *script[at + 1 :])[:MOST_FRAMES]


def longer(script: Script, other: Script, dice: random.Random) -> Script:
    """Frames of another script, or of itself again."""
    more = dice.choice((script, other))
    return (*script, *more)[:MOST_FRAMES]


def shorter(script: Script, other: Script, dice: random.Random) -> Script:
    """Without one of its frames."""
    del other
    at = _at(script, dice)
    return script if len(script) == 1 else script[:at] + script[at + 1 :]


CHANGES: tuple[Change, ...] = (
    *(changed_bytes, changed_bytes, changed_bytes, spliced, addressed),
    *(turned, quoted, fragmented, longer, shorter),
)


def change(script: Script, other: Script, dice: random.Random) -> Script:
    """One to three changes in a row; *other* is where foreign parts come from."""
    for _ in range(dice.randint(1, 3)):
        script = dice.choice(CHANGES)(script, other, dice)
    return script
