# SPDX-License-Identifier: Apache-2.0
"""
Manifest files judged without an agent: what ``cilium policy validate`` does.

The same reader and parser as the agent's decide; here a field path is turned into a line of the file.
"""

import dataclasses
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from ciliumd.resources import InvalidResource, Parse, UnknownKind, parse
from ciliumd.sources.manifests import Loader, MalformedManifest, check_depth

STDIN: Final = Path("-")
STDIN_NAME: Final = "<stdin>"

_STEP: Final = re.compile(r"\[(\d+)\]|\[?['\"]?([^.\[\]'\"]+)['\"]?\]?")
_FIRST_LINE: Final = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """
    One verdict on one object: *problem* with its *field*, which may be the whole object, or empty if valid.

    *document* is the valid object as it was read.
    """

    file: str
    line: int
    what: str
    field: str = ""
    problem: str = ""
    document: Any = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def message(self) -> str:
        """What is wrong, in words that begin with the field; empty if nothing is."""
        return f"{self.field} {self.problem}".strip()

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}: {self.message or 'valid'}"


def judge(path: Path, *, parse: Parse = parse) -> Iterator[Finding]:
    """A finding for each object in *path* (``-`` is stdin), or the one that keeps it from being read."""
    file = STDIN_NAME if path == STDIN else str(path)
    try:
        text = sys.stdin.buffer.read().decode() if path == STDIN else path.read_text(encoding="utf-8")
    except OSError as error:
        yield Finding(file, 0, "file", problem=error.strerror or str(error))
        return
    except UnicodeDecodeError as error:
        yield Finding(file, 0, "file", problem=f"is not UTF-8: {error}")
        return
    yield from _judge_json(file, text, parse) if file.endswith(".json") else _judge_yaml(file, text, parse)


def _judge_json(file: str, text: str, parse: Parse) -> Iterator[Finding]:
    """Of JSON no more is known than what is in it: everything is told of the first line."""
    try:
        loaded = json.loads(text)
    except json.JSONDecodeError as error:
        yield Finding(file, error.lineno, "JSON", problem=error.msg)
        return
    except RecursionError:
        yield Finding(file, _FIRST_LINE, "JSON", problem="is nested too deeply")
        return
    yield from _judge_document(file, None, loaded, parse)


def _judge_yaml(file: str, text: str, parse: Parse) -> Iterator[Finding]:
    try:
        check_depth(file, text)
        loader = Loader(text)
        try:
            while loader.check_node() and (node := loader.get_node()) is not None:
                yield from _judge_document(file, node, loader.construct_document(node), parse)
        finally:
            loader.dispose()
    except MalformedManifest as error:
        line = int(error.place.rpartition(":")[2])
        yield Finding(file, line, "YAML", problem=error.message)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # What is missing at the end is missed by libyaml on the line behind it.
        line = min(mark.line, text.count("\n")) + 1 if mark else 0
        yield Finding(file, line, "YAML", problem=error.problem or error.context or "malformed")
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        yield Finding(file, line, "YAML", problem=f"has a character YAML does not allow ({error.reason})")


def _judge_document(file: str, node: yaml.Node | None, loaded: Any, parse: Parse) -> Iterator[Finding]:
    """Every object of one document: those of a List, nothing for an empty one, else itself."""
    if loaded is None:
        return
    if not (isinstance(loaded, dict) and loaded.get("kind") == "List"):
        yield from _judge_object(file, node, loaded, parse)
        return
    items = loaded.get("items") or []
    below = None if node is None else _child(node, None, "items")
    if not isinstance(items, list):
        yield Finding(file, _line(below or node), "List", "items", "must be a list")
        return
    for i, item in enumerate(items):
        place = None if below is None else _child(below, str(i), None)
        yield from _judge_document(file, place, item, parse)


def _judge_object(file: str, node: yaml.Node | None, document: Any, parse: Parse) -> Iterator[Finding]:
    try:
        resource = parse(document)
    except InvalidResource as error:
        where = "/".join(part for part in (error.kind, error.namespace, error.name) if part) or "object"
        for path, problem in error.problems:
            place = None if node is None else locate(node, path)
            yield Finding(file, _line(place), where, path, problem)
    except UnknownKind as error:
        yield Finding(file, _line(node), "object", problem=str(error))
    else:
        yield Finding(file, _line(node), "/".join(part for part in resource.key if part), document=document)


def locate(node: yaml.Node, field: str) -> yaml.Node:
    """The node at *field* (``spec.ingress[0].toPorts``), or the nearest one around it."""
    for match in _STEP.finditer(field):
        below = _child(node, match.group(1), match.group(2))
        if below is None:
            break
        node = below
    return node


def _child(node: yaml.Node, index: str | None, name: str | None) -> yaml.Node | None:
    if index is not None and isinstance(node, yaml.SequenceNode):
        return node.value[int(index)] if int(index) < len(node.value) else None
    if name is not None and isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == name), None)
    return None


def _line(node: yaml.Node | None) -> int:
    return _FIRST_LINE if node is None else int(node.start_mark.line) + 1
