# SPDX-License-Identifier: Apache-2.0
"""
The part of kubectl's JSONPath that scripts around Cilium use.

A template is text with expressions in braces.  An expression is ``.name``, ``['name']``, ``[n]``, ``[*]``,
``.*`` in any order behind an optional ``$``, or a quoted string.  A missing key gives nothing, as in
Cilium; filters, ranges and unions are refused.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

_TEMPLATE: Final = re.compile(r"\{((?:'[^']*'|\"(?:\\.|[^\"\\])*\"|[^{}'\"])*)\}")
_STEP: Final = re.compile(
    r"""\.(?P<star>\*)
      | \.(?P<name>(?:\\.|[^.\[\]\\\s])+)
      | \[\s*'(?P<quoted>[^']*)'\s*\]
      | \[\s*"(?P<dquoted>[^"]*)"\s*\]
      | \[\s*(?P<index>-?\d+)\s*\]
      | \[\s*(?P<all>\*)\s*\]""",
    re.VERBOSE,
)


class JSONPathError(ValueError):
    """The template is not understood."""


def render(template: str, document: Any) -> str:
    """*template* with every expression replaced by what it finds in *document*, joined by spaces."""
    out: list[str] = []
    position = 0
    for match in _TEMPLATE.finditer(template):
        out.extend(
            (_plain(template[position : match.start()]), _expression(match.group(1).strip(), document))
        )
        position = match.end()
    out.append(_plain(template[position:]))
    return "".join(out)


def find(path: str, document: Any) -> list[Any]:
    """Every value at *path* (without braces) in *document*, in document order."""
    found = [document]
    for key in _steps(path):
        found = [value for node in found for value in _children(node, key)]
    return found


def _plain(text: str) -> str:
    if "{" in text or "}" in text:
        raise JSONPathError(f"unbalanced braces near {text!r}")
    return text


def _expression(expression: str, document: Any) -> str:
    if expression[:1] == '"':
        return str(json.loads(expression))
    if expression[:1] == "'":
        return expression[1:-1]
    return " ".join(_text(value) for value in find(expression, document))


def _steps(path: str) -> Iterator[str | int | None]:
    """Each step: a name, an index, or None for every child."""
    rest = path.removeprefix("$").removeprefix("@")
    if rest == ".":
        return
    if rest and rest[0] not in ".[":
        rest = f".{rest}"
    position = 0
    while position < len(rest):
        match = _STEP.match(rest, position)
        if match is None:
            raise JSONPathError(f"cannot read {rest[position:]!r} in JSONPath {path!r}")
        if match["star"] or match["all"]:
            yield None
        elif match["index"] is not None:
            yield int(match["index"])
        elif match["name"] is not None:
            yield re.sub(r"\\(.)", r"\1", match["name"])
        else:
            yield match["quoted"] if match["quoted"] is not None else match["dquoted"]
        position = match.end()


def _children(node: Any, key: str | int | None) -> list[Any]:
    match node, key:
        case (dict(), None):
            return list(node.values())
        case (list(), None):
            return node
        case (dict(), str()):
            return [node[key]] if key in node else []
        case (list(), int()):
            return [node[key]] if -len(node) <= key < len(node) else []
        case _:
            return []


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value)
