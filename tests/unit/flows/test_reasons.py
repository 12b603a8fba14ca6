# SPDX-License-Identifier: Apache-2.0
"""Drop reasons have the numbers, names and texts Cilium's users match on."""

import pytest

from ciliumd.abi import DropReason
from ciliumd.flows.reasons import DROP_MIN, OWN, REASONS, reason_name, reason_text

LISTING = """
130 Invalid source mac
131 Invalid destination mac
132 Invalid source ip
133 Policy denied
134 Invalid packet
135 CT: Truncated or invalid header
136 CT: Missing TCP ACK flag
137 CT: Unknown L4 protocol
138 CT: Can't create entry from packet
139 Unsupported L3 protocol
140 Missed tail call
141 Error writing to packet
142 Unknown L4 protocol
143 Unknown ICMPv4 code
144 Unknown ICMPv4 type
145 Unknown ICMPv6 code
146 Unknown ICMPv6 type
147 Error retrieving tunnel key
148 Error retrieving tunnel options
149 Invalid Geneve option
150 Unknown L3 target address
151 Stale or unroutable IP
152 No matching local container found
153 Error while correcting L3 checksum
154 Error while correcting L4 checksum
155 CT: Map insertion failed
156 Invalid IPv6 extension header
157 IP fragmentation not supported
158 Service backend not found
160 No tunnel/encapsulation endpoint (datapath BUG!)
161 Failed to insert into proxymap
162 Reached EDT rate-limiting drop horizon
163 Unknown connection tracking state
164 Local host is unreachable
165 No configuration available to perform policy decision
166 Unsupported L2 protocol
167 No mapping for NAT masquerade
168 Unsupported protocol for NAT masquerade
169 FIB lookup failed
170 Encapsulation traffic is prohibited
171 Invalid identity
172 Unknown sender
173 NAT not needed
174 Is a ClusterIP
175 First logical datagram fragment not found
176 Forbidden ICMPv6 message
177 Denied by LB src range check
178 Socket lookup failed
179 Socket assign failed
180 Proxy redirection not supported for protocol
181 Policy denied by denylist
182 VLAN traffic disallowed by VLAN filter
183 Incorrect VNI from VTEP
184 Failed to update or lookup TC buffer
185 No SID was found for the IP address
186 SRv6 state was removed during tail call
187 L3 translation from IPv4 to IPv6 failed (NAT46)
188 L3 translation from IPv6 to IPv4 failed (NAT64)
189 Authentication required
190 No conntrack map found
191 No nat map found
192 Invalid ClusterID
193 Unsupported packet protocol for DSR encapsulation
194 No egress gateway found
195 Traffic is unencrypted
196 TTL exceeded
197 No node ID found
198 Rate limited
199 IGMP handled
200 IGMP subscribed
201 Multicast handled
202 Host datapath not ready
203 Endpoint policy program not available
204 No Egress IP configured
205 Punt to proxy
"""


@pytest.mark.parametrize("reason", [r for r in DropReason if r is not DropReason.FORWARDED], ids=str)
def test_every_reason_of_the_datapath_has_a_text(reason):
    """A drop the datapath can count is never shown as a bare number."""
    assert reason_text(reason) != str(int(reason))
    assert (reason_name(reason) == "DROP_REASON_UNKNOWN") == (reason in OWN)


@pytest.mark.parametrize(
    ("number", "name", "text"),
    [
        (133, "POLICY_DENIED", "Policy denied"),
        (151, "STALE_OR_UNROUTABLE_IP", "Stale or unroutable IP"),
        (158, "SERVICE_BACKEND_NOT_FOUND", "Service backend not found"),
        (160, "NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT", "No tunnel/encapsulation endpoint (datapath BUG!)"),
        (181, "POLICY_DENY", "Policy denied by denylist"),
        (202, "DROP_HOST_NOT_READY", "Host datapath not ready"),
    ],
)
def test_texts_are_those_of_cilium(number, name, text):
    """Texts the connectivity test tolerates by name are spelled as there."""
    assert (name, text) == (reason_name(number), reason_text(number))


def test_texts_are_a_contract():
    """Every text as Cilium's documentation lists it; a change has to be made here as well, on purpose."""
    listed = dict(line.split(" ", 1) for line in LISTING.strip().splitlines())

    assert listed == {str(number): row.text for number, row in REASONS.items()}


def test_names_and_texts_are_unique_and_numbers_are_drops():
    """A text leads back to one number, and every number is in Cilium's range of drops."""
    assert OWN.keys().isdisjoint(REASONS)
    assert len({row.text for row in (REASONS | OWN).values()}) == len(REASONS) + len(OWN)
    assert len({row.name for row in REASONS.values()}) == len(REASONS)
    assert min(REASONS) == DROP_MIN


def test_forwarded_is_success_and_the_unknown_keeps_its_number():
    """What has no text is still told apart."""
    assert reason_text(0) == "Success"
    assert reason_text(249) == "249"
    assert reason_name(250) == "DROP_REASON_UNKNOWN"
