# SPDX-License-Identifier: Apache-2.0
"""
Options out of a directory: a mounted ConfigMap, one file per key, its content the value.

What no key is gets a note with the nearest key there is; what this version cannot do is refused, for
the user believes that it is done.  Values stay text: the settings judge them.
"""

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ciliumd.daemon.config_keys import CONNTRACK_SIZES, FIXED, FOREIGN, RENAMED


class ConfigRefused(Exception):
    """The directory cannot be used; the text names the key, its value and what is wrong."""


@dataclass(frozen=True, slots=True)
class Note:
    """What somebody should know about a key; *nearest* is the key it may have been meant to be."""

    key: str
    text: str
    nearest: str = ""


@dataclass(frozen=True, slots=True)
class ConfigDirectory:
    """Values by field of the settings, the key each came from, and what is to be said about the rest."""

    values: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    unknown: tuple[Note, ...] = ()
    deprecated: tuple[Note, ...] = ()


def read_texts(directory: Path) -> dict[str, str]:
    """
    The files of *directory*, name and content without surrounding space.

    Names that begin with a dot are how a ConfigMap is swapped in one rename, not keys.  ConfigRefused if
    the directory or a file cannot be read.
    """
    try:
        files = sorted(path for path in directory.iterdir() if not path.name.startswith("."))
        return {path.name: path.read_text("utf-8").strip() for path in files if path.is_file()}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigRefused(f"--config-dir {directory}: {error}") from error


def interpret(texts: Mapping[str, str], fields: Collection[str]) -> ConfigDirectory:
    """
    Options of *fields* out of keys and their values; an empty value says nothing.

    ConfigRefused names every key whose feature this version does not have.
    """
    own = {name.replace("_", "-"): name for name in fields} | dict(RENAMED)
    given = {key: text for key, text in texts.items() if text}
    if refused := list(_unsupported(given)):
        raise ConfigRefused("; ".join(refused))
    values: dict[str, str] = {}
    keys: dict[str, str] = {}
    deprecated: list[Note] = []
    for key, text in given.items():
        for name, value in _translated(key, text, given, deprecated.append):
            values[name], keys[name] = value, key
    # A key that has an option's own name wins over one that has to be translated.
    for key, text in given.items():
        if key in own:
            values[own[key]], keys[own[key]] = text, key
    known = sorted({*own, *_TRANSLATED, *FIXED, *FOREIGN})
    unknown = [_unknown(key, known) for key in texts if key not in known]
    return ConfigDirectory(values, keys, tuple(unknown), tuple(deprecated))


def _unsupported(given: Mapping[str, str]) -> Iterator[str]:
    for key, text in given.items():
        accepted, reason = FIXED.get(key, (None, ""))
        if accepted is not None and text.lower() not in accepted:
            wanted = "false" if "false" in accepted else " or ".join(sorted(accepted))
            yield f"{key}={text} is not supported: {reason}; set it to {wanted}"


def _unknown(key: str, known: list[str]) -> Note:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    return Note(key, "no option of this name", *close)


Pairs = Iterator[tuple[str, str]]


def _tunnel(key: str, text: str, given: Mapping[str, str], deprecated: Callable[[Note], None]) -> Pairs:
    """``tunnel`` of Cilium 1.13 and before is two keys now.  ConfigRefused if it contradicts them."""
    mode = "native" if text == "disabled" else "tunnel"
    if given.get("routing-mode", mode) != mode:
        raise ConfigRefused(f"{key}={text} contradicts routing-mode={given['routing-mode']}; keep the latter")
    deprecated(Note(key, f"write routing-mode={mode} instead", "routing-mode"))
    yield "routing_mode", mode
    if mode == "tunnel":
        yield "tunnel_protocol", text


def _tcx(_key: str, text: str, _given: Mapping[str, str], _deprecated: Callable[[Note], None]) -> Pairs:
    yield "attach_mode", "auto" if text.lower() == "true" else "tc"


def _conntrack(key: str, _text: str, given: Mapping[str, str], _deprecated: Callable[[Note], None]) -> Pairs:
    """Both sizes together, once."""
    sizes = [given[one] for one in CONNTRACK_SIZES if one in given]
    if not all(size.isdecimal() for size in sizes):
        raise ConfigRefused(f"{key}: {', '.join(sizes)} is not a number of rows")
    yield "bpf_ct_max", str(sum(map(int, sizes)))


_TRANSLATED = {
    "enable-tcx": _tcx,
    "tunnel": _tunnel,
    **dict.fromkeys(CONNTRACK_SIZES, _conntrack),
}


def _translated(key: str, text: str, given: Mapping[str, str], deprecated: Callable[[Note], None]) -> Pairs:
    translate = _TRANSLATED.get(key)
    if translate is not None:
        yield from translate(key, text, given, deprecated)
