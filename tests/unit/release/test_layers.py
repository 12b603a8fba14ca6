# SPDX-License-Identifier: Apache-2.0
"""The order in which layers are run, what runs beside others, and what is kept of a long run."""

import json
import subprocess
import sys
from typing import ClassVar

import pytest

import evidence
import layers

SHORT = layers.Form(is_long=False)


class Noted:
    """A layer's run that is only noted."""

    begun: ClassVar[list[tuple[str, bool]]] = []
    ended: ClassVar[list[str]] = []

    def __init__(self, layer, _form, *, beside=False):
        self.layer = layer
        self.begun.append((layer, beside))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ended.append(self.layer)

    def result(self):
        """One test passed."""
        return layers.Result(passed=1)


@pytest.fixture
def noted(monkeypatch):
    """No layer really runs."""
    monkeypatch.setattr(layers, "LayerRun", Noted)
    monkeypatch.setattr(Noted, "begun", [])
    monkeypatch.setattr(Noted, "ended", [])
    return Noted


def order(names):
    """Layers in the order in which their results come."""
    return [name for name, work in layers.runs(names, SHORT) if work().passed]


def test_every_directory_of_tests_is_a_layer_that_runs_by_default():
    """Nothing is run by name only."""
    directories = {path.parent for path in (layers.ROOT / "tests").glob("*/test_*.py")}
    found = {path.name for path in directories} | {"unit"}
    assert found <= set(layers.DEFAULT)


def test_guests_begin_beside_the_layers_that_wait(noted):
    """They are begun before the first of them, once, and awaited in their own turn."""
    assert order(["datapath", "netns", "faults", "kernels"]) == ["datapath", "netns", "faults", "kernels"]
    assert noted.begun == [("datapath", False), ("kernels", True), ("netns", False), ("faults", False)]


@pytest.mark.parametrize("names", [["kernels"], ["datapath", "kernels"], ["kernels", "netns"]])
def test_guests_run_alone_when_nothing_before_them_waits(noted, names):
    """Then the processors are theirs."""
    assert order(names) == names
    assert noted.begun == [(name, False) for name in names]


def test_guests_end_with_a_run_that_is_given_up(noted):
    """Nothing goes on behind the back of whoever ended the run."""
    iterator = layers.runs(["netns", "kernels"], SHORT)
    next(iterator)
    iterator.close()
    assert noted.ended == ["kernels"]


def test_one_kernel_has_evidence_of_its_own(tmp_path, monkeypatch):
    """So that kernels can be run one by one; the file says by which command."""
    form = layers.Form(is_long=True, kernel="5.10")
    assert form.words("kernels") == ["--long", "--kernel", "5.10"]
    assert "--kernel" not in form.words("faults")
    name, command = form.evidence("kernels")
    monkeypatch.setattr(evidence, "ROOT", layers.ROOT)
    monkeypatch.setattr(evidence, "DIRECTORY", tmp_path)
    path = evidence.write(
        name,
        evidence.Checkout("c0ffee", False),
        command=command,
        seconds=1,
        passed=1,
        failed=0,
        skipped=0,
        tests={},
    )
    assert path.name == "kernels-5.10.json"
    assert json.loads(path.read_text())["command"] == "build/dev test --long --kernel 5.10 kernels"
    assert layers.Form(is_long=True).evidence("faults") == ("faults", "build/dev test --long faults")


def test_a_run_that_fails_is_told_with_its_output(tmp_path, monkeypatch):
    """The real thing: pytest in a process, counted by its report."""
    directory = tmp_path / "tests" / "unit"
    directory.mkdir(parents=True)
    (directory / "test_one.py").write_text("def test_good(): pass\ndef test_bad(): assert 1 == 2\n")
    monkeypatch.setattr(layers, "ROOT", tmp_path)
    monkeypatch.setattr(layers, "LOGS", tmp_path)
    monkeypatch.setattr(layers, "PARALLEL", frozenset())
    monkeypatch.setattr(layers, "tool", lambda name: f"/usr/bin/{name}")
    with layers.LayerRun("unit", SHORT, beside=True) as run:
        result = run.result()
    assert (result.passed, result.failed) == (1, 1)
    assert result.seconds > 0
    assert any("assert 1 == 2" in note for note in result.notes)


def test_a_part_of_a_layer_is_kept_as_that():
    """The command is the one that measures this part again, and the other layers have no parts."""
    form = layers.Form(is_long=True, part="2/4")
    assert form.evidence("property") == ("property", "build/dev test --long --part 2/4 property")
    assert form.words("property")[-2:] == ["--part", "2/4"]
    assert "--part" not in form.words("chart")

    # Else its table would say for ever that it was not run.
    nothing, something = layers.Result(passed=1), layers.Result(passed=1, measured={"test": {}})
    assert form.keeps("e2e", nothing)
    whole = layers.Form(is_long=True)
    assert [whole.keeps("e2e", one) for one in (nothing, something)] == [False, True]
    assert not SHORT.keeps("e2e", something)
    assert not form.keeps("chart", something)


def test_parts_are_all_tests_and_none_twice():
    """A test that no part has would never be run; files of other layers are whole, for what they set up."""

    def tests(directory, *words):
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "--long", *words, directory]
        listed = subprocess.run(command, cwd=layers.ROOT, capture_output=True, text=True, check=True).stdout
        return [line for line in listed.splitlines() if "::" in line]

    parts = [tests("tests/property", "--part", part) for part in ("1/2", "2/2")]
    assert all(parts)
    assert sorted([*parts[0], *parts[1]]) == sorted(tests("tests/property"))

    files = [
        {name.partition("::")[0] for name in tests("tests/netns", "--part", part)} for part in ("1/2", "2/2")
    ]
    assert all(files)
    assert not files[0] & files[1]
