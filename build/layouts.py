# SPDX-License-Identifier: Apache-2.0
"""
What the objects agree on with user space: structs, enums, maps and node options, read from BTF.

Structs and enums come from a generated translation unit that makes every type of abi.h
reachable; maps and options come from the objects themselves.  `Abi.hash` is over the layout of
all of it.  Writing Python is gen_abi.py's job.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from btf import Btf
from compile_bpf import compile_object
from toolchain import ABI_HEADER, OBJECTS, fail

# enum bpf_map_type of the kernel's UAPI; those a datapath uses.
MAP_TYPES = {
    1: "HASH",
    2: "ARRAY",
    3: "PROG_ARRAY",
    5: "PERCPU_HASH",
    6: "PERCPU_ARRAY",
    9: "LRU_HASH",
    10: "LRU_PERCPU_HASH",
    11: "LPM_TRIE",
    12: "ARRAY_OF_MAPS",
    13: "HASH_OF_MAPS",
    14: "DEVMAP",
    15: "SOCKMAP",
    18: "SOCKHASH",
    27: "RINGBUF",
}
# Inner maps are declared by sizes only (BTF keeps no types that only an inner map names).
INNER_STRUCTS = {
    "cilium_policy_classes_v1": ("policy_class_key", "policy_class"),
    "cilium_policy_rules_v1": ("policy_key", "policy_entry"),
}
LAYOUT_TEXT_MAX = 1024
SCALARS = {"__u8": "u8", "__u16": "u16", "__u32": "u32", "__u64": "u64"}
SIGNED = {"__s8": "s8", "__s16": "s16", "__s32": "s32", "__s64": "s64"}
BIG_ENDIAN = {"__be16": "be16", "__be32": "be32", "__be64": "be64"}


@dataclass(frozen=True, slots=True)
class Field:
    """One member: *type* is u8..u64, s8..s64, be16..be64, bytes or text."""

    name: str
    offset: int
    size: int
    type: str

    @property
    def padding(self) -> bool:
        """Explicit padding carries no information and is always zero."""
        return self.name.startswith("pad")


@dataclass(frozen=True, slots=True)
class Struct:
    """One struct of abi.h; no fields when the type is a plain integer."""

    name: str
    size: int
    fields: tuple[Field, ...]

    @property
    def text(self) -> str:
        """Every field as name@offset:size:type."""
        if not self.fields:
            return f"{self.name}:{self.size}"
        fields = ",".join(f"{f.name}@{f.offset}:{f.size}:{f.type}" for f in self.fields)
        return f"{self.name}:{self.size}{{{fields}}}"


@dataclass(frozen=True, slots=True)
class MapDefinition:
    """One map as an object declares it."""

    name: str
    type: int
    key: Struct | None
    value: Struct | None
    max_entries: int
    flags: int
    inner: MapDefinition | None = None

    @property
    def text(self) -> str:
        """Layout without sizes that may differ between nodes (max_entries)."""
        key, value = (part.text if part else "-" for part in (self.key, self.value))
        inner = f" inner=({self.inner.text})" if self.inner else ""
        return f"{MAP_TYPES[self.type]} flags={self.flags:#x} key={key} value={value}{inner}"


@dataclass(frozen=True, slots=True)
class Option:
    """One node option (cfg_* in .rodata); *type* as in Field, or "bool"."""

    name: str
    type: str
    size: int
    doc: str


@dataclass(slots=True)
class Abi:
    """Everything gen_abi.py writes."""

    structs: dict[str, Struct] = field(default_factory=dict)
    enums: dict[str, dict[str, int]] = field(default_factory=dict)
    maps: dict[str, MapDefinition] = field(default_factory=dict)
    options: dict[str, Option] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical layout text of structs, enums and maps."""
        lines = [f"struct {s.text}" for s in self.structs.values()]
        lines += [f"enum {n} {' '.join(f'{k}={v}' for k, v in e.items())}" for n, e in self.enums.items()]
        lines += [f"map {m.name} {m.text}" for m in self.maps.values()]
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def declared() -> tuple[list[str], list[str]]:
    """Names of the structs and enums abi.h declares, in its order."""
    text = re.sub(r"/\*.*?\*/", "", ABI_HEADER.read_text(), flags=re.DOTALL)
    if re.search(r"^(?:struct|enum|union)\s*\{", text, re.MULTILINE):
        fail("abi.h: every struct and enum needs a name")
    named = {kind: re.findall(rf"^{kind}\s+(\w+)\s*\{{", text, re.MULTILINE) for kind in ("struct", "enum")}
    return named["struct"], named["enum"]


