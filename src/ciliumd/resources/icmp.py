# SPDX-License-Identifier: Apache-2.0
"""
ICMP types as policies of Cilium write them: a number, or a name from the CRD's list.

Names are those of the ``icmps`` field of CiliumNetworkPolicy (cilium.io/v2), numbers those of IANA
(RFC 792 and 8335 for IPv4, RFC 4443 and 4861 for IPv6).
"""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from ciliumd.model.policy import PortRule
from ciliumd.resources.fields import Exact

_FIELDS_MAX = 40
_TYPE_MAX = 255
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,2}")

_IPV4_TYPES = {
    "EchoReply": 0,
    "DestinationUnreachable": 3,
    "Redirect": 5,
    "Echo": 8,
    "EchoRequest": 8,
    "RouterAdvertisement": 9,
    "RouterSelection": 10,
    "TimeExceeded": 11,
    "ParameterProblem": 12,
    "Timestamp": 13,
    "TimestampReply": 14,
    "Photuris": 40,
    "ExtendedEchoRequest": 42,
    "ExtendedEchoReply": 43,
}
_IPV6_TYPES = {
    "DestinationUnreachable": 1,
    "PacketTooBig": 2,
    "TimeExceeded": 3,
    "ParameterProblem": 4,
    "EchoRequest": 128,
    "EchoReply": 129,
    "MulticastListenerQuery": 130,
    "MulticastListenerReport": 131,
    "MulticastListenerDone": 132,
    "RouterSolicitation": 133,
    "RouterAdvertisement": 134,
    "NeighborSolicitation": 135,
    "NeighborAdvertisement": 136,
    "RedirectMessage": 137,
    "RouterRenumbering": 138,
    "ICMPNodeInformationQuery": 139,
    "ICMPNodeInformationResponse": 140,
    "InverseNeighborDiscoverySolicitation": 141,
    "InverseNeighborDiscoveryAdvertisement": 142,
    "HomeAgentAddressDiscoveryRequest": 144,
    "HomeAgentAddressDiscoveryReply": 145,
    "MobilePrefixSolicitation": 146,
    "MobilePrefixAdvertisement": 147,
    "DuplicateAddressRequestCodeSuffix": 157,
    "DuplicateAddressConfirmationCodeSuffix": 158,
    "ExtendedEchoRequest": 160,
    "ExtendedEchoReply": 161,
}
_TYPES = {"IPv4": _IPV4_TYPES, "IPv6": _IPV6_TYPES}
_PROTOCOLS = {"IPv4": "ICMP", "IPv6": "ICMPV6"}


class ICMPField(Exact):
    """One type of ICMP (``family`` IPv4) or ICMPv6."""

    family: Literal["IPv4", "IPv6"] = "IPv4"
    type: Any

    @field_validator("type")
    @classmethod
    def _number(cls, value: object, info: ValidationInfo) -> int:
        if "family" not in info.data:
            return 0  # the family is refused already, and with it the field
        names = _TYPES[info.data["family"]]
        if isinstance(value, str) and value in names:
            return names[value]
        if isinstance(value, str) and _DECIMAL.fullmatch(value):
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _TYPE_MAX:
            return value
        raise ValueError(
            f"{value!r} is not an ICMP type of {info.data['family']}: a number up to {_TYPE_MAX}, "
            f"or one of {', '.join(names)}"
        )

    def to_model(self) -> PortRule:
        """The traffic it means."""
        return PortRule(_PROTOCOLS[self.family], icmp_type=self.type)


class ICMPRule(Exact):
    """Types of ICMP to allow or deny."""

    fields: Annotated[list[ICMPField], Field(min_length=1, max_length=_FIELDS_MAX)]
