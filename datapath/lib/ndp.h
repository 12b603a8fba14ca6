/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Neighbour discovery, as far as a pod needs it: it asks for its gateway, and only for that; the
 * answer is its own device's MAC.  What else belongs to a link stays where it is (ICMP_OTHER):
 * advertisements, redirects, and all that routers say come from no pod.
 */
#ifndef CILIUMD_NDP_H
#define CILIUMD_NDP_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include "lib/addr.h"
#include "lib/deliver.h"
#include "lib/icmp.h"
#include "lib/packet.h"
#include "lib/parse6.h"
#include "lib/sum.h"

enum {
	NDP_HOP_LIMIT = 255, /* nobody behind a router can have sent it */
	NDP_SOURCE_MAC = 1,  /* options */
	NDP_TARGET_MAC = 2,
};

/* Of a router, asked for, to be believed: R, S and O of RFC 4861 4.4. */
#define NDP_ADVERTISED 0xe0000000

struct ndp_wire {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be32 flags;
	struct cil_addr target;
	__u8 option;
	__u8 option_length; /* in units of 8 bytes */
	__u8 mac[ETH_ALEN];
};

enum {
	NDP_BARE = 24, /* without the option, which a question may do without */
};

/* The header alone has been parsed. */
static __always_inline int is_solicitation(struct __sk_buff *skb, const struct packet *p)
{
	__u8 type;

	return p->protocol == IPPROTO_ICMPV6 && p->l4_off + sizeof(type) <= p->end &&
	       !bpf_skb_load_bytes(skb, p->l4_off, &type, sizeof(type)) &&
	       type == ICMP_V6_NEIGHBOUR_SOLICITATION;
}

/* The link-local address that a MAC makes (RFC 4291 appendix A), by which a pod's stack asks, too. */
static __always_inline int is_link_local_of(const struct cil_addr *addr, const __u8 *mac)
{
	const __u8 *byte = (const __u8 *)&addr->w[2];

	return addr->w[0] == bpf_htonl(0xfe800000) && !addr->w[1] && byte[0] == (mac[0] ^ 2) &&
	       byte[1] == mac[1] && byte[2] == mac[2] && byte[3] == 0xff && byte[4] == 0xfe &&
	       byte[5] == mac[3] && byte[6] == mac[4] && byte[7] == mac[5];
}

/* 0 when *skb* now is the answer, or a drop reason. */
static __always_inline int ndp_answer(struct __sk_buff *skb, struct packet *p,
				      const struct endpoint *endpoint)
{
	struct ndp_wire ndp = {};
	struct ipv6_wire ip = {
		.version_class = 0x60,
		.payload_length = bpf_htons(sizeof(ndp)),
		.next_header = IPPROTO_ICMPV6,
		.hop_limit = NDP_HOP_LIMIT,
		.dst = p->src,
	};

	addr_set_router_v6(&ip.src);
	/* Nobody else's name, neither in the frame nor in the question. */
	if (addr_is_zero(&p->src) ||
	    (!addr_equal(&p->src, &endpoint->ipv6) && !is_link_local_of(&p->src, endpoint->mac)))
		return DROP_INVALID_SIP;
	if (p->ttl != NDP_HOP_LIMIT || p->l4_off + NDP_BARE > p->end ||
	    bpf_skb_load_bytes(skb, p->l4_off, &ndp, NDP_BARE) || ndp.code)
		return DROP_INVALID;
	if (p->l4_off + sizeof(ndp) <= p->end) {
		if (bpf_skb_load_bytes(skb, p->l4_off, &ndp, sizeof(ndp)))
			return DROP_INVALID;
		if (ndp.option == NDP_SOURCE_MAC &&
		    (ndp.option_length != 1 || !mac_equal(ndp.mac, endpoint->mac)))
			return DROP_INVALID_SMAC;
	}
	if (!addr_equal(&ndp.target, &ip.src))
		return DROP_UNKNOWN_TARGET;
	ndp.type = ICMP_V6_NEIGHBOUR_ADVERTISEMENT;
	ndp.checksum = 0;
	ndp.flags = bpf_htonl(NDP_ADVERTISED);
	ndp.option = NDP_TARGET_MAC;
	ndp.option_length = 1;
	__builtin_memcpy(ndp.mac, endpoint->node_mac, ETH_ALEN);
	ndp.checksum = fold_checksum(
		pseudo_sum(&ip, bpf_csum_diff(NULL, 0, (__be32 *)&ndp, sizeof(ndp), 0)));
	if (bpf_skb_change_tail(skb, L3_OFF + sizeof(ip) + sizeof(ndp), 0) ||
	    bpf_skb_store_bytes(skb, L3_OFF, &ip, sizeof(ip), 0) ||
	    bpf_skb_store_bytes(skb, L3_OFF + sizeof(ip), &ndp, sizeof(ndp), 0))
		return DROP_WRITE_ERROR;
	return store_macs(skb, endpoint->mac, endpoint->node_mac);
}

#endif /* CILIUMD_NDP_H */
