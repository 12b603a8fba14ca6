# SPDX-License-Identifier: Apache-2.0
"""Exit codes, and the one exception a command ends with: what went wrong, why, and what to do next."""

from typing import Final

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3


class CommandError(Exception):
    """A command that cannot go on.  *hint* is the next thing to do, as text to paste where possible."""

    def __init__(self, message: str, *, hint: str = "", code: int = FAILED) -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code


class NotFoundError(CommandError):
    """What was asked for does not exist on this node."""
