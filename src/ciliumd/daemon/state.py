# SPDX-License-Identifier: Apache-2.0
"""
State files: what a restarted agent needs and the maps do not hold.

Which pod and namespace an endpoint belongs to, and the labels behind identities.  To the reconciler
a file is a target like any map.  One that is damaged is reported and ignored; label sets are in two.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any

import structlog

from ciliumd.model.endpoint import EndpointSpec
from ciliumd.model.identity import PartOf
from ciliumd.model.labels import Labels, parse_label
from ciliumd.model.net import Prefix
from ciliumd.statefile import StateFileDamaged, read_rows, write_rows

log = structlog.get_logger("state")


class StateFile:
    """
    Rows of text in one file; *twice*: in two, for what nothing else remembers.

    Of two the first that is whole counts, and the other is made like it when rows are loaded.
    """

    def __init__(self, path: Path, *, twice: bool = False) -> None:
        self.name = path.name
        self._paths = (path, path.with_name(path.name + ".copy")) if twice else (path,)
        self._rows: dict[str, str] = {}

    def load(self) -> dict[bytes, bytes]:
        """The rows of the file; none when there is no file that can be trusted."""
        found = {path: self._read(path) for path in self._paths}
        whole = next((rows for rows in found.values() if rows is not None), None)
        if whole is not None:
            self._even_out([path for path, rows in found.items() if rows != whole], whole)
        self._rows = whole or {}
        return {key.encode(): value.encode() for key, value in self._rows.items()}

    def update(self, items: Mapping[bytes, bytes]) -> Mapping[bytes, Exception]:
        """Write rows; all fail alike when the file cannot be written."""
        return self._write(items, {**self._rows, **{k.decode(): v.decode() for k, v in items.items()}})

    def delete(self, keys: Collection[bytes]) -> Mapping[bytes, Exception]:
        """Remove rows."""
        gone = {key.decode() for key in keys}
        return self._write(keys, {key: value for key, value in self._rows.items() if key not in gone})

    def _write(self, keys: Collection[bytes], rows: dict[str, str]) -> dict[bytes, Exception]:
        try:
            for path in self._paths:
                write_rows(path, rows)
        except OSError as error:
            return dict.fromkeys(keys, error)
        self._rows = rows
        return {}

    def _read(self, path: Path) -> dict[str, str] | None:
        """None for a file that is not there or cannot be trusted."""
        try:
            return read_rows(path)
        except FileNotFoundError:
            return None
        except (OSError, StateFileDamaged) as error:
            log.warning("state.file_ignored", path=str(path), error=str(error))
            return None

    @staticmethod
    def _even_out(paths: Iterable[Path], rows: Mapping[str, str]) -> None:
        for path in paths:
            try:
                write_rows(path, rows)
            except OSError as error:
                log.warning("state.file_not_written", path=str(path), error=str(error))


def endpoint_row(endpoint: EndpointSpec) -> tuple[bytes, bytes]:
    """One endpoint as a row, by id."""
    row: dict[str, Any] = asdict(endpoint)
    row["ipv4"] = str(endpoint.ipv4) if endpoint.ipv4 else None
    row["ipv6"] = str(endpoint.ipv6) if endpoint.ipv6 else None
    if endpoint.audit is None:
        # An agent of before, which knows no such field, can take over all the others.
        del row["audit"]
    return str(endpoint.id).encode(), json.dumps(row, sort_keys=True).encode()


def endpoint_of(value: bytes) -> EndpointSpec:
    """The endpoint of :func:`endpoint_row`.  ValueError when it is none."""
    row = json.loads(value)
    try:
        row["ipv4"] = IPv4Address(row["ipv4"]) if row["ipv4"] else None
        row["ipv6"] = IPv6Address(row["ipv6"]) if row["ipv6"] else None
        if row.get("audit") not in {None, True, False}:
            raise ValueError(f"is no endpoint: audit is {row['audit']!r}")
        return EndpointSpec(**row)
    except (KeyError, TypeError) as error:
        raise ValueError(f"is no endpoint: {error}") from error


def identity_row(labels: Labels, number: int) -> tuple[bytes, bytes]:
    """One cluster identity as a row, by number."""
    return str(number).encode(), json.dumps(sorted(map(str, labels))).encode()


def identity_of(key: bytes, value: bytes) -> tuple[Labels, int]:
    """The identity of :func:`identity_row`.  ValueError when it is none."""
    texts = json.loads(value)
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"are no labels: {texts!r}")
    return frozenset(map(parse_label, texts)), int(key)


def prefix_row(prefix: Prefix, number: int) -> tuple[bytes, bytes]:
    """One CIDR identity as a row, by number."""
    return str(number).encode(), str(prefix).encode()


def part_row(part: PartOf, number: int) -> tuple[bytes, bytes]:
    """The pods of an identity in a prefix as a row, by number."""
    return str(number).encode(), f"{part.identity} {part.prefix or ''}".encode()


def part_of(key: bytes, value: bytes) -> tuple[PartOf, int]:
    """The part of :func:`part_row`.  ValueError when it is none."""
    identity, _, prefix = value.decode().partition(" ")
    return PartOf(int(identity), ip_network(prefix) if prefix else None), int(key)


def prefix_of(key: bytes, value: bytes) -> tuple[Prefix, int]:
    """The CIDR identity of :func:`prefix_row`.  ValueError when it is none."""
    return ip_network(value.decode()), int(key)
