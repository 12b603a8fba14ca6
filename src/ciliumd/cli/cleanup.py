# SPDX-License-Identifier: Apache-2.0
"""
``cilium cleanup``: take off the node what a stopped agent left on it.

Everything that is found is listed, then removed: first the programs, under the lock a running agent
holds, then the devices and what brings new pods to us, last what is remembered.  What cannot be removed
is told and does not keep the rest.  A clean node is no error, so the command may run any number of times.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from ciliumd.cli.arguments import Commands, command
from ciliumd.cli.errors import OK, USAGE, CommandError
from ciliumd.cli.output import note
from ciliumd.cli.sysctl import DROP_IN

HOST: Final = Path("/host")
"""Where containers of ours have directories of the node."""

DEFAULT_BPF_ROOT: Final = Path("/sys/fs/bpf/ciliumd")
DEFAULT_RUN_DIR: Final = Path("/var/run/cilium")
CNI_EXECUTABLE: Final = "cilium-cni"
SET_ASIDE: Final = ".cilium_bak"
"""Suffix of the CNI configurations of others while ours is the only one."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to remove; *remove* raises OSError, BpfError or NetError."""

    text: str
    remove: Callable[[], object]
    verb: str = "removed"


def register(commands: Commands) -> None:
    """Add ``cleanup``."""
    parser = command(
        commands, "cleanup", "Remove system state installed by a stopped agent", run, output=False
    )
    parser.add_argument(
        "-f", "--force", action="store_true", help="do it; without this only say what would go"
    )
    scope = parser.add_mutually_exclusive_group()
    scope.add_argument("--all-state", action="store_true", help="also the state directory: ids are forgotten")
    scope.add_argument("--bpf-state", action="store_true", help="only maps, programs and what hangs on them")
    scope.add_argument(
        "--kube-proxy", action="store_true", help="only what a kube-proxy that is gone has left on the node"
    )
    scope.add_argument(
        "--if-configured",
        type=Path,
        metavar="DIR",
        help="do what clean-cilium-state and clean-cilium-bpf-state in this directory of options say",
    )
    parser.add_argument("--bpf-root", type=Path, default=DEFAULT_BPF_ROOT, metavar="DIR")
    parser.add_argument(
        "--run-dir", type=Path, default=DEFAULT_RUN_DIR, metavar="DIR", help="sockets and state"
    )
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="default: state in --run-dir")
    parser.add_argument("--cni-conf-dir", type=Path, default=_on_node("etc/cni/net.d"), metavar="DIR")
    parser.add_argument("--cni-bin-dir", type=Path, default=_on_node("opt/cni/bin"), metavar="DIR")
    parser.add_argument("--sysctl-dir", type=Path, default=_on_node("etc/sysctl.d"), metavar="DIR")


def run(arguments: argparse.Namespace) -> int:
    """Remove, or say what would be removed."""
    if arguments.state_dir is None:
        arguments.state_dir = arguments.run_dir / "state"
    if arguments.if_configured is not None and not _configure(arguments):
        note(f"Neither clean-cilium-state nor clean-cilium-bpf-state is true in {arguments.if_configured}.")
        return OK
    items = list(_kube_proxy_items() if arguments.kube_proxy else _items(arguments))
    if not items:
        note("Nothing to clean up.")
        return OK
    if not arguments.force:
        for item in items:
            print(item.text)
        raise _unforced(arguments)
    failures = [text for item in items if (text := _remove(item))]
    if failures:
        raise CommandError(
            f"{len(failures)} of {len(items)} could not be removed: {'; '.join(failures)}",
            hint="remove the cause and run it again: what is gone is skipped",
        )
    return OK


def _unforced(arguments: argparse.Namespace) -> CommandError:
    """What it takes, and what for."""
    if arguments.kube_proxy:
        return CommandError(
            "nothing was removed: services that only kube-proxy serves end when this goes",
            hint="stop kube-proxy on this node, then: cilium cleanup -f --kube-proxy",
            code=USAGE,
        )
    return CommandError(
        "nothing was removed: pods lose networking and policy when this goes",
        hint="stop the agent, then: cilium cleanup -f" + " --all-state" * arguments.all_state,
        code=USAGE,
    )


