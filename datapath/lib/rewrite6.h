/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * lib/rewrite.h for IPv6.  There is no sum in the header, and the sum of every transport but SCTP
 * covers the addresses (RFC 8200 8.1), ICMPv6's too.
 */
#ifndef CILIUMD_REWRITE6_H
#define CILIUMD_REWRITE6_H

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include "lib/addr.h"
#include "lib/icmp.h"
#include "lib/packet.h"
#include "lib/parse6.h"
#include "lib/rewrite.h"

enum {
	IPV6_SRC = 8,
	IPV6_DST = 24,
};

static __always_inline __u32 ipv6_addr_off(enum rewrite_side side)
{
	return side == REWRITE_SOURCE ? IPV6_SRC : IPV6_DST;
}

/* By how much a sum changes with the address. */
static __always_inline __u32 addr_diff(const struct cil_addr *from, const struct cil_addr *to)
{
	struct cil_addr old = *from, new = *to;

	return bpf_csum_diff(old.w, sizeof(old), new.w, sizeof(new), 0);
}

/* The transport's sum at *off* covers an address that changes by *diff*; 0, or a drop reason. */
static __always_inline int mend_pseudo(struct __sk_buff *skb, __u32 off, __u32 diff, __u64 flags)
{
	if (bpf_l4_csum_replace(skb, off, 0, diff, BPF_F_PSEUDO_HDR | flags))
		return DROP_CSUM_L4;
	/*
	 * The helper takes *diff* off what a device summed up of the packet, as if an IPv4 header's
	 * own sum made up for the address.  Here the sum just mended does: give it back.  It fails
	 * when no device has summed anything up.
	 */
	bpf_csum_update(skb, diff);
	return 0;
}

/* Address and port of one side of the packet, and of *p*.  0, or a drop reason. */
static __always_inline int rewrite_v6(struct __sk_buff *skb, struct packet *p,
				      enum rewrite_side side, const struct cil_addr *addr,
				      __be16 port)
{
	struct cil_addr *known = side == REWRITE_SOURCE ? &p->src : &p->dst;
	__be16 *known_port = side == REWRITE_SOURCE ? &p->sport : &p->dport;
	__u32 port_off = p->l4_off + (side == REWRITE_SOURCE ? 0 : 2);
	__u32 sum_off = p->l4_off + TCP_CHECKSUM;
	__be16 old_port = *known_port;
	__u64 flags = 0;
	int reason;

	if (p->flags & PKT_LATER_FRAGMENT)
		goto l3;
	switch (p->protocol) {
	case IPPROTO_UDP:
		sum_off = p->l4_off + UDP_CHECKSUM;
		flags = BPF_F_MARK_MANGLED_0;
		break;
	case IPPROTO_TCP:
		break;
	case IPPROTO_ICMPV6:
		sum_off = p->l4_off + ICMP_CHECKSUM;
		port_off = p->l4_off + ICMP_ID;
		break;
	default: /* SCTP: its CRC covers no addresses, and must not need to be computed */
		if (port != old_port)
			return DROP_NAT_UNSUPP_PROTO;
		goto l3;
	}
	reason = mend_pseudo(skb, sum_off, addr_diff(known, addr), flags);
	if (reason)
		return reason;
	if (port != old_port) {
		if (bpf_l4_csum_replace(skb, sum_off, old_port, port, flags | 2))
			return DROP_CSUM_L4;
		if (bpf_skb_store_bytes(skb, port_off, &port, sizeof(port), 0))
			return DROP_WRITE_ERROR;
	}
l3:
	if (bpf_skb_store_bytes(skb, L3_OFF + ipv6_addr_off(side), addr->w, sizeof(addr->w), 0))
		return DROP_WRITE_ERROR;
	*known = *addr;
	*known_port = port;
	return 0;
}

/* Address of the outer header of an ICMPv6 error. */
static __always_inline int rewrite_outer_v6(struct __sk_buff *skb, struct packet *p,
					    enum rewrite_side side, const struct cil_addr *addr)
{
	struct cil_addr *known = side == REWRITE_SOURCE ? &p->src : &p->dst;
	int reason = mend_pseudo(skb, p->l4_off + ICMP_CHECKSUM, addr_diff(known, addr), 0);

	if (reason)
		return reason;
	if (bpf_skb_store_bytes(skb, L3_OFF + ipv6_addr_off(side), addr->w, sizeof(addr->w), 0))
		return DROP_WRITE_ERROR;
	*known = *addr;
	return 0;
}

/*
 * One side of the packet that an ICMPv6 error quotes.  A quoted transport's sum stays as it was, as
 * with IPv4, and so the error's own sum changes by the address and the port.
 */
static __always_inline int rewrite_quoted_v6(struct __sk_buff *skb, struct packet *p,
					     enum rewrite_side side, const struct cil_addr *addr,
					     __be16 port)
{
	const struct cil_addr *known = side == REWRITE_SOURCE ? &p->inner_src : &p->inner_dst;
	__u32 addr_off = p->l4_off + sizeof(struct icmp_wire) + ipv6_addr_off(side);
	__u32 port_off = p->inner_l4_off + (side == REWRITE_SOURCE ? 0 : 2);
	__be16 old_port = side == REWRITE_SOURCE ? p->inner_sport : p->inner_dport;
	__u32 sum_off = p->l4_off + ICMP_CHECKSUM;

	if (bpf_l4_csum_replace(skb, sum_off, 0, addr_diff(known, addr), 0))
		return DROP_CSUM_L4;
	if (bpf_skb_store_bytes(skb, addr_off, addr->w, sizeof(addr->w), 0))
		return DROP_WRITE_ERROR;
	if (port == old_port)
		return 0;
	if (p->inner_protocol == IPPROTO_ICMPV6)
		port_off = p->inner_l4_off + ICMP_ID;
	/* Extension headers have even sizes: the port is a word of the sum. */
	if (bpf_l4_csum_replace(skb, sum_off, old_port, port, 2))
		return DROP_CSUM_L4;
	if (bpf_skb_store_bytes(skb, port_off, &port, sizeof(port), 0))
		return DROP_WRITE_ERROR;
	return 0;
}

#endif /* CILIUMD_REWRITE6_H */
