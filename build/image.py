# SPDX-License-Identifier: Apache-2.0
"""
Build the project's image from its Dockerfile as it stands, without a registry and without Docker.

buildah runs the Dockerfile; `debian:trixie-slim` is answered by a base that mmdebstrap makes from the
Debian packages that this machine can reach.  How this machine reaches packages (proxies, certificate
authorities, pip's settings) is shown to the build in a home directory that is mounted while a step
runs: no layer and no label of the image has any of it.
"""

from __future__ import annotations

import argparse
import configparser
import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from toolchain import OUT, PACKAGE, ROOT, digest, fail, tool

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = "quay.io/ciliumd/ciliumd"
RELEASE = "trixie"
BASE = f"debian:{RELEASE}-slim"
LOCAL_BASE = f"localhost/{RELEASE}:base"
DIRECTORY = OUT / "image"
ARCHIVE = DIRECTORY / "ciliumd.tar"
STAMP = DIRECTORY / "ciliumd.inputs"
# What Debian's slim images leave out of every package.
SLIM = [f"/usr/share/{name}/*" for name in ("doc", "info", "linda", "lintian", "locale", "man")]
# pip's settings that say where packages are and how to get there.
PIP_SETTINGS = {"cert", "client-cert", "extra-index-url", "find-links", "index-url", "proxy", "trusted-host"}
FILES = {"cert", "client-cert"}
HOME = "/root"
# When every file of the image was made: the same content is the same layer, whoever builds it and when.
# 1 January 2026; a release says in the image's configuration which commit it is of, and of what time that is.
MADE = "1767225600"
PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")


def version() -> str:
    """The project's version."""
    found = re.search(r'^__version__ = "(.+)"$', (PACKAGE / "__init__.py").read_text(), re.MULTILINE)
    return found[1] if found else fail(f"no __version__ in {PACKAGE}/__init__.py")


def reference() -> str:
    """The image's full reference, as the chart asks for it."""
    return f"{REPOSITORY}:v{version()}"


def run(command: list[str | Path], *, log: Path | None = None, text: str | None = None) -> str:
    """Run a tool; its output, or what it complains about."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        cwd=ROOT,
        env=os.environ | {"SOURCE_DATE_EPOCH": MADE},
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if log is not None:
        log.write_text(done.stdout)
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-40:])
        fail(f"{Path(words[0]).name} ended with {done.returncode}\n{tail}")
    return done.stdout


def buildah(*words: str | Path, log: Path | None = None, text: str | None = None) -> str:
    """Run buildah over a storage that is the project's own."""
    storage = [
        "--storage-driver",
        "overlay",
        "--root",
        f"{DIRECTORY}/storage",
        "--runroot",
        f"{DIRECTORY}/run",
    ]
    return run([tool("buildah"), *storage, *words], log=log, text=text)


# -- inputs --------------------------------------------------------------------------------------


def context_files() -> list[Path]:
    """The files that .dockerignore lets into the build."""
    rules = [line.strip() for line in (ROOT / ".dockerignore").read_text().splitlines()]
    wanted = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    listed = run([tool("git"), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *wanted])
    return sorted(ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file())


def inputs() -> str:
    """A digest of all that the image is made of, but for what package sources hold today."""
    parts = [reference().encode()]
    for path in (ROOT / "Dockerfile", ROOT / ".dockerignore", Path(__file__), *context_files()):
        parts += [str(path.relative_to(ROOT)).encode(), path.read_bytes()]
    return digest(parts)


# -- this machine's way to packages ---------------------------------------------------------------


def pip_settings() -> dict[str, str]:
    """pip's settings on this machine, whatever file or variable they come from."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    found = re.findall(r"^(?:global|:env:|user|site)\.([a-z-]+)='(.*)'$", listed, re.MULTILINE)
    return {name: value for name, value in found if name in PIP_SETTINGS}


def make_home(home: Path) -> list[str]:
    """Fill a home directory with this machine's settings; the volumes that a build step needs."""
    shutil.rmtree(home, ignore_errors=True)
    (home / ".config" / "pip").mkdir(parents=True)
    volumes = [f"{home}:{HOME}"]
    settings = pip_settings()
    for name, value in settings.items():
        if name in FILES:
            shutil.copy(value, home / name)
            settings[name] = f"{HOME}/{name}"
        elif name == "find-links" and Path(value).is_dir():
            shutil.copytree(value, home / "wheels")
            settings[name] = f"{HOME}/wheels"
    config = configparser.ConfigParser(interpolation=None)
    config["global"] = settings
    with (home / ".config" / "pip" / "pip.conf").open("w") as file:
        config.write(file)
    return volumes


