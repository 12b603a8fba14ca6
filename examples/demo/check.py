# SPDX-License-Identifier: Apache-2.0
"""
Judge what the demo printed: ``run.py | tee log; check.py log``.

Exit code 1, and a line per missing promise, unless the text shows all of them in their order.
"""

import re
import sys
from pathlib import Path

PACKETS = 100_000
LANDING = r"{ship}: curl -s -XPOST deathstar\.default\.svc\.cluster\.local/v1/request-landing\n{answer}"
PROMISES = [
    ("tiefighter lands before the policy", LANDING.format(ship="tiefighter", answer="Ship landed")),
    ("xwing lands before the policy", LANDING.format(ship="xwing", answer="Ship landed")),
    ("the policy is applied", r"policy rule1"),
    ("tiefighter lands after the policy", LANDING.format(ship="tiefighter", answer="Ship landed")),
    ("xwing waits in vain after the policy", LANDING.format(ship="xwing", answer=r"curl: \(28\)")),
    ("the drop names the policy", r"xx drop \(Policy denied\).*rule1"),
    ("policy explain names it too", r"DENIED[\s\S]*?rule1"),
    ("status says that all is well", r"\$ cilium status[\s\S]*?Cilium: +Ok"),
    ("the service has its backend", r"10\.96\.0\.10:80\S* +ClusterIP +1 => 10\.11\.0\.\d+:8080"),
    ("the agent is killed", r"agent ended with -9"),
    ("the agent comes back", r"ready again [\d.]+ s after the kill"),
    ("the policy holds meanwhile", r"against the policy: sent=[1-9]\d* wrongly_allowed=0"),
    ("connections hold", r"connection opened before the kill: answered"),
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
