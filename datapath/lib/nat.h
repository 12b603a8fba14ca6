/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Masquerading on native devices: pods leave with the device's address.
 *
 * Every flow has two rows: OUT, keyed by what the pod sends, says what it becomes; IN, keyed by
 * what comes back, says whose it is.  The node's own connections in the port range take rows too
 * (usually unchanged), so that a pod is never given a port the node is using.
 *
 * Both families take one path; "v6" is a constant where it is asked, so neither pays for the other.
 */
#ifndef CILIUMD_NAT_H
#define CILIUMD_NAT_H

#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include <ciliumd/config.h>
#include "lib/addr.h"
#include "lib/ct.h"
#include "lib/icmp.h"
#include "lib/nat_map.h"
#include "lib/nat_port.h"
#include "lib/native.h"
#include "lib/packet.h"
#include "lib/rewrite.h"
#include "lib/rewrite6.h"

CONFIG(__u8, masquerade, 1, "give pods the address of the native device they leave by");
CONFIG(__u8, masquerade_ipv6, 0, "give pods the IPv6 address of the native device they leave by");

/* Of one family: the low word tells IPv4 addresses apart. */
static __always_inline int nat_same(const struct cil_addr *a, const struct cil_addr *b, int v6)
{
	return v6 ? addr_equal(a, b) : addr_v4(a) == addr_v4(b);
}

/* An address of IPv4 is three constants and a word: no copy. */
static __always_inline void nat_put(struct cil_addr *to, const struct cil_addr *address, int v6)
{
	if (v6)
		*to = *address;
	else
		addr_set_v4(to, addr_v4(address));
}

static __always_inline int nat_rewrite(struct __sk_buff *skb, struct packet *p,
				       enum rewrite_side side, const struct cil_addr *addr,
				       __be16 port, int v6)
{
	return v6 ? rewrite_v6(skb, p, side, addr, port) :
		    rewrite(skb, p, side, addr_v4(addr), port);
}

/* An ICMP error: one side of what it quotes, and of the header it travels by the other one. */
static __always_inline int nat_rewrite_error(struct __sk_buff *skb, struct packet *p,
					     enum rewrite_side quoted, const struct cil_addr *inner,
					     __be16 port, const struct cil_addr *outer, int v6)
{
	enum rewrite_side side = quoted == REWRITE_SOURCE ? REWRITE_DESTINATION : REWRITE_SOURCE;
	int reason = v6 ? rewrite_quoted_v6(skb, p, quoted, inner, port) :
			  rewrite_quoted(skb, p, quoted, addr_v4(inner), port);

	if (reason)
		return reason;
	return v6 ? rewrite_outer_v6(skb, p, side, outer) :
		    rewrite_outer(skb, p, side, addr_v4(outer));
}

/* Find or make the rows of the flow that *out* names, *p*'s own.  0 and *entry*, or a drop reason. */
static __always_inline int nat_map(struct packet *p, const struct nat_key *out,
				   const struct cil_addr *address, int v6, struct nat_entry *entry)
{
	__u16 wanted = bpf_ntohs(out->sport);
	__be16 port = out->sport;
	int known, failed;

	/* The LRU may have taken the IN row alone, and a reply would find nobody: claim it again. */
	known = nat_read(out, entry) && nat_same(&entry->addr, address, v6);
	if (known)
		port = entry->port;
	__builtin_memset(&p->nat.in, 0, sizeof(p->nat.in));
	p->nat.in.src = out->dst;
	nat_put(&p->nat.in.dst, address, v6);
	p->nat.in.sport = out->dport;
	p->nat.in.protocol = out->protocol;
	p->nat.in.dir = NAT_IN;
	if ((!known && (wanted < cfg_nat_port_min || wanted > cfg_nat_port_max)) ||
	    !nat_claim(p, port))
		port = bpf_htons(nat_find_port());
	if (!port)
		port = bpf_htons(nat_find_port_of_old());
	if (!port)
		return DROP_NAT_NO_MAPPING;
	if (known && port == entry->port)
		return 0;
	__builtin_memset(entry, 0, sizeof(*entry));
	entry->check = fold32(out, sizeof(*out));
	entry->port = port;
	nat_put(&entry->addr, address, v6);
	entry->created = packet_now(p);
	/* The LRU may be busy for a moment (EBUSY): ask twice before giving up, and the port back. */
	failed = nat_write(out, entry, BPF_ANY) && nat_write(out, entry, BPF_ANY);
	if (!failed)
		return 0;
	nat_delete(&p->nat.in);
	return DROP_NAT_NO_MAPPING;
}

/*
 * An echo reply leaves only for a request from outside, which kept our address.  A later fragment
 * has no type of its own, but a responder's port: the id.
 */
