# SPDX-License-Identifier: Apache-2.0
"""The compiled extension stays in its room; import-linter cannot see a module without source."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[3] / "src" / "ciliumd"


def imported(path: Path) -> set[str]:
    """Full names of everything a module imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return names


def test_only_bpf_imports_the_extension() -> None:
    """Everybody else uses the handles, which own descriptors and raise named errors."""
    outside = [path for path in SOURCE.rglob("*.py") if path.parent != SOURCE / "bpf"]
    assert outside
    assert [path for path in outside if any("_libbpf" in name for name in imported(path))] == []
