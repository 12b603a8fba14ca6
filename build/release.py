# SPDX-License-Identifier: Apache-2.0
"""
Make a release in build/out/release/: wheel, image, chart, bill of materials, licences, checksums.

Everything that is compiled for the wheel is compiled twice, from two copies of the sources in two
directories, and the wheels must be the same bytes; the objects in the image, which another Debian's compiler
made, must be the wheel's.  Files carry the time of the commit.  Nothing is uploaded.

    python build/release.py             a release; the checkout must be a commit and nothing else
    python build/release.py --trial     of the commit, whatever else is here: to look at, not to publish
    python build/release.py --trial --once      what is here now, compiled once
    python build/release.py --sign KEY          with SHA256SUMS.sig, made by ssh-keygen with the key in a file
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import archives
import image
import sbom
from locked import LOCK
from toolchain import OUT, ROOT, fail, run, tool

if TYPE_CHECKING:
    from collections.abc import Mapping

RELEASE = OUT / "release"
SUMS = "SHA256SUMS"
# What a signature is for: one that the same key gave to anything else does not verify.
NAMESPACE = "ciliumd-release"
TEXTS = ("LICENSE", "THIRD_PARTY.md")
SITE = "ciliumd/bpf/objects/"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def git(*words: str) -> str:
    """What git says."""
    return run([tool("git"), *words]).decode().strip()


def commit() -> tuple[str, int]:
    """The commit and its time in seconds."""
    name, time = git("log", "-1", "--format=%H %ct").split()
    return name, int(time)


def wheel(sources: Path, epoch: int) -> tuple[str, bytes]:
    """Build the wheel of the sources at a place; its name and bytes."""
    with tempfile.TemporaryDirectory() as scratch:
        words = ["wheel", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
        done = subprocess.run(
            [sys.executable, "-m", "pip", *words, "--no-build-isolation", "--wheel-dir", scratch, sources],
            env=os.environ | {"SOURCE_DATE_EPOCH": str(epoch)},
            cwd=sources,
            check=False,
        )
        if done.returncode:
            fail(f"pip wheel ended with {done.returncode}")
        (made,) = Path(scratch).iterdir()
        return made.name, made.read_bytes()


def copy(target: Path) -> Path:
    """The commit's files and nothing else, at another place."""
    archive = target.with_suffix(".tar")
    archive.parent.mkdir(parents=True, exist_ok=True)
    run([tool("git"), "archive", f"--output={archive}", "HEAD"])
    shutil.unpack_archive(archive, target, filter="data")
    archive.unlink()
    return target


def wheel_of_two_builds(epoch: int) -> tuple[str, bytes]:
    """The wheel, when two clean builds agree on every byte."""
    with tempfile.TemporaryDirectory() as scratch:
        places = (Path(scratch) / "a", Path(scratch) / "deeper" / "b")
        one, two = (wheel(copy(place), epoch) for place in places)
    if one != two:
        fail(f"two builds of one commit differ in {', '.join(differing(one[1], two[1])) or 'the archive'}")
    return one


def members(content: bytes) -> dict[str, bytes]:
    """The files of a wheel."""
    with tempfile.TemporaryFile() as file:
        file.write(content)
        with zipfile.ZipFile(file) as archive:
            return {name: archive.read(name) for name in archive.namelist()}