def abi_types() -> Btf:
    """BTF of a translation unit that holds one variable of every type of abi.h."""
    structs, enums = declared()
    lines = ["#include <ciliumd/abi.h>"]
    lines += [f"struct {name} abi_struct_{name};" for name in structs]
    lines += [f"enum {name} abi_enum_{name};" for name in enums]
    with TemporaryDirectory() as scratch:
        source, target = Path(scratch) / "abi_types.bpf.c", Path(scratch) / "abi_types.bpf.o"
        source.write_text("\n".join(lines) + "\n")
        compile_object(source, target)
        return Btf.of_object(target)


def scalar_type(btf: Btf, type_id: int) -> str | None:
    """The name of an integer type in generated code; None for anything else."""
    entry, written = btf.entry(type_id), btf.written_name(type_id)
    known = (SCALARS | SIGNED | BIG_ENDIAN).get(written)
    if known is not None:
        return known
    if entry["kind"] in {"ENUM", "ENUM64"}:
        return f"u{8 * int(entry['size'])}"
    if entry["kind"] != "INT":
        return None
    if entry["encoding"] == "BOOL":
        return "bool"
    return f"{'s' if entry['encoding'] == 'SIGNED' else 'u'}{8 * int(entry['size'])}"


def field_type(btf: Btf, type_id: int, where: str) -> str:
    """The type of a member; arrays of bytes and struct cil_addr are bytes, char arrays text."""
    scalar = scalar_type(btf, type_id)
    if scalar is not None:
        return scalar
    entry = btf.entry(type_id)
    if entry["kind"] == "STRUCT" and entry["name"] == "cil_addr":
        return "bytes"
    if entry["kind"] == "ARRAY" and btf.size(entry["type_id"]) == 1:
        return "text" if btf.written_name(entry["type_id"]) == "char" else "bytes"
    if entry["kind"] == "ARRAY" and where.endswith(".cil_addr.w"):
        return "bytes"
    return fail(f"{where}: a member of this type cannot be shared with user space")


def struct_of(btf: Btf, type_id: int) -> Struct:
    """A struct with the layout the compiler gave it; hidden padding is refused."""
    name, size, end = btf.written_name(type_id), btf.size(type_id), 0
    scalar = scalar_type(btf, type_id)
    if scalar is not None:
        return Struct(scalar, size, ())
    fields = []
    for member in btf.members(type_id):
        if member.offset != end:
            fail(f"struct {name}: {member.offset - end} bytes of hidden padding before {member.name}")
        kind = field_type(btf, member.type_id, f"struct .{name}.{member.name}")
        fields.append(Field(member.name, member.offset, btf.size(member.type_id), kind))
        end = member.offset + fields[-1].size
    if end != size:
        fail(f"struct {name}: {size - end} bytes of hidden padding at the end")
    return Struct(name, size, tuple(fields))


def opaque(btf: Btf, type_id: int) -> Struct:
    """A type user space never looks into."""
    return Struct(btf.written_name(type_id).removeprefix("__"), btf.size(type_id), ())


