# SPDX-License-Identifier: Apache-2.0
"""The lint layer: each of its checks counts as one test."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
from pathlib import Path

import compile_bpf
from results import LOGS, SHOWN_LINES, Result
from toolchain import OUT, ROOT, tool


def checks() -> dict[str, list[str | Path]]:
    """The commands of the lint layer, by name."""
    scripts = Path(sys.executable).parent
    c_files = sorted(
        path
        for folder in ("datapath", "src/ciliumd/cni/executable", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".c", ".h"}
    )
    programs = sorted((ROOT / "datapath" / "progs").glob("*.bpf.c"))
    tidy = {
        f"clang-tidy {path.name}": [
            *(tool("clang-tidy-19"), "--quiet", path.relative_to(ROOT), "--"),
            *compile_bpf.flags(ROOT),
        ]
        for path in programs
    }
    return {
        **tidy,
        "mypy": [scripts / "mypy"],
        "import-linter": [scripts / "lint-imports", "--cache-dir", OUT / "import_linter"],
        "objects are reproducible": [sys.executable, ROOT / "build" / "reproducible.py"],
        "CRDs are what the models say": [sys.executable, "-m", "ciliumd.resources.crd", "--check"],
        "reference pages are what the sources say": [
            sys.executable,
            ROOT / "build" / "reference.py",
            "--check",
        ],
        "abi.py is what the objects say": [sys.executable, ROOT / "build" / "gen_abi.py", "--check"],
        "ruff check": [scripts / "ruff", "check", "--no-cache", "."],
        "ruff format": [scripts / "ruff", "format", "--no-cache", "--check", "."],
        "clang-format": [tool("clang-format-19"), "--dry-run", "-Werror", *c_files],
        "licence lines": [sys.executable, ROOT / "build" / "spdx.py"],
    }


def run_check(command: list[str | Path]) -> str | None:
    """What a check complains about; None when it is content."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}/src:{ROOT}/tests"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, check=False)
    return None if done.returncode == 0 else (done.stdout + done.stderr).decode(errors="replace")


def lint_layer() -> Result:
    """Run every check, as many at a time as there are processors."""
    result = Result()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {name: pool.submit(run_check, command) for name, command in checks().items()}
        for name, job in jobs.items():
            complaint = job.result()
            if complaint is None:
                result.passed += 1
            else:
                log = LOGS / f"lint-{name.replace(' ', '-')}.log"
                log.write_text(complaint)
                shown = complaint.strip().splitlines()[:SHOWN_LINES]
                result.fail("\n".join([f"--- {name}", *shown, f"(all of it: {log.relative_to(ROOT)})"]))
    return result
