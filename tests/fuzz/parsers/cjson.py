# SPDX-License-Identifier: Apache-2.0
"""
The CNI executable's reader of JSON against Python's, in memory that ends where the text does.

It is compiled as a library with traps for undefined behaviour; a byte read past the text is a segmentation
fault, which the fuzzer takes for the crash it is.
"""

import ctypes
import json
import mmap
import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
SOURCE = ROOT / "src/ciliumd/cni/executable/json.c"
_PAGE = mmap.PAGESIZE
_LONGEST = _PAGE - 1
_DEEPEST = 60
_VALUE = 128
_CC = "/usr/bin/cc"
_FLAGS = (
    "-std=gnu11",
    "-O1",
    "-g",
    "-fPIC",
    "-shared",
    "-fsanitize=undefined",
    "-fsanitize-undefined-trap-on-error",
)


class Different(Exception):
    """The two readers do not agree."""


@cache
def library() -> ctypes.CDLL:
    """The compiled reader."""
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "json.so"
        subprocess.run([_CC, *_FLAGS, SOURCE, "-o", built], check=True)
        found = ctypes.CDLL(str(built))
    found.json_is_object.argtypes = [ctypes.c_void_p]
    found.json_is_object.restype = ctypes.c_bool
    found.json_string.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
    found.json_string.restype = ctypes.c_bool
    found.json_bool.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_bool]
    found.json_bool.restype = ctypes.c_bool
    return found


class Guarded:
    """A page for text, and behind it one that nobody may touch."""

    def __init__(self) -> None:
        self._pages = mmap.mmap(-1, 2 * _PAGE)
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(self._pages))
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(self._start + _PAGE), ctypes.c_size_t(_PAGE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")

    def put(self, text: bytes) -> int:
        """The address of *text*, whose NUL is the last byte of the page."""
        at = _PAGE - len(text) - 1
        self._pages[at:_PAGE] = text + b"\0"
        return self._start + at


@cache
def _guarded() -> Guarded:
    return Guarded()


def _read(text: str) -> Any:
    """What Python reads; ValueError if it is no JSON to the letter."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse, object_pairs_hook=_Pairs, parse_int=str, parse_float=str)


class _Pairs(list[tuple[str, Any]]):
    """The members of an object, in order."""


def differs(data: bytes) -> None:
    """Raises Different where the executable reads something else than Python does."""
    text = data.split(b"\0")[0][:_LONGEST]
    c, place = library(), _guarded().put(text)
    said = c.json_is_object(place)
    # Both take strings as they are; which bytes are text is the agent's question.
    try:
        read = _read(text.decode("latin-1"))
    except (ValueError, RecursionError):
        read = None
    if max((text.count(opening) for opening in (b"{", b"[")), default=0) >= _DEEPEST:
        return
    if said != isinstance(read, _Pairs):
        raise Different(f"an object: {said}, Python reads {type(read).__name__}")
    if not said:
        return
    for key in ("cniVersion", "log-file", "a"):
        value = ctypes.create_string_buffer(_VALUE)
        found = c.json_string(place, key.encode(), value, _VALUE)
        members = [one for name, one in read if name == key]
        plain = re.search(rb'"' + key.encode() + rb'"[ \t\r\n]*:', text)
        if found and (not members or members[0] != value.value.decode("latin-1")):
            raise Different(f"{key} is {value.value!r}, Python reads {members}")
        short = [one for one in members[:1] if isinstance(one, str) and len(one) < _VALUE]
        if not found and short and plain and b"\\" not in text:
            raise Different(f"{key} is not found, Python reads {short}")
    for otherwise in (False, True):
        flags = [one for name, one in read if name == "enable-debug"]
        expected = flags[0] if flags and isinstance(flags[0], bool) else otherwise
        if b"\\" not in text and c.json_bool(place, b"enable-debug", otherwise) != expected:
            raise Different(f"enable-debug is not {expected}")


if __name__ == "__main__":
    differs(sys.stdin.buffer.read())
