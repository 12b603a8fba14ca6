# SPDX-License-Identifier: Apache-2.0
"""Names of everything the laboratory makes: whose it is can be read from them."""

import itertools
import os
from typing import Final

PREFIX: Final = "ct-"

_numbers = itertools.count(1)


def unique_name(label: str) -> str:
    """``ct-<owner>-<number>-<label>``; the owner is this process's number."""
    return f"{PREFIX}{os.getpid()}-{next(_numbers)}-{label}"


def owner_of(name: str) -> str | None:
    """Whose thing this name is, None when it is not the laboratory's."""
    if not name.startswith(PREFIX):
        return None
    return name.removeprefix(PREFIX).partition("-")[0]