def map_of(btf: Btf, name: str, type_id: int) -> MapDefinition:
    """A map definition written with libbpf's __uint, __type and __array."""
    members = {member.name: member.type_id for member in btf.members(type_id)}
    numbers = {
        part: btf.number(members[part]) for part in ("type", "max_entries", "map_flags") if part in members
    }
    if numbers["type"] not in MAP_TYPES:
        fail(f"map {name}: type {numbers['type']} is not in MAP_TYPES of {Path(__file__).name}")
    # What belongs to one generation of programs is their own business: its size is all that counts.
    read = struct_of if name.startswith("cilium_") else opaque
    sides: dict[str, Struct] = {}
    for part in ("key", "value"):
        if part in members:
            sides[part] = read(btf, btf.pointee(members[part]))
        elif f"{part}_size" in members:
            sides[part] = Struct("", btf.number(members[f"{part}_size"]), ())
    inner = None
    if "values" in members:
        target = btf.entry(btf.pointee(btf.entry(members["values"])["type_id"]))
        inner = map_of(btf, name, int(target["id"])) if target["kind"] == "STRUCT" else None
    if inner is not None or MAP_TYPES[numbers["type"]] == "PROG_ARRAY":
        u32 = Struct("u32", 4, ())
        sides = {"key": sides.get("key", u32), "value": u32}
    return MapDefinition(
        name,
        numbers["type"],
        sides.get("key"),
        sides.get("value"),
        numbers.get("max_entries", 0),
        numbers.get("map_flags", 0),
        inner,
    )


def typed_inner(definition: MapDefinition, structs: dict[str, Struct]) -> MapDefinition:
    """A map in map with the structs of its inner maps, whose sizes the object has declared."""
    inner = definition.inner
    if inner is None:
        return definition
    if definition.name not in INNER_STRUCTS:
        fail(f"map {definition.name}: its inner structs are not in INNER_STRUCTS of {Path(__file__).name}")
    key, value = (structs[name] for name in INNER_STRUCTS[definition.name])
    if (
        inner.key is None
        or inner.value is None
        or (inner.key.size, inner.value.size) != (key.size, value.size)
    ):
        fail(f"map {definition.name}: its inner maps do not hold {key.name} and {value.name}")
    return replace(definition, inner=replace(inner, key=key, value=value))


def add_object(abi: Abi, name: str, btf: Btf) -> None:
    """Take in the maps and options of one object; two objects must agree on what they share."""
    for map_name, type_id in btf.section(".maps").items():
        found = typed_inner(map_of(btf, map_name, type_id), abi.structs)
        if abi.maps.setdefault(map_name, found) != found:
            fail(f"{name}: map {map_name} differs from another object's: {found.text}")
        if len(found.text) >= LAYOUT_TEXT_MAX:
            fail(
                f"map {map_name}: its layout text has {len(found.text)} characters, {LAYOUT_TEXT_MAX - 1} fit"
            )
    tags = btf.tags()
    for variable, type_id in btf.section(".rodata").items():
        if not variable.startswith("cfg_"):
            continue
        kind = field_type(btf, type_id, f"{name}: {variable}")
        doc = tags.get(variable, "").removeprefix("doc:")
        option = Option(variable.removeprefix("cfg_"), kind, btf.size(type_id), doc)
        if abi.options.setdefault(option.name, option) != option:
            fail(f"{name}: option {variable} differs from another object's")


def collect() -> Abi:
    """Read everything from the built objects."""
    abi, types = Abi(), abi_types()
    structs, enums = declared()
    known_structs, known_enums = types.named("STRUCT"), types.named("ENUM") | types.named("ENUM64")
    missing = [name for name in structs if name not in known_structs]
    missing += [name for name in enums if name not in known_enums]
    if missing:
        fail(f"abi.h declares {', '.join(missing)}, which did not reach BTF")
    abi.structs = {name: struct_of(types, known_structs[name]) for name in structs}
    abi.enums = {name: types.enum_values(known_enums[name]) for name in enums}
    objects = sorted(OBJECTS.glob("*.bpf.o"))
    if not objects:
        fail(f"no objects in {OBJECTS}; run build/compile_bpf.py")
    for path in objects:
        add_object(abi, path.name, Btf.of_object(path))
    abi.maps = dict(sorted(abi.maps.items()))
    abi.options = dict(sorted(abi.options.items()))
    return abi
