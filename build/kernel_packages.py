# SPDX-License-Identifier: Apache-2.0
"""
Debian's kernels, as their packages have them: downloaded by this machine's apt, unpacked, never installed.

apt works on lists and a cache of its own below build/out, with the mirror and the keys that this machine
has for its own release: nothing of the machine's apt changes.  The suite decides on the version; what is
there stays until it is asked to be newer.
"""

from __future__ import annotations

import json
import lzma
import re
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolchain import OUT, fail, replace, run, tool

if TYPE_CHECKING:
    from collections.abc import Iterator

# The oldest kernel that is supported, the two of Debian's stable releases, and the newest there is.
SUITES = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie", "newest": "sid"}
FLAVOUR = "linux-image-cloud-amd64"
# Modules that the tests' worlds and the datapath need; none of these kernels has them built in.
MODULES = ("veth", "vxlan", "sch_ingress", "cls_bpf", "bridge", "udp_diag", "tcp_diag")
DIRECTORY = OUT / "kernels"
APT = DIRECTORY / "apt"
ETC = Path("/etc/apt")
PART = re.compile(r"linux-(?:image|binary|modules)-\d\S*")


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel that can be booted; *modules* are in the order they must be loaded in."""

    name: str
    suite: str
    release: str
    version: str
    modules: tuple[str, ...]

    @property
    def image(self) -> Path:
        """What a machine boots."""
        return DIRECTORY / self.name / "vmlinuz"

    @property
    def module_files(self) -> list[Path]:
        """Its modules, unpacked."""
        return [DIRECTORY / self.name / f"{module}.ko" for module in self.modules]


def sources(etc: Path) -> Iterator[dict[str, str]]:
    """The machine's sources of packages, in both forms apt knows: URIs, Suites, Components, Signed-By."""
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*.list"))]:
        for line in path.read_text().splitlines() if path.exists() else ():
            found = re.fullmatch(r"deb\s+(?:\[(.*?)\]\s+)?(\S+)\s+(\S+)\s+(.*)", line.strip())
            if found:
                key = re.search(r"signed-by=(\S+)", found[1] or "")
                yield {
                    "URIs": found[2],
                    "Suites": found[3],
                    "Components": found[4],
                    "Signed-By": key[1] if key else "",
                }
    for path in sorted((etc / "sources.list.d").glob("*.sources")):
        text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE)
        for stanza in re.split(r"\n\s*\n", text):
            fields = dict(re.findall(r"^([\w-]+):[ \t]*(.*)$", stanza, re.MULTILINE))
            if {"URIs", "Suites"} <= set(fields):
                yield fields


def own_release() -> str:
    """The name of this machine's release."""
    found = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.MULTILINE)
    return found[1] if found else fail("/etc/os-release names no release")


def source_lines(etc: Path, release: str) -> str:
    """A line for each suite, from the mirror that the machine's own release comes from."""
    own = [
        source
        for source in sources(etc)
        if release in source["Suites"].split() and "main" in source.get("Components", "").split()
    ]
    if not own:
        fail(f"no apt source of {release} to derive Debian's mirror from")
    signed = f"[signed-by={own[0]['Signed-By']}] " if own[0].get("Signed-By") else ""
    mirror = own[0]["URIs"].split()[0]
    return "".join(f"deb {signed}{mirror} {suite} main\n" for suite in SUITES.values())


def apt_options() -> list[str]:
    """What makes apt work in a place of its own."""
    for directory in ("state/lists/partial", "cache/archives/partial"):
        (APT / directory).mkdir(parents=True, exist_ok=True)
    (APT / "state" / "status").touch()
    replace(APT / "sources.list", source_lines(ETC, own_release()).encode())
    settings = {
        "Dir::Etc::sourcelist": APT / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::Etc::preferencesparts": "-",
        "Dir::Etc::preferences": "-",
        "Dir::State": APT / "state",
        "Dir::State::status": APT / "state" / "status",
        "Dir::Cache": APT / "cache",
        "APT::Architecture": "amd64",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
    }
    return ["-q", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]


def shown(options: list[str], package: str) -> dict[str, str]:
    """What the lists say about a package."""
    text = run([tool("apt-cache"), *options, "show", "--no-all-versions", package]).decode()
    return dict(re.findall(r"^([\w-]+): (.*)$", text, re.MULTILINE))


def parts(options: list[str], package: str) -> dict[str, str]:
    """The packages that a kernel consists of, and their versions."""
    found: dict[str, str] = {}
    todo = [package]
    while todo:
        fields = shown(options, todo.pop())
        found[fields["Package"]] = fields["Version"]
        todo += [name for name in PART.findall(fields.get("Depends", "")) if name not in found]
    return {name: version for name, version in found.items() if PART.fullmatch(name)}


def depends(module: bytes) -> list[str]:
    """What a module says it needs (.modinfo)."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return found[1].decode().split(",") if found and found[1] else []


def unpack(name: str, suite: str, packages: list[Path], version: str) -> Kernel:
    """Take the image and the modules out of packages."""
    with tempfile.TemporaryDirectory(dir=DIRECTORY) as scratch:
        for package in packages:
            run([tool("dpkg-deb"), "-x", package, scratch])
        root = Path(scratch)
        (modules,) = [*root.glob("lib/modules/*"), *root.glob("usr/lib/modules/*")]
        (image,) = [*root.glob("boot/vmlinuz-*"), *modules.glob("vmlinuz")]
        files = {path.name.partition(".ko")[0].replace("-", "_"): path for path in modules.rglob("*.ko*")}
        order: dict[str, bytes] = {}

        def take(module: str) -> None:
            path = files[module]
            content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
            for needed in depends(content):
                if needed.replace("-", "_") not in order:
                    take(needed.replace("-", "_"))
            order[module] = content

        for module in MODULES:
            take(module)
        kernel = Kernel(name, suite, modules.name, version, tuple(order))
        shutil.rmtree(kernel.image.parent, ignore_errors=True)
        replace(kernel.image, image.read_bytes())
        for path, content in zip(kernel.module_files, order.values(), strict=True):
            replace(path, content)
    return kernel


def is_complete(stamp: Path) -> bool:
    """Whether a kernel is there, with all modules that are needed today."""
    return stamp.exists() and set(MODULES) <= set(json.loads(stamp.read_text())["modules"])


def fetch(*, update: bool) -> dict[str, Kernel]:
    """Every kernel, by name; those that are there are not asked for again unless *update* says so."""
    stamps = {name: DIRECTORY / name / "kernel.json" for name in SUITES}
    if update or not all(is_complete(stamp) for stamp in stamps.values()):
        options = apt_options()
        run([tool("apt-get"), *options, "update"])
        for name, suite in SUITES.items():
            wanted = shown(options, f"{FLAVOUR}/{suite}")
            found = parts(options, next(iter(PART.findall(wanted["Depends"]))))
            with tempfile.TemporaryDirectory(dir=DIRECTORY) as scratch:
                words = [f"{package}={version}" for package, version in found.items()]
                run([tool("apt-get"), *options, "download", *words], cwd=Path(scratch))
                kernel = unpack(name, suite, sorted(Path(scratch).glob("*.deb")), wanted["Version"])
            replace(stamps[name], json.dumps(asdict(kernel)).encode())
            sys.stdout.write(f"{name}: Linux {kernel.release} ({kernel.version} of {suite})\n")
    kernels = {name: json.loads(stamp.read_text()) for name, stamp in stamps.items()}
    return {
        name: Kernel(**(fields | {"modules": tuple(fields["modules"])})) for name, fields in kernels.items()
    }
