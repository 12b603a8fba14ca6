/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The IPv6 header and what may stand between it and the transport.  Rules, in order
 * (tests/reference/parser6.py states them again):
 *  1. 40 bytes of IPv6 must be there, version 6, and the payload length within the frame; a payload
 *     length of 0 says that there is none (jumbograms are refused for having no transport);
 *  2. no address may be an IPv4-mapped one: keys of maps spell IPv4 like that;
 *  3. hop-by-hop options, routing, fragment, authentication and destination options are read over, at
 *     most EXTENSIONS_MAX of them, each whole within the payload; a routing header that still has
 *     somewhere to go is refused: who gets such a packet is not whom it is addressed to;
 *  4. behind the header of a real fragment comes the transport at once: later fragments do not repeat
 *     what the first one has there;
 *  5. ESP, no next header, and all that is unknown are refused as unknown transports.
 */
#ifndef CILIUMD_PARSE6_H
#define CILIUMD_PARSE6_H

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include <ciliumd/config.h>
#include "lib/addr.h"
#include "lib/packet.h"

CONFIG(__u8, ipv6, 0, "pods may speak IPv6; 0: it is refused as an unknown protocol");

enum {
	NEXT_HOP_BY_HOP = 0,
	NEXT_ROUTING = 43,
	NEXT_FRAGMENT = 44,
	NEXT_AUTHENTICATION = 51,
	NEXT_DESTINATION = 60,
	/* More than anybody needs; each is a step of the verifier, too. */
	EXTENSIONS_MAX = 8,
	FRAGMENT_MORE_V6 = 1,
	FRAGMENT_OFFSET_V6 = 0xfff8,
};

struct ipv6_wire {
	__u8 version_class;
	__u8 class_flow;
	__be16 flow;
	__be16 payload_length;
	__u8 next_header;
	__u8 hop_limit;
	struct cil_addr src;
	struct cil_addr dst;
};

/* The first 8 bytes of every extension header; no one is shorter. */
struct extension_wire {
	__u8 next_header;
	__u8 length; /* in units of its kind, beyond the first ones */
	__be16 fragment;
	__be32 id;
};

/* A walk: where it is, what comes there, and the fragment header it met on the way. */
struct extensions {
	__u32 off;
	__u8 protocol;
	__be16 fragment; /* offset and "more"; 0: none, or a whole packet in one fragment (RFC 6946) */
	__be32 id;
};

static __always_inline int is_extension(__u8 protocol)
{
	return protocol == NEXT_HOP_BY_HOP || protocol == NEXT_ROUTING ||
	       protocol == NEXT_FRAGMENT || protocol == NEXT_AUTHENTICATION ||
	       protocol == NEXT_DESTINATION;
}

/* Over all extension headers; 0, or a drop reason. */
static __always_inline int walk_extensions(struct __sk_buff *skb, struct extensions *chain,
					   __u32 end)
{
	const __be16 part = bpf_htons(FRAGMENT_OFFSET_V6 | FRAGMENT_MORE_V6);
	struct extension_wire ext;

#pragma clang loop unroll(disable)
	for (int i = 0; i < EXTENSIONS_MAX; i++) {
		__u32 size;

		if (!is_extension(chain->protocol))
			return 0;
		if (chain->off + sizeof(ext) > end ||
		    bpf_skb_load_bytes(skb, chain->off, &ext, sizeof(ext)))
			return DROP_INVALID_EXTHDR;
		switch (chain->protocol) {
		case NEXT_FRAGMENT:
			size = sizeof(ext);
			chain->fragment = ext.fragment & part;
			chain->id = ext.id;
			break;
		case NEXT_AUTHENTICATION:
			size = (ext.length + 2) * 4;
			break;
		default:
			size = (ext.length + 1) * 8;
			/* Its last byte says how many a routing header still has to visit. */
			if (chain->protocol == NEXT_ROUTING && bpf_ntohs(ext.fragment) & 0xff)
				return DROP_INVALID_EXTHDR;
		}
		if (chain->off + size > end)
			return DROP_INVALID_EXTHDR;
		chain->off += size;
		chain->protocol = ext.next_header;
		if (chain->fragment)
			return is_extension(chain->protocol) ? DROP_FRAG_NOSUPPORT : 0;
	}
	return is_extension(chain->protocol) ? DROP_INVALID_EXTHDR : 0;
}

/* Who sends to whom.  0, or a drop reason; nothing is remembered of the packet. */
static __always_inline int parse_ipv6_header(struct __sk_buff *skb, struct packet *p)
{
	struct ipv6_wire ip;
	__u32 total;

	if (bpf_skb_load_bytes(skb, L3_OFF, &ip, sizeof(ip)))
		return DROP_INVALID;
	total = sizeof(ip) + bpf_ntohs(ip.payload_length);
	if (ip.version_class >> 4 != 6 || L3_OFF + total > skb->len || addr_is_v4(&ip.src) ||
	    addr_is_v4(&ip.dst))
		return DROP_INVALID;
	p->src = ip.src;
	p->dst = ip.dst;
	p->protocol = ip.next_header;
	p->ttl = ip.hop_limit;
	p->ihl = sizeof(ip);
	p->l4_off = L3_OFF + sizeof(ip);
	p->end = L3_OFF + total;
	p->ip_id = 0;
	p->flags |= PKT_DONT_FRAGMENT;
	return 0;
}

/* From there to the transport.  0, or a drop reason. */
static __always_inline int parse_extensions(struct __sk_buff *skb, struct packet *p)
{
	struct extensions chain = { .off = p->l4_off, .protocol = p->protocol };
	int reason = walk_extensions(skb, &chain, p->end);

	if (reason)
		return reason;
	p->protocol = chain.protocol;
	p->l4_off = chain.off;
	p->ihl = chain.off - L3_OFF;
	p->ip_id = chain.id;
	if (chain.fragment & bpf_htons(FRAGMENT_OFFSET_V6))
		p->flags |= PKT_LATER_FRAGMENT;
	else if (chain.fragment)
		p->flags |= PKT_FIRST_FRAGMENT;
	/* Nobody is told of a fragment that it does not fit (lib/refuse.h): a tunnel must take it. */
	if (chain.fragment)
		p->flags &= ~PKT_DONT_FRAGMENT;
	return 0;
}

#endif /* CILIUMD_PARSE6_H */
