# SPDX-License-Identifier: Apache-2.0
"""Every row of the threat model names tests that exist, and every section has rows or says why not."""

import ast
import json
import re

from unit.docs.pages import ROOT

PAGE = (ROOT / "docs" / "threat-model.md").read_text()
ROW = re.compile(r"^\| (?!wants|---)(.+) \|$", re.MULTILINE)
TEST = re.compile(r"`([\w/]+\.py)::(test_\w+)`")
ATTACKERS = 8


def functions(path):
    """Names of a file's tests."""
    tree = ast.parse((ROOT / "tests" / path).read_text())
    return {one.name for one in ast.walk(tree) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_no_row_is_without_a_test(record_property):
    """And no test is without its function."""
    rows = ROW.findall(PAGE)

    bare = [row for row in rows if not TEST.search(row)]
    counts = {"rows": len(rows), "tests named": len(TEST.findall(PAGE)), "rows without": len(bare)}
    record_property("data", json.dumps({"case": "S10", **counts}))
    assert len(rows) > 25
    assert bare == []
    for path, name in TEST.findall(PAGE):
        assert name in functions(path), f"{path} has no {name}"


def test_every_attacker_has_a_section():
    """Eight, and what is left open after them."""
    sections = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]

    assert sections[-1].startswith("Not defended")
    assert len(sections) == ATTACKERS + 1
    assert [section for section in sections[:-1] if not TEST.search(section)] == []
