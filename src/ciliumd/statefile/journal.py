# SPDX-License-Identifier: Apache-2.0
"""
Texts by key in one file that is appended to: cheap for many texts of which few change, and held by nobody.

A line is a record: digest, key, tab, text; an empty text says that the key is gone, and the last record of
a key counts.  A line that is cut or altered is left out and harms no other.  Each process begins a new file
beside the one of the process before, and puts it in its place once it holds everything (:meth:`Journal.
commit`): until then whoever starts next finds the older one.  Space of records that no longer count is won
back when it is more than the rest.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, Self

FIRST_LINE = b"ciliumd-journal 1\n"
# Bytes that a file may always grow by before it is written anew.
SLACK = 1_000_000
_DIGEST_BYTES = 16
_DIGITS = 2 * _DIGEST_BYTES

_Place = tuple[int, int]
"""Offset and length of a text."""


class Journal:
    """
    The file *path* as this process writes it.  One thread at a time; may block.

    Keys and texts are one line each, keys without tabs; ValueError otherwise.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._aside = path.with_name(path.name + ".new")
        self._writes_to = self._aside
        self._size = 0
        self._whole = 0

    def append(self, texts: Mapping[str, str]) -> None:
        """Add records.  Raises OSError, and then they must be added again."""
        # What an attempt that failed left behind must not run into what follows: hence the empty line.
        data = (b"\n" if self._size else FIRST_LINE) + b"".join(map(_line, texts, texts.values()))
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_APPEND if self._size else os.O_TRUNC)
        descriptor = os.open(self._writes_to, flags, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        self._size += len(data)
        if self._writes_to == self._path and self._size > 2 * self._whole + SLACK:
            self._rewrite()

    def commit(self) -> None:
        """Put what was written so far in the place of what the process before wrote.  Raises OSError."""
        if self._writes_to == self._path:
            return
        if not self._size:
            self.append({})
        self._aside.replace(self._path)
        self._writes_to, self._whole = self._path, self._size

    def _rewrite(self) -> None:
        """Leave out what no longer counts.  Raises OSError, and then the file is as it was."""
        with Records(self._path) as records, self._aside.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(FIRST_LINE)
            for key in records:
                file.write(_line(key, records.text(key)))
            size = file.tell()
            file.flush()
            os.fsync(file.fileno())
        self._aside.replace(self._path)
        self._size = self._whole = size


class Records:
    """
    What a journal holds: keys in memory, texts in the file; a context manager.

    Raises OSError when there is no such file, ValueError when it is no journal.  The file may be replaced
    meanwhile.  :attr:`damaged` counts lines that were left out.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._places: dict[str, _Place] = {}
        self.damaged = 0
        try:
            self._read(self._file)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def text(self, key: str) -> str:
        """The text of *key*, empty if there is none.  Raises OSError."""
        place = self._places.get(key)
        return "" if place is None else _text(self._file, place)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self, file: BufferedReader) -> None:
        offset = len(FIRST_LINE)
        if file.readline(offset) != FIRST_LINE:
            raise ValueError("is no journal of this version")
        for line in file:
            tab = line.find(b"\t")
            if tab < _DIGITS or not line.endswith(b"\n") or _digest(line[_DIGITS:-1]) != line[:_DIGITS]:
                self.damaged += line != b"\n"
            else:
                key = line[_DIGITS:tab].decode()
                self._places.pop(key, None)
                if (length := len(line) - tab - 2) > 0:
                    self._places[key] = (offset + tab + 1, length)
            offset += len(line)


def _text(file: BinaryIO, place: _Place) -> str:
    offset, length = place
    file.seek(offset)
    return file.read(length).decode()


def _line(key: str, text: str) -> bytes:
    if "\t" in key or "\n" in key + text:
        raise ValueError(f"{key!r} and its text are no line")
    record = f"{key}\t{text}".encode()
    return _digest(record) + record + b"\n"


def _digest(record: bytes) -> bytes:
    return hashlib.blake2b(record, digest_size=_DIGEST_BYTES).hexdigest().encode()
