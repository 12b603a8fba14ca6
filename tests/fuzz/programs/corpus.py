# SPDX-License-Identifier: Apache-2.0
"""Scripts kept in the repository: a file for each hook, a line for each script, its frames in hexadecimal."""

from __future__ import annotations

from pathlib import Path

DIRECTORY = Path(__file__).resolve().parents[1] / "corpus" / "programs"
FIRST_LINE = "# SPDX-License-Identifier: Apache-2.0\n"

Script = tuple[bytes, ...]


def path_of(hook: str, directory: Path = DIRECTORY) -> Path:
    """from_host, tunnel: from_host-tunnel.txt."""
    return directory / f"{hook.replace(', ', '-')}.txt"


def read(hook: str, directory: Path = DIRECTORY) -> list[Script]:
    """The scripts of a hook, none if it has no file."""
    path = path_of(hook, directory)
    lines = path.read_text().splitlines() if path.exists() else []
    return [
        tuple(bytes.fromhex(word) for word in line.split()) for line in lines if line[:1] not in {"", "#"}
    ]


def found(hook: str) -> list[Script]:
    """Scripts that once told a defect: replayed for good, and never minimised away."""
    return read(hook, DIRECTORY / "found")


def write(hook: str, scripts: list[Script], directory: Path = DIRECTORY) -> Path:
    """Replace the file of a hook; shortest first, so that a new script moves no other line far."""
    path = path_of(hook, directory)
    lines = sorted(
        (" ".join(frame.hex() for frame in script) for script in scripts), key=lambda x: (len(x), x)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(FIRST_LINE + "".join(f"{line}\n" for line in lines))
    return path
