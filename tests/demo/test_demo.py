# SPDX-License-Identifier: Apache-2.0
"""Both demos, run by the command that users run, keep every promise they print."""

import importlib.util
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "examples" / "demo"
RUNS = {
    "standalone": (["--standalone"], DEMO / "check.py", 180),
    "cluster": ([], DEMO / "cluster" / "check.py", 900),
}
PLACES = [Path("/var/run/netns"), Path("/sys/fs/bpf")]


@dataclass(frozen=True)
class Shown:
    """What a demo printed, and its judge."""

    text: str
    judge: ModuleType


def _judge(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"check_{path.parent.name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=list(RUNS))
def shown(request: pytest.FixtureRequest) -> Shown:
    """What `build/dev demo` prints."""
    options, judge, seconds = RUNS[request.param]
    words = [ROOT / "build" / "dev", "demo", *options]
    done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Shown(done.stdout, _judge(judge))


def test_every_promise_is_shown(shown: Shown, record_property: Callable[[str, object], None]) -> None:
    """Landing, policy, the drop's name, status, services, and a kill under packets that loses none."""
    lines = (line.strip() for line in shown.text.splitlines() if "sent=" in line)
    record_property("figure", "\n".join(lines))

    assert shown.judge.broken(shown.text) == []


def test_the_judge_can_say_no(shown: Shown) -> None:
    """A demo that lost a packet, or whose drop had no name, would fail."""
    assert "no packet is lost: 7 were" in shown.judge.broken(shown.text.replace(" lost=0\n", " lost=7\n"))
    assert "the drop names the policy" in shown.judge.broken(shown.text.replace("rule1", "rule"))


def test_nothing_is_left_behind(shown: Shown) -> None:
    """No namespace, pin or cluster of the demo remains; others may have theirs."""
    # The nodes' network tells the cluster's number: 10.100.0.0/24 is number 0.
    numbers = set(re.findall(r"\b10\.1(\d\d)\.0\.11\b", shown.text))
    names = {"demo", *(f"ck{int(number)}-" for number in numbers)}
    paths = [path for place in PLACES if place.is_dir() for path in place.iterdir()]

    assert [path for path in paths if any(name in path.name for name in names)] == []
