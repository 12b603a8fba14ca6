# SPDX-License-Identifier: Apache-2.0
"""What a runtime is told when something cannot be done (CNI specification, section "Error")."""

from enum import IntEnum


class Code(IntEnum):
    """Well-known codes, and from 100 on our own."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODING_FAILURE = 6
    INVALID_CONFIG = 7
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50
    ADD_FAILED = 100
    DEL_FAILED = 101
    CHECK_FAILED = 102
    INTERNAL = 103


class CniError(Exception):
    """The answer is an error; *details* is what helps whoever looks further."""

    def __init__(self, code: Code, message: str, *, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.details = details
