/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Turn a packet into the ICMP error about it, quoting its own start, for the pod or the client of a
 * node port that sent it.  A refusal the sender can see beats a timeout.
 */
#ifndef CILIUMD_REFUSE_H
#define CILIUMD_REFUSE_H

#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include "lib/calls.h"
#include "lib/deliver.h"
#include "lib/event.h"
#include "lib/hooks.h"
#include "lib/packet.h"
#include "lib/parse.h"
#include "lib/sum.h"

enum {
	/* IPv4 header without options, and enough L4 to hold its checksum, which the kernel keeps. */
	QUOTED_TCP = 20 + 20,
	QUOTED_OTHER = 20 + 8,
	REFUSE_HEADERS = sizeof(struct ipv4_wire) + sizeof(struct icmp_wire),
	/* The same behind an IPv6 header. */
	QUOTED_TCP_V6 = 40 + 20,
	QUOTED_OTHER_V6 = 40 + 8,
	REFUSE_HEADERS_V6 = sizeof(struct ipv6_wire) + sizeof(struct icmp_wire),
};

/* Checksum of what is quoted, and of nothing else; *size* is a constant of the caller. */
static __always_inline long quoted_sum(struct __sk_buff *skb, __u32 size)
{
	__u32 quoted[QUOTED_TCP_V6 / 4] = {};

	if (bpf_skb_load_bytes(skb, L3_OFF, quoted, size))
		return -1;
	return bpf_csum_diff(NULL, 0, quoted, size, 0);
}

/* What an error of IPv4 is called in IPv6; the four that programs send. */
static __always_inline void refusal_of_v6(struct icmp_wire *icmp, __u8 type, __u8 code)
{
	if (type == ICMP_V4_TIME_EXCEEDED) {
		icmp->type = ICMP_V6_TIME_EXCEEDED;
	} else if (code == ICMP_V4_FRAG_NEEDED) {
		icmp->type = ICMP_V6_PACKET_TOO_BIG;
	} else {
		icmp->type = ICMP_V6_UNREACHABLE;
		icmp->code = code == ICMP_V4_ADMIN_PROHIBITED ? ICMP_V6_ADMIN_PROHIBITED :
								ICMP_V6_PORT_UNREACHABLE;
	}
}

/* Sent to many on the link: as many would answer (RFC 1122 3.2.2.1, RFC 4443 2.4). */
static __always_inline int is_link_group(const struct packet *p)
{
	return p->dmac[0] & 1;
}

/* The frame goes back to whom it came from. */
static __always_inline int store_returned(struct __sk_buff *skb, const struct packet *p,
					  const struct ipv6_wire *ip)
{
	struct ethhdr eth = { .h_proto = bpf_htons(ETH_P_IPV6) };

	__builtin_memcpy(eth.h_dest, p->smac, ETH_ALEN);
	__builtin_memcpy(eth.h_source, p->dmac, ETH_ALEN);
	return bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0) ||
	       bpf_skb_store_bytes(skb, L3_OFF, ip, sizeof(*ip), 0);
}

/*
 * A pod's SYN is answered at once, while its process still holds the socket: an ICMPv6 error then
 * counts only when the SYN is sent again, a second later; a reset does when the socket is let go.
 */
