# SPDX-License-Identifier: Apache-2.0
"""
Manifest files judged without an agent: what ``ciliumd policy validate`` does.

The same parser as the agent's decides; here a field path is turned into a line of the file.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

from ciliumd.resources import InvalidResource, UnknownKind, documents, parse

_STEP: Final = re.compile(r"\[(\d+)\]|\[?['\"]?([^.\[\]'\"]+)['\"]?\]?")


@dataclass(frozen=True, slots=True)
class Finding:
    """One verdict on one object; *message* is empty if it is valid."""

    file: str
    line: int
    what: str
    message: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}: {self.message or 'valid'}"


def judge(path: Path) -> Iterator[Finding]:
    """A finding for each object in *path*, or the one that keeps it from being read."""
    try:
        text = path.read_text(encoding="utf-8")
        nodes = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except OSError as error:
        yield Finding(str(path), 0, "file", error.strerror or str(error))
        return
    except UnicodeDecodeError as error:
        yield Finding(str(path), 0, "file", f"is not UTF-8: {error}")
        return
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        yield Finding(str(path), line, "YAML", error.problem or "malformed")
        return
    for node in nodes:
        yield from _judge_document(str(path), node)


def _judge_document(file: str, node: yaml.Node) -> Iterator[Finding]:
    try:
        loaded = yaml.SafeLoader("").construct_document(node)
    except yaml.MarkedYAMLError as error:
        yield Finding(file, _line(node), "YAML", error.problem or "malformed")
        return
    for document in documents(loaded):
        try:
            resource = parse(document)
        except InvalidResource as error:
            where = "/".join(part for part in (error.kind, error.namespace, error.name) if part) or "object"
            for field, message in error.problems:
                yield Finding(file, _line(locate(node, field)), where, f"{field} {message}".strip())
        except UnknownKind as error:
            yield Finding(file, _line(node), "object", str(error))
        else:
            yield Finding(file, _line(node), "/".join(part for part in resource.key if part))


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


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
