# SPDX-License-Identifier: Apache-2.0
"""
Archives that are the same bytes for the same content: entries sorted, one time, no user, no machine.

The chart as `helm install` takes it, and the image as an OCI archive made of buildah's layout.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from toolchain import ROOT, fail, tool

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

CHART = ROOT / "charts" / "ciliumd"
Json = dict[str, Any]


def tar(members: Mapping[str, bytes], epoch: int) -> bytes:
    """A tar archive of files by name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in sorted(members.items()):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(content), epoch, 0o644
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def tracked(folder: Path) -> Iterable[Path]:
    """Files below *folder* that are under version control, or about to be."""
    words = [tool("git"), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", str(folder)]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def chart(epoch: int) -> bytes:
    """The chart's archive; .helmignore is for helm's own packing and leaves nothing out that is tracked."""
    members = {
        f"{CHART.name}/{path.relative_to(CHART)}": path.read_bytes()
        for path in tracked(CHART)
        if path.name != ".helmignore"
    }
    return gzip.compress(tar(members, epoch), compresslevel=9, mtime=epoch)


def moment(epoch: int) -> str:
    """A time as image configurations write it."""
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Layout:
    """An image in an OCI layout: blobs by digest; what changes gets a new digest all the way up."""

    def __init__(self, blobs: dict[str, bytes], index: Json) -> None:
        self._blobs = blobs
        self._index = index

    @classmethod
    def read(cls, directory: Path) -> Layout:
        """What `buildah push oci:DIRECTORY` wrote; damaged blobs are refused."""
        blobs = {}
        for path in (directory / "blobs" / "sha256").iterdir():
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != path.name:
                fail(f"{path}: its bytes are not those its name says")
            blobs[path.name] = content
        return cls(blobs, json.loads((directory / "index.json").read_bytes()))

    def _load(self, descriptor: Json) -> Json:
        found: Json = json.loads(self._blobs[descriptor["digest"].removeprefix("sha256:")])
        return found

    def _store(self, descriptor: Json, document: Json) -> None:
        """Replace what *descriptor* refers to."""
        del self._blobs[descriptor["digest"].removeprefix("sha256:")]
        content = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
        digest = hashlib.sha256(content).hexdigest()
        self._blobs[digest] = content
        descriptor |= {"digest": f"sha256:{digest}", "size": len(content)}

    @property
    def manifest(self) -> Json:
        """The one manifest's descriptor."""
        found: Json = self._index["manifests"][0]
        return found

    @property
    def digest(self) -> str:
        """The image's digest, by which a registry knows it."""
        return str(self.manifest["digest"])

    def stamp(self, epoch: int, labels: Mapping[str, str], reference: str) -> None:
        """Say which commit the image is of: its time, its labels, its name."""
        manifest = self._load(self.manifest)
        config = self._load(manifest["config"])
        config["created"] = moment(epoch)
        for step in config["history"]:
            step["created"] = moment(epoch)
        known = config["config"].setdefault("Labels", None) or {}
        config["config"]["Labels"] = {**known, **labels}
        self._store(manifest["config"], config)
        self._store(self.manifest, manifest)
        self.manifest["annotations"] = {
            "org.opencontainers.image.ref.name": reference.rpartition(":")[2],
            # What `ctr images import` and `podman load` call it.
            "io.containerd.image.name": reference,
        }

    def layers(self) -> list[bytes]:
        """The layers as uncompressed tar archives, lowest first."""
        manifest = self._load(self.manifest)
        return [
            gzip.decompress(self._blobs[layer["digest"].removeprefix("sha256:")])
            for layer in manifest["layers"]
        ]

    def tar(self, epoch: int) -> bytes:
        """The archive."""
        members = {f"blobs/sha256/{name}": content for name, content in self._blobs.items()}
        members["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
        members["index.json"] = json.dumps(self._index, sort_keys=True, separators=(",", ":")).encode()
        return tar(members, epoch)


def root_files(layers: Iterable[bytes], wanted: Iterable[str]) -> dict[str, bytes]:
    """Files of an image's root below *wanted* prefixes, by path; a later layer wins, whiteouts remove."""
    prefixes, found = tuple(wanted), {}
    for layer in layers:
        with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
            for member in archive:
                path = member.name.removeprefix("./")
                folder, _, name = path.rpartition("/")
                if name.startswith(".wh."):
                    gone = f"{folder}/{name.removeprefix('.wh.')}"
                    found = {
                        one: data
                        for one, data in found.items()
                        if one != gone and not one.startswith(f"{gone}/")
                    }
                elif member.isfile() and path.startswith(prefixes) and (file := archive.extractfile(member)):
                    found[path] = file.read()
    return found
