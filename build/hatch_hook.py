# SPDX-License-Identifier: Apache-2.0
"""
What hatch runs before it packs: compile the objects, the extension and the CNI executable, and put them
into the package.

An editable install gets them in place; a wheel gets them from build/out/, without touching src/.
The wheel is tagged for the limited API and this platform, not for one Python.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class BpfBuildHook(BuildHookInterface):  # type: ignore[type-arg]  # hatchling publishes the parameter only at run time
    """Compile, then tell hatch what was made."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Run the build scripts and add their outputs to the wheel."""
        root = Path(self.root)
        in_place = ["--in-place"] if version == "editable" else []
        self._run(root, "compile_bpf.py", "--quiet")
        self._run(root, "cffi_build.py", *in_place)
        self._run(root, "cni.py", *in_place)
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-{platform}"
        if version == "editable":
            return
        out = root / "build" / "out"
        made = {out / "_libbpf.abi3.so": "ciliumd/bpf/_libbpf.abi3.so"}
        made |= {out / "cilium-cni": "ciliumd/cni/bin/cilium-cni"}
        made |= {path: f"ciliumd/bpf/objects/{path.name}" for path in sorted((out / "bpf").glob("*.bpf.o"))}
        build_data["force_include"].update({str(path): target for path, target in made.items()})

    def _run(self, root: Path, script: str, *arguments: str) -> None:
        self.app.display_info(f"build/{script}")
        subprocess.run([sys.executable, root / "build" / script, *arguments], cwd=root, check=True)
