# SPDX-License-Identifier: Apache-2.0
"""Archives that are the same bytes twice, the bill of materials, the sums, and what stops a release."""

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile

import pytest

import archives
import compile_bpf
import release
import sbom
import third_party

EPOCH = 1767225600
LOCK = (release.ROOT / "uv.lock").read_text()
STATUS = """Package: jq
Status: install ok installed
Architecture: amd64
Version: 1.7.1-6

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: libelf1t64
Status: install ok installed
Architecture: amd64
Source: elfutils (0.192)
Version: 0.192-4
"""
COPYRIGHT = (
    "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nLicense: MIT\n text\n"
)
SITE = "opt/ciliumd/lib/python3.13/site-packages"


def structlog():
    """The version that is locked."""
    return LOCK.partition('name = "structlog"\nversion = "')[2].partition('"')[0]


def image_files(version=None):
    """Files of an image, as the bill of materials reads them."""
    metadata = f"Metadata-Version: 2.4\nName: structlog\nVersion: {version or structlog()}\n"
    metadata += "License-Expression: MIT OR Apache-2.0\n\nText\n"
    return {
        sbom.DPKG: STATUS.encode(),
        "usr/share/doc/jq/copyright": COPYRIGHT.encode(),
        f"{SITE}/structlog-{version or structlog()}.dist-info/METADATA": metadata.encode(),
        f"{SITE}/ciliumd/bpf/objects/lxc.bpf.o": b"object",
        f"{SITE}/ciliumd/bpf/_libbpf.abi3.so": b"extension",
        f"{SITE}/ciliumd/cni/bin/cilium-cni": b"executable",
        f"{SITE}/ciliumd/abi.py": b"",
    }


def bill(files):
    """The document."""
    return sbom.document(
        files, LOCK, version="1.2.3", architecture="amd64", image=f"sha256:{'0' * 64}", epoch=EPOCH
    )


def test_the_bill_names_python_debian_and_what_is_compiled():
    """Installed packages only, each with version and licence; files with their digests."""
    document = json.loads(bill(image_files()))
    found = {one["bom-ref"]: one for one in document["components"]}

    assert set(found) == {
        "deb:jq:amd64",
        "deb:libelf1t64:amd64",
        "pypi:structlog",
        "file:ciliumd/bpf/objects/lxc.bpf.o",
        "file:ciliumd/bpf/_libbpf.abi3.so",
        "file:ciliumd/cni/bin/cilium-cni",
    }
    assert found["deb:jq:amd64"]["licenses"] == [{"license": {"name": "MIT"}}]
    assert found["deb:libelf1t64:amd64"]["properties"][0]["value"] == "elfutils 0.192"
    assert found["pypi:structlog"]["licenses"][0]["expression"] == "MIT OR Apache-2.0"
    assert {one["name"] for one in found["pypi:structlog"]["properties"]} == {"uv.lock:sha256"}
    digest = hashlib.sha256(b"object").hexdigest()
    assert found["file:ciliumd/bpf/objects/lxc.bpf.o"]["hashes"] == [{"alg": "SHA-256", "content": digest}]


def test_the_bill_is_the_same_twice():
    """Its number and its time follow from what it describes."""
    assert bill(image_files()) == bill(image_files())
    other = image_files() | {f"{SITE}/ciliumd/bpf/objects/lxc.bpf.o": b"other"}
    assert json.loads(bill(other))["serialNumber"] != json.loads(bill(image_files()))["serialNumber"]


def test_a_python_package_that_is_not_locked_stops_a_release(capsys):
    """By name and version."""
    with pytest.raises(SystemExit):
        bill(image_files(version="0.0.1"))
    assert "structlog 0.0.1, which uv.lock does not name" in capsys.readouterr().err


def test_third_party_is_what_the_lock_says(monkeypatch):
    """The table of Python packages."""
    monkeypatch.setattr(sys, "argv", ["third_party.py", "--check"])
    assert third_party.main() == 0