def proxies() -> Iterator[str]:
    """Build arguments that builders know by themselves and keep out of the image."""
    found = {name: os.environ.get(name) or os.environ.get(name.upper()) for name in PROXIES}
    dumped = subprocess.run(
        ["/usr/bin/apt-config", "dump"], capture_output=True, text=True, check=False
    ).stdout
    for scheme, value in re.findall(r'^Acquire::(https?)::Proxy "(\S+)";$', dumped, re.MULTILINE):
        found[f"{scheme}_proxy"] = found[f"{scheme}_proxy"] or value
    for name, value in found.items():
        if value:
            yield f"--build-arg={name}={value}"


def mirror() -> str:
    """Where this machine gets Debian's packages."""
    words = [
        "/usr/bin/apt-get",
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Origin: Debian",
        "Created-By: Packages",
    ]
    listed = subprocess.run(words, capture_output=True, text=True, check=False).stdout.split()
    mirrors = [uri for uri in listed if "security" not in uri]
    return mirrors[0] if mirrors else fail("apt knows no Debian mirror: run `apt-get update`")


# -- the build -----------------------------------------------------------------------------------


def base() -> None:
    """Make the base once; `--fresh` makes it anew."""
    archive = DIRECTORY / f"{RELEASE}.tar"
    if not archive.exists():
        aside = archive.with_suffix(f".{os.getpid()}.tar")
        excluded = [f"--dpkgopt=path-exclude={pattern}" for pattern in SLIM]
        kept = "--dpkgopt=path-include=/usr/share/doc/*/copyright"
        run([tool("mmdebstrap"), "--quiet", "--variant=minbase", *excluded, kept, RELEASE, aside, mirror()])
        aside.rename(archive)
        text = f'FROM scratch\nADD {archive.name} /\nCMD ["bash"]\n'
        buildah(
            *("build", "--quiet", "--isolation=chroot", f"--timestamp={MADE}"),
            *("--file=-", f"--tag={LOCAL_BASE}", DIRECTORY),
            text=text,
        )


def image() -> None:
    """Run the Dockerfile and write the archive."""
    home = DIRECTORY / "home"
    volumes = make_home(home)
    try:
        buildah(
            "build",
            "--isolation=chroot",
            "--network=host",
            "--layers",
            f"--timestamp={MADE}",
            f"--build-context={BASE}=container-image://{LOCAL_BASE}",
            *(f"--volume={volume}" for volume in volumes),
            *proxies(),
            f"--tag={reference()}",
            ROOT,
            log=DIRECTORY / "build.log",
        )
    finally:
        shutil.rmtree(home)
    aside = ARCHIVE.with_suffix(f".{os.getpid()}.tar")
    buildah("push", "--quiet", reference(), f"docker-archive:{aside}:{reference()}")
    aside.rename(ARCHIVE)


def push(layout: Path) -> Path:
    """Write the image that was built as an OCI layout into a directory that is made for it."""
    buildah("push", "--quiet", reference(), f"oci:{layout}:{version()}")
    return layout


def main() -> None:
    """Build the image unless what it is made of is unchanged."""
    parser = argparse.ArgumentParser(description="build the project's image into build/out/image/")
    parser.add_argument("--fresh", action="store_true", help="from today's packages: nothing is reused")
    fresh = parser.parse_args().fresh
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / ".image.lock").open("w") as lock:
        # Not the lock of the other build scripts: this may take minutes.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if fresh:
            forget()
        update()


def forget() -> None:
    """Remove base, storage and archive."""
    if (DIRECTORY / "storage").exists():
        buildah("rmi", "--all", "--force")
    shutil.rmtree(DIRECTORY, ignore_errors=True)


def update() -> None:
    """Build unless what the image is made of is unchanged; a line with its size."""
    wanted = inputs()
    if ARCHIVE.exists() and STAMP.exists() and STAMP.read_text() == wanted:
        return
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    base()
    image()
    STAMP.write_text(wanted)
    size = ARCHIVE.stat().st_size / 1e6
    print(f"{f'{reference()}: {size:.0f} MB':50}{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
