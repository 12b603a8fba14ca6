/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Turn a packet into the ICMP error about it, quoting its own start, for the pod or the client of a
 * node port that sent it.  A refusal the sender can see beats a timeout.
 */
#ifndef CILIUMD_REFUSE_H
#define CILIUMD_REFUSE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include <ciliumd/config.h>
#include "lib/arp.h"
#include "lib/calls.h"
#include "lib/event.h"
#include "lib/hooks.h"
#include "lib/packet.h"
#include "lib/parse.h"

CONFIG(__u8, send_refusals, 1, "answer with ICMP when a service has no backend or TTL ran out");

enum {
	/* IPv4 header without options, and enough L4 to hold its checksum, which the kernel keeps. */
	QUOTED_TCP = 20 + 20,
	QUOTED_OTHER = 20 + 8,
	REFUSE_HEADERS = sizeof(struct ipv4_wire) + sizeof(struct icmp_wire),
};

static __always_inline __u16 fold_checksum(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Checksum of what is quoted, and of nothing else; *size* is a constant of the caller. */
static __always_inline long quoted_sum(struct __sk_buff *skb, __u32 size)
{
	__u32 quoted[QUOTED_TCP / 4] = {};

	if (bpf_skb_load_bytes(skb, L3_OFF, quoted, size))
		return -1;
	return bpf_csum_diff(NULL, 0, quoted, size, 0);
}

/* 0 when *skb* now is the ICMP error, else nothing can be said and nothing is. */
static __always_inline int refuse(struct __sk_buff *skb, struct packet *p, __u8 type, __u8 code)
{
	__u32 size = p->protocol == IPPROTO_TCP ? QUOTED_TCP : QUOTED_OTHER;
	struct ipv4_wire ip = {
		.version_ihl = 0x45,
		.ttl = 64,
		.protocol = IPPROTO_ICMP,
		/* Outside nobody knows the router: there the address that was asked answers. */
		.src = p->hook == HOOK_FROM_NETDEV ? addr_v4(&p->dst) : cfg_router_ipv4,
		.dst = addr_v4(&p->src),
	};
	/* What would fit lies where an echo has its sequence number (RFC 1191). */
	struct icmp_wire icmp = { .type = type,
				  .code = code,
				  .sequence = bpf_htons(p->refuse_mtu) };
	struct ethhdr eth = { .h_proto = bpf_htons(ETH_P_IP) };
	long sum;

	/* Never about an error, a fragment without its head, or a header we do not copy. */
	if (p->flags & (PKT_ICMP_ERROR | PKT_LATER_FRAGMENT) || p->ihl != sizeof(ip))
		return -1;
	if (bpf_skb_change_tail(skb, L3_OFF + size, 0))
		return -1;
	sum = p->protocol == IPPROTO_TCP ? quoted_sum(skb, QUOTED_TCP) :
					   quoted_sum(skb, QUOTED_OTHER);
	if (sum < 0 || bpf_skb_adjust_room(skb, REFUSE_HEADERS, BPF_ADJ_ROOM_MAC, 0))
		return -1;
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&icmp, sizeof(icmp), sum);
	icmp.checksum = fold_checksum(sum);
	ip.total_length = bpf_htons(size + REFUSE_HEADERS);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&ip, sizeof(ip), 0);
	ip.checksum = fold_checksum(sum);
	__builtin_memcpy(eth.h_dest, p->smac, ETH_ALEN);
	__builtin_memcpy(eth.h_source, p->dmac, ETH_ALEN);
	if (bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0) ||
	    bpf_skb_store_bytes(skb, L3_OFF, &ip, sizeof(ip), 0) ||
	    bpf_skb_store_bytes(skb, L3_OFF + sizeof(ip), &icmp, sizeof(icmp), 0))
		return -1;
	return 0;
}

/* Drop, and say why to the sender when it can be said.  Use DROP_AND_REFUSE(), which adds the line. */
static __always_inline int drop_and_refuse(struct __sk_buff *skb, struct packet *p, __u8 reason,
					   __u8 type, __u8 code, __u16 line)
{
	int action = drop_packet(skb, p, reason, hook_direction(p->hook), p->endpoint_id, line);

	if (!cfg_send_refusals || (p->hook != HOOK_FROM_CONTAINER && p->hook != HOOK_FROM_NETDEV))
		return action;
	p->refuse_type = type;
	p->refuse_code = code;
	bpf_tail_call(skb, &calls, CALL_REFUSE);
	return action;
}

#define DROP_AND_REFUSE(skb, p, reason, type, code)                                                \
	drop_and_refuse(skb, p, reason, type, code, __LINE__)

#endif /* CILIUMD_REFUSE_H */
