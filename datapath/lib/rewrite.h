/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Changing addresses and ports in place, with every checksum that covers them.  Sums are changed
 * by difference, so a packet whose L4 sum is still to be completed by a device stays right.
 */
#ifndef CILIUMD_REWRITE_H
#define CILIUMD_REWRITE_H

#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include "lib/addr.h"
#include "lib/packet.h"
#include "lib/parse.h"

enum rewrite_side {
	REWRITE_SOURCE,
	REWRITE_DESTINATION,
};

/* Offset of the L4 checksum from the L4 header, and of the ICMP echo id. */
enum l4_offset {
	TCP_CHECKSUM = 16,
	UDP_CHECKSUM = 6,
	ICMP_CHECKSUM = 2,
	ICMP_ID = 4,
	IPV4_CHECKSUM = 10,
	IPV4_TTL = 8,
	IPV4_SRC = 12,
	IPV4_DST = 16,
	IPV6_HOP_LIMIT = 7,
};

/* Address and port of one side of the packet, and of *p*.  0, or a drop reason. */
static __always_inline int rewrite(struct __sk_buff *skb, struct packet *p, enum rewrite_side side,
				   __be32 addr, __be16 port)
{
	struct cil_addr *known = side == REWRITE_SOURCE ? &p->src : &p->dst;
	__be16 *known_port = side == REWRITE_SOURCE ? &p->sport : &p->dport;
	__u32 addr_off = L3_OFF + (side == REWRITE_SOURCE ? IPV4_SRC : IPV4_DST);
	__u32 port_off = p->l4_off + (side == REWRITE_SOURCE ? 0 : 2);
	__u32 sum_off = p->l4_off + TCP_CHECKSUM;
	__be32 old = addr_v4(known);
	__be16 old_port = *known_port;
	__u32 flags = 0;

	if (p->flags & PKT_LATER_FRAGMENT)
		goto l3;
	switch (p->protocol) {
	case IPPROTO_UDP:
		sum_off = p->l4_off + UDP_CHECKSUM;
		flags = BPF_F_MARK_MANGLED_0;
		__attribute__((fallthrough));
	case IPPROTO_TCP:
		if (bpf_l4_csum_replace(skb, sum_off, old, addr, BPF_F_PSEUDO_HDR | flags | 4))
			return DROP_CSUM_L4;
		break;
	case IPPROTO_ICMP:
		sum_off = p->l4_off + ICMP_CHECKSUM;
		port_off = p->l4_off + ICMP_ID;
		break;
	default: /* SCTP: its CRC covers no addresses, and must not need to be computed */
		if (port != old_port)
			return DROP_NAT_UNSUPP_PROTO;
	}
	if (port != old_port) {
		if (bpf_l4_csum_replace(skb, sum_off, old_port, port, flags | 2))
			return DROP_CSUM_L4;
		if (bpf_skb_store_bytes(skb, port_off, &port, sizeof(port), 0))
			return DROP_WRITE_ERROR;
	}
l3:
	if (bpf_l3_csum_replace(skb, L3_OFF + IPV4_CHECKSUM, old, addr, 4))
		return DROP_CSUM_L3;
	if (bpf_skb_store_bytes(skb, addr_off, &addr, sizeof(addr), 0))
		return DROP_WRITE_ERROR;
	addr_set_v4(known, addr);
	*known_port = port;
	return 0;
}

/* Address of the outer header alone: ICMP sums cover no addresses. */
static __always_inline int rewrite_outer(struct __sk_buff *skb, struct packet *p,
					 enum rewrite_side side, __be32 addr)
{
	struct cil_addr *known = side == REWRITE_SOURCE ? &p->src : &p->dst;
	__u32 addr_off = L3_OFF + (side == REWRITE_SOURCE ? IPV4_SRC : IPV4_DST);

	if (bpf_l3_csum_replace(skb, L3_OFF + IPV4_CHECKSUM, addr_v4(known), addr, 4))
		return DROP_CSUM_L3;
	if (bpf_skb_store_bytes(skb, addr_off, &addr, sizeof(addr), 0))
		return DROP_WRITE_ERROR;
	addr_set_v4(known, addr);
	return 0;
}

/*
 * One side of the packet that an ICMP error quotes.  The quoted IP sum is mended, so within the
 * ICMP sum the address change cancels out; the port change does not.  A quoted L4 sum stays as it
 * was: receivers use the quoted packet to find a socket, not to verify it.
 */
static __always_inline int rewrite_quoted(struct __sk_buff *skb, struct packet *p,
					  enum rewrite_side side, __be32 addr, __be16 port)
{
	__u32 inner_l3 = p->l4_off + sizeof(struct icmp_wire);
	__u32 addr_off = inner_l3 + (side == REWRITE_SOURCE ? IPV4_SRC : IPV4_DST);
	__u32 port_off = p->inner_l4_off + (side == REWRITE_SOURCE ? 0 : 2);
	__be32 old = addr_v4(side == REWRITE_SOURCE ? &p->inner_src : &p->inner_dst);
	__be16 old_port = side == REWRITE_SOURCE ? p->inner_sport : p->inner_dport;

	if (bpf_l3_csum_replace(skb, inner_l3 + IPV4_CHECKSUM, old, addr, 4))
		return DROP_CSUM_L3;
	if (bpf_skb_store_bytes(skb, addr_off, &addr, sizeof(addr), 0))
		return DROP_WRITE_ERROR;
	if (port == old_port)
		return 0;
	if (p->inner_protocol == IPPROTO_ICMP) {
		port_off = p->inner_l4_off + ICMP_ID;
		/* The quoted echo's own sum covers its id: mend it, and the pair cancels out. */
		if (bpf_l3_csum_replace(skb, p->inner_l4_off + ICMP_CHECKSUM, old_port, port, 2))
			return DROP_CSUM_L4;
	} else if (bpf_l3_csum_replace(skb, p->l4_off + ICMP_CHECKSUM, old_port, port, 2)) {
		return DROP_CSUM_L4;
	}
	if (bpf_skb_store_bytes(skb, port_off, &port, sizeof(port), 0))
		return DROP_WRITE_ERROR;
	return 0;
}

/* One hop less; the caller has made sure that there is one. */
static __always_inline int decrement_ttl(struct __sk_buff *skb, struct packet *p)
{
	__u8 ttl = p->ttl - 1;

	if (is_ipv6(p)) {
		/* No sum covers it. */
		if (bpf_skb_store_bytes(skb, L3_OFF + IPV6_HOP_LIMIT, &ttl, sizeof(ttl), 0))
			return DROP_WRITE_ERROR;
		p->ttl = ttl;
		return 0;
	}
	/* The sum is over 16-bit words: TTL is the high byte of its word. */
	if (bpf_l3_csum_replace(skb, L3_OFF + IPV4_CHECKSUM, bpf_htons((__u16)p->ttl << 8),
				bpf_htons((__u16)ttl << 8), 2))
		return DROP_CSUM_L3;
	if (bpf_skb_store_bytes(skb, L3_OFF + IPV4_TTL, &ttl, sizeof(ttl), 0))
		return DROP_WRITE_ERROR;
	p->ttl = ttl;
	return 0;
}

#endif /* CILIUMD_REWRITE_H */
