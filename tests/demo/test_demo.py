# SPDX-License-Identifier: Apache-2.0
"""The demo, run by the command that users run, keeps every promise it prints."""

import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120


def _judge() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check", ROOT / "examples" / "demo" / "check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shown() -> str:
    """What `build/dev demo` prints."""
    done = subprocess.run(
        [ROOT / "build" / "dev", "demo"], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_promise_is_shown(shown: str, record_property: Callable[[str, object], None]) -> None:
    """Landing, policy, the drop's name, status, services, and a kill under packets that loses none."""
    record_property("figure", "\n".join(line.strip() for line in shown.splitlines() if "sent=" in line))

    assert _judge().broken(shown) == []


def test_the_judge_can_say_no(shown: str) -> None:
    """A demo that lost a packet, or whose drop had no name, would fail."""
    judge = _judge()
    assert "no packet is lost: 7 were" in judge.broken(shown.replace(" lost=0\n", " lost=7\n"))
    assert "the drop names the policy" in judge.broken(shown.replace("rule1", "rule"))


def test_nothing_is_left_behind(shown: str) -> None:
    """No namespace, pin or control group of the demo remains."""
    assert shown
    places = [Path("/var/run/netns"), Path("/sys/fs/bpf")]
    left = [path for place in places if place.is_dir() for path in place.iterdir() if "demo" in path.name]

    assert left == []
