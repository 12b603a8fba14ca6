# SPDX-License-Identifier: Apache-2.0
"""
A reader of BTF type information, as `bpftool btf dump -j` prints it.

It answers what the code generator asks (members, sizes, map definitions) and knows nothing of
ciliumd's own types.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toolchain import run, tool

if TYPE_CHECKING:
    from pathlib import Path

MODIFIERS = frozenset({"TYPEDEF", "CONST", "VOLATILE", "RESTRICT", "TYPE_TAG"})
POINTER_SIZE = 8


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a struct; offset in bytes."""

    name: str
    type_id: int
    offset: int


class Btf:
    """The types of one object file."""

    def __init__(self, types: list[dict[str, Any]]) -> None:
        self._types = {entry["id"]: entry for entry in types}

    @classmethod
    def of_object(cls, path: Path) -> Btf:
        """Read the BTF of an object file."""
        return cls(json.loads(run([tool("bpftool"), "btf", "dump", "-j", "file", path]))["types"])

    def named(self, kind: str) -> dict[str, int]:
        """Type ids of every named type of this kind."""
        return {e["name"]: i for i, e in self._types.items() if e["kind"] == kind and e["name"] != "(anon)"}

    def kind(self, type_id: int) -> str:
        """The kind of a type, as it is written (typedefs and qualifiers included)."""
        return str(self._types[type_id]["kind"])

    def resolve(self, type_id: int) -> int:
        """The type under typedefs and qualifiers."""
        while self._types[type_id]["kind"] in MODIFIERS:
            type_id = self._types[type_id]["type_id"]
        return type_id

    def entry(self, type_id: int) -> dict[str, Any]:
        """The resolved type as bpftool prints it."""
        return self._types[self.resolve(type_id)]

    def written_name(self, type_id: int) -> str:
        """The outermost name of a type: of a typedef, or of what it resolves to."""
        while self._types[type_id]["kind"] in MODIFIERS - {"TYPEDEF"}:
            type_id = self._types[type_id]["type_id"]
        return str(self._types[type_id]["name"])

    def size(self, type_id: int) -> int:
        """Size in bytes."""
        entry = self.entry(type_id)
        if entry["kind"] == "ARRAY":
            return int(entry["nr_elems"]) * self.size(entry["type_id"])
        return POINTER_SIZE if entry["kind"] == "PTR" else int(entry["size"])

    def members(self, type_id: int) -> list[Member]:
        """Members of a struct, in order; bit fields are refused."""
        found = []
        for member in self.entry(type_id)["members"]:
            if member["bits_offset"] % 8 or member.get("bitfield_size"):
                raise ValueError(f"{member['name']} is a bit field")
            found.append(Member(member["name"], member["type_id"], member["bits_offset"] // 8))
        return found

    def enum_values(self, type_id: int) -> dict[str, int]:
        """Names and values of an enum; bpftool prints them extended to 64 bits."""
        entry = self.entry(type_id)
        bits = 8 * int(entry["size"])
        values = {value["name"]: int(value["val"]) % (1 << bits) for value in entry["values"]}
        if entry.get("encoding") == "SIGNED":
            values = {name: number - (number >> (bits - 1) << bits) for name, number in values.items()}
        return values

    def section(self, name: str) -> dict[str, int]:
        """Variables of a data section: name -> type id; empty when the object has no such section."""
        for entry in self._types.values():
            if entry["kind"] == "DATASEC" and entry["name"] == name:
                variables = [self._types[item["type_id"]] for item in entry["vars"]]
                return {var["name"]: int(var["type_id"]) for var in variables}
        return {}

    def tags(self) -> dict[str, str]:
        """Declaration tags of variables: name of the variable -> text."""
        found = {}
        for entry in self._types.values():
            if entry["kind"] == "DECL_TAG" and self.kind(entry["type_id"]) == "VAR":
                found[str(self._types[entry["type_id"]]["name"])] = str(entry["name"])
        return found

    def pointee(self, type_id: int) -> int:
        """What a pointer points at."""
        return int(self.entry(type_id)["type_id"])

    def number(self, type_id: int) -> int:
        """The N of `int (*name)[N]`, libbpf's way to write a number into a map definition."""
        return int(self.entry(self.pointee(type_id))["nr_elems"])
