# SPDX-License-Identifier: Apache-2.0
"""
A root file system in memory: files of this machine under their own paths, as a cpio archive.

Programs and extensions come with the shared libraries they are linked with.  /bin, /lib and so on lead to
/usr, as in Debian.  The format is newc, as the kernel's buffer-format.rst describes it.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path, PurePosixPath

from toolchain import fail, tool

MERGED = ("bin", "sbin", "lib", "lib64")
SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ELF = b"\x7fELF"


class Tree:
    """Files by absolute path; later ones replace earlier ones."""

    def __init__(self) -> None:
        self._members: dict[str, tuple[int, bytes | Path, int]] = {}
        self._linked: set[str] = set()
        for name in MERGED:
            self.link(f"/{name}", f"usr/{name}")
            self.directory(f"/usr/{name}")

    def _add(self, path: str, mode: int, content: bytes | Path, mtime: int = 0) -> None:
        parts = PurePosixPath(os.path.normpath(path)).parts[1:]
        if parts[0] in MERGED and len(parts) > 1:
            parts = ("usr", *parts)
        for depth in range(1, len(parts)):
            self._members.setdefault("/".join(parts[:depth]), (stat.S_IFDIR | 0o755, b"", 0))
        self._members["/".join(parts)] = mode, content, mtime

    def directory(self, path: str) -> None:
        """A directory."""
        self._add(path, stat.S_IFDIR | 0o755, b"")

    def link(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def text(self, path: str, text: str | bytes, mode: int = 0o644) -> None:
        """A file with this content."""
        self._add(path, stat.S_IFREG | mode, text.encode() if isinstance(text, str) else text)

    def file(self, source: Path, path: str | None = None) -> None:
        """A file of this machine, with its time, its libraries too where it is linked with some."""
        found = source.stat()
        self._add(path or str(source), found.st_mode, source, int(found.st_mtime))
        with source.open("rb") as opened:
            linked = opened.read(4) == ELF
        if linked:
            self._libraries(source)

    def files(self, directory: Path, *, without: frozenset[str] = frozenset()) -> None:
        """All files below a directory, but for names (of files or directories) that are left out."""
        for root, directories, names in os.walk(directory):
            directories[:] = [name for name in directories if name not in without]
            for name in names:
                if name not in without:
                    self.file(Path(root) / name)

    def program(self, name: str) -> None:
        """A program of this machine."""
        found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SEARCH}")
        if found is None:
            fail(f"{name} is not installed; `build/dev deps` installs it")
        self.file(Path(found).resolve(), found)

    def _libraries(self, source: Path) -> None:
        done = subprocess.run([tool("ldd"), source], capture_output=True, text=True, check=False)
        for library in re.findall(r"(/\S+) \(0x", done.stdout):
            if library not in self._linked:
                self._linked.add(library)
                self._add(library, stat.S_IFREG | 0o755, Path(library).resolve())

    def sources(self) -> list[Path]:
        """Modules of Python among the files of this machine."""
        return [
            content
            for path, (_, content, _) in self._members.items()
            if isinstance(content, Path) and path.endswith(".py") and f"/{path}" == str(content)
        ]

    def cpio(self) -> bytes:
        """The archive."""
        out = io.BytesIO()
        for number, (path, (mode, content, mtime)) in enumerate(self._members.items(), 1):
            data = content.read_bytes() if isinstance(content, Path) else content
            _record(out, path, data, number=number, mode=mode, mtime=mtime)
        _record(out, "TRAILER!!!", b"", number=0, mode=0, mtime=0)
        return out.getvalue()


def _record(out: io.BytesIO, path: str, content: bytes, *, number: int, mode: int, mtime: int) -> None:
    name = path.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, mtime, len(content), 0, 0, 0, 0, len(name), 0)
    out.write(b"070701" + b"".join(b"%08X" % field for field in fields) + name)
    out.write(bytes(-out.tell() % 4))
    out.write(content)
    out.write(bytes(-out.tell() % 4))