static __always_inline int resets_v6(const struct packet *p, __u8 type, __u8 code)
{
	return p->hook == HOOK_FROM_CONTAINER && p->protocol == IPPROTO_TCP &&
	       (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN && type == ICMP_V4_UNREACHABLE &&
	       code == ICMP_V4_PORT_UNREACHABLE;
}

/* As refuse() below. */
static __always_inline int reset_v6(struct __sk_buff *skb, struct packet *p)
{
	struct ipv6_wire ip = {
		.version_class = 0x60,
		.payload_length = bpf_htons(sizeof(struct tcp_wire)),
		.next_header = IPPROTO_TCP,
		.hop_limit = 64,
		.src = p->dst,
		.dst = p->src,
	};
	struct tcp_wire tcp = {
		.sport = p->dport,
		.dport = p->sport,
		.data_offset = sizeof(tcp) / 4 << 4,
		.flags = TCP_RST | TCP_ACK,
	};
	__be32 seq;

	if (p->flags & PKT_LATER_FRAGMENT || p->ihl != sizeof(ip) ||
	    bpf_skb_load_bytes(skb, p->l4_off + offsetof(struct tcp_wire, seq), &seq, sizeof(seq)))
		return -1;
	tcp.ack = bpf_htonl(bpf_ntohl(seq) + 1);
	tcp.checksum = fold_checksum(
		pseudo_sum(&ip, bpf_csum_diff(NULL, 0, (__be32 *)&tcp, sizeof(tcp), 0)));
	if (bpf_skb_change_tail(skb, L3_OFF + sizeof(ip) + sizeof(tcp), 0) ||
	    store_returned(skb, p, &ip) ||
	    bpf_skb_store_bytes(skb, L3_OFF + sizeof(ip), &tcp, sizeof(tcp), 0))
		return -1;
	return 0;
}

/* As refuse() below.  The MTU lies in the last 4 bytes of the header, where it is alone (RFC 4443). */
static __always_inline int refuse_v6(struct __sk_buff *skb, struct packet *p, __u8 type, __u8 code)
{
	__u32 size = p->protocol == IPPROTO_TCP ? QUOTED_TCP_V6 : QUOTED_OTHER_V6;
	struct ipv6_wire ip = {
		.version_class = 0x60,
		.payload_length = bpf_htons(size + sizeof(struct icmp_wire)),
		.next_header = IPPROTO_ICMPV6,
		.hop_limit = 64,
		.dst = p->src,
	};
	struct icmp_wire icmp = { .sequence = bpf_htons(p->refuse_mtu) };
	long sum;

	if (resets_v6(p, type, code))
		return reset_v6(skb, p);

	/* Nor about what went to a group. */
	if (p->flags & (PKT_ICMP_ERROR | PKT_LATER_FRAGMENT) || p->ihl != sizeof(ip) ||
	    is_link_group(p) || addr_is_multicast_v6(&p->dst))
		return -1;
	if (p->hook == HOOK_FROM_NETDEV)
		ip.src = p->dst;
	else
		addr_set_router_v6(&ip.src);
	refusal_of_v6(&icmp, type, code);
	if (bpf_skb_change_tail(skb, L3_OFF + size, 0))
		return -1;
	sum = p->protocol == IPPROTO_TCP ? quoted_sum(skb, QUOTED_TCP_V6) :
					   quoted_sum(skb, QUOTED_OTHER_V6);
	if (sum < 0 || bpf_skb_adjust_room(skb, REFUSE_HEADERS_V6, BPF_ADJ_ROOM_MAC, 0))
		return -1;
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&icmp, sizeof(icmp), sum);
	icmp.checksum = fold_checksum(pseudo_sum(&ip, sum));
	if (store_returned(skb, p, &ip) ||
	    bpf_skb_store_bytes(skb, L3_OFF + sizeof(ip), &icmp, sizeof(icmp), 0))
		return -1;
	return 0;
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

	/* Never about an error, a fragment without its head, a group, or a header we do not copy. */
	if (p->flags & (PKT_ICMP_ERROR | PKT_LATER_FRAGMENT) || p->ihl != sizeof(ip) ||
	    is_link_group(p) || addr_is_group_v4(&p->dst))
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

	if (p->hook != HOOK_FROM_CONTAINER && p->hook != HOOK_FROM_NETDEV)
		return action;
	p->refuse_type = type;
	p->refuse_code = code;
	bpf_tail_call(skb, &calls, CALL_REFUSE);
	return action;
}

#define DROP_AND_REFUSE(skb, p, reason, type, code)                                                \
	drop_and_refuse(skb, p, reason, type, code, __LINE__)

#endif /* CILIUMD_REFUSE_H */
