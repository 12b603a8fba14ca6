# SPDX-License-Identifier: Apache-2.0
"""Names of everything the laboratory makes: whose it is can be read from them."""

import itertools
import os
from typing import Final

PREFIX: Final = "ct-"

_numbers = itertools.count(1)
_owner: list[str] = []


def own_as(owner: str) -> None:
    """Name things after *owner* instead of this process: they may outlive it and are not swept."""
    if owner.isdecimal():
        raise ValueError(f"{owner} would be taken for a process")
    _owner[:] = [owner]


def unique_name(label: str) -> str:
    """``ct-<owner>-<number>-<label>``; the owner is this process's number unless told otherwise."""
    return f"{PREFIX}{_owner[0] if _owner else os.getpid()}-{next(_numbers)}-{label}"


def owner_of(name: str) -> str | None:
    """Whose thing this name is, None when it is not the laboratory's."""
    if not name.startswith(PREFIX):
        return None
    return name.removeprefix(PREFIX).partition("-")[0]