def differing(one: bytes, two: bytes) -> list[str]:
    """Files that two wheels disagree about."""
    first, second = members(one), members(two)
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def objects(files: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 of each object among files, by its name."""
    return {
        name.rpartition("/")[2]: hashlib.sha256(content).hexdigest()
        for name, content in files.items()
        if SITE in name and name.endswith(".bpf.o")
    }


def same_objects(in_wheel: Mapping[str, str], in_image: Mapping[str, str]) -> None:
    """Fail unless image and wheel carry the same objects."""
    for name in sorted(in_wheel.keys() | in_image.keys()):
        if in_wheel.get(name) != in_image.get(name):
            fail(f"{name} of the image is not the wheel's: one compiler release must make both")
    if not in_wheel:
        fail("the wheel has no objects")


def sums(files: Mapping[str, bytes]) -> bytes:
    """A page for `sha256sum --check`."""
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items())]
    return "".join(lines).encode()


def assemble(name: str, epoch: int, built: tuple[str, bytes]) -> dict[str, bytes]:
    """Every file of the release, by name."""
    version, architecture = image.version(), ARCHITECTURES[os.uname().machine]
    layout = image_layout()
    found = archives.root_files(layout.layers(), sbom.WANTED)
    same_objects(objects(members(built[1])), objects(found))
    labels = {"revision": name, "version": version, "created": archives.moment(epoch)}
    named = {f"org.opencontainers.image.{key}": value for key, value in labels.items()}
    layout.stamp(epoch, named, image.reference())
    bill = sbom.document(
        found, LOCK.read_text(), version=version, architecture=architecture, image=layout.digest, epoch=epoch
    )
    files = {text: (ROOT / text).read_bytes() for text in TEXTS}
    files |= {
        built[0]: built[1],
        f"ciliumd-{version}.tgz": archives.chart(epoch),
        f"ciliumd-{version}-linux-{architecture}.oci.tar": layout.tar(epoch),
        f"ciliumd-{version}-linux-{architecture}.cdx.json": bill.encode(),
    }
    return files | {SUMS: sums(files)}


def image_layout() -> archives.Layout:
    """The image of this checkout, built if it is not."""
    run([sys.executable, ROOT / "build" / "image.py"])
    with tempfile.TemporaryDirectory(dir=OUT) as scratch:
        return archives.Layout.read(image.push(Path(scratch) / "layout"))


def sign(sums_file: Path, key: Path) -> Path:
    """
    Sign the sums with an SSH key; the signature beside them.

    *key* is a private key, or the public half of one that an agent or a hardware token holds.  Nothing is
    asked of the network; a passphrase is asked of who sits there.
    """
    words = [tool("ssh-keygen"), "-Y", "sign", "-q", "-n", NAMESPACE, "-f", key, sums_file]
    if subprocess.run(words, stdin=None, check=False).returncode:
        fail(f"{key} did not sign {sums_file.name}")
    signature = sums_file.with_name(f"{sums_file.name}.sig")
    check = [tool("ssh-keygen"), "-Y", "check-novalidate", "-n", NAMESPACE, "-s", signature]
    done = subprocess.run(check, input=sums_file.read_bytes(), capture_output=True, check=False)
    if done.returncode:
        fail(f"the signature by {key} is not good: {done.stderr.decode().strip()}")
    return signature


def write(files: Mapping[str, bytes], target: Path, key: Path | None = None) -> None:
    """Replace the directory whole; with *key* its sums are signed before anybody sees it."""
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    aside.mkdir(parents=True)
    try:
        for name, content in files.items():
            (aside / name).write_bytes(content)
        if key is not None:
            sign(aside / SUMS, key)
    except BaseException:
        shutil.rmtree(aside)
        raise
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)


def main() -> int:
    """Make it and say what was made."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--trial", action="store_true", help="although this checkout is not just a commit")
    parser.add_argument("--once", action="store_true", help="compile once, what is here; only with --trial")
    parser.add_argument("--output", type=Path, default=RELEASE, metavar="DIRECTORY")
    parser.add_argument("--sign", type=Path, metavar="KEY", help="an SSH key to sign the checksums with")
    options = parser.parse_args()
    if options.once and not options.trial:
        parser.error("--once is for trials")
    if options.sign and not options.sign.is_file():
        parser.error(f"there is no key {options.sign}")
    if not options.trial and (changed := git("status", "--porcelain")):
        fail(f"not in the commit, so it cannot be released (--trial):\n{changed}")
    name, epoch = commit()
    run([sys.executable, ROOT / "build" / "locked.py", "--check"])
    files = assemble(name, epoch, wheel(ROOT, epoch) if options.once else wheel_of_two_builds(epoch))
    write(files, options.output, options.sign)
    for path in sorted(options.output.iterdir()):
        print(f"{path.name:50}{path.stat().st_size / 1e6:9.2f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
