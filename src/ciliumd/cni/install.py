# SPDX-License-Identifier: Apache-2.0
"""Puts the executable where the host's container runtime starts plugins, usually ``/opt/cni/bin``."""

import os
from pathlib import Path

EXECUTABLE = Path(__file__).parent / "bin" / "cilium-cni"


class NotBuilt(Exception):
    """There is no executable in this installation; the text says how to make one."""


def install_executable(directory: Path) -> Path:
    """
    Copy the executable into *directory*; where it is now.

    In one rename: a runtime may start it at any moment, and one that is running cannot be written.
    Raises NotBuilt or OSError.
    """
    try:
        content = EXECUTABLE.read_bytes()
    except FileNotFoundError as error:
        raise NotBuilt(f"{EXECUTABLE} is missing; build/dev build makes it") from error
    target = directory / EXECUTABLE.name
    aside = directory / f".{EXECUTABLE.name}.new"
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o755)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fchmod(file.fileno(), 0o755)
        os.fsync(file.fileno())
    aside.replace(target)
    return target


def remove_executable(directory: Path) -> bool:
    """Remove it again; False when it was not there."""
    target = directory / EXECUTABLE.name
    existed = target.exists()
    target.unlink(missing_ok=True)
    return existed
