# SPDX-License-Identifier: Apache-2.0
"""
From a pydantic model to a structural OpenAPI v3 schema, as CustomResourceDefinitions need it.

Structural (apiextensions.k8s.io/v1): every node has a type unless it says that it is int-or-string or
that unknown fields are kept; there are no references.  What a model ignores is kept by the API server,
since it is somebody else's; what a model forbids is pruned, and refused by clients that validate
strictly.  A field that is valid but not enforced is kept as written, so that the object can be refused
by name instead of becoming another one.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

from pydantic import BaseModel

Schema = dict[str, Any]

ANYTHING: Final[Schema] = {"x-kubernetes-preserve-unknown-fields": True}
INT_OR_STRING: Final[Schema] = {"x-kubernetes-int-or-string": True}
_CARRIED: Final = (
    "description",
    "enum",
    "format",
    "maximum",
    "maxItems",
    "maxLength",
    "minimum",
    "minItems",
    "minLength",
    "pattern",
)
_BOUNDS: Final = (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum"))
_DEFINITION: Final = "#/$defs/"


class NoSuchField(ValueError):
    """A hint names a field that no model has."""


def structural(model: type[BaseModel], hints: Mapping[str, Schema] | None = None) -> Schema:
    """
    The schema of *model*.

    *hints* replace what is generated for single fields, by "Model.field" with the field's name in YAML
    (``*.field``: in whichever model), and parts of what is generated for a model, by "Model": for checks
    that the API server can do and a type cannot express.  Raises :class:`NoSuchField` for a hint that is
    about nothing.
    """
    return _Converter(model, hints or {}).root()


class _Converter:
    def __init__(self, model: type[BaseModel], hints: Mapping[str, Schema]) -> None:
        self._document = model.model_json_schema()
        self._definitions: Mapping[str, Schema] = self._document.get("$defs", {})
        self._hints = hints
        self._used: set[str] = set()
        self._name = model.__name__

    def root(self) -> Schema:
        schema = self._object(self._name, self._document)
        if unused := sorted(self._hints.keys() - self._used):
            raise NoSuchField(f"{self._name} has no field {', '.join(unused)}")
        return schema

    def _convert(self, source: Schema) -> Schema:
        if "$ref" in source:
            name = source["$ref"].removeprefix(_DEFINITION)
            definition = self._definitions[name]
            return self._object(name, definition) if "properties" in definition else self._convert(definition)
        if "anyOf" in source:
            return self._alternatives(source["anyOf"])
        match source.get("type"):
            case "object":
                schema = self._mapping(source)
            case "array":
                items = self._convert(source.get("items", {}))
                schema = {"type": "array", **_carried(source), "items": items}
            case "string" | "integer" | "number" | "boolean" as kind:
                schema = {"type": kind, **_carried(source)}
                if "const" in source:
                    schema["enum"] = [source["const"]]
            case _:
                schema = dict(ANYTHING)
        return schema

    def _object(self, name: str, source: Schema) -> Schema:
        """A model; *name* is what hints call it."""
        schema: Schema = {"type": "object", **_carried(source)}
        properties = {
            field: self._hinted(f"{name}.{field}", self._convert(part))
            for field, part in source.get("properties", {}).items()
        }
        if properties:
            schema["properties"] = properties
        if required := source.get("required"):
            schema["required"] = sorted(required)
        if source.get("additionalProperties") is not False:
            schema |= ANYTHING
        if name in self._hints:
            self._used.add(name)
            schema |= self._hints[name]
        return schema

    def _mapping(self, source: Schema) -> Schema:
        values = source.get("additionalProperties", True)
        if not isinstance(values, Mapping) or not values:
            return {"type": "object", **_carried(source), **ANYTHING}
        return {
            "type": "object",
            **_carried(source),
            "additionalProperties": self._convert(dict(values)),
        }

    def _alternatives(self, choices: list[Schema]) -> Schema:
        wanted = [choice for choice in choices if choice.get("type") != "null"]
        if not wanted:
            return dict(ANYTHING)
        if len(wanted) == 1:
            schema = self._convert(wanted[0])
            # The API server would want null among the values of an enum.
            if len(wanted) < len(choices) and "type" in schema and "enum" not in schema:
                schema["nullable"] = True
            return schema
        if {choice.get("type") for choice in wanted} == {"integer", "string"}:
            return dict(INT_OR_STRING)
        return dict(ANYTHING)

    def _hinted(self, path: str, schema: Schema) -> Schema:
        for pattern, hint in self._hints.items():
            if fnmatchcase(path, pattern):
                self._used.add(pattern)
                return dict(hint)
        return schema


def _carried(source: Schema) -> Schema:
    kept: Schema = {key: source[key] for key in _CARRIED if key in source}
    for exclusive, bound in _BOUNDS:
        if exclusive in source:
            kept |= {bound: source[exclusive], exclusive: True}
    if "description" in kept:
        kept["description"] = " ".join(kept["description"].split())
    return kept
