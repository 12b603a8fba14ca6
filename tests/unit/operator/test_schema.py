# SPDX-License-Identifier: Apache-2.0
"""What pydantic says of a model, as the API server wants it."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from ciliumd.resources.crd.schema import NoSuchField, structural
from ciliumd.resources.fields import Exact, Lenient, unless_enforced

KEPT = {"x-kubernetes-preserve-unknown-fields": True}


class Part(Exact):
    """
    A part
    of it.
    """

    name: Annotated[str, Field(max_length=5, pattern="^a")]


class Whole(Exact):
    """All there is."""

    part: Part
    parts: Annotated[list[Part], Field(min_length=1)] | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    anything: Any = None
    mapping: dict[str, Any] | None = None
    later: Annotated[None, unless_enforced("a later version")] = None
    size: Annotated[int, Field(gt=0, le=9)] = 1
    port: int | str = 0
    mode: Literal["on", "off"] | None = None
    only: Literal["this"] = "this"
    odd: list[str] | int = 0


class Foreign(Lenient):
    """Somebody else's."""

    name: str | None = None


def test_every_kind_of_field():
    """No references, titles, defaults or nulls are left; each node has a type or says why not."""
    part = {
        "type": "object",
        "description": "A part of it.",
        "properties": {"name": {"type": "string", "maxLength": 5, "pattern": "^a"}},
        "required": ["name"],
    }
    assert structural(Whole) == {
        "type": "object",
        "description": "All there is.",
        "properties": {
            "part": part,
            "parts": {"type": "array", "minItems": 1, "items": part, "nullable": True},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "anything": KEPT,
            "mapping": {"type": "object", "nullable": True, **KEPT},
            "later": KEPT,
            "size": {"type": "integer", "minimum": 0, "exclusiveMinimum": True, "maximum": 9},
            "port": {"x-kubernetes-int-or-string": True},
            "mode": {"type": "string", "enum": ["on", "off"]},
            "only": {"type": "string", "enum": ["this"]},
            "odd": KEPT,
        },
        "required": ["part"],
    }


def test_what_a_model_ignores_is_kept():
    """It is somebody else's."""
    assert structural(Foreign) == {
        "type": "object",
        "description": "Somebody else's.",
        "properties": {"name": {"type": "string", "nullable": True}},
        **KEPT,
    }


def test_hints_replace_fields_and_parts_of_models():
    """By model and field, or by field in whichever model."""
    only = {"type": "string", "enum": ["a"]}
    found = structural(Whole, {"*.name": only, "Part": {"required": []}})
    assert found["properties"]["part"]["properties"]["name"] == only
    assert found["properties"]["part"]["required"] == []


@pytest.mark.parametrize("hint", ["Part.nome", "Whole.name", "Parts"])
def test_a_hint_about_nothing_is_a_mistake(hint):
    """A renamed field must not lose its checks silently."""
    with pytest.raises(NoSuchField, match=f"Whole has no field {hint}"):
        structural(Whole, {hint: {}})
