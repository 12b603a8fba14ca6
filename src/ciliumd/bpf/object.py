# SPDX-License-Identifier: Apache-2.0
"""
Object files: open from the bytes compiled into the extension, set options, load, take handles.

An object is refused when its bytes are not those that were built with this package.  Options
are typed by abi.CONFIG; after load the pointer to read-only data is never used again, because
writing there would kill the process.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ciliumd import abi
from ciliumd.bpf._libbpf import ffi, lib
from ciliumd.bpf.errors import AlreadyLoaded, ObjectRejected, VerifierRejected, check, error
from ciliumd.bpf.handle import duplicate
from ciliumd.bpf.layout import check_declared
from ciliumd.bpf.map import Map, MapInfo
from ciliumd.bpf.program import Program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

FILES = Path(__file__).with_name("objects")
# The verifier's summary alone (BPF_LOG_STATS): a line or two, and some for each global function.
STATISTICS, SUMMARY_SIZE = 4, 8192
LOG_BEGIN, LOG_END = "-- BEGIN PROG LOAD LOG --", "-- END PROG LOAD LOG --"

lib.cil_log_install()


@dataclass(frozen=True, slots=True)
class Embedded:
    """One object as the extension carries it."""

    name: str
    data: bytes
    sha256: str


@cache
def embedded() -> dict[str, Embedded]:
    """Every object of the extension, by name."""
    found, raw = {}, ffi.new("struct cil_embedded *")
    index = 0
    while lib.cil_embedded_at(index, raw) == 0:
        name = ffi.string(raw.name).decode()
        data = bytes(ffi.buffer(raw.data, raw.size))
        found[name] = Embedded(name, data, ffi.string(raw.sha256).decode())
        index += 1
    return found


def verify(source: Embedded, *, files: Path = FILES) -> None:
    """Raise ObjectRejected unless extension, object file and abi.py were built together."""
    again = "reinstall the package (in a checkout: build/dev build)"
    if ffi.string(lib.cil_embedded_abi_hash()).decode() != abi.ABI_HASH:
        raise ObjectRejected(source.name, f"the extension was built for another abi.py; {again}")
    if hashlib.sha256(source.data).hexdigest() != source.sha256:
        raise ObjectRejected(source.name, f"its bytes are damaged (SHA-256 differs); {again}")
    path = files / f"{source.name}.bpf.o"
    try:
        content = path.read_bytes()
    except OSError as failure:
        raise ObjectRejected(source.name, f"{path} cannot be read ({failure.strerror}); {again}") from failure
    if hashlib.sha256(content).hexdigest() != source.sha256:
        raise ObjectRejected(source.name, f"{path} is not the object of this extension; {again}")


class Object:
    """One object file, from open to load; programs and maps taken from it outlive it."""

    def __init__(self, source: Embedded, *, files: Path = FILES) -> None:
        self.name = source.name
        self._raw = ffi.NULL
        verify(source, files=files)
        lib.cil_log_clear()
        # libbpf reads the image until load; it must stay where it is as long as the object.
        self._image = ffi.from_buffer(source.data)
        raw = lib.cil_object_open(source.name.encode(), self._image, len(source.data))
        if raw == ffi.NULL:
            raise ObjectRejected(
                self.name, f"libbpf cannot read it: {_log().strip() or os.strerror(ffi.errno)}"
            )
        self._raw = raw
        self._loaded = False
        self._summaries: dict[str, Any] = {}
        self._maps = {ffi.string(lib.bpf_map__name(item)).decode(): item for item in self._walk_maps()}
        self._programs = {
            ffi.string(lib.bpf_program__name(item)).decode(): item for item in self._walk_programs()
        }
        check_declared({name: self.declared(name) for name in self.map_names})

    @classmethod
    def open(cls, name: str) -> Self:
        """Open the object *name* (lxc, host, sock, entry) of this package."""
        try:
            return cls(embedded()[name])
        except KeyError:
            raise ObjectRejected(name, f"no such object; there are {', '.join(sorted(embedded()))}") from None

    def _walk_maps(self) -> Iterator[object]:
        item = lib.bpf_object__next_map(self._raw, ffi.NULL)
        while item != ffi.NULL:
            yield item
            item = lib.bpf_object__next_map(self._raw, item)

    def _walk_programs(self) -> Iterator[object]:
        item = lib.bpf_object__next_program(self._raw, ffi.NULL)
        while item != ffi.NULL:
            yield item
            item = lib.bpf_object__next_program(self._raw, item)

    # -- before load ---------------------------------------------------------------------------

    @property
    def map_names(self) -> list[str]:
        """Maps the object declares, without the sections libbpf makes maps of."""
        return [name for name, item in self._maps.items() if not lib.bpf_map__is_internal(item)]

    @property
    def program_names(self) -> list[str]:
        """Programs of the object."""
        return list(self._programs)

    @property
    def config_names(self) -> list[str]:
        """Options this object's programs read."""
        return [name for name in abi.CONFIG if self._variable(name) is not None]

    def declared(self, name: str) -> MapInfo:
        """A map as the object declares it now."""
        raw = ffi.new("struct cil_map_info *")
        lib.cil_map_declared(self._map(name), raw)
        return MapInfo(raw.type, 0, raw.key_size, raw.value_size, raw.max_entries, raw.flags, name)

    def set_config(self, name: str, value: bool | int | bytes) -> None:
        """Give an option its value; the name, the type and the range are checked."""
        self._before_load("set option of")
        spec = abi.CONFIG.get(name)
        if spec is None:
            raise ValueError(f"no option is called {name}; there are {', '.join(sorted(abi.CONFIG))}")
        packed = encode_option(spec, value)
        variable = self._variable(name)
        if variable is None:
            raise ValueError(
                f"object {self.name} has no option {name}; it has {', '.join(self.config_names)}"
            )
        ffi.memmove(variable.data, packed, len(packed))

    def config(self, name: str) -> bytes:
        """The bytes an option will have; its default until set_config."""
        self._before_load("read option of")
        variable = self._variable(name)
        if variable is None:
            raise ValueError(
                f"object {self.name} has no option {name}; it has {', '.join(self.config_names)}"
            )
        return bytes(ffi.buffer(variable.data, variable.size))

    def _variable(self, name: str) -> Any | None:
        found = ffi.new("struct cil_variable *")
        if lib.cil_object_config(self._raw, f"cfg_{name}".encode(), found):
            return None
        return found

    def set_max_entries(self, name: str, entries: int) -> None:
        """Size of a map that load() will create."""
        self._before_load("size map of")
        check(lib.bpf_map__set_max_entries(self._map(name), entries), "size map", name)

    def set_pin_path(self, name: str, path: Path) -> None:
        """Where load() finds the map, or pins it when there is none."""
        self._before_load("pin map of")
        check(lib.bpf_map__set_pin_path(self._map(name), os.fsencode(path)), "set pin path of map", name)

    def reuse_map(self, name: str, existing: Map) -> None:
        """Use an open map instead of creating one."""
        self._before_load("reuse map in")
        check(lib.bpf_map__reuse_fd(self._map(name), existing.fd), "reuse map", name)

    def set_autoload(self, name: str, autoload: bool) -> None:
        """Whether load() loads this program."""
        self._before_load("choose programs of")
        check(lib.bpf_program__set_autoload(self._program(name), autoload), "choose program", name)

    def ask_summary(self, name: str) -> None:
        """Have the verifier sum up what it did with a program; then a refusal comes without its log."""
        self._before_load("ask about programs of")
        text = ffi.new("char[]", SUMMARY_SIZE)
        raw = self._program(name)
        check(lib.bpf_program__set_log_buf(raw, text, SUMMARY_SIZE), "ask about program", name)
        check(lib.bpf_program__set_log_level(raw, STATISTICS), "ask about program", name)
        self._summaries[name] = text

    def _before_load(self, op: str) -> None:
        if self._raw == ffi.NULL:
            raise ValueError(f"object {self.name} is closed")
        if self._loaded:
            raise AlreadyLoaded(op, self.name)

    # -- load and after ------------------------------------------------------------------------

    def load(self) -> None:
        """Create the maps and have every program verified; VerifierRejected carries the log."""
        self._before_load("load")
        lib.cil_log_clear()
        result = lib.bpf_object__load(self._raw)
        # Also after a failure: libbpf has given the maps' memory back.
        self._loaded = True
        if result >= 0:
            return
        said = _log()
        if LOG_BEGIN in said:
            verifier = said.split(LOG_BEGIN, 1)[1].split(LOG_END, 1)[0].strip()
            raise VerifierRejected("load", f"{self.name} ({_rejected(said)})", -result, verifier)
        lines = [line.removeprefix("libbpf: ") for line in said.splitlines()]
        raise error("load", self.name, -result, "; ".join(lines[:3]))

    def program(self, name: str) -> Program:
        """A handle of a loaded program, independent of this object."""
        raw = self._program(name)
        fd = check(lib.bpf_program__fd(raw), "take program", name)
        section = ffi.string(lib.bpf_program__section_name(raw)).decode()
        attach_type = lib.cil_program_attach_type(raw)
        return Program(duplicate(fd), name, section=section, attach_type=attach_type)

    def summary(self, name: str) -> str:
        """What the verifier said to ask_summary: "processed N insns (limit 1000000) ..."."""
        return str(ffi.string(self._summaries[name]).decode())

    def map(self, name: str) -> Map:
        """A handle of a created map, independent of this object."""
        fd = check(lib.bpf_map__fd(self._map(name)), "take map", name)
        return Map(duplicate(fd), name)

    def _map(self, name: str) -> object:
        if name not in self._maps:
            raise ValueError(f"object {self.name} has no map {name}; it has {', '.join(self.map_names)}")
        return self._maps[name]

    def _program(self, name: str) -> object:
        if name not in self._programs:
            raise ValueError(f"object {self.name} has no program {name}; it has {', '.join(self._programs)}")
        return self._programs[name]

    def close(self) -> None:
        """Give everything back that no handle holds."""
        raw, self._raw = self._raw, ffi.NULL
        self._maps, self._programs = {}, {}
        if raw != ffi.NULL:
            lib.bpf_object__close(raw)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def encode_option(spec: abi.ConfigSpec, value: bool | int | bytes) -> bytes:
    """The bytes of an option's value; ValueError names what does not fit."""
    if isinstance(value, bytes):
        if spec.type != "bytes" or len(value) != spec.size:
            raise ValueError(
                f"option {spec.name} is {spec.type} of {spec.size} bytes, not {len(value)} bytes"
            )
        return value
    if spec.type == "bytes":
        raise ValueError(f"option {spec.name} is {spec.size} bytes, not a number")
    if spec.type == "bool" and value not in {0, 1}:
        raise ValueError(f"option {spec.name} is on or off, not {value}")
    try:
        if spec.type.startswith("be"):
            return int(value).to_bytes(spec.size, "big")
        return int(value).to_bytes(spec.size, "little", signed=spec.type.startswith("s"))
    except OverflowError as failure:
        raise ValueError(f"option {spec.name} is {spec.type}: {value} is out of range") from failure


def _log() -> str:
    """What libbpf said in this thread since it was last cleared."""
    return ffi.string(lib.cil_log_text()).decode(errors="replace")


def _rejected(said: str) -> str:
    """The program a load log is about: libbpf writes "prog 'NAME': ..."."""
    _, _, rest = said.partition("prog '")
    return rest.partition("'")[0] or "unknown program"
