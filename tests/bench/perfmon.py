# SPDX-License-Identifier: Apache-2.0
"""
What CAP_PERFMON is worth: programs loaded with and without it, and what packets cost then.

    PYTHONPATH=src:tests build/out/venv/bin/python -m bench.perfmon [--objects DIRECTORY] [--without]

    PYTHONPATH=src:tests build/out/venv/bin/python -m bench.perfmon [--objects DIR] [--without]
into the others.  Objects as they are built do not all load then: the first line says which are refused.
"""

import argparse
import ctypes
import json
import socket
import struct
import tempfile
from pathlib import Path

from bench import walks
from bench.core import private_node
from ciliumd.bpf import object as objects
from ciliumd.bpf.errors import VerifierRejected
from ciliumd.bpf.object import Embedded, Object
from ciliumd.bpf.program import TestRun
from datapath.harness import HOOKS, Datapath

DAC_OVERRIDE, NET_ADMIN, PERFMON, BPF = 1, 12, 38, 39
CAPGET, CAPSET, VERSION = 125, 126, 0x20080522
WORDS = struct.Struct("=6I")


class Walker(walks.Walker):
    """Sends the packets of all paths without counting instructions."""

    def send(
        self, hook: str, device: int, packet: bytes, *, mark: int = 0, name: str = "", steady: bool = False
    ) -> TestRun:
        """One packet; *steady* ones are timed later."""
        program = self.datapath.generation.entries[HOOKS[hook]]
        if steady:
            self.steps.append(walks.Step(name, program, packet, device, mark, None, steady))
        return program.test_run(packet, ifindex=device, mark=mark)


def effective(*capabilities: int) -> None:
    """Give up all other capabilities of this thread, for as long as it wants; none: have all again."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = struct.pack("=Ii", VERSION, 0), ctypes.create_string_buffer(WORDS.size)
    libc.syscall(CAPGET, header, data)
    words = list(WORDS.unpack(data.raw))
    mask = sum(1 << one for one in capabilities)
    words[0], words[3] = (mask & 0xFFFFFFFF, mask >> 32) if capabilities else (words[1], words[4])
    if libc.syscall(CAPSET, header, WORDS.pack(*words)):
        raise OSError(ctypes.get_errno(), "capset")


def refused() -> dict[str, str]:
    """What the verifier says against programs, each loaded alone."""
    found = {}
    for source in objects.embedded().values():
        with Object(source) as probe:
            names = probe.program_names
        for name in names:
            with Object(source) as one:
                for other in names:
                    one.set_autoload(other, other == name)
                try:
                    one.load()
                except VerifierRejected as error:
                    found[name] = str(error).rpartition("the verifier said: ")[2]
    return found


def main() -> int:
    """Load, count, time."""
    parser = argparse.ArgumentParser(prog="bench.perfmon")
    parser.add_argument("--objects", type=Path, metavar="DIR", help="a directory of other *.bpf.o")
    parser.add_argument("--without", action="store_true", help="without CAP_PERFMON")
    options = parser.parse_args()
    if options.objects:
        made = {path.name.partition(".")[0]: path.read_bytes() for path in options.objects.glob("*.bpf.o")}
        found = {name: Embedded(name, data, "") for name, data in made.items()}
        objects.embedded = lambda: found  # type: ignore[assignment]
        objects.verify = lambda *_, **__: None
    held = (DAC_OVERRIDE, NET_ADMIN, BPF, *(() if options.without else (PERFMON,)))
    with private_node(), tempfile.TemporaryDirectory() as scratch:
        native, from_host = socket.if_nametoindex("net0"), socket.if_nametoindex("cilium_net")
        effective(*held)
        try:
            if problems := refused():
                print(json.dumps({"refused": problems}, indent=1))
                return 1
            with Datapath.loaded(Path(scratch)) as datapath:
                programs = (datapath.generation.entries | datapath.generation.programs).values()
                infos = [program.info for program in programs]
                walks.prepare(datapath)
                walk = Walker(datapath, None)
                walks.pod_to_pod(walk)
                walks.pod_to_service(walk)
                walks.pod_to_world(walk, native)
                walks.host_and_pod(walk, from_host)
                floor = walks.take_times(walk.steps)
        finally:
            effective()
    said = {
        "verified": sum(info.verified_insns for info in infos),
        "translated": sum(info.xlated_len // 8 for info in infos),
        "ns": {step.name: round(min(step.medians) - floor) for step in walk.steps},
    }
    print(json.dumps(said, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
