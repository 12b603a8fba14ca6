# SPDX-License-Identifier: Apache-2.0
"""
What a story writes down: rows of tables and maps as lines a reviewer can read.

Each step shows only what it changed: ``+`` a new row, ``-`` one that is gone.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from ciliumd.flows.maprows import decode_row
from ciliumd.model.labels import Label

Lines = dict[str, list[str]]


def table_lines(tables: Mapping[str, Mapping[Any, Any]]) -> Lines:
    """Rows of every table, sorted."""
    return {
        name: sorted(f"{plain(key)}: {plain(row)}" for key, row in rows.items())
        for name, rows in tables.items()
    }


def map_lines(maps: Mapping[str, Mapping[bytes, bytes]], *, cookies: Mapping[int, Iterable[str]]) -> Lines:
    """Rows of every map, decoded, in the order of their keys; cookies by the rule they stand for."""
    return {
        name: [_row(decode_row(name, key, rows[key]), cookies) for key in sorted(rows, key=_by_words)]
        for name, rows in maps.items()
    }


def changes(before: Lines, after: Lines) -> str:
    """What changed between two steps, by table or map."""
    text = ""
    for name, lines in after.items():
        old = before.get(name, [])
        changed = [f"- {line}" for line in old if line not in lines]
        changed += [f"+ {line}" for line in lines if line not in old]
        if changed:
            text += "\n".join([name, *changed]) + "\n\n"
    return text or "(nothing changed)\n\n"


def plain(value: object) -> str:
    """*value* on one line; what is empty or as ever is left out of rows."""
    match value:
        case Enum():
            text = str(value.value) if isinstance(value.value, str) else value.name
        case Label():
            text = str(value)
        case Mapping():
            text = _mapping(value.items())
        case frozenset():
            text = "{" + ", ".join(sorted(plain(item) for item in value)) + "}"
        case tuple():
            text = "[" + ", ".join(plain(item) for item in value) + "]"
        case _ if is_dataclass(value):
            shown = ((field, getattr(value, field.name)) for field in fields(value) if field.init)
            text = _mapping(
                (field.name, item) for field, item in shown if item not in (None, (), {}, field.default)
            )
        case _:
            text = str(value)
    return text


def _mapping(items: Iterable[tuple[object, object]]) -> str:
    return "{" + ", ".join(f"{name}: {plain(item)}" for name, item in items) + "}"


def _row(row: Mapping[str, Any], cookies: Mapping[int, Iterable[str]]) -> str:
    return f"{_fields(row['key'], cookies)} -> {_fields(row['value'], cookies)}"


def _fields(value: Any, cookies: Mapping[int, Iterable[str]]) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    shown = dict(value)
    if shown.get("rule_cookie") in cookies:
        shown["rule_cookie"] = "+".join(cookies[shown["rule_cookie"]])
    return " ".join(f"{name}={plain(item)}" for name, item in shown.items())


def _by_words(key: bytes) -> tuple[int, ...]:
    return tuple(int.from_bytes(key[i : i + 4], "little") for i in range(0, len(key), 4))
