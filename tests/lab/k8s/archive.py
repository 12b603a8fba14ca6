# SPDX-License-Identifier: Apache-2.0
"""
Container images made by hand: layers from files of this machine, written as a docker archive.

The format is what ``docker save`` writes (Docker Image Specification v1.2): a manifest that lists
images, a configuration each, and layers as plain tar files, shared by images that have them in common.
"""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

LDD: Final = "/usr/bin/ldd"
CREATED: Final = "2020-01-01T00:00:00Z"
SEARCH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ProgramMissing(LookupError):
    """A program that belongs into an image is not on this machine; the text names it."""


class Layer:
    """Files by absolute path; the same content gives the same bytes, whoever made it and when."""

    def __init__(self) -> None:
        self._members: dict[str, tuple[tarfile.TarInfo, bytes | Path]] = {}

    def _add(self, path: str, kind: bytes, mode: int, content: bytes | Path = b"", target: str = "") -> None:
        for parent in reversed(PurePosixPath(path).parents):
            if str(parent) not in (*self._members, "/"):
                self._add(str(parent), tarfile.DIRTYPE, 0o755)
        info = tarfile.TarInfo(path.lstrip("/"))
        info.type, info.mode, info.linkname = kind, mode, target
        self._members[path] = info, content

    def directory(self, path: str, mode: int = 0o755) -> None:
        """An empty directory."""
        self._add(path, tarfile.DIRTYPE, mode)

    def file(self, path: str, content: bytes | str | Path, mode: int = 0o644) -> None:
        """A file with this content, or that of a file on this machine."""
        self._add(path, tarfile.REGTYPE, mode, content.encode() if isinstance(content, str) else content)

    def link(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._add(path, tarfile.SYMTYPE, 0o777, target=target)

    def program(self, path: str, name: str | Path) -> None:
        """A program of this machine and the shared libraries it is linked with."""
        found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SEARCH}")
        if found is None:
            raise ProgramMissing(f"{name} is missing on this machine; `build/dev deps` installs it")
        real = Path(found).resolve()
        self.file(path, real, 0o755)
        done = subprocess.run([LDD, real], capture_output=True, text=True, check=False)
        for library in re.findall(r"(/\S+) \(0x", done.stdout):
            self.library(library)

    def library(self, path: str) -> None:
        """A shared library, at its own place."""
        if path not in self._members:
            self.file(path, Path(path).resolve(), 0o755)

    def tar(self) -> bytes:
        """The layer as it stands in the archive."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for _, (info, content) in sorted(self._members.items()):
                data = content.read_bytes() if isinstance(content, Path) else content
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class Image:
    """An image under one or more full references."""

    references: tuple[str, ...]
    layers: tuple[Layer, ...]
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: tuple[str, ...] = field(default=(f"PATH={SEARCH}",))


def write(path: Path, images: Sequence[Image]) -> None:
    """Write images to one archive, in one rename."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.parent.mkdir(parents=True, exist_ok=True)
    written: dict[int, str] = {}
    manifest = []
    with tarfile.open(aside, "w") as archive:

        def add(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))

        for image in images:
            for layer in image.layers:
                if id(layer) not in written:
                    data = layer.tar()
                    written[id(layer)] = hashlib.sha256(data).hexdigest()
                    add(f"{written[id(layer)]}.tar", data)
            digests = [written[id(layer)] for layer in image.layers]
            config = json.dumps(_config(image, digests)).encode()
            name = f"{hashlib.sha256(config).hexdigest()}.json"
            add(name, config)
            layers = [f"{digest}.tar" for digest in digests]
            manifest.append({"Config": name, "RepoTags": list(image.references), "Layers": layers})
        add("manifest.json", json.dumps(manifest).encode())
    aside.rename(path)


def _config(image: Image, digests: Sequence[str]) -> dict[str, object]:
    return {
        "architecture": "amd64",
        "os": "linux",
        "created": CREATED,
        "config": {
            "Env": list(image.environment),
            "Entrypoint": list(image.entrypoint) or None,
            "Cmd": list(image.command) or None,
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
        "history": [{"created": CREATED, "created_by": "lab.k8s.archive"} for _ in digests],
    }
