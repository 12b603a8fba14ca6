# SPDX-License-Identifier: Apache-2.0
"""
The bill of materials of a release, CycloneDX 1.6: what is in the image and what the wheel brings.

Debian packages are read from the image's own dpkg database, Python packages from the metadata that pip wrote
into it, with the hashes of the lock they were installed by; BPF objects, the extension and the CNI executable
from the files themselves.  The same image gives the same bytes.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
import uuid
from datetime import UTC, datetime
from email.parser import Parser
from typing import TYPE_CHECKING

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, License, LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from toolchain import fail

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DPKG = "var/lib/dpkg/status"
COPYRIGHT = "usr/share/doc/"
SITE = re.compile(r"opt/ciliumd/lib/python3\.\d+/site-packages/([^/]+)\.dist-info/METADATA")
BUILT = re.compile(
    r"opt/ciliumd/lib/python3\.\d+/site-packages/(ciliumd/(?:bpf/objects/.+|bpf/_libbpf.+|cni/bin/.+))"
)
# What of the image this page is made of.
WANTED = (DPKG, COPYRIGHT, "opt/ciliumd/lib/")
NAMESPACE = uuid.UUID("8b1f8c0e-55a3-5a8e-9a52-3f4c51d0a6c1")


def sha256(content: bytes) -> HashType:
    """A file's digest as the document writes it."""
    return HashType(alg=HashAlgorithm.SHA_256, content=hashlib.sha256(content).hexdigest())


def licence(text: str) -> list[License]:
    """A licence as its package says it: an SPDX expression or a name."""
    return [DisjunctiveLicense(name=text)] if text else []


def debian(status: str, copyrights: Mapping[str, str], architecture: str) -> Iterator[Component]:
    """Packages of dpkg's database that are installed."""
    for stanza in filter(None, status.split("\n\n")):
        entry = Parser().parsestr(stanza.strip() + "\n")
        if not str(entry["Status"]).endswith(" installed"):
            continue
        name, version = entry["Package"], entry["Version"]
        source, _, of = (entry["Source"] or name).partition(" ")
        found = {"arch": entry["Architecture"] or architecture, "distro": "trixie"}
        yield Component(
            type=ComponentType.LIBRARY,
            name=name,
            version=version,
            bom_ref=f"deb:{name}:{found['arch']}",
            purl=PackageURL("deb", "debian", name, version, found),
            licenses=[one for text in debian_licences(copyrights.get(name, "")) for one in licence(text)],
            properties=[Property(name="debian:source", value=f"{source} {of.strip('()') or version}")],
        )


def debian_licences(text: str) -> list[str]:
    """Debian's names of the licences in a copyright file; none where the file is prose."""
    if not text.startswith("Format:"):
        return []
    return sorted(set(re.findall(r"^License:[ \t]*([A-Za-z0-9].{0,60}?)[ \t]*$", text, re.MULTILINE)))


def python(files: Mapping[str, bytes], lock: str) -> Iterator[Component]:
    """Python packages as pip installed them; one that the lock does not name is an error."""
    locked = {
        (one["name"], one["version"]): one for one in tomllib.loads(lock)["package"] if "version" in one
    }
    for path, content in sorted(files.items()):
        if not SITE.fullmatch(path):
            continue
        entry = Parser().parsestr(content.decode())
        name, version = re.sub(r"[-_.]+", "-", entry["Name"]).lower(), entry["Version"]
        if name == "ciliumd":
            continue
        if (name, version) not in locked:
            fail(f"the image has {name} {version}, which uv.lock does not name")
        hashes = sorted(wheel["hash"].removeprefix("sha256:") for wheel in locked[name, version]["wheels"])
        yield Component(
            type=ComponentType.LIBRARY,
            name=name,
            version=version,
            bom_ref=f"pypi:{name}",
            purl=PackageURL("pypi", None, name, version),
            licenses=python_licences(entry),
            properties=[Property(name="uv.lock:sha256", value=one) for one in hashes],
        )


def python_licences(entry: Mapping[str, str]) -> list[License]:
    """An expression where there is one; else the first line of the old field, else the classifiers."""
    if entry["License-Expression"]:
        return [LicenseExpression(entry["License-Expression"])]
    first = (entry["License"] or "").strip().splitlines()[:1]
    if first and len(first[0]) < 60:
        return licence(first[0])
    classifiers = [value for key, value in entry.items() if key == "Classifier"]
    names = [value.rpartition(" :: ")[2] for value in classifiers if value.startswith("License ::")]
    return [one for name in names for one in licence(name)]


def built(files: Mapping[str, bytes]) -> Iterator[Component]:
    """What is compiled from this project's C: objects for the kernel, the extension, the CNI executable."""
    for path, content in sorted(files.items()):
        if (found := BUILT.fullmatch(path)) is None:
            continue
        in_kernel = path.endswith(".bpf.o")
        text = "GPL-2.0-only OR BSD-2-Clause" if in_kernel else "Apache-2.0"
        yield Component(
            type=ComponentType.FILE,
            name=found[1],
            bom_ref=f"file:{found[1]}",
            hashes=[sha256(content)],
            licenses=[LicenseExpression(text)],
        )


def document(
    files: Mapping[str, bytes], lock: str, *, version: str, architecture: str, image: str, epoch: int
) -> str:
    """The document, checked against its schema."""
    copyrights = {
        path.removeprefix(COPYRIGHT).removesuffix("/copyright"): content.decode(errors="replace")
        for path, content in files.items()
        if path.startswith(COPYRIGHT) and path.endswith("/copyright")
    }
    components = [
        *debian(files[DPKG].decode(), copyrights, architecture),
        *python(files, lock),
        *built(files),
    ]
    project = Component(
        type=ComponentType.APPLICATION,
        name="ciliumd",
        version=version,
        bom_ref="ciliumd",
        purl=PackageURL("pypi", None, "ciliumd", version),
        licenses=[LicenseExpression("Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)")],
        properties=[Property(name="oci:digest", value=image)],
    )
    bom = Bom(components=components)
    bom.metadata.component = project
    bom.metadata.timestamp = datetime.fromtimestamp(epoch, UTC)
    listed = "\n".join(
        f"{one.bom_ref.value} {one.version} {[str(h.content) for h in one.hashes]}" for one in components
    )
    bom.serial_number = uuid.uuid5(NAMESPACE, f"{version}\n{epoch}\n{listed}")
    bom.register_dependency(project, components)
    text = JsonV1Dot6(bom).output_as_string(indent=1)
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if problem is not None:
        fail(f"the bill of materials is not CycloneDX 1.6: {problem}")
    return text + "\n"