static __always_inline int is_echo_reply(const struct packet *p, int v6)
{
	if (p->protocol != (v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP))
		return 0;
	if (p->flags & PKT_LATER_FRAGMENT)
		return !!p->dport;
	return p->icmp_type == (v6 ? ICMP_V6_ECHO_REPLY : ICMP_V4_ECHO_REPLY);
}

/* A packet leaves: 0 when it is as it should be on the wire, else a drop reason. */
static __always_inline int nat_egress_by(struct __sk_buff *skb, struct packet *p,
					 const struct cil_addr *address, int v6)
{
	struct nat_entry *entry = &p->nat.out_row;
	struct nat_key *out = &p->nat.out;
	int reason;

	__builtin_memset(out, 0, sizeof(*out));
	out->dir = NAT_OUT;

	if (p->flags & PKT_ICMP_ERROR) {
		/* About a packet that came in for the pod: that flow's OUT row tells. */
		out->src = p->inner_dst;
		out->dst = p->inner_src;
		out->sport = p->inner_dport;
		out->dport = p->inner_sport;
		out->protocol = p->inner_protocol;
		if (!nat_read(out, entry))
			return DROP_NAT_NO_MAPPING;
		return nat_rewrite_error(skb, p, REWRITE_DESTINATION, &entry->addr, entry->port,
					 address, v6);
	}
	if (is_echo_reply(p, v6))
		return DROP_NAT_NO_MAPPING;
	if (p->protocol == IPPROTO_SCTP)
		return DROP_NAT_UNSUPP_PROTO;
	out->protocol = p->protocol;
	out->src = p->src;
	out->dst = p->dst;
	out->sport = p->sport;
	out->dport = p->dport;
	reason = nat_map(p, out, address, v6, entry);
	if (reason)
		return reason;
	if (nat_same(&p->src, address, v6) && p->sport == entry->port)
		return 0;
	return nat_rewrite(skb, p, REWRITE_SOURCE, address, entry->port, v6);
}

static __always_inline int nat_egress(struct __sk_buff *skb, struct packet *p, __be32 address)
{
	struct cil_addr addr;

	addr_set_v4(&addr, address);
	return nat_egress_by(skb, p, &addr, 0);
}

static __always_inline int nat_egress_v6(struct __sk_buff *skb, struct packet *p,
					 const struct cil_addr *address)
{
	return nat_egress_by(skb, p, address, 1);
}

/*
 * A packet of the node itself with an address that others share: it takes its row.  Usually it stays
 * as it is, and when there is no row for it, it goes all the same.
 */
static __always_inline int nat_takes_own(const struct packet *p)
{
	return !(p->flags & PKT_ICMP_ERROR) && p->protocol != IPPROTO_SCTP &&
	       bpf_ntohs(p->sport) >= cfg_nat_port_min;
}

static __always_inline void nat_own(struct __sk_buff *skb, struct packet *p, __be32 address)
{
	if (nat_takes_own(p))
		nat_egress(skb, p, address);
}

static __always_inline void nat_own_v6(struct __sk_buff *skb, struct packet *p,
				       const struct cil_addr *address)
{
	if (nat_takes_own(p))
		nat_egress_v6(skb, p, address);
}

/* A packet arrives: turn it back if it belongs to a mapped flow; 0, or a drop reason. */
static __always_inline int nat_ingress(struct __sk_buff *skb, struct packet *p, int v6)
{
	struct nat_key in = { .protocol = p->protocol, .dir = NAT_IN };
	struct nat_entry entry;
	int reason;

	if (p->flags & PKT_ICMP_ERROR) {
		/* About a packet of ours as it was on the wire. */
		in.src = p->inner_dst;
		in.dst = p->inner_src;
		in.sport = p->inner_dport;
		in.dport = p->inner_sport;
		in.protocol = p->inner_protocol;
		if (!nat_read(&in, &entry) ||
		    (entry.port == p->inner_sport && addr_equal(&entry.addr, &p->dst)))
			return 0;
		reason = nat_rewrite_error(skb, p, REWRITE_SOURCE, &entry.addr, entry.port,
					   &entry.addr, v6);
		if (reason)
			return reason;
		p->inner_src = entry.addr;
		p->inner_sport = entry.port;
		p->flags |= PKT_TURNED_BACK;
		return 0;
	}
	in.src = p->src;
	in.dst = p->dst;
	in.sport = p->sport;
	in.dport = p->dport;
	if (!nat_read(&in, &entry))
		return 0;
	if (entry.port == p->dport && addr_equal(&entry.addr, &p->dst))
		return 0;
	p->flags |= PKT_TURNED_BACK;
	return nat_rewrite(skb, p, REWRITE_DESTINATION, &entry.addr, entry.port, v6);
}

#endif /* CILIUMD_NAT_H */
