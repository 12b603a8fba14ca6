# SPDX-License-Identifier: Apache-2.0
"""The fuzzer of the tc programs: its corpus is replayed, and some more scripts are made of it."""

from __future__ import annotations

import random
import socket
from dataclasses import replace
from functools import partial

import pytest

from datapath.contest import Contest
from datapath.harness import Datapath
from datapath.openworld import NODE, fill
from datapath.rows import POD_ONE
from datapath.tally import Tally
from datapath.ways import WAYS
from fuzz.programs import corpus
from fuzz.programs.engine import Fuzzer
from fuzz.programs.seeds import seeds
from reference.forwarding import Forwarding
from reference.translating import NO_FIB

pytestmark = pytest.mark.datapath

SEED = 4711
SCRIPTS, SCRIPTS_LONG = 1_000, 30_000  # a hook


@pytest.mark.parametrize("hook", WAYS)
def test_nothing_is_found(contest: Contest, hook: str, tally: Tally, is_long: bool) -> None:
    """The corpus is no dead weight, its scripts bring something new; no frame is seen otherwise."""
    fuzzer = Fuzzer(contest, random.Random(f"{SEED} {hook}"))
    for script in corpus.found(hook):
        fuzzer.run(script)
    assert fuzzer.found == [], fuzzer.found[0][1]
    kept = corpus.read(hook)
    fresh = [fuzzer.add(script) for script in kept]
    known = len(fuzzer.known)
    fuzzer.search(scripts=SCRIPTS_LONG if is_long else SCRIPTS)

    tally(
        f"K5 {hook}, fuzzer",
        injected=fuzzer.frames,
        delivered=contest.went_on,
        wrong=len(fuzzer.found),
        scripts=fuzzer.scripts,
        corpus=len(kept),
        signatures=known,
        seed=SEED,
    )
    assert fuzzer.found == [], fuzzer.found[0][1]
    assert sum(fresh) > len(kept) * 3 // 4 > 0, "the corpus is stale: build/dev fuzz programs --keep"


def test_what_the_reference_sees_otherwise_is_found(datapath: Datapath) -> None:
    """A node that believes the world to be nowhere: a frame to there is found, and told in full."""
    fill(datapath)
    entry = datapath.generation.entries["entry_from_container"]
    run = partial(entry.test_run, ifindex=socket.if_nametoindex(POD_ONE.device))
    wrong = replace(NODE, leads_to=lambda _: NO_FIB)
    fuzzer = Fuzzer(Contest(datapath, "from_container", run, Forwarding(wrong)), random.Random(SEED))
    for script in seeds("from_container"):
        fuzzer.add(script)

    assert fuzzer.found
    script, told = fuzzer.found[0]
    assert script[0].hex() in told
    assert f"reason {NO_FIB}" in told
