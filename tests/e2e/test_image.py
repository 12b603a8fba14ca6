# SPDX-License-Identifier: Apache-2.0
"""The image has what runs and nothing of what builds, and knows nothing of the machine it was built on."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAMS = {
    "ciliumd",
    "cilium",
    "cilium-dbg",
    "cilium-cni",
    "bpftool",
    "ip",
    "jq",
    "python3",
    "tc",
    "tcpdump",
}
BUILDERS = {
    "as",
    "c++",
    "cc",
    "clang",
    "clang-19",
    "cpp",
    "g++",
    "gcc",
    "ld",
    "ld.lld",
    "llc",
    "make",
    "pip",
    "pip3",
}
MOST_MEGABYTES = 250


@pytest.fixture(scope="module")
def files(image: Path) -> dict[str, tarfile.TarInfo]:
    """What a container sees, by path; later layers win."""
    seen: dict[str, tarfile.TarInfo] = {}
    with tarfile.open(image) as archive:
        manifest = json.load(archive.extractfile("manifest.json"))
        for layer in manifest[0]["Layers"]:
            with tarfile.open(fileobj=archive.extractfile(layer)) as tar:
                for member in tar:
                    path = "/" + member.name.removeprefix("./").strip("/")
                    if Path(path).name.startswith(".wh."):
                        seen.pop(path.replace(".wh.", ""), None)
                    else:
                        seen[path] = member
    return seen


def configuration(image: Path) -> dict[str, object]:
    """The image's configuration."""
    with tarfile.open(image) as archive:
        manifest = json.load(archive.extractfile("manifest.json"))
        return dict(json.load(archive.extractfile(manifest[0]["Config"])))


def test_programs_are_there(files: dict[str, tarfile.TarInfo]) -> None:
    """Agent, command lines, CNI executable, and the tools people run in the agent's container."""
    programs = {Path(path).name for path, member in files.items() if member.mode & 0o111 or member.issym()}

    assert PROGRAMS - programs == set()


def test_no_compiler(files: dict[str, tarfile.TarInfo]) -> None:
    """Objects and extension are prebuilt: nothing on a node compiles."""
    folders = ("/bin/", "/usr/bin/", "/usr/local/bin/", "/opt/ciliumd/bin/")
    programs = {Path(path).name for path in files if path.startswith(folders)}

    assert programs & BUILDERS == set()
    assert [path for path in files if path.endswith((".bpf.c", ".h")) and "ciliumd" in path] == []


def test_nothing_of_this_machine(image: Path, files: dict[str, tarfile.TarInfo]) -> None:
    """How this machine reaches packages stays on this machine: no pip settings, no proxy, no authority."""
    text = json.dumps(configuration(image)).lower()

    assert [path for path in files if path.endswith(("/pip.conf", "/.config/pip"))] == []
    assert [path for path in files if path.startswith("/usr/local/share/ca-certificates/")] == []
    assert [
        path
        for path in files
        if path.startswith("/root/") and not path.startswith(("/root/.bashrc", "/root/.profile"))
    ] == []
    assert "proxy=" not in text
    assert "pip_" not in text


def test_size(image: Path, record_property: Callable[[str, object], None]) -> None:
    """A node that is new has it soon."""
    megabytes = image.stat().st_size / 1e6
    record_property("figure", f"image: {megabytes:.0f} MB, not compressed")

    assert megabytes < MOST_MEGABYTES
