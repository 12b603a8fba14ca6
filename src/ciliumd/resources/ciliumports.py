# SPDX-License-Identifier: Apache-2.0
"""
The ``toPorts`` of Cilium's policies (cilium.io/v2): ports are enforced, what is above them is refused.

Protocols without ports are refused with the place they belong to: no rule may silently match less.
"""

import re
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from ciliumd.model.policy import ANY_PROTOCOL, PortRule
from ciliumd.resources.errors import not_enforced
from ciliumd.resources.fields import Exact, is_port_name, unless_enforced

_PORTS_MAX = 40
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,4}")
_PROTOCOLS = frozenset({"TCP", "UDP", "SCTP", ANY_PROTOCOL})
_PROTOCOLS_WITHOUT_PORTS = frozenset({"ICMP", "ICMPV6", "ICMPv6"})
_PROTOCOLS_NOT_ENFORCED = frozenset({"VRRP", "IGMP"})

_DnsProxy = Annotated[None, unless_enforced("the DNS proxy")]
_Proxy = Annotated[None, unless_enforced("the L7 proxy")]


def _port(text: str) -> str:
    # Port names compare without case; whatever can be a name is one, the rest must be decimal.
    name = text.lower()
    if is_port_name(name):
        return name
    if not _DECIMAL.fullmatch(text) or int(text) > 65535:
        raise ValueError(f"{text!r} is neither a port between 0 and 65535 nor a port name (IANA_SVC_NAME)")
    return text


def _protocol(text: str) -> str:
    if text in _PROTOCOLS_NOT_ENFORCED:
        raise not_enforced(f"a datapath that knows {text}")
    if text in _PROTOCOLS_WITHOUT_PORTS:
        raise ValueError(f"{text} has no ports: write its types under icmps, in a rule without toPorts")
    if text not in _PROTOCOLS:
        raise ValueError(f"{text!r} is not a protocol; there are {', '.join(sorted(_PROTOCOLS))}")
    return text


class PortProtocol(Exact):
    """A port (0: every one), a range or a named port, of one protocol or of any."""

    port: Annotated[str, AfterValidator(_port)]
    end_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    protocol: Annotated[str, AfterValidator(_protocol)] = ANY_PROTOCOL

    @field_validator("end_port")
    @classmethod
    def _ends_a_range(cls, end_port: int | None, info: ValidationInfo) -> int | None:
        port = info.data.get("port")
        if not end_port or port is None:
            return end_port
        if is_port_name(port) or port == "0":
            raise ValueError("needs a numeric port")
        if end_port < int(port):
            raise ValueError(f"{end_port} is below port {port}")
        return end_port

    def to_model(self) -> PortRule:
        """The ports it means."""
        if is_port_name(self.port):
            return PortRule(self.protocol, name=self.port)
        return PortRule(self.protocol, int(self.port), self.end_port or 0)


class L7Rules(Exact):
    """Rules above the transport layer; none of them is enforced yet."""

    http: _Proxy = None
    kafka: _Proxy = None
    dns: _DnsProxy = None
    l7proto: _Proxy = Field(None, alias="l7proto")
    l7: _Proxy = None


class PortDenyRule(Exact):
    """Ports to refuse."""

    ports: Annotated[list[PortProtocol], Field(min_length=1, max_length=_PORTS_MAX)]


class PortAllowRule(PortDenyRule):
    """Ports to allow, with conditions that are not enforced yet."""

    rules: L7Rules | None = None
    terminating_tls: _Proxy = Field(None, alias="terminatingTLS")
    originating_tls: _Proxy = Field(None, alias="originatingTLS")
    server_names: _Proxy = None
    listener: _Proxy = None
