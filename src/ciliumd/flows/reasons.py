# SPDX-License-Identifier: Apache-2.0
"""
Drop reasons as Cilium users know them: number, name in Hubble's ``flow.proto``, text.

The texts are matched literally by scripts, dashboards and the connectivity test, so they are a
contract.  The datapath uses a subset (``ciliumd.abi.DropReason``); this table is the whole list, and
:data:`OWN` those that Cilium does not have: ``flow.proto`` knows no name for them.
"""

from typing import Final, NamedTuple

FORWARDED: Final = 0
DROP_MIN: Final = 130


class Reason(NamedTuple):
    """One row: the member of ``flow.DropReason`` and the text in monitor lines and metrics."""

    name: str
    text: str


REASONS: Final[dict[int, Reason]] = {
    130: Reason("INVALID_SOURCE_MAC", "Invalid source mac"),
    131: Reason("INVALID_DESTINATION_MAC", "Invalid destination mac"),
    132: Reason("INVALID_SOURCE_IP", "Invalid source ip"),
    133: Reason("POLICY_DENIED", "Policy denied"),
    134: Reason("INVALID_PACKET_DROPPED", "Invalid packet"),
    135: Reason("CT_TRUNCATED_OR_INVALID_HEADER", "CT: Truncated or invalid header"),
    136: Reason("CT_MISSING_TCP_ACK_FLAG", "CT: Missing TCP ACK flag"),
    137: Reason("CT_UNKNOWN_L4_PROTOCOL", "CT: Unknown L4 protocol"),
    138: Reason("CT_CANNOT_CREATE_ENTRY_FROM_PACKET", "CT: Can't create entry from packet"),
    139: Reason("UNSUPPORTED_L3_PROTOCOL", "Unsupported L3 protocol"),
    140: Reason("MISSED_TAIL_CALL", "Missed tail call"),
    141: Reason("ERROR_WRITING_TO_PACKET", "Error writing to packet"),
    142: Reason("UNKNOWN_L4_PROTOCOL", "Unknown L4 protocol"),
    143: Reason("UNKNOWN_ICMPV4_CODE", "Unknown ICMPv4 code"),
    144: Reason("UNKNOWN_ICMPV4_TYPE", "Unknown ICMPv4 type"),
    145: Reason("UNKNOWN_ICMPV6_CODE", "Unknown ICMPv6 code"),
    146: Reason("UNKNOWN_ICMPV6_TYPE", "Unknown ICMPv6 type"),
    147: Reason("ERROR_RETRIEVING_TUNNEL_KEY", "Error retrieving tunnel key"),
    148: Reason("ERROR_RETRIEVING_TUNNEL_OPTIONS", "Error retrieving tunnel options"),
    149: Reason("INVALID_GENEVE_OPTION", "Invalid Geneve option"),
    150: Reason("UNKNOWN_L3_TARGET_ADDRESS", "Unknown L3 target address"),
    151: Reason("STALE_OR_UNROUTABLE_IP", "Stale or unroutable IP"),
    152: Reason("NO_MATCHING_LOCAL_CONTAINER_FOUND", "No matching local container found"),
    153: Reason("ERROR_WHILE_CORRECTING_L3_CHECKSUM", "Error while correcting L3 checksum"),
    154: Reason("ERROR_WHILE_CORRECTING_L4_CHECKSUM", "Error while correcting L4 checksum"),
    155: Reason("CT_MAP_INSERTION_FAILED", "CT: Map insertion failed"),
    156: Reason("INVALID_IPV6_EXTENSION_HEADER", "Invalid IPv6 extension header"),
    157: Reason("IP_FRAGMENTATION_NOT_SUPPORTED", "IP fragmentation not supported"),
    158: Reason("SERVICE_BACKEND_NOT_FOUND", "Service backend not found"),
    160: Reason("NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT", "No tunnel/encapsulation endpoint (datapath BUG!)"),
    161: Reason("FAILED_TO_INSERT_INTO_PROXYMAP", "Failed to insert into proxymap"),
    162: Reason("REACHED_EDT_RATE_LIMITING_DROP_HORIZON", "Reached EDT rate-limiting drop horizon"),
    163: Reason("UNKNOWN_CONNECTION_TRACKING_STATE", "Unknown connection tracking state"),
    164: Reason("LOCAL_HOST_IS_UNREACHABLE", "Local host is unreachable"),
    165: Reason(
        "NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION",
        "No configuration available to perform policy decision",
    ),
    166: Reason("UNSUPPORTED_L2_PROTOCOL", "Unsupported L2 protocol"),
    167: Reason("NO_MAPPING_FOR_NAT_MASQUERADE", "No mapping for NAT masquerade"),
    168: Reason("UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE", "Unsupported protocol for NAT masquerade"),
    169: Reason("FIB_LOOKUP_FAILED", "FIB lookup failed"),
    170: Reason("ENCAPSULATION_TRAFFIC_IS_PROHIBITED", "Encapsulation traffic is prohibited"),
    171: Reason("INVALID_IDENTITY", "Invalid identity"),
    172: Reason("UNKNOWN_SENDER", "Unknown sender"),
    173: Reason("NAT_NOT_NEEDED", "NAT not needed"),
    174: Reason("IS_A_CLUSTERIP", "Is a ClusterIP"),
    175: Reason("FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND", "First logical datagram fragment not found"),
    176: Reason("FORBIDDEN_ICMPV6_MESSAGE", "Forbidden ICMPv6 message"),
    177: Reason("DENIED_BY_LB_SRC_RANGE_CHECK", "Denied by LB src range check"),
    178: Reason("SOCKET_LOOKUP_FAILED", "Socket lookup failed"),
    179: Reason("SOCKET_ASSIGN_FAILED", "Socket assign failed"),
    180: Reason(
        "PROXY_REDIRECTION_NOT_SUPPORTED_FOR_PROTOCOL", "Proxy redirection not supported for protocol"
    ),
    181: Reason("POLICY_DENY", "Policy denied by denylist"),
    182: Reason("VLAN_FILTERED", "VLAN traffic disallowed by VLAN filter"),
    183: Reason("INVALID_VNI", "Incorrect VNI from VTEP"),
    184: Reason("INVALID_TC_BUFFER", "Failed to update or lookup TC buffer"),
    185: Reason("NO_SID", "No SID was found for the IP address"),
    186: Reason("MISSING_SRV6_STATE", "SRv6 state was removed during tail call"),
    187: Reason("NAT46", "L3 translation from IPv4 to IPv6 failed (NAT46)"),
    188: Reason("NAT64", "L3 translation from IPv6 to IPv4 failed (NAT64)"),
    189: Reason("AUTH_REQUIRED", "Authentication required"),
    190: Reason("CT_NO_MAP_FOUND", "No conntrack map found"),
    191: Reason("SNAT_NO_MAP_FOUND", "No nat map found"),
    192: Reason("INVALID_CLUSTER_ID", "Invalid ClusterID"),
    193: Reason("UNSUPPORTED_PROTOCOL_FOR_DSR_ENCAP", "Unsupported packet protocol for DSR encapsulation"),
    194: Reason("NO_EGRESS_GATEWAY", "No egress gateway found"),
    195: Reason("UNENCRYPTED_TRAFFIC", "Traffic is unencrypted"),
    196: Reason("TTL_EXCEEDED", "TTL exceeded"),
    197: Reason("NO_NODE_ID", "No node ID found"),
    198: Reason("DROP_RATE_LIMITED", "Rate limited"),
    199: Reason("IGMP_HANDLED", "IGMP handled"),
    200: Reason("IGMP_SUBSCRIBED", "IGMP subscribed"),
    201: Reason("MULTICAST_HANDLED", "Multicast handled"),
    202: Reason("DROP_HOST_NOT_READY", "Host datapath not ready"),
    203: Reason("DROP_EP_NOT_READY", "Endpoint policy program not available"),
    204: Reason("DROP_NO_EGRESS_IP", "No Egress IP configured"),
    205: Reason("DROP_PUNT_PROXY", "Punt to proxy"),
}

OWN: Final[dict[int, Reason]] = {
    250: Reason("DROP_REASON_UNKNOWN", "Policy row damaged"),
}


def reason_text(reason: int) -> str:
    """Text of *reason*; ``Success`` for a forwarded packet, the bare number for what has no text."""
    if reason == FORWARDED:
        return "Success"
    row = REASONS.get(reason) or OWN.get(reason)
    return row.text if row is not None else str(reason)


def reason_name(reason: int) -> str:
    """Member of ``flow.DropReason`` for *reason*."""
    row = REASONS.get(reason)
    return row.name if row is not None else "DROP_REASON_UNKNOWN"
