/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Masquerading on native devices: pods leave with the device's address.
 *
 * Every flow has two rows: OUT, keyed by what the pod sends, says what it becomes; IN, keyed by
 * what comes back, says whose it is.  The node's own connections in the port range take rows too
 * (usually unchanged), so that a pod is never given a port the node is using.
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
#include "lib/nat_map.h"
#include "lib/packet.h"
#include "lib/rewrite.h"

CONFIG(__u8, masquerade, 1, "give pods the address of the native device they leave by");
CONFIG(__be32, pod_cidr_ipv4, 0, "network of this node's pods");
CONFIG(__be32, pod_cidr_mask, 0xffffffff, "netmask of this node's pods");
CONFIG(__be32, native_cidr_ipv4, 0, "network that pods reach with their own address");
CONFIG(__be32, native_cidr_mask, 0xffffffff, "netmask of that network");
CONFIG(__u16, nat_port_min, 32768, "lowest port given to masqueraded flows");
CONFIG(__u16, nat_port_max, 65535, "highest port given to masqueraded flows");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, struct native_device);
} cilium_devices_v1 SEC(".maps");

enum {
	NAT_TRIES = 16,
};

/* Address of a native device, 0 when it is none or has none. */
static __always_inline __be32 native_address(__u32 ifindex)
{
	struct native_device *device = bpf_map_lookup_elem(&cilium_devices_v1, &ifindex);
	__u64 word;

	if (!device)
		return 0;
	word = read_row_word(device);
	return word >> 32 == ifindex ? (__be32)word : 0;
}

static __always_inline int is_pod_address(__be32 addr)
{
	return cfg_pod_cidr_ipv4 && (addr & cfg_pod_cidr_mask) == cfg_pod_cidr_ipv4;
}

static __always_inline int is_native_address(__be32 addr)
{
	return cfg_native_cidr_ipv4 && (addr & cfg_native_cidr_mask) == cfg_native_cidr_ipv4;
}

/* The IN row's key when the flow of *out* leaves with *port*. */
static __always_inline void nat_reverse_key(const struct nat_key *out, __be32 address, __be16 port,
					    struct nat_key *in)
{
	__builtin_memset(in, 0, sizeof(*in));
	in->src = out->dst;
	addr_set_v4(&in->dst, address);
	in->sport = out->dport;
	in->dport = port;
	in->protocol = out->protocol;
	in->dir = NAT_IN;
}

/* Claim *port* for the flow of *out*.  1 when it is ours now, or was already. */
static __always_inline int nat_claim(struct packet *p, const struct nat_key *out, __be32 address,
				     __be16 port)
{
	struct nat_entry entry;
	struct nat_key in;

	nat_reverse_key(out, address, port, &in);
	if (nat_read(&in, &entry))
		return entry.port == out->sport && addr_equal(&entry.addr, &out->src);
	__builtin_memset(&entry, 0, sizeof(entry));
	entry.check = fold32(&in, sizeof(in));
	entry.port = out->sport;
	entry.addr = out->src;
	entry.created = packet_now(p);
	return !nat_write(&in, &entry, BPF_NOEXIST);
}

static __always_inline __be16 nat_random_port(__u32 range)
{
	return bpf_htons(cfg_nat_port_min + bpf_get_prandom_u32() % range);
}

/* Find or make the rows of the flow that *out* names.  0 and *entry*, or a drop reason. */
static __always_inline int nat_map(struct packet *p, const struct nat_key *out, __be32 address,
				   struct nat_entry *entry)
{
	__u32 range = (__u32)cfg_nat_port_max - cfg_nat_port_min + 1;
	__u16 wanted = bpf_ntohs(out->sport);
	__be16 port = out->sport;
	int known, tries;

