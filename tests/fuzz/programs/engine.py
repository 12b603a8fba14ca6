# SPDX-License-Identifier: Apache-2.0
"""One hook's corpus, what is known to come out of the hook, and the loop that looks for more."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

from datapath.contest import Contest, Seen
from datapath.malformed import runnable
from fuzz.programs.corpus import Script
from fuzz.programs.mutators import change
from reference.parser import L4_HEADER

IPV4, IPV4_PROTOCOL = b"\x08\0", 23
PLAIN_L4, MACS = 34, 12
REDIRECT = 7
Signature = tuple[object, ...]


def _pattern(before: bytes, after: bytes) -> tuple[int, ...]:
    """
    Where a program has written: MACs as one place, then 16-bit words.

    Behind an IPv4 header without options by 4 bytes: what is there depends on the frame more than on the way.
    """
    if len(before) != len(after):
        return (len(after) - len(before),)
    places = {at for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new}
    return tuple(sorted({0 if at < MACS else at & ~1 if at < PLAIN_L4 else at & ~3 for at in places}))


def signature(frame: bytes, seen: Seen) -> Signature:
    """What is worth telling apart about one frame's way."""
    verdict = seen.verdict
    # An answer is another packet: its bytes say nothing about what was done to this one.
    answered = verdict.action == REDIRECT and (verdict.reason or frame[12:14] != IPV4)
    told = (verdict.action, verdict.reason, seen.file, seen.line)
    if answered:
        return (*told, "answered")
    understood = frame[12:14] == IPV4 and not verdict.reason and frame[IPV4_PROTOCOL] in L4_HEADER
    protocol = frame[IPV4_PROTOCOL] if understood else 0
    return (*told, protocol, _pattern(frame, verdict.frame))


@dataclass(slots=True)
class Fuzzer:
    """A hook under scripts; *found* are those whose outcome is not the reference's."""

    contest: Contest
    dice: random.Random
    corpus: list[Script] = field(default_factory=list)
    known: set[Signature] = field(default_factory=set)
    found: list[tuple[Script, str]] = field(default_factory=list)
    scripts: int = 0
    frames: int = 0

    def __post_init__(self) -> None:
        """Nothing of others is left in the maps."""
        self.contest.forget()

    def run(self, script: Script) -> set[Signature]:
        """Signatures of the script's frames; a difference is kept."""
        seen = self.contest.batch(list(script))
        conntrack, masqueraded, fragments = self.contest.forget()
        self.scripts += 1
        self.frames += len(script)
        if self.contest.wrong:
            self.found.append((script, self.contest.wrong[0]))
            self.contest.wrong.clear()
        rows = {("row", *row) for row in conntrack} | {("snat", masqueraded), ("frags", fragments)}
        return {signature(frame, one) for frame, one in zip(script, seen, strict=False)} | rows

    def add(self, script: Script) -> bool:
        """Run; True and kept when something about it is new."""
        if not script or not all(runnable(frame) for frame in script):
            return False
        new = self.run(script) - self.known
        if not new:
            return False
        script = self._smaller(script, new)
        self.known |= new
        self.corpus.append(script)
        return True

    def _smaller(self, script: Script, wanted: set[Signature]) -> Script:
        """Without frames, and without tails of frames, that *wanted* does not need."""
        for at in reversed(range(len(script))):
            without = script[:at] + script[at + 1 :]
            if without and wanted <= self.run(without):
                script = without
        for at, frame in enumerate(script):
            for size in (PLAIN_L4, 42, 54, 62, 74, 98):
                cut = (*script[:at], frame[:size], *script[at + 1 :])
                if size < len(frame) and runnable(frame[:size]) and wanted <= self.run(cut):
                    script = cut
                    break
        return script

    def search(self, *, seconds: float | None = None, scripts: int | None = None) -> None:
        """Change what is in the corpus, for so long or so often, or until something is found."""
        deadline = None if seconds is None else time.monotonic() + seconds
        left = scripts
        while not self.found and self.corpus:
            if deadline is not None and time.monotonic() >= deadline:
                return
            if left is not None:
                if not left:
                    return
                left -= 1
            # The newest are the least explored.
            size = len(self.corpus)
            newest = max(0, size - 1 - int(self.dice.expovariate(1 / 40)))
            base = self.corpus[newest if self.dice.random() < 0.5 else self.dice.randrange(size)]
            self.add(change(base, self.corpus[self.dice.randrange(size)], self.dice))

    def minimised(self) -> list[Script]:
        """A small corpus with every signature that this one has: greedily, the richest scripts first."""
        signed = {script: self.run(script) for script in self.corpus}
        order = sorted(signed, key=lambda script: (-len(signed[script]), sum(map(len, script))))
        left = set().union(*signed.values())
        kept = []
        for script in order:
            if signed[script] & left:
                kept.append(script)
                left -= signed[script]
        return kept
