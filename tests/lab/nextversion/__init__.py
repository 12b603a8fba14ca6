# SPDX-License-Identifier: Apache-2.0
"""
The version after this one, made of this checkout: other layouts, one more program, one less.

Conntrack rows, NAT rows and backends are laid out otherwise (``LAYOUTS``), each in a map of the next
version beside the one of today; ``converters.py`` and the headers here are what whoever changes a
layout has to write.  ``call_service`` is gone and ``call_frontend`` there in its place, under another
number.  Nothing else differs, so what an upgrade loses is the upgrade's fault.
"""

import fcntl
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Final

from lab.process import REPOSITORY, run

HERE: Final = Path(__file__).parent
CHECKOUT: Final = REPOSITORY / "build" / "out" / "next"
COPIED: Final = ("build", "datapath", "src", "pyproject.toml")
BUILT: Final = ("out", "__pycache__", "_libbpf.*", "objects")
BUILD_SECONDS: Final = 300.0

MAPS: Final = ("cilium_ct", "cilium_snat", "cilium_lb_backends")
LAYOUTS: Final = {
    "ct_entry": """
	__u32 check;
	__u32 policy_version;
	__u32 peer_identity;
	__u32 rule_cookie;
	__u16 flags;
	__u8 tcp_flags_local;
	__u8 tcp_flags_remote;
	__u32 rev_nat;
	__u32 backend_id;
	__u32 proxy_slot;
	__u32 last_report;
	__u32 expires;
	__u64 carried; /* 1: made by the version before */
""",
    "nat_entry": """
	__u32 check;
	__be16 port;
	__u16 flags;
	__u32 created;
	__u32 carried; /* 1: made by the version before */
	struct cil_addr addr;
	__u64 pad0;
""",
    "lb_backend": """
	__u32 id;
	__be16 port;
	__u8 protocol;
	__u8 state;
	__u64 pad0;
	struct cil_addr addr;
""",
}


def build() -> Path:
    """
    The next version's checkout, built; what is up to date is not built again.

    Where CILIUMD_NEXT_IS_BUILT is set there is no compiler, and the checkout was brought along.
    """
    if os.environ.get("CILIUMD_NEXT_IS_BUILT"):
        return CHECKOUT
    CHECKOUT.parent.mkdir(parents=True, exist_ok=True)
    with CHECKOUT.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _copy_sources()
        environment = {"CILIUMD_VENV": sys.prefix, "PYTHONPATH": ""}
        run([CHECKOUT / "build" / "dev", "build"], env=environment, seconds=BUILD_SECONDS)
        run([sys.executable, CHECKOUT / "build" / "gen_abi.py"], env=environment, seconds=BUILD_SECONDS)
    return CHECKOUT


def python_path() -> str:
    """PYTHONPATH with which a program of ours is the next version's."""
    return os.pathsep.join(map(str, (CHECKOUT / "src", REPOSITORY / "tests")))


def _copy_sources() -> None:
    """Bring the sources up to date, as changed files only: their times tell the build what to do."""
    aside = CHECKOUT.with_suffix(".new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for name in COPIED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, aside / name, ignore=shutil.ignore_patterns(*BUILT))
        else:
            shutil.copy2(source, aside / name)
    change(aside)
    wanted = {path.relative_to(aside) for path in aside.rglob("*") if path.is_file()}
    for name in ("datapath", "src"):
        for path in (CHECKOUT / name).rglob("*.[chp]*"):
            if path.is_file() and path.suffix != ".pyc" and path.relative_to(CHECKOUT) not in wanted:
                path.unlink()
    for path in wanted - {Path("src/ciliumd/abi.py")}:
        _replace(CHECKOUT / path, aside / path)
    shutil.rmtree(aside)


def _replace(target: Path, source: Path) -> None:
    if target.exists() and target.read_bytes() == source.read_bytes():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


# -- what changes ------------------------------------------------------------------------------


def change(root: Path) -> None:
    """Turn a copy of this checkout into the next version."""
    _change_abi(root / "datapath" / "include" / "ciliumd" / "abi.h")
    for name in ("ct_map", "nat_map"):
        shutil.copy2(HERE / f"{name}.bpf.h", root / "datapath" / "lib" / f"{name}.h")
    shutil.copy2(HERE / "probe.bpf.c", root / "datapath" / "progs" / "probe.bpf.c")
    _edit(root / "datapath" / "progs" / "lxc.bpf.c", (r"CALL_SERVICE", "CALL_FRONTEND"))
    _edit(root / "datapath" / "progs" / "lxc.bpf.c", (r"call_service", "call_frontend"))
    _change_backends(root / "datapath" / "lib" / "lb.h")
    for path in sorted((root / "src" / "ciliumd").rglob("*.py")):
        if path.name != "abi.py":
            text = path.read_text()
            path.write_text(re.sub(rf"\b({'|'.join(MAPS)})_v1\b", r"\1_v2", text))
    converters = (HERE / "converters.py").read_text().partition("# -- begin\n")[2]
    migrate = root / "src" / "ciliumd" / "bpf" / "migrate.py"
    _edit(migrate, (r"\nif TYPE_CHECKING:", "\nfrom ciliumd import abi\n\nif TYPE_CHECKING:"))
    _edit(migrate, (r"\nSUCCESSIONS: [^\n]*= \(\)\n", "\n" + converters.replace("\\", "\\\\")))
    _edit(root / "src" / "ciliumd" / "__init__.py", (r'(__version__ = "[^"]+)"', r'\1+next"'))


def _change_abi(path: Path) -> None:
    """Every struct that changes stays, under the name of its version."""
    for name, members in LAYOUTS.items():
        found = re.search(rf"struct {name} \{{.*?\n\}};\n", path.read_text(), re.DOTALL)
        assert found is not None, f"abi.h has no struct {name}"
        old = found[0].replace(f"struct {name} ", f"struct {name}_v1 ")
        _edit(path, (re.escape(found[0]), f"{old}\nstruct {name} {{{members}}};\n"))
    _edit(path, (r"\tCALL_SERVICE = 0,[^\n]*\n", "\tCALL_FRONTEND = 7,\n"))


def _change_backends(path: Path) -> None:
    """Programs read the new map alone: the agent, who writes it, has filled it before they run."""
    found = re.search(r"struct \{\n(?:\t[^\n]*\n)+\} cilium_lb_backends_v1 [^\n]*\n", path.read_text())
    assert found is not None, "lb.h has no map of backends"
    old = found[0].replace("struct lb_backend)", "struct lb_backend_v1)")
    new = found[0].replace("_v1 SEC", "_v2 SEC")
    _edit(path, (re.escape(found[0]), f"{old}\n{new}"), (r"&cilium_lb_backends_v1", "&cilium_lb_backends_v2"))


def _edit(path: Path, *replacements: tuple[str, str]) -> None:
    """Replace, and insist that there was something to replace."""
    for pattern, replacement in replacements:
        text, count = re.subn(pattern, replacement, path.read_text())
        assert count, f"{path.name} has no {pattern}"
        path.write_text(text)
