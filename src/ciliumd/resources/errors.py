# SPDX-License-Identifier: Apache-2.0
"""
What can be wrong with a document, told in the words of whoever wrote it.

Field paths are those of the YAML (``spec.ingress[0].toPorts[0].ports[0].port``); messages say what is
wrong and what would be right.  Nothing here decides what is valid.
"""

import re
from collections.abc import Iterable
from itertools import islice

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

# Characters of a field and of a message that are kept, and problems of one object.
_LONGEST = 500
_MOST = 16
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
NOT_ENFORCED = "not_enforced"
_TYPES = {
    "string_type": "a string",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


class ResourceError(Exception):
    """A document that gives no rows."""


class UnknownKind(ResourceError):
    """A well-formed object of a kind ciliumd does not read."""

    def __init__(self, api_version: str, kind: str) -> None:
        self.api_version, self.kind = _cut(api_version), _cut(kind)
        super().__init__(f"{self.api_version} {self.kind} is not a kind this agent reads")


class InvalidResource(ResourceError):
    """
    An object that must not come into force as written.

    *field* and *message* name the first problem, *problems* the first few of them as (field, message).
    What is told of an object is kept, logged and written into its status, so it is short whatever the object
    is.
    """

    def __init__(self, kind: str, namespace: str, name: str, problems: Iterable[tuple[str, str]]) -> None:
        self.kind = kind = _cut(kind)
        self.namespace = namespace = _cut(namespace)
        self.name = name = _cut(name)
        self.problems = tuple((_cut(field), _cut(message)) for field, message in islice(problems, _MOST))
        self.field, self.message = self.problems[0]
        where = f"{namespace}/{name}" if namespace else name
        super().__init__(f"{_cut(f'{kind} {where}')}: {self.field} {self.message}")

    @property
    def key(self) -> tuple[str, str, str]:
        """Key of its row in the problems table: (kind, namespace, name)."""
        return (self.kind, self.namespace, self.name)


class FieldError(ValueError):
    """One field of an otherwise well-formed document that contradicts another part of it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")
        self.field = field
        self.message = message


def _cut(text: str) -> str:
    """*text*, short, and such that it can be logged and shown: half a character of UTF-16 cannot."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 3]}..."
    return text.encode(errors="backslashreplace").decode()


def not_enforced(needs: str) -> PydanticCustomError:
    """The error of a valid field that would silently have no effect; *needs* says what it takes."""
    return PydanticCustomError(
        NOT_ENFORCED, "is not enforced by this version: it needs {needs}", {"needs": needs}
    )


def not_enabled(option: str, value: str) -> PydanticCustomError:
    """The error of a field that takes *option* of agent and operator, which is *value* of the chart."""
    return PydanticCustomError(
        NOT_ENFORCED,
        "is not enforced without {option}: true in the ConfigMap cilium-config (value {value} of the chart)",
        {"option": option, "value": value},
    )


def field_path(location: Iterable[int | str]) -> str:
    """The location of an error as written in YAML, e.g. ``spec.ports[0].port``."""
    path = ""
    for part in location:
        if part == "[key]":
            continue
        if isinstance(part, int):
            path += f"[{part}]"
        elif _PLAIN_KEY.fullmatch(part):
            path += f".{part}" if path else part
        else:
            path += f'["{part}"]'
    return path


def validation_problems(error: ValidationError) -> list[tuple[str, str]]:
    """Every problem of *error* as (field, message); fields that are not enforced come first."""
    details = sorted(error.errors(include_url=False), key=lambda detail: detail["type"] != NOT_ENFORCED)
    return [(field_path(detail["loc"]), _message(detail)) for detail in details]


def _message(detail: ErrorDetails) -> str:
    kind = detail["type"]
    given = detail["input"]
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return "is not a known field"
    if kind in _TYPES:
        message = f"must be {_TYPES[kind]}, not {_shown(given)}"
        quotable = kind == "string_type" and isinstance(given, int | float)
        return f"{message}; put it in quotes" if quotable else message
    if kind == "literal_error":
        return f"must be {detail['ctx']['expected']}, not {_shown(given)}"
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    message = detail["msg"]
    return message[:1].lower() + message[1:]


def _shown(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