def test_the_charts_archive_is_the_same_twice_and_knows_nobody():
    """One time, no user, and the files of the checkout."""
    content = archives.chart(EPOCH)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = archive.getmembers()

    assert archives.chart(EPOCH) == content
    assert {(one.mtime, one.uid, one.gid, one.uname, one.gname) for one in members} == {(EPOCH, 0, 0, "", "")}
    assert {"ciliumd/Chart.yaml", "ciliumd/values.yaml", "ciliumd/templates/NOTES.txt"} <= {
        one.name for one in members
    }


def test_two_builds_are_the_same_bytes(request, tmp_path, record_property):
    """In two directories: with --long the whole wheel of the commit, else an object."""
    data = {"case": "R1", "builds": 2}
    if request.config.getoption("--long"):
        name, content = release.wheel_of_two_builds(release.commit()[1])
        data |= {"files alike": len(release.members(content)), "wheel": name}
    else:
        made = []
        for place in ("a", "deeper/b"):
            root = tmp_path / place
            shutil.copytree(release.ROOT / "datapath", root / "datapath")
            path = compile_bpf.sources(root)["sock"]
            compile_bpf.compile_object(path, root / "sock.o", root=root)
            made.append((root / "sock.o").read_bytes())
        assert made[0] == made[1]
        data["files alike"] = 1
    record_property("data", json.dumps(data))


def layer(**files):
    """A layer; a name beginning with wh_ is a whiteout."""
    names = {name.replace("wh_", ".wh."): content for name, content in files.items()}
    return archives.tar({f"etc/{name}": content for name, content in names.items()}, EPOCH)


