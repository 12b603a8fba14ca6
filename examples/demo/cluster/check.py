# SPDX-License-Identifier: Apache-2.0
"""
Judge what the demo on a cluster printed: ``run.py | tee log; check.py log``.

Exit code 1, and a line per missing promise, unless the text shows all of them in their order.
"""

import re
import sys
from pathlib import Path

PACKETS = 100_000
URL = r"deathstar\.default\.svc\.cluster\.local/v1/request-landing"
LANDING = r"kubectl exec {ship} -- curl -s -XPOST " + URL + r"\n{answer}"
CHANGE = r"tiefighter -> default/deathstar-\S+ 80/TCP: ALLOWED, would be DENIED"
PROMISES = [
    ("nodes wait for a CNI", r"node1 +NotReady[\s\S]*?node2 +NotReady"),
    ("helm installs the chart", r"\$ helm install cilium"),
    ("nodes are ready", r"node1 +Ready[\s\S]*?node2 +Ready"),
    ("tiefighter lands before the policy", LANDING.format(ship="tiefighter", answer="Ship landed")),
    ("xwing lands before the policy", LANDING.format(ship="xwing", answer="Ship landed")),
    ("the policy is applied", r"kubectl apply -f policy\.yaml"),
    ("tiefighter lands after the policy", LANDING.format(ship="tiefighter", answer="Ship landed")),
    ("xwing waits in vain after the policy", LANDING.format(ship="xwing", answer=r"curl: \(28\)")),
    ("the drop names the policy", r"xx drop \(Policy denied\).*rule1"),
    (
        "what a denial would change is told before",
        r"\$ cilium policy diff -f deny\.yaml\n[\s\S]*?" + CHANGE,
    ),
    ("nothing was in force", LANDING.format(ship="tiefighter", answer="Ship landed")),
    ("the denial is applied", r"kubectl apply -f deny\.yaml"),
    ("tiefighter waits in vain", LANDING.format(ship="tiefighter", answer=r"curl: \(28\)")),
    ("the denial explains itself", r"80/TCP: DENIED\n[\s\S]*?deny +cnp:default/grounded/ingressDeny/0"),
    (
        "so does what rule1 does not allow",
        r"80/TCP: DENIED\n[\s\S]*?default-deny +cnp:default/grounded\n +cnp:default/rule1\n",
    ),
    ("the rule that is missing is told", r"kind: CiliumNetworkPolicy[\s\S]*?fromEndpoints"),
    ("tiefighter lands without the denial", LANDING.format(ship="tiefighter", answer="Ship landed")),
    ("the cluster's picture is good", r"\$ cilium status --wait[\s\S]*?Cilium: +\S*OK"),
    ("all agents are ready", r"Desired: 2, Ready: 2/2, Available: 2/2"),
    ("the node's status is good", r"-- cilium status\n[\s\S]*?\nCilium: +Ok"),
    (
        "the service has both backends",
        r"10\.96\.\d+\.\d+:80\S* +ClusterIP +1 => 10\.\d+\.\d+\.\d+:80[\s\S]*?2 => 10\.",
    ),
    ("the tunnel leads to the other node", r"bpf tunnel list\n[\s\S]*?10\.\d+\.\d+\.\d+/\d+.*10\.\d+\.0\.12"),
    ("the agents are deleted and come back", r"delete pods -l k8s-app=cilium\nready again after"),
    ("the policy holds meanwhile", r"against the policy: sent=[1-9]\d* connects=[1-9]\d* wrongly_allowed=0"),
    ("packets are counted", r"\nsent=(?P<sent>\d+) lost=(?P<lost>\d+)\n"),
    ("it ends well", r"\[ *[\d.]+s\] done"),
]


def broken(text: str) -> list[str]:
    """Promises the text does not show."""
    missing = []
    position = 0
    for promise, pattern in PROMISES:
        found = re.compile(pattern).search(text, position)
        if found is None:
            missing.append(promise)
            continue
        position = found.end()
        if "sent" in found.groupdict():
            sent, lost = int(found["sent"]), int(found["lost"])
            if sent < PACKETS:
                missing.append(f"at least {PACKETS} packets: only {sent}")
            if lost:
                missing.append(f"no packet is lost: {lost} were")
    return missing


def main() -> int:
    """Read a file, or standard input."""
    text = Path(sys.argv[1]).read_text() if len(sys.argv) > 1 else sys.stdin.read()
    missing = broken(text)
    for promise in missing:
        print(f"demo: not shown: {promise}")
    if not missing:
        print(f"demo: all {len(PROMISES)} promises shown")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
