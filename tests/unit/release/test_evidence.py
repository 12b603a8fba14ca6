# SPDX-License-Identifier: Apache-2.0
"""What tests and benchmarks recorded becomes rows; what is missing, failed or of no commit is told."""

import json
import re
import tomllib
import xml.etree.ElementTree as ET

import pytest

import evidence
import evidence_tables
import results
from evidence_tables import CASES, main, read

COMMIT = "0123456789abcdef"
ABOUT = {"commit": COMMIT, "uncommitted_changes": False, "date": "2026-11-28T18:20:43Z"}
LAYER = {**ABOUT, "failed": 0}


def keep(directory, name, *recorded, **more):
    """A layer's file: a test for each thing recorded."""
    tests = {f"tests/{name}/test_x.py::test_{at}": {"data": data} for at, data in enumerate(recorded)}
    (directory / f"{name}.json").write_text(json.dumps(LAYER | {"tests": tests} | more))


def fault(name, **more):
    """What a fault is reported with."""
    return {"fault": name, "injected": 10, "survived": 10, "lost": 0, "wrongly_allowed": 0, **more}


def whole(directory):
    """Everything the bullet `upgrade` asks for."""
    first = fault("F3-upgrade", packets=5, reason=133, more={"flows": {}, "rows": 7}, kind="a", seconds=1.5)
    keep(directory, "netns", first, [fault("F3", kind="b", seconds=2.5, rows=1), {"case": "F3", "kind": "b"}])


def test_tests_of_a_case_are_one_row(tmp_path, capsys):
    """Counts add up; objects within are left out."""
    whole(tmp_path)

    assert main(["upgrade"], tmp_path) == 0
    head, row = capsys.readouterr().out.splitlines()[1:3]
    assert re.split(r"  +", head) == [
        *("case", "injected", "survived", "lost", "wrongly allowed", "result", "commit", "date", "figures")
    ]
    assert re.split(r"  +", row) == [
        *(
            "F3",
            "20",
            "20",
            "0",
            "0",
            "passed",
            "012345678",
            "2026-11-28",
            "2 tests, packets 5, rows 8, seconds 2.5",
        )
    ]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda path: (path / "netns.json").unlink(), "no evidence at all"),
        (lambda path: keep(path, "netns", fault("F4")), "no evidence at all; cases: F3"),
        (lambda path: keep(path, "netns", fault("F3"), uncommitted_changes=True), "uncommitted changes"),
        (lambda path: keep(path, "netns", fault("F3"), failed=2), "2 tests of netns failed"),
        (
            lambda path: keep(path, "netns", tests={"a::b": {"data": fault("F3"), "failed": True}}),
            "F3 did not pass: a::b",
        ),
    ],
)
def test_what_is_missing_is_told(tmp_path, capsys, spoil, told):
    """And ends with 1."""
    whole(tmp_path)
    spoil(tmp_path)

    assert main(["upgrade"], tmp_path) == 1
    assert told in capsys.readouterr().out


def test_one_case_without_a_row_is_named(tmp_path, capsys):
    """Beside those that have one; nothing is said of cases this version has nothing for but why."""
    cases = tomllib.loads(CASES.read_text())["faults"]
    keep(tmp_path, "faults", *(fault(case) for case in cases if case != "F6"))

    assert main(["faults"], tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "MISSING" in line] == [f"  MISSING: F6 has no evidence: {cases['F6']}"]
    assert "  not in this version: F18, no cluster mesh" in lines


def test_on_other_kernels_a_case_is_the_kernel(tmp_path, capsys):
    """Whatever the suite calls it."""
    names = tomllib.loads(CASES.read_text())["kernels"]
    told = {f"a::test_guest[{name}]": {"data": {"kernel": f"{name}.0-cloud", "passed": 3}} for name in names}
    keep(tmp_path, "kernels", tests=told)

    assert main(["kernels"], tmp_path) == 0
    keep(tmp_path, "kernels", *({"case": "S9", "kernel": name, "tests": 3} for name in names))
    assert "kernel 6.1.0-cloud, passed 3" in capsys.readouterr().out
    assert main(["kernels"], tmp_path) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 1 + len(names) + 2


