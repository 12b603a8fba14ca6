# SPDX-License-Identifier: Apache-2.0
"""
Which kinds of services are served here, and which are left to a kube-proxy on the node.

The words are Cilium's, the old ones (until 1.13) included.  What the kernel lacks keeps the agent from
starting when everything is to be served here, and is left to kube-proxy when it is to probe.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final


class Replacement(StrEnum):
    """``kube-proxy-replacement``, as it was written."""

    TRUE = "true"
    STRICT = "strict"
    PROBE = "probe"
    PARTIAL = "partial"
    DISABLED = "disabled"
    FALSE = "false"

    def __bool__(self) -> bool:
        """Whether services are served here unless it is said of one kind that it is not."""
        return self in {Replacement.TRUE, Replacement.STRICT, Replacement.PROBE}

    @property
    def shown(self) -> str:
        """As the status has it."""
        return self.value.capitalize()

    @property
    def today(self) -> str:
        """What is written today instead of an old word; empty for today's words."""
        if self in {Replacement.TRUE, Replacement.FALSE, Replacement.PARTIAL}:
            return ""
        return "true" if self else "false"

    @property
    def partly(self) -> bool:
        """Whether each kind of service is asked about by itself."""
        return self in {Replacement.PROBE, Replacement.PARTIAL}

    def serves(self, wanted: bool | None) -> bool:
        """Whether a kind of service is served here, given what is said of it alone."""
        match self:
            case Replacement.TRUE | Replacement.STRICT:
                return True
            case Replacement.PROBE:
                return wanted is not False
            case Replacement.PARTIAL:
                return bool(wanted)
            case _:
                return False


SOCKETS, NODE_PORTS, EXTERNAL_IPS, HOST_PORTS = (
    "hostServices",
    "nodePort",
    "externalIPs",
    "hostPort",
)
SWITCHES: Final[Mapping[str, str]] = {
    SOCKETS: "bpf_lb_sock",
    NODE_PORTS: "enable_node_port",
    EXTERNAL_IPS: "enable_external_ips",
    HOST_PORTS: "enable_host_port",
}
"""The setting that speaks of each kind alone."""


class KernelLacks(Exception):
    """Everything is to be served here, and cannot be; the text says what is missing."""


def settle(mode: Replacement, lacks: Mapping[str, str], tell: Callable[[str, str], None]) -> dict[str, bool]:
    """
    Settings to change because of what the kernel *lacks* for the kinds that are to be served here.

    *tell* is given each kind that is left to kube-proxy, and why.  Raises KernelLacks.
    """
    if lacks and mode in {Replacement.TRUE, Replacement.STRICT, Replacement.PARTIAL}:
        texts = "; ".join(f"{kind} needs {what}" for kind, what in lacks.items())
        raise KernelLacks(
            f"--kube-proxy-replacement={mode.value}: {texts}, which this kernel does not have; run "
            "kube-proxy and write probe instead, which leaves that to it"
        )
    for kind, what in lacks.items():
        tell(kind, what)
    return {SWITCHES[kind]: False for kind in lacks}
