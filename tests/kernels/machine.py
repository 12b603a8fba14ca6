# SPDX-License-Identifier: Apache-2.0
"""
A guest: one kernel in qemu with this checkout in memory, and what it told before it was switched off.

Its first serial port is its console, the second one tells facts, a line of JSON each (guest/run.py).  KVM is
used where the processor has virtualization; elsewhere qemu emulates, and all is some ten times slower.
"""

import json
import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from lab.parts import Part
from lab.process import placed

QEMU: Final = "/usr/bin/qemu-system-x86_64"
KVM: Final = Path("/dev/kvm")
MEGABYTES: Final = 1536
# Nobody attacks a guest: what guards it would only cost time.  Whether its timer ticks is asked in real time,
# in which an emulated one may have had no processor: it panics then.  The rest of the line is for
# guest/run.py, and for the environment of the first program: whoever waits there waits longer.
COMMAND_LINE: Final = (
    "console=ttyS0 panic=-1 quiet mitigations=off init_on_alloc=0 random.trust_cpu=on no_timer_check "
    "PYTHONPATH=src:tests PYTHONDONTWRITEBYTECODE=1 CILIUMD_PATIENCE=10 CILIUMD_NEXT_IS_BUILT=1"
)
TAIL: Final = 40
# Emulated, "fast" string instructions go byte by byte, and a fifth level of page tables is one more to walk.
EMULATED: Final = "max,-erms,-fsrm,-la57"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one test in the guest; *text* is why it failed or was skipped."""

    outcome: str
    text: str
    seconds: float


@dataclass(slots=True)
class Told:
    """Everything a guest told."""

    console: Path
    kernel: str = ""
    features: dict[str, bool] = field(default_factory=dict)
    without: dict[str, str] = field(default_factory=dict)
    objects: list[str] = field(default_factory=list)
    verified_insns: dict[str, dict[str, int]] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    ended: bool = False
    # Of this machine: of all guests together, their time is what a run costs.
    processor_seconds: float = 0.0

    @classmethod
    def read(cls, facts: Path, console: Path) -> Self:
        """Read the lines of a guest; the last may be cut where it was ended."""
        told = cls(console)
        for line in facts.read_text(errors="replace").splitlines() if facts.exists() else ():
            try:
                told._take(json.loads(line))
            except json.JSONDecodeError:
                told.problems.append(f"not a line of facts: {line[:200]}")
        return told

    def _take(self, fact: Mapping[str, Any]) -> None:
        if "test" in fact:
            self.outcomes[fact["test"]] = Outcome(fact["outcome"], fact["text"], fact["seconds"])
        elif "problem" in fact:
            self.problems.append(fact["problem"])
        elif "kernel" in fact:
            self.kernel, self.features = fact["kernel"], fact["features"]
            self.without, self.objects = fact["without"], fact["objects"]
        elif "verified_insns" in fact:
            self.verified_insns = fact["verified_insns"]
        else:
            self.ended = fact["end"]

    def counts(self) -> dict[str, int]:
        """How many tests passed, failed and were skipped."""
        outcomes = [one.outcome for one in self.outcomes.values()]
        return {outcome: outcomes.count(outcome) for outcome in ("passed", "failed", "skipped")}

    def ending(self) -> str:
        """What it was about when it ended too early."""
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        return "\n".join([*self.problems, f"--- end of {self.console}", *text.splitlines()[-TAIL:]])


def accelerator() -> tuple[str, str]:
    """qemu's accelerator and processor here.  A /dev/kvm without virtualization emulates, and more slowly."""
    flags = Path("/proc/cpuinfo").read_text().split()
    if {"vmx", "svm"} & set(flags) and os.access(KVM, os.R_OK | os.W_OK):
        return "kvm", "host"
    return "tcg,tb-size=512", EMULATED


def boot(
    kernel: Path, root: Path, *, tests: Sequence[str], part: Part | None = None, output: Path, seconds: float
) -> Told:
    """Run a guest to its end, or until its time is over."""
    ordered = f"ciliumd.tests={','.join(tests)}" + (f" ciliumd.part={part}" if part else "")
    console, facts, errors = (
        output.with_name(f"{output.name}.{kind}") for kind in ("console", "facts", "qemu")
    )
    for path in (console, facts, errors):
        path.unlink(missing_ok=True)
    accel, cpu = accelerator()
    command = [
        *(QEMU, "-accel", accel, "-cpu", cpu, "-m", str(MEGABYTES)),
        *("-nodefaults", "-nographic", "-no-reboot"),
        *("-serial", f"file:{console}", "-serial", f"file:{facts}"),
        *("-kernel", kernel, "-initrd", root),
        *("-append", f"{COMMAND_LINE} {ordered}"),
    ]
    late = threading.Event()
    with errors.open("wb") as output_of_qemu:
        # It ends with the test run, also when that is killed.
        process = subprocess.Popen(placed(command), stdin=subprocess.DEVNULL, stderr=output_of_qemu)

    def end() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(seconds, end)
    timer.start()
    _, status, used = os.wait4(process.pid, 0)
    timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    told = Told.read(facts, console)
    told.processor_seconds = used.ru_utime + used.ru_stime
    if late.is_set():
        told.problems.append(f"{output.name} was not done after {seconds:g} s")
    elif process.returncode:
        told.problems.append(f"qemu ended with {process.returncode}: {errors.read_text(errors='replace')}")
    return told
