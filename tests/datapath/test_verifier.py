# SPDX-License-Identifier: Apache-2.0
"""
Every object under every combination of the options that change its code: it loads, and cheaply.

The verifier prunes what an option turns off, so each combination is a program of its own to it.
What it walked is written to build/out/verifier.json, a table to compare between versions.
"""

from __future__ import annotations

import itertools
import json
import platform
from pathlib import Path

import pytest

from ciliumd import abi
from ciliumd.bpf import Object, VerifierRejected
from ciliumd.bpf.object import embedded
from datapath.harness import SMALL

pytestmark = pytest.mark.datapath

OUT = Path(__file__).resolve().parents[2] / "build" / "out"
# Half of what the verifier of the oldest kernel allows.
LIMIT = 500_000

# Options that switch code on and off, with both their values ...
SWITCHES: dict[str, tuple[int, int]] = {
    "send_refusals": (0, 1),
    "masquerade": (0, 1),
    "loopback_ipv4": (0, 0xA9FE2A01),
    "pod_cidr_ipv4": (0, 0x0A000100),
    "native_cidr_ipv4": (0, 0x0A000000),
    "tunnel": (0, 1),
    "node_port": (0, 1),
    "host_legacy_routing": (0, 1),
}
# ... those that only add telling, which vary among themselves, and together with the others ...
TELLING = ("drop_events", "trace_events", "policy_verdict_events")
# ... and those that are numbers to calculate with.
NUMBERS = {
    *("ct_timeout_any", "ct_timeout_tcp", "ct_timeout_tcp_fin", "ct_timeout_tcp_syn", "report_interval"),
    *("cilium_host_ifindex", "cilium_host_mac", "router_ipv4"),
    *("native_cidr_mask", "pod_cidr_mask", "nat_port_max", "nat_port_min"),
    *("tunnel_port", "overlay_ifindex", "overlay_mtu"),
}


def _load(name: str, options: dict[str, int]) -> dict[str, int]:
    """Instructions walked per program; what the verifier refused is kept in build/out."""
    with Object.open(name) as source:
        for option, value in options.items():
            source.set_config(option, value)
        for map_name in source.map_names:
            if map_name in SMALL:
                source.set_max_entries(map_name, SMALL[map_name])
        try:
            source.load()
        except VerifierRejected as refused:
            OUT.mkdir(parents=True, exist_ok=True)
            (OUT / f"verifier-{name}.log").write_text(f"{options}\n{refused.log}\n")
            (OUT / f"verifier-{name}.bpf.o").write_bytes(embedded()[name].data)
            raise
        walked = {}
        for program_name in source.program_names:
            with source.program(program_name) as program:
                walked[program_name] = program.verified_insns
        return walked


def _combinations(name: str) -> list[dict[str, int]]:
    with Object.open(name) as source:
        switches = [option for option in source.config_names if option in SWITCHES]
        telling = [option for option in source.config_names if option in TELLING]
    values = itertools.product(*(SWITCHES[option] for option in switches))
    walks = [dict(zip(switches, chosen, strict=True)) for chosen in values]
    every = dict.fromkeys(telling, 1)
    quiet = dict.fromkeys(telling, 0)
    told = [
        dict(zip(telling, chosen, strict=True)) for chosen in itertools.product((0, 1), repeat=len(telling))
    ]
    most = {option: SWITCHES[option][1] for option in switches}
    return [walk | events for walk in walks for events in ((every, quiet) if telling else ({},))] + [
        most | events for events in told
    ]


def test_every_option_is_known_as_a_switch_or_as_a_number() -> None:
    """A new option must say which it is, or its other value is never verified."""
    assert set(abi.CONFIG) == NUMBERS | set(SWITCHES) | set(TELLING)


def test_every_object_loads_with_every_combination_of_switches_and_costs_little() -> None:
    """No program is near the verifier's limit, whatever is switched on."""
    table: dict[str, dict[str, int]] = {}
    combinations = 0
    for name in embedded():
        usual = _load(name, {})
        walks = [_load(name, options) for options in _combinations(name)]
        combinations += len(walks)
        for program, walked in usual.items():
            counts = [walk[program] for walk in walks]
            table[f"{name}/{program}"] = {"usual": walked, "least": min(counts), "most": max(counts)}

    OUT.mkdir(parents=True, exist_ok=True)
    report = {"kernel": platform.release(), "combinations": combinations, "verified_insns": table}
    (OUT / "verifier.json").write_text(json.dumps(report, indent=2) + "\n")

    assert combinations >= 64
    assert {program: row["most"] for program, row in table.items() if row["most"] > LIMIT} == {}