def test_parts_are_kept_by_part_and_all_are_asked_for(tmp_path, monkeypatch, capsys):
    """Each of its own commit; those of another division are of no use any more."""
    monkeypatch.setattr(evidence, "DIRECTORY", tmp_path)
    counts = {"seconds": 1.0, "passed": 3, "failed": 0, "skipped": 0}

    def run(part, commit):
        tests = {"a::test_guest[5.10]": {"data": {"kernel": "5.10.0", "passed": 3}}}
        command = f"build/dev test --part {part} kernels"
        evidence.write(
            "kernels-5.10",
            evidence.Checkout(commit, False),
            command=command,
            tests=tests,
            part=part,
            **counts,
        )

    def told():
        main(["kernels"], tmp_path)
        return [line for line in capsys.readouterr().out.splitlines() if "5.10" in line or "--part" in line]

    run("1/3", "a" * 40)
    run("2/2", "b" * 40)
    row, missing = told()
    assert re.split(r"  +", row) == ["5.10", "passed", "b" * 9, row.split()[3], "kernel 5.10.0, passed 3"]
    assert missing == "  MISSING: build/dev test --part 1/2 kernels was not run"
    run("1/2", "c" * 40)
    assert [re.split(r"  +", row)[2:5:2] for row in told()] == [
        [f"{'b' * 9} {'c' * 9}", "kernel 5.10.0, passed 6"]
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["kernels-5.10.json"]
    run("2/2", "d" * 40)
    assert [re.split(r"  +", row)[2] for row in told()] == [f"{'c' * 9} {'d' * 9}"]


def test_parts_are_beside_the_run_before_until_all_are_there(tmp_path, monkeypatch):
    """A case that they tell is not counted twice; of others what was measured before still holds."""
    monkeypatch.setattr(evidence, "DIRECTORY", tmp_path)
    counts = {"seconds": 1.0, "passed": 3, "failed": 0, "skipped": 0}

    def run(commit, part, **tests):
        told = {f"a::{case}": {"data": {"case": case, "tests": tests[case]}} for case in tests}
        word = f" --part {part}" if part else ""
        command = f"build/dev test --long{word} e2e"
        of = evidence.Checkout(commit * 40, False)
        evidence.write("e2e", of, command=command, tests=told, part=part, **counts)
        return sorted(path.name for path in tmp_path.iterdir())

    def told():
        rows, problems = read(tmp_path)
        assert problems == []
        return {case: (row.figures["tests"], row.commits, row.broken) for case, (row,) in rows.items()}

    assert run("a", None, S1=4, S2=5) == ["e2e.json"]
    assert run("b", "1/2", S1=7) == ["e2e-parts.json", "e2e.json"]
    lacks = {"build/dev test --long --part 2/2 e2e was not run"}
    assert told() == {"S1": (7, {"b" * 9}, lacks), "S2": (5, {"a" * 9}, set())}
    assert run("c", "2/2", S2=9) == ["e2e.json"]
    assert told() == {"S1": (7, {"b" * 9}, set()), "S2": (9, {"c" * 9}, set())}
    assert run("d", "1/3", S1=1) == ["e2e-parts.json", "e2e.json"]
    assert {case: figures for case, (figures, *_) in told().items()} == {"S1": 1, "S2": 9}
    assert run("e", None, S1=2) == ["e2e.json"]
    assert told() == {"S1": (2, {"e" * 9}, set())}


def section(**more):
    """What a benchmark measured."""
    figure = {"name": "ADD", "value": 78.4, "unit": "ms", "goal": "<= 60", "met": False}
    return {"title": "P10  CNI", "problem": "", "figures": [figure], "data": {"samples": [1]}, **more}


def test_benchmarks_are_kept_by_section(tmp_path, monkeypatch, capsys):
    """Without samples; what is measured later leaves the others; a missed goal is told; no quick run."""
    monkeypatch.setattr(evidence, "DIRECTORY", tmp_path / "evidence")
    monkeypatch.setattr(evidence, "_git", lambda *words: f"{words[-1]}-in-full")
    report = tmp_path / "cni.json"
    about = {"effort": "full", "commit": "abc", "uncommitted": 0, "date": "2026-11-28T00:00:00+00:00"}
    for effort, name in (("full", "one"), ("full", "two"), ("quick", "three")):
        report.write_text(json.dumps({"machine": about | {"effort": effort}, "sections": {name: section()}}))
        evidence.write_bench(report)
    kept = json.loads((tmp_path / "evidence" / "bench-cni.json").read_text())["sections"]
    rows, problems = evidence_tables.read(tmp_path / "evidence")

    assert list(kept) == ["one", "two"]
    assert kept["one"]["commit"] == "abc-in-full"
    assert "data" not in kept["one"]
    assert ([row.verdict for row in rows["P10"]], problems) == (["missed 1", "missed 1"], [])
    main(["bench"], tmp_path / "evidence")
    assert "goal missed: P10 ADD" in capsys.readouterr().out


def test_a_benchmark_may_name_the_case_of_each_figure(tmp_path, capsys):
    """What could not be measured did not pass, and is told where there is no figure of it."""
    met = section()["figures"][0] | {"case": "P1", "name": "Gbit/s", "value": 1.0, "unit": "", "goal": ">= 1"}
    figures = [met | {"met": True}, met | {"case": "P2", "met": None, "goal": ""}]
    cut = section()["figures"][0] | {"case": "P7"}
    sections = {
        "core": ABOUT | section(figures=figures),
        "one": ABOUT | section(figures=[cut], problem="cut short"),
        "start": ABOUT | section(figures=[], problem="no time"),
    }
    (tmp_path / "bench-core.json").write_text(json.dumps({"sections": sections}))
    rows, problems = evidence_tables.read(tmp_path)

    assert {case: [one.verdict for one in found] for case, found in rows.items()} == {
        "P1": ["passed"],
        "P2": ["passed"],
        "P7": ["FAILED"],
    }
    assert problems == ["start: no time"]
    assert main(["bench"], tmp_path) == 1
    assert "[core], Gbit/s 1 (>= 1)" in capsys.readouterr().out


def test_layers_keep_what_failed_too():
    """With what it had recorded, all of it."""
    text = """<testsuite><testcase file="a.py" name="test_b"><properties>
      <property name="data" value='{"case": "F1"}'/><property name="data" value='[{"case": "F2"}]'/>
      </properties><failure message="no"/></testcase></testsuite>"""
    result = results.Result()
    results.count(ET.fromstring(text), result)  # noqa: S314  # written here

    assert result.failed == 1
    assert result.measured == {"a.py::test_b": {"data": [{"case": "F1"}, {"case": "F2"}], "failed": True}}