def layout(directory, *layers):
    """An OCI layout on disk, as buildah writes one."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def store(content):
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"digest": f"sha256:{digest}", "size": len(content)}

    config = {
        "created": "2020-01-01T00:00:00Z",
        "config": {"Labels": {"a": "b"}},
        "history": [{"created": "x"}],
    }
    manifest = {
        "config": store(json.dumps(config).encode()),
        "layers": [store(gzip.compress(content)) for content in layers],
    }
    index = {"manifests": [store(json.dumps(manifest).encode())]}
    (directory / "index.json").write_text(json.dumps(index))
    return directory


def test_an_image_says_its_commit_and_is_the_same_twice(tmp_path):
    """Time and labels are stamped; every digest on the way up is that of its blob."""
    place = layout(tmp_path / "layout", layer(hosts=b"1"))
    made = []
    for _ in range(2):
        one = archives.Layout.read(place)
        one.stamp(EPOCH, {"revision": "abc"}, "quay.io/x/y:v1")
        made.append(one.tar(EPOCH))
    with tarfile.open(fileobj=io.BytesIO(made[0])) as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive}
    manifest = json.loads(files["index.json"])["manifests"][0]
    found = json.loads(files[f"blobs/sha256/{manifest['digest'][7:]}"])
    config = json.loads(files[f"blobs/sha256/{found['config']['digest'][7:]}"])

    assert made[0] == made[1]
    assert [n for n, c in files.items() if n[:5] == "blobs" and hashlib.sha256(c).hexdigest() != n[13:]] == []
    assert config["created"] == config["history"][0]["created"] == "2026-01-01T00:00:00Z"
    assert config["config"]["Labels"] == {"a": "b", "revision": "abc"}
    assert manifest["annotations"]["io.containerd.image.name"] == "quay.io/x/y:v1"


def test_a_damaged_blob_is_refused(tmp_path):
    """Its name says what its bytes must be."""
    place = layout(tmp_path / "layout", layer(hosts=b"1"))
    damaged = next((place / "blobs" / "sha256").iterdir())
    damaged.write_bytes(damaged.read_bytes() + b" ")
    with pytest.raises(SystemExit):
        archives.Layout.read(place)


def test_files_of_the_root_are_those_a_container_sees():
    """A later layer wins, a whiteout removes."""
    layers = [layer(hosts=b"1", gone=b"1"), layer(hosts=b"2", wh_gone=b"")]

    assert archives.root_files(layers, ["etc/"]) == {"etc/hosts": b"2"}
    assert archives.root_files(layers, ["usr/"]) == {}


@pytest.mark.parametrize("in_image", [{"lxc.bpf.o": "b"}, {}, {"lxc.bpf.o": "a", "more.bpf.o": "c"}])
def test_objects_that_differ_between_image_and_wheel_stop_a_release(in_image, capsys):
    """Changed, missing or one too many."""
    with pytest.raises(SystemExit):
        release.same_objects({"lxc.bpf.o": "a"}, in_image)
    assert "of the image is not the wheel's" in capsys.readouterr().err


def test_what_is_not_committed_is_not_released(monkeypatch, capsys):
    """A release is a commit."""
    monkeypatch.setattr(sys, "argv", ["release.py"])
    monkeypatch.setattr(release, "git", lambda *words: "?? more.py" if words[0] == "status" else "")
    with pytest.raises(SystemExit):
        release.main()
    assert "?? more.py" in capsys.readouterr().err


def test_the_sums_are_what_sha256sum_checks(tmp_path):
    """All files; a changed one is found."""
    files = {"a.whl": b"1", "b.tgz": b"2"}
    release.write(files | {release.SUMS: release.sums(files)}, tmp_path / "release")
    words = ["/usr/bin/sha256sum", "--check", "--strict", release.SUMS]

    assert subprocess.run(words, cwd=tmp_path / "release", capture_output=True, check=False).returncode == 0
    (tmp_path / "release" / "b.tgz").write_bytes(b"3")
    assert subprocess.run(words, cwd=tmp_path / "release", capture_output=True, check=False).returncode == 1


SIGNER = "releases@example.org"


def verified(directory, signers):
    """What one who got the release does, as SECURITY says."""
    words = ["/usr/bin/ssh-keygen", "-Y", "verify", "-n", "ciliumd-release", "-I", SIGNER, "-f", signers]
    with (directory / release.SUMS).open() as sums:
        done = subprocess.run(
            [*words, "-s", directory / "SHA256SUMS.sig"], stdin=sums, capture_output=True, check=False
        )
    return done.returncode == 0


def key(directory, name):
    """A throw-away key, and the file that says whose it is."""
    path = directory / name
    words = ["/usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", path]
    subprocess.run(words, check=True)
    signers = directory / f"{name}.signers"
    signers.write_text(f"{SIGNER} {path.with_suffix('.pub').read_text()}")
    return path, signers


def test_signed_sums_are_the_signers_and_nobody_elses(tmp_path, record_property):
    """A changed line, another's key and a signature for another purpose are refused."""
    place = tmp_path / "release"
    files = {"a.whl": b"1"}
    (mine, signers), (_, others) = key(tmp_path, "mine"), key(tmp_path, "other")
    release.write(files | {release.SUMS: release.sums(files)}, place, mine)

    assert {path.name for path in place.iterdir()} == {"a.whl", "SHA256SUMS", "SHA256SUMS.sig"}
    assert verified(place, signers)
    refused = [not verified(place, others)]
    sums = (place / release.SUMS).read_text()
    (place / release.SUMS).write_text(sums.replace("a.whl", "b.whl"))
    refused.append(not verified(place, signers))
    (place / release.SUMS).write_text(sums)
    (place / "SHA256SUMS.sig").unlink()
    words = ["/usr/bin/ssh-keygen", "-Y", "sign", "-q", "-n", "file", "-f", mine, place / release.SUMS]
    subprocess.run(words, check=True)
    refused.append(not verified(place, signers))
    record_property("data", json.dumps({"case": "R4", "forged": len(refused), "refused": sum(refused)}))
    assert refused == [True] * 3


def test_a_key_that_cannot_sign_leaves_the_release_before_it(tmp_path, capfd):
    """Nothing is replaced by a release without the signature that was asked for."""
    place = tmp_path / "release"
    release.write({"before": b"", release.SUMS: b""}, place)
    (tmp_path / "key").write_text("no key\n")
    with pytest.raises(SystemExit):
        release.write({"after": b"", release.SUMS: b""}, place, tmp_path / "key")
    assert {path.name for path in place.iterdir()} == {"before", release.SUMS}
    assert {path.name for path in tmp_path.iterdir()} == {"release", "key"}
    assert "did not sign SHA256SUMS" in capfd.readouterr().err
