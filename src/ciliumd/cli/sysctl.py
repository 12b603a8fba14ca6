# SPDX-License-Identifier: Apache-2.0
"""
``ciliumd apply-sysctls``: what the node's settings must be for pods' packets to pass.

Run by an init container, for the agent's own may not write them.  The agent sets what concerns devices of
its own; here are the settings of the machine that overrule those, now and when systemd applies its files
again to a new device (systemd-sysctl runs for each).
"""

import argparse
from pathlib import Path
from typing import Final

from ciliumd.cli.arguments import Commands, command
from ciliumd.cli.errors import OK, CommandError

DROP_IN: Final = "99-zzz-override_cilium.conf"
"""Name of our file in sysctl.d: as Cilium's, and behind those of distributions."""

DEVICE_PATTERNS: Final = ("lxc*", "cilium_*")
SETTINGS: Final = {
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/ip_forward": "1",
}
"""The stricter of ``all`` and the device counts for rp_filter, so 1 in ``all`` drops what pods send."""


def register(commands: Commands) -> None:
    """Add ``apply-sysctls``."""
    parser = command(commands, "apply-sysctls", "Set what the node must have set for pods", run, output=False)
    parser.add_argument(
        "--procfs", type=Path, default=Path("/proc"), metavar="DIR", help="procfs that may be written"
    )
    parser.add_argument(
        "--sysctl-dir", type=Path, metavar="DIR", help="the node's sysctl.d, for a file that keeps it so"
    )


def run(arguments: argparse.Namespace) -> int:
    """Set what differs; say what was set."""
    try:
        for key, wanted in SETTINGS.items():
            path = arguments.procfs / "sys" / key
            found = path.read_text("ascii").strip()
            # Loose filtering (2) passes them too: nothing is loosened that need not be.
            if found == wanted or (key.endswith("rp_filter") and found == "2"):
                continue
            path.write_text(wanted, "ascii")
            print(f"set {key.replace('/', '.')} to {wanted}, was {found}")
        if arguments.sysctl_dir is not None and _keep(arguments.sysctl_dir / DROP_IN):
            print(f"wrote {arguments.sysctl_dir / DROP_IN}")
    except OSError as error:
        raise CommandError(
            f"cannot write {error.filename}: {error.strerror}",
            hint="mount the node's /proc/sys/net writable, or set sysctlfix.enabled=false in the chart and "
            "set net.ipv4.conf.all.rp_filter=0 and net.ipv4.ip_forward=1 on the node",
        ) from error
    return OK


def _keep(path: Path) -> bool:
    """Write our file of sysctl.d; False if it says so already."""
    lines = [
        "# Written by ciliumd, removed by `cilium cleanup`: reverse path filtering would drop pods' packets."
    ]
    lines += [f"-net.ipv4.conf.{pattern}.rp_filter = 0" for pattern in DEVICE_PATTERNS]
    text = "\n".join([*lines, "net.ipv4.conf.all.rp_filter = 0", ""])
    if path.is_file() and path.read_text("utf-8") == text:
        return False
    path.write_text(text, "utf-8")
    return True