def _kube_proxy_items() -> Iterator[Item]:
    """Chains, tables and servers of a kube-proxy; an agent may run meanwhile."""
    from ciliumd.net.errors import NetError
    from ciliumd.net.kubeproxy import leftovers

    try:
        yield from (Item(one.text, one.remove) for one in leftovers())
    except NetError as error:
        raise CommandError(str(error), hint="run it as root on the node itself") from error


def _on_node(path: str) -> Path:
    """The node's directory: below /host in a container of ours, at its own place otherwise."""
    return HOST / path if (HOST / path).is_dir() else Path("/") / path


def _configure(arguments: argparse.Namespace) -> bool:
    """What the ConfigMap's keys ask for; False if nothing."""

    def wanted(key: str) -> bool:
        path: Path = arguments.if_configured / key
        return path.is_file() and path.read_text("utf-8").strip().lower() == "true"

    arguments.all_state = wanted("clean-cilium-state")
    arguments.bpf_state = not arguments.all_state
    return bool(arguments.all_state or wanted("clean-cilium-bpf-state"))


def _remove(item: Item) -> str:
    """Remove *item* and say so; why not, if it fails."""
    from ciliumd.bpf import BpfError, Busy
    from ciliumd.net.errors import NetError

    try:
        item.remove()
    except Busy as error:
        raise CommandError(
            f"nothing was removed: an agent is running ({error})",
            hint="in Kubernetes: helm upgrade cilium CHART -n kube-system --reuse-values "
            "--set cleanup.enabled=true; elsewhere stop the agent",
        ) from error
    except (OSError, BpfError, NetError) as error:
        return f"{item.text}: {error}"
    print(f"{item.verb} {item.text}")
    return ""


def _items(arguments: argparse.Namespace) -> Iterator[Item]:
    if arguments.bpf_root.is_dir():
        yield Item(str(arguments.bpf_root), partial(_remove_pins, arguments.bpf_root, arguments.state_dir))
    if arguments.bpf_state:
        return
    yield from network_items()
    # An agent that starts with a clean state has its executable and its sysctls, and writes the rest.
    if arguments.if_configured is None:
        yield from _cni_items(arguments.cni_conf_dir, arguments.cni_bin_dir)
        drop_in = arguments.sysctl_dir / DROP_IN
        if drop_in.is_file():
            yield Item(str(drop_in), drop_in.unlink)
    if arguments.all_state:
        for path in dict.fromkeys((arguments.state_dir, arguments.run_dir)):
            if path.is_dir():
                yield Item(str(path), partial(_empty, path))


def network_items() -> Iterator[Item]:
    """Devices, routes and filters of ours in this network namespace."""
    from ciliumd.net.removal import network_items as found
    from ciliumd.net.removal import remove

    for item in found():
        yield Item(item.text, partial(remove, item))


def _cni_items(conf_dir: Path, bin_dir: Path) -> Iterator[Item]:
    """Ours away, then those of others back: kubelet is never without one that works."""
    for path in sorted(conf_dir.glob("*.conf*")):
        if path.is_file() and not path.name.endswith(SET_ASIDE) and _is_ours(path):
            yield Item(str(path), path.unlink)
    for path in sorted(conf_dir.glob(f"*{SET_ASIDE}")):
        before = path.with_name(path.name.removesuffix(SET_ASIDE))
        if not before.exists():
            yield Item(str(before), partial(path.rename, before), "restored")
    executable = bin_dir / CNI_EXECUTABLE
    if executable.is_file():
        yield Item(str(executable), executable.unlink)


def _is_ours(path: Path) -> bool:
    """Whether a CNI configuration, a single one or a list, starts our executable."""
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(document, dict):
        return False
    plugins = document.get("plugins", [document])
    return isinstance(plugins, list) and any(
        isinstance(plugin, dict) and plugin.get("type") == CNI_EXECUTABLE for plugin in plugins
    )


def _remove_pins(root: Path, state_dir: Path) -> None:
    """Links first, so that no packet meets half of it, then maps and programs."""
    from ciliumd.bpf import Pins, detach_all
    from ciliumd.bpf.pins import remove_tree

    with Pins(root, state_dir=state_dir) as pins:
        detach_all(pins)
        remove_tree(pins.base)
        # A start that was cut off leaves a root without maps, and Pins works beside it.
        remove_tree(root)


def _empty(path: Path) -> None:
    """Remove a directory; one that is a mount point, as in a container, loses what is in it."""
    for child in path.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()
    if not path.is_mount():
        path.rmdir()