	/* The LRU may have taken the IN row alone, and a reply would find nobody: claim it again. */
	known = nat_read(out, entry) && addr_v4(&entry->addr) == address;
	if (known)
		port = entry->port;
	else if (wanted < cfg_nat_port_min || wanted > cfg_nat_port_max)
		port = nat_random_port(range);
#pragma clang loop unroll(disable)
	for (tries = 0; tries < NAT_TRIES; tries++) {
		if (nat_claim(p, out, address, port))
			break;
		port = nat_random_port(range);
	}
	if (tries == NAT_TRIES)
		return DROP_NAT_NO_MAPPING;
	if (known && port == entry->port)
		return 0;
	__builtin_memset(entry, 0, sizeof(*entry));
	entry->check = fold32(out, sizeof(*out));
	entry->port = port;
	addr_set_v4(&entry->addr, address);
	entry->created = packet_now(p);
	if (nat_write(out, entry, BPF_ANY))
		return DROP_NAT_NO_MAPPING;
	return 0;
}

/*
 * An echo reply leaves only for a request from outside, which kept our address.  A later fragment
 * has no type of its own, but a responder's port: the id.
 */
static __always_inline int is_echo_reply(const struct packet *p)
{
	if (p->protocol != IPPROTO_ICMP)
		return 0;
	return p->flags & PKT_LATER_FRAGMENT ? !!p->dport : p->icmp_type == ICMP_V4_ECHO_REPLY;
}

/* A packet leaves: 0 when it is as it should be on the wire, else a drop reason. */
static __always_inline int nat_egress(struct __sk_buff *skb, struct packet *p, __be32 address)
{
	struct nat_key out = { .protocol = p->protocol, .dir = NAT_OUT };
	struct nat_entry entry;
	int reason;

	if (p->flags & PKT_ICMP_ERROR) {
		/* About a packet that came in for the pod: that flow's OUT row tells. */
		out.src = p->inner_dst;
		out.dst = p->inner_src;
		out.sport = p->inner_dport;
		out.dport = p->inner_sport;
		out.protocol = p->inner_protocol;
		if (!nat_read(&out, &entry))
			return DROP_NAT_NO_MAPPING;
		reason = rewrite_quoted(skb, p, REWRITE_DESTINATION, addr_v4(&entry.addr),
					entry.port);
		return reason ? reason : rewrite_outer(skb, p, REWRITE_SOURCE, address);
	}
	if (is_echo_reply(p))
		return DROP_NAT_NO_MAPPING;
	if (p->protocol == IPPROTO_SCTP)
		return DROP_NAT_UNSUPP_PROTO;
	out.src = p->src;
	out.dst = p->dst;
	out.sport = p->sport;
	out.dport = p->dport;
	reason = nat_map(p, &out, address, &entry);
	if (reason)
		return reason;
	if (addr_v4(&p->src) == address && p->sport == entry.port)
		return 0;
	return rewrite(skb, p, REWRITE_SOURCE, address, entry.port);
}

/*
 * A packet of the node itself with an address that others share: it takes its row.  Usually it stays
 * as it is, and when there is no row for it, it goes all the same.
 */
static __always_inline void nat_own(struct __sk_buff *skb, struct packet *p, __be32 address)
{
	if (!(p->flags & PKT_ICMP_ERROR) && p->protocol != IPPROTO_SCTP &&
	    bpf_ntohs(p->sport) >= cfg_nat_port_min)
		nat_egress(skb, p, address);
}

/* A packet arrives: turn it back if it belongs to a mapped flow; 0, or a drop reason. */
static __always_inline int nat_ingress(struct __sk_buff *skb, struct packet *p)
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
		reason = rewrite_quoted(skb, p, REWRITE_SOURCE, addr_v4(&entry.addr), entry.port);
		if (reason)
			return reason;
		p->inner_src = entry.addr;
		p->inner_sport = entry.port;
		return rewrite_outer(skb, p, REWRITE_DESTINATION, addr_v4(&entry.addr));
	}
	in.src = p->src;
	in.dst = p->dst;
	in.sport = p->sport;
	in.dport = p->dport;
	if (!nat_read(&in, &entry))
		return 0;
	if (entry.port == p->dport && addr_equal(&entry.addr, &p->dst))
		return 0;
	return rewrite(skb, p, REWRITE_DESTINATION, addr_v4(&entry.addr), entry.port);
}

#endif /* CILIUMD_NAT_H */
