# SPDX-License-Identifier: Apache-2.0
"""What a kube-proxy left on a node is taken away by ``cilium-dbg cleanup --kube-proxy``, and no more."""

import shutil
import sys
from collections.abc import Iterator

import pytest

from lab.netns import Namespace
from lab.process import run

pytestmark = pytest.mark.netns

CHAINS = """\
*nat
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
:MINE - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -j MINE
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-NPX46M4PTMTKRN6Y
-A MINE -p tcp -j RETURN
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -j KUBE-FORWARD
COMMIT
"""
TABLES = "table ip kube-proxy { chain services { }\n }\ntable ip mine { chain kept { }\n }\n"


@pytest.fixture
def node() -> Iterator[Namespace]:
    """A network namespace in which kube-proxy has been, in both modes, and others are."""
    made = Namespace("kube-proxy")
    try:
        run(["iptables-restore"], netns=made.path, stdin=CHAINS)
        run(["nft", "-f", "-"], netns=made.path, stdin=TABLES)
        # Of whatever kind: it is known by its name.
        made.ip("link", "add", "kube-ipvs0", "type", "veth", "peer", "name", "other")
        yield made
    finally:
        made.remove()


def cleanup(node: Namespace, *words: str, check: bool = True) -> str:
    """Output of the command there."""
    command = [sys.executable, "-m", "ciliumd.cli.main", "cleanup", "--kube-proxy", *words]
    done = run(command, netns=node.path, check=check)
    return done.stdout + done.stderr


def seen(node: Namespace) -> str:
    """Chains, tables and devices that are there."""
    looks = ["iptables-save"], ["nft", "list", "tables"], ["ip", "-brief", "link"]
    text = "".join(run(list(look), netns=node.path).stdout for look in looks)
    # Comments say when it was.
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


def test_all_of_it_goes_and_nothing_else(node: Namespace) -> None:
    """Without --force it is said what would go; a second time there is nothing."""
    assert shutil.which("iptables-save")
    before = seen(node)
    told = cleanup(node, check=False)
    assert "nothing was removed" in told
    assert "chains of kube-proxy in iptables (1 in filter, 3 in nat)" in told
    assert seen(node) == before

    done = cleanup(node, "--force")
    assert "removed nftables table ip kube-proxy" in done
    assert "removed device kube-ipvs0" in done
    after = seen(node)
    for gone in ("KUBE-SERVICES", "KUBE-SVC", "KUBE-MARK-MASQ", "KUBE-FORWARD", "kube-proxy", "kube-ipvs0"):
        assert gone not in after, gone
    for kept in ("KUBE-KUBELET-CANARY", "-A INPUT -j KUBE-FIREWALL", "-A MINE -p tcp -j RETURN", "ip mine"):
        assert kept in after, kept
    assert "Nothing to clean up" in cleanup(node, "--force")
