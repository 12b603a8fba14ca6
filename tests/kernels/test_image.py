# SPDX-License-Identifier: Apache-2.0
"""What guests boot is made right: archives others can read, the mirror of this machine."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.selection import ALL
from lab.process import REPOSITORY

# Behind: build/kernels.py is not this package.
sys.path.append(str(REPOSITORY / "build"))

import kernel_packages
from initramfs import Tree

pytestmark = pytest.mark.kernels


def test_archive_is_read_by_another_program(tmp_path: Path) -> None:
    """Contents, modes, links, and what goes to /usr because /lib leads there."""
    tree = Tree()
    tree.text("/init", "#!/bin/sh\n", 0o755)
    tree.text("/lib/deep/er/odd", b"123")
    tree.link("/usr/bin/sh", "busybox")
    tree.directory("/proc")
    subprocess.run(
        ["/usr/bin/busybox", "cpio", "-idm"], cwd=tmp_path, input=tree.cpio(), check=True, capture_output=True
    )

    assert (tmp_path / "init").read_text() == "#!/bin/sh\n"
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "usr" / "lib" / "deep" / "er" / "odd").read_bytes() == b"123"
    assert (tmp_path / "lib").readlink() == Path("usr/lib")
    assert (tmp_path / "usr" / "bin" / "sh").readlink() == Path("busybox")
    assert (tmp_path / "proc").is_dir()


def test_every_test_can_be_collected_from_what_a_guest_has(tmp_path: Path) -> None:
    """The longer form runs all of them: what they read when they are collected has to be there."""
    spec = importlib.util.spec_from_file_location("guest_image", REPOSITORY / "build" / "kernels.py")
    assert spec
    assert spec.loader
    image = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(image)
    tree = Tree()
    image.checkout(tree, [])
    archive = tree.cpio()
    subprocess.run(
        ["/usr/bin/busybox", "cpio", "-idm"], cwd=tmp_path, input=archive, check=True, capture_output=True
    )
    there = tmp_path / str(REPOSITORY).lstrip("/")
    for layer in ALL:
        here = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", layer]
        environment = os.environ | {"PYTHONPATH": "src:tests", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(here, cwd=there, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_program_comes_with_its_libraries(tmp_path: Path) -> None:
    """It runs with nothing else around it."""
    tree = Tree()
    tree.program("sleep")
    archive = tree.cpio()
    subprocess.run(
        ["/usr/bin/busybox", "cpio", "-idm"], cwd=tmp_path, input=archive, check=True, capture_output=True
    )
    loader = next(tmp_path.glob("usr/lib64/ld-linux*"))
    libraries = ":".join({str(path.parent) for path in tmp_path.rglob("*.so*")})
    words = [loader, "--inhibit-cache", "--library-path", libraries, tmp_path / "usr" / "bin" / "sleep", "0"]

    assert subprocess.run(words, check=False).returncode == 0


ONE_LINE = "deb [signed-by=/k.gpg arch=amd64] http://mirror.example/debian {release} main contrib\n"
STANZA = """\
Types: deb
# a comment
URIs: http://mirror.example/debian
Suites: {release} {release}-updates
Components: main
Signed-By: /k.gpg

Types: deb
URIs: http://security.example/debian
Suites: {release}-security
Components: main
"""


@pytest.mark.parametrize(("name", "text"), [("own.list", ONE_LINE), ("own.sources", STANZA)])
def test_suites_come_from_the_mirror_of_the_machine(tmp_path: Path, name: str, text: str) -> None:
    """Whichever form its sources are written in; other people's sources are none of ours."""
    directory = tmp_path / "sources.list.d"
    directory.mkdir()
    (directory / "a.list").write_text("deb https://elsewhere.example stable main\n")
    (directory / name).write_text(text.format(release="bookworm"))

    lines = kernel_packages.source_lines(tmp_path, "bookworm").splitlines()

    assert [line.split()[-2] for line in lines] == ["bullseye", "bookworm", "trixie", "sid"]
    assert {line.split(" ", 1)[1].rsplit(" ", 2)[0] for line in lines} == {
        "[signed-by=/k.gpg] http://mirror.example/debian"
    }


def test_machine_without_sources_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is guessed."""
    with pytest.raises(SystemExit):
        kernel_packages.source_lines(tmp_path, "bookworm")

    assert "no apt source of bookworm" in capsys.readouterr().err


def test_kernel_without_a_module_that_is_needed_is_not_complete(tmp_path: Path) -> None:
    """It was fetched by a checkout that needed less."""
    stamp = tmp_path / "kernel.json"
    assert not kernel_packages.is_complete(stamp)
    stamp.write_text(json.dumps({"modules": ["udp_tunnel", *kernel_packages.MODULES[1:]]}))
    assert not kernel_packages.is_complete(stamp)
    stamp.write_text(json.dumps({"modules": ["udp_tunnel", *kernel_packages.MODULES]}))
    assert kernel_packages.is_complete(stamp)
