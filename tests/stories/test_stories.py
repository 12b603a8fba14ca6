# SPDX-License-Identifier: Apache-2.0
"""Objects in, tables and maps out, step by step, compared with what was written down."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ciliumd.desired.policy import cookies
from stories.replay import STORIES, Node
from stories.script import Lines, changes, map_lines, table_lines

pytestmark = pytest.mark.stories

HERE = Path(__file__).parent
HEADER = "# SPDX-License-Identifier: Apache-2.0\n\n"
SHOWN = (
    "namespaces",
    "pods",
    "services",
    "slices",
    "policies",
    "problems",
    "identities",
    "prefixes",
    "service_ids",
    "backend_ids",
)


def steps(story: Path) -> list[tuple[str, list[dict[str, Any]]]]:
    """The steps of a story, in order, each with its documents."""
    paths = sorted((story / "in").glob("*.yaml"))
    return [(path.stem, list(yaml.safe_load_all(path.read_text(encoding="utf-8")))) for path in paths]


def told(story: Path) -> dict[str, str]:
    """What a story's files should say: every step with what it changed."""
    node = Node()
    texts = dict.fromkeys(("tables.txt", "maps.txt"), HEADER)
    tables: Lines = {}
    maps: Lines = {}
    names: dict[int, tuple[str, ...]] = {}
    for step, documents in steps(story):
        for document in documents:
            node.apply(document)
        node.settle()
        names |= cookies(node.tables.policies.values())
        new_tables = table_lines({name: getattr(node.tables, name).view() for name in SHOWN})
        new_maps = map_lines(node.maps, cookies=names)
        texts["tables.txt"] += f"== {step}\n\n{changes(tables, new_tables)}"
        texts["maps.txt"] += f"== {step}\n\n{changes(maps, new_maps)}"
        tables, maps = new_tables, new_maps
    return {name: text.rstrip() + "\n" for name, text in texts.items()}


def test_story_goes_as_written(story: Path, *, update: bool) -> None:
    """Every row of every step is the one a reviewer agreed to."""
    found = told(story)
    for name, text in found.items():
        path = story / name
        if update:
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path} is not written yet: run with --update and review it"
        assert text == path.read_text(encoding="utf-8")


def test_documents_of_a_step_may_come_in_any_order(story: Path) -> None:
    """What is desired follows from what exists, not from who was heard of first."""
    for count in range(1, len(steps(story)) + 1):
        documents = [document for _, step in steps(story)[:count] for document in step]
        if any(document["kind"] == "Deleted" for document in documents) or _rewritten(documents):
            return
        expected = _maps_of(documents)
        assert _maps_of(documents[::-1]) == expected
        assert _maps_of(sorted(documents, key=str)) == expected


ONE_STEP = [path.parent for path in sorted(HERE.glob("*/in"))]


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(ONE_STEP), st.data())
def test_duplicates_and_resyncs_change_nothing(story: Path, data: st.DataObject) -> None:
    """Hearing of the same objects again, in any order, leaves every map as it was."""
    node = Node()
    for _, documents in steps(story):
        for document in documents:
            node.apply(document)
        node.settle()
        before = node.maps
        again = [document for document in documents if document["kind"] != "Deleted"]
        for document in data.draw(st.permutations(again)):
            node.apply(document)
            node.settle()
        assert node.maps == before


def _maps_of(documents: list[dict[str, Any]]) -> dict[str, dict[bytes, bytes]]:
    node = Node()
    for document in documents:
        node.apply(document)
    node.settle()
    return node.maps


def _rewritten(documents: list[dict[str, Any]]) -> bool:
    """Whether one object appears twice, so that the order of the documents is part of the story."""
    names = [
        (document["kind"], document["metadata"].get("namespace"), document["metadata"]["name"])
        for document in documents
        if document.get("apiVersion") != STORIES or document["kind"] == "Endpoint"
    ]
    return len(names) != len(set(names))
