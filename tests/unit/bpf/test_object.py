# SPDX-License-Identifier: Apache-2.0
"""Objects before load: only what was built is opened, and options are typed."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from itertools import cycle
from typing import TYPE_CHECKING

import pytest

from ciliumd import abi
from ciliumd.bpf import object as objects
from ciliumd.bpf.errors import ObjectRejected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LXC = objects.embedded()["lxc"]
FLIPS = 50


def damages() -> Iterator[tuple[objects.Embedded, bytes]]:
    """50 objects with one bit turned over: every object in turn, anywhere in the file."""
    source = random.Random(8)
    for _, original in zip(range(FLIPS), cycle(objects.embedded().values()), strict=False):
        bit = source.randrange(8 * len(original.data))
        damaged = bytearray(original.data)
        damaged[bit // 8] ^= 1 << bit % 8
        yield original, bytes(damaged)


def test_one_flipped_bit_in_the_extension_is_refused_50_of_50(
    record_property: Callable[[str, object], None],
) -> None:
    """Wherever the damage is, nothing is handed to the kernel, and the error says what to do."""
    refused = 0
    for original, data in damages():
        with pytest.raises(ObjectRejected) as caught:
            objects.Object(dataclasses.replace(original, data=data))
        assert str(caught.value).startswith(f"open object {original.name}: ")
        assert "its bytes are damaged (SHA-256 differs); reinstall the package" in str(caught.value)
        refused += 1
    record_property("data", json.dumps({"case": "S6", "flipped bits": FLIPS, "refused": refused}))
    assert refused == FLIPS


def test_one_flipped_bit_in_the_object_file_is_refused_50_of_50(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The file for inspection must be the object that would be loaded."""
    shutil.copytree(objects.FILES, tmp_path, dirs_exist_ok=True)
    refused = 0
    for original, data in damages():
        path = tmp_path / f"{original.name}.bpf.o"
        objects.verify(original, files=tmp_path)
        path.write_bytes(data)
        with pytest.raises(ObjectRejected, match="is not the object of this extension"):
            objects.Object(original, files=tmp_path)
        path.write_bytes(original.data)
        refused += 1
    record_property("data", json.dumps({"case": "S6", "flipped bits": FLIPS, "refused": refused}))
    assert refused == FLIPS


def test_a_missing_object_file_is_refused(tmp_path: Path) -> None:
    """An incomplete installation says so."""
    with pytest.raises(ObjectRejected, match="cannot be read"):
        objects.verify(LXC, files=tmp_path)


def test_an_extension_for_another_abi_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python and compiled part are one release or do not start."""
    monkeypatch.setattr(abi, "ABI_HASH", "0" * 64)
    with pytest.raises(ObjectRejected, match=r"another abi\.py"):
        objects.Object.open("lxc")


def test_an_unknown_object_names_the_known_ones() -> None:
    """A misspelled name is answered with the names there are."""
    with pytest.raises(ObjectRejected, match="entry, host, lxc, nodeport, overlay, sock"):
        objects.Object.open("lcx")


def test_every_option_has_a_text() -> None:
    """abi.CONFIG is documentation as well."""
    assert [spec.name for spec in abi.CONFIG.values() if not spec.doc] == []


def test_set_config_writes_exactly_the_variable() -> None:
    """One option changes, the others keep their defaults."""
    with objects.Object.open("lxc") as source:
        before = {name: source.config(name) for name in source.config_names}
        source.set_config("ct_timeout_tcp", 1234)
        after = {name: source.config(name) for name in source.config_names}
    assert after.pop("ct_timeout_tcp") == (1234).to_bytes(4, "little")
    assert before.pop("ct_timeout_tcp") == (8000).to_bytes(4, "little")
    assert after == before


def test_big_endian_options_take_host_values() -> None:
    """10.0.0.1 as a number becomes 10.0.0.1 in network order."""
    with objects.Object.open("lxc") as source:
        source.set_config("router_ipv4", 0x0A000001)
        assert source.config("router_ipv4") == bytes([10, 0, 0, 1])


def test_an_unknown_option_is_refused() -> None:
    """A misspelled option must not silently keep its default."""
    with (
        objects.Object.open("lxc") as source,
        pytest.raises(ValueError, match="no option is called ct_timeout"),
    ):
        source.set_config("ct_timeout", 5)


def test_an_option_of_another_object_is_refused() -> None:
    """Sock has no conntrack timeouts."""
    with objects.Object.open("sock") as source, pytest.raises(ValueError, match="object sock has no option"):
        source.set_config("ct_timeout_tcp", 5)


@pytest.mark.parametrize(
    ("kind", "size", "value"),
    [
        ("u8", 1, 256),
        ("u16", 2, -1),
        ("s32", 4, 1 << 31),
        ("be32", 4, 1 << 32),
        ("bool", 1, 2),
        ("bytes", 6, 5),
        ("bytes", 6, b"12345"),
        ("u32", 4, b"1234"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(kind: str, size: int, value: int | bytes) -> None:
    """The message names the option; nothing is cut."""
    with pytest.raises(ValueError, match="option example"):
        objects.encode_option(abi.ConfigSpec("example", kind, size, ""), value)


@pytest.mark.parametrize(
    ("kind", "size", "value", "expected"),
    [
        ("u16", 2, 0x1234, b"\x34\x12"),
        ("be16", 2, 0x1234, b"\x12\x34"),
        ("s16", 2, -2, b"\xfe\xff"),
        ("bool", 1, True, b"\x01"),
        ("bytes", 6, b"\1\2\3\4\5\6", b"\1\2\3\4\5\6"),
    ],
)
def test_values_are_encoded_by_type(kind: str, size: int, value: bool | int | bytes, expected: bytes) -> None:
    """Host order, network order, sign, truth, bytes."""
    assert objects.encode_option(abi.ConfigSpec("example", kind, size, ""), value) == expected


def test_programs_follow_the_enums_of_the_abi() -> None:
    """Every program finds its place by its name: hook, tail call, entry, socket call or iterator."""
    for name in objects.embedded():
        with objects.Object.open(name) as source:
            for program in source.program_names:
                known = {*abi.Hook.__members__, *abi.Call.__members__}
                assert program.upper() in known or program.startswith(("entry_", "sock_", "terminate_"))
