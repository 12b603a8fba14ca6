# SPDX-License-Identifier: Apache-2.0
"""
Install what uv.lock names, by hash: the packages of a dependency group, or what the package itself needs.

pip does the installing, because every machine tells pip where packages are; uv says which ones, from the
lock alone and without the network.  uv itself is installed first, by its own entry of the lock.  A file whose
SHA-256 is not in the lock is refused by pip.

    python build/locked.py dev                              into the environment of this Python
    python build/locked.py runtime --python /opt/x/bin/python
    python build/locked.py --update                         resolve anew; `--check`: is the lock up to date?
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from pathlib import Path

from toolchain import ROOT, fail

LOCK = ROOT / "uv.lock"
# Where any machine may get packages; a lock that was made behind a mirror would name the mirror.
PUBLIC = ("https://pypi.org/", "https://files.pythonhosted.org/")
EXPORT = {
    "runtime": ["--no-default-groups"],
    "build": ["--only-group", "build"],
    "dev": ["--group", "dev"],
}
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


def uv_requirement(lock: str) -> str:
    """The line by which pip installs uv from its entry of the lock."""
    entry = next(one for one in tomllib.loads(lock)["package"] if one["name"] == "uv")
    hashes = sorted(f"--hash={wheel['hash']}" for wheel in entry["wheels"])
    return f"uv=={entry['version']} {' '.join(hashes)}\n"


def strangers(lock: str) -> list[str]:
    """Addresses in the lock that are not those of the public index."""
    found = []
    for entry in tomllib.loads(lock)["package"]:
        files = [*entry.get("wheels", []), entry.get("sdist", {})]
        addresses = [entry["source"].get("registry", ""), *(file.get("url", "") for file in files)]
        found += [address for address in addresses if address and not f"{address}/".startswith(PUBLIC)]
    return found


def unhashed(lock: str) -> list[str]:
    """Packages of the lock with a file that has no SHA-256; the project itself has no files."""
    return [
        entry["name"]
        for entry in tomllib.loads(lock)["package"]
        if "registry" in entry["source"]
        for file in [*entry.get("wheels", []), *([entry["sdist"]] if "sdist" in entry else [])]
        if not file.get("hash", "").startswith("sha256:")
    ]


def uv(*words: str | Path) -> str:
    """Run this environment's uv on the lock; it never fetches a Python."""
    program = Path(sysconfig.get_path("scripts")) / "uv"
    command = [str(word) for word in (program, "--quiet", *words, "--python", sys.executable)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
    environment |= {"UV_PYTHON_DOWNLOADS": "never", "UV_NATIVE_TLS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        fail(f"uv {words[0]} ended with {done.returncode}\n{done.stderr.strip()}")
    return done.stdout


def pip_install(requirements: str, *, python: str | None) -> None:
    """Have pip install exactly these, checking hashes; nothing else is looked for."""
    target = ["--python", python] if python else []
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(requirements)
        file.flush()
        words = ["install", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--requirement"]
        done = subprocess.run([*PIP, *target, *words, file.name], cwd=ROOT, check=False)
    if done.returncode:
        fail(f"pip ended with {done.returncode}")


def requirements(group: str) -> str:
    """A group of the lock as pip reads it."""
    words = ["export", "--frozen", "--offline", "--no-header", "--no-annotate", "--no-emit-project"]
    return uv(*words, *EXPORT[group])


def main() -> int:
    """Install a group, or update or check the lock."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("group", nargs="?", choices=EXPORT)
    parser.add_argument("--python", metavar="PROGRAM", help="of the environment to install into")
    parser.add_argument("--update", action="store_true", help="resolve anew and rewrite the lock")
    parser.add_argument(
        "--check", action="store_true", help="fail unless the lock is what pyproject.toml asks for"
    )
    options = parser.parse_args()
    lock = LOCK.read_text()
    if options.update:
        uv("lock", "--upgrade", "--default-index", f"{PUBLIC[0]}simple")
        lock = LOCK.read_text()
    if options.update or options.check:
        if found := strangers(lock):
            fail(f"{LOCK.name} names {found[0]}, which other machines may not reach")
        if found := unhashed(lock):
            fail(f"{LOCK.name} has no SHA-256 of {found[0]}")
    if options.check:
        uv("lock", "--check", "--offline")
    if options.group:
        pip_install(uv_requirement(lock), python=None)
        pip_install(requirements(options.group), python=options.python)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
