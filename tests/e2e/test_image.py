# SPDX-License-Identifier: Apache-2.0
"""The image has what runs and nothing of what builds, and knows nothing of the machine it was built on."""

import hashlib
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.process import REPOSITORY

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
RELEASE_SECONDS = 900


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


def content(image: Path, wanted: str) -> bytes:
    """The file at a path, from the topmost layer that has it."""
    found = b""
    with tarfile.open(image) as archive:
        for layer in json.load(archive.extractfile("manifest.json"))[0]["Layers"]:
            with tarfile.open(fileobj=archive.extractfile(layer)) as tar:
                for member in tar:
                    if member.isfile() and "/" + member.name.removeprefix("./") == wanted:
                        found = tar.extractfile(member).read()
    return found


@pytest.fixture(scope="module")
def release(image: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What build/release.py makes of this checkout; ``--long`` compiles the commit twice for it."""
    target = tmp_path_factory.mktemp("release") / "out"
    quick = [] if request.config.getoption("--long") else ["--once"]
    words = [sys.executable, REPOSITORY / "build" / "release.py", "--trial", *quick, "--output", target]
    done = subprocess.run(words, capture_output=True, text=True, timeout=RELEASE_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def test_a_release_is_whole(release: Path) -> None:
    """Wheel, chart, image, bill of materials, licences, and sums that `sha256sum` finds right."""
    words = ["/usr/bin/sha256sum", "--check", "--strict", "SHA256SUMS"]
    done = subprocess.run(words, cwd=release, capture_output=True, text=True, check=False)
    kinds = {
        re.sub(r"^ciliumd-.*?(\.whl|\.tgz|\.oci\.tar|\.cdx\.json)$", r"\1", path.name)
        for path in release.iterdir()
    }

    assert done.returncode == 0, done.stdout
    assert kinds == {".whl", ".tgz", ".oci.tar", ".cdx.json", "LICENSE", "THIRD_PARTY.md", "SHA256SUMS"}


def test_the_bill_of_materials_is_what_is_in_the_image(
    image: Path,
    files: dict[str, tarfile.TarInfo],
    release: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """Every Debian and Python package, every object with its digest, and nothing else."""
    (path,) = release.glob("*.cdx.json")
    components = json.loads(path.read_text())["components"]
    listed = {one["bom-ref"]: one for one in components}
    status = content(image, "/var/lib/dpkg/status").decode()
    debian = {
        re.search(r"^Package: (.+)$", stanza, re.MULTILINE)[1]
        for stanza in status.split("\n\n")
        if "\nStatus: install ok installed\n" in stanza
    }
    python = {
        re.sub(r"[-_.]+", "-", found[1]).lower()
        for name in files
        if (found := re.search(r"/opt/ciliumd/.*/([^/]+?)-[^/-]+\.dist-info/METADATA$", name))
    }
    objects = {name for name in files if name.endswith(".bpf.o")}
    data = {
        "case": "R2",
        "Debian packages": len(debian),
        "Python packages": len(python),
        "objects": len(objects),
    }
    record_property("data", json.dumps(data))

    assert {ref.split(":")[1] for ref in listed if ref.startswith("deb:")} == debian
    assert {ref.removeprefix("pypi:") for ref in listed if ref.startswith("pypi:")} == python - {"ciliumd"}
    assert len(objects) == sum(ref.endswith(".bpf.o") for ref in listed)
    for name in objects:
        (digest,) = listed[f"file:ciliumd/bpf/objects/{Path(name).name}"]["hashes"]
        assert hashlib.sha256(content(image, name)).hexdigest() == digest["content"]


def test_licences_stay_in_the_image(files: dict[str, tarfile.TarInfo]) -> None:
    """Of Debian's packages and of Python's."""
    for package in ("bpftool", "iproute2", "jq", "libbpf1", "tcpdump"):
        assert f"/usr/share/doc/{package}/copyright" in files
    assert any("/pydantic-" in name and "/licenses/" in name for name in files)
    assert any(re.search(r"/ciliumd-[^/]+/licenses/THIRD_PARTY\.md$", name) for name in files)


def test_the_oci_archive_is_an_image(release: Path, tmp_path: Path) -> None:
    """Any tool takes it in; its configuration says which commit it is of."""
    (archive,) = release.glob("*.oci.tar")
    storage = ["--storage-driver", "vfs", "--root", f"{tmp_path}/root", "--runroot", f"{tmp_path}/run"]
    words = ["/usr/bin/buildah", *storage, "pull", "--quiet", f"oci-archive:{archive}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    inspected = subprocess.run(
        ["/usr/bin/buildah", *storage, "inspect", "--type", "image", done.stdout.strip()],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    labels = json.loads(inspected)["OCIv1"]["config"]["Labels"]
    head = ["/usr/bin/git", "rev-parse", "HEAD"]
    commit = subprocess.run(head, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()

    assert labels["org.opencontainers.image.revision"] == commit
    assert labels["org.opencontainers.image.title"] == "ciliumd"
