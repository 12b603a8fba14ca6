# SPDX-License-Identifier: Apache-2.0
"""Python packages come by hash: the lock is whole, names the public index only, and pip holds to it."""

import hashlib
import json
import shutil
import sys
import zipfile

import pytest

import locked

FILE = "example-1-py3-none-any.whl"


def test_the_lock_is_what_the_project_asks_for(monkeypatch):
    """Every file has a SHA-256 and none is anywhere but at the public index."""
    monkeypatch.setattr(sys, "argv", ["locked.py", "--check"])
    assert locked.main() == 0


def test_a_dependency_that_is_not_locked_is_noticed(tmp_path, monkeypatch, capsys):
    """Without the network, too: pyproject.toml and lock are compared."""
    shutil.copy(locked.LOCK, tmp_path)
    text = (locked.ROOT / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(text.replace('"structlog>=24.4"', '"structlog>=9999"'))
    monkeypatch.setattr(locked, "ROOT", tmp_path)
    with pytest.raises(SystemExit):
        locked.uv("lock", "--check", "--offline")
    assert "uv lock ended with" in capsys.readouterr().err


def test_a_lock_made_behind_a_mirror_is_refused():
    """Its files and its index."""
    text = locked.LOCK.read_text()
    assert locked.strangers(text) == []
    for public in ("https://pypi.org/simple", "https://files.pythonhosted.org/packages/"):
        assert locked.strangers(text.replace(public, "https://mirror.example/", 1)) != []


def test_a_file_without_a_digest_is_refused():
    """By the package's name."""
    text = locked.LOCK.read_text()
    name = text.partition('name = "')[2].partition('"')[0]
    assert locked.unhashed(text) == []
    assert locked.unhashed(text.replace("sha256:", "md5:", 1)) == [name]


def test_all_groups_are_exported_with_hashes(record_property):
    """What is not locked by hash would be refused by pip's --require-hashes."""
    packages = 0
    for group in locked.EXPORT:
        lines = locked.requirements(group).replace("\\\n", "").splitlines()
        assert len(lines) > 5
        assert [line for line in lines if "--hash=sha256:" not in line] == []
        packages += len(lines)
    groups = len(locked.EXPORT)
    data = {"case": "R3", "groups": groups, "packages locked by hash": packages, "without": 0}
    record_property("data", json.dumps(data))


def wheel(path, text):
    """A wheel of one module."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("example.py", text)
        archive.writestr("example-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: example\nVersion: 1\n")
        archive.writestr("example-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("example-1.dist-info/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_pip_takes_the_locked_file_and_no_other(tmp_path, monkeypatch, record_property):
    """The same name and version with other bytes is refused."""
    served, target = tmp_path / "served", tmp_path / "target"
    served.mkdir()
    digest = wheel(served / FILE, "value = 1\n")
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(served), "TARGET": str(target)}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)

    locked.pip_install(f"example==1 --hash=sha256:{digest}\n", python=None)
    assert (target / "example.py").read_text() == "value = 1\n"

    wheel(served / FILE, "value = 2\n")
    with pytest.raises(SystemExit):
        locked.pip_install(f"example==1 --hash=sha256:{digest}\n", python=None)
    assert (target / "example.py").read_text() == "value = 1\n"
    record_property("data", json.dumps({"case": "R3", "other bytes refused": 1}))
