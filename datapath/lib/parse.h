/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From bytes to struct packet.  Rules, in order (tests/reference/parser.py states them again):
 *  1. an Ethernet header and 20 bytes of IPv4 must be there, version 4, IHL >= 5;
 *  2. IHL * 4 <= total length <= bytes there; bytes beyond total length are padding;
 *  3. TCP, UDP, SCTP and the family's own ICMP are known protocols, others are refused;
 *  4. unless it is a later fragment, the whole fixed L4 header lies within total length
 *     (TCP 20 and its data offset, UDP 8, SCTP 12, ICMP 8);
 *  5. ICMP is echo, echo reply, or an error that quotes a packet of its family with 8 bytes of L4.
 * IPv6 differs in the header and in what may stand behind it: lib/parse6.h.
 * Reading goes through bpf_skb_load_bytes: it also reaches bytes outside the linear area.
 */
#ifndef CILIUMD_PARSE_H
#define CILIUMD_PARSE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include "lib/addr.h"
#include "lib/frag.h"
#include "lib/icmp.h"
#include "lib/packet.h"
#include "lib/parse6.h"

enum tcp_flag {
	TCP_FIN = 0x01,
	TCP_SYN = 0x02,
	TCP_RST = 0x04,
	TCP_ACK = 0x10,
};

/* Wire forms without bit fields, read as a whole. */
struct ipv4_wire {
	__u8 version_ihl;
	__u8 tos;
	__be16 total_length;
	__be16 id;
	__be16 fragment;
	__u8 ttl;
	__u8 protocol;
	__sum16 checksum;
	__be32 src;
	__be32 dst;
};

struct tcp_wire {
	__be16 sport;
	__be16 dport;
	__be32 seq;
	__be32 ack;
	__u8 data_offset;
	__u8 flags;
	__be16 window;
	__sum16 checksum;
	__be16 urgent;
};

enum {
	DONT_FRAGMENT = 0x4000,
	FRAGMENT_MORE = 0x2000,
	FRAGMENT_OFFSET = 0x1fff,
	UDP_HEADER = 8,
	SCTP_HEADER = 12,
};

/* Addresses and EtherType of the frame; 0, or a drop reason. */
static __always_inline int parse_ethernet(struct __sk_buff *skb, struct packet *p)
{
	struct ethhdr eth;

	if (bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)))
		return DROP_UNSUPPORTED_L2;
	__builtin_memcpy(p->dmac, eth.h_dest, ETH_ALEN);
	__builtin_memcpy(p->smac, eth.h_source, ETH_ALEN);
	p->ethertype = bpf_ntohs(eth.h_proto);
	return 0;
}

/* What the quoted packet's first 8 bytes of L4 at *off* tell; 0, or a drop reason. */
static __always_inline int parse_quoted_l4(struct __sk_buff *skb, struct packet *p, __u32 off,
					   __u8 protocol)
{
	struct icmp_wire l4; /* the first 8 bytes of any L4 header */

	if (off + sizeof(l4) > p->end || bpf_skb_load_bytes(skb, off, &l4, sizeof(l4)))
		return DROP_CT_INVALID_HDR;
	p->inner_protocol = protocol;
	p->inner_l4_off = off;
	p->inner_icmp_type = 0;
	p->flags |= PKT_ICMP_ERROR;
	switch (protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		p->inner_sport = *(__be16 *)&l4.type;
		p->inner_dport = l4.checksum;
		return 0;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (protocol != p->protocol)
			return DROP_CT_UNKNOWN_PROTO;
		p->inner_icmp_type = l4.type;
		p->inner_sport = p->inner_dport = 0;
		switch (icmp_class(protocol, l4.type)) {
		case ICMP_ECHO_ASKED:
			p->inner_sport = l4.id;
			return 0;
		case ICMP_ECHO_ANSWERED:
			p->inner_dport = l4.id;
			return 0;
		default:
			return icmp_refused(protocol);
		}
	default:
		return DROP_CT_UNKNOWN_PROTO;
	}
}

/* The packet an ICMP error quotes, as its sender sent it. */
static __always_inline int parse_quoted_v4(struct __sk_buff *skb, struct packet *p)
{
	__u32 off = p->l4_off + sizeof(struct icmp_wire);
	struct ipv4_wire ip;
	__u32 ihl;

	if (off + sizeof(ip) > p->end || bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)))
		return DROP_CT_INVALID_HDR;
	ihl = (ip.version_ihl & 0xf) * 4;
	if (ip.version_ihl >> 4 != 4 || ihl < sizeof(ip))
		return DROP_CT_INVALID_HDR;
	if (ip.fragment & bpf_htons(FRAGMENT_OFFSET))
		return DROP_FRAG_NOT_FOUND;
	addr_set_v4(&p->inner_src, ip.src);
	addr_set_v4(&p->inner_dst, ip.dst);
	return parse_quoted_l4(skb, p, off + ihl, ip.protocol);
}

static __always_inline int parse_quoted_v6(struct __sk_buff *skb, struct packet *p)
{
	struct extensions chain = { .off = p->l4_off + sizeof(struct icmp_wire) };
	struct ipv6_wire ip;
	int reason;

	if (chain.off + sizeof(ip) > p->end || bpf_skb_load_bytes(skb, chain.off, &ip, sizeof(ip)))
		return DROP_CT_INVALID_HDR;
	/* Keys of maps spell IPv4 like that: such a packet is nobody's. */
	if (ip.version_class >> 4 != 6 || addr_is_v4(&ip.src) || addr_is_v4(&ip.dst))
		return DROP_CT_INVALID_HDR;
	p->inner_src = ip.src;
	p->inner_dst = ip.dst;
	chain.off += sizeof(ip);
	chain.protocol = ip.next_header;
	reason = walk_extensions(skb, &chain, p->end);
	if (reason)
		return reason;
	if (chain.fragment & bpf_htons(FRAGMENT_OFFSET_V6))
		return DROP_FRAG_NOT_FOUND;
	return parse_quoted_l4(skb, p, chain.off, chain.protocol);
}

static __always_inline int parse_icmp(struct __sk_buff *skb, struct packet *p)
{
	struct icmp_wire icmp;

	if (p->l4_off + sizeof(icmp) > p->end ||
	    bpf_skb_load_bytes(skb, p->l4_off, &icmp, sizeof(icmp)))
		return DROP_CT_INVALID_HDR;
	p->icmp_type = icmp.type;
	p->icmp_code = icmp.code;
	switch (icmp_class(p->protocol, icmp.type)) {
	case ICMP_ECHO_ASKED:
		p->sport = icmp.id;
		return 0;
	case ICMP_ECHO_ANSWERED:
		p->dport = icmp.id;
		return 0;
	case ICMP_ERROR:
		if (p->flags & PKT_FIRST_FRAGMENT)
			return DROP_FRAG_NOSUPPORT;
		return is_ipv6(p) ? parse_quoted_v6(skb, p) : parse_quoted_v4(skb, p);
	default:
		return icmp_refused(p->protocol);
	}
}

static __always_inline int parse_l4(struct __sk_buff *skb, struct packet *p, __u32 end)
{
	struct tcp_wire tcp;
	__be16 ports[2];
	__u32 header;

	switch (p->protocol) {
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return parse_icmp(skb, p);
	case IPPROTO_TCP:
		if (p->l4_off + sizeof(tcp) > end ||
		    bpf_skb_load_bytes(skb, p->l4_off, &tcp, sizeof(tcp)))
			return DROP_CT_INVALID_HDR;
		header = (tcp.data_offset >> 4) * 4;
		if (header < sizeof(tcp) || p->l4_off + header > end)
			return DROP_CT_INVALID_HDR;
		p->sport = tcp.sport;
		p->dport = tcp.dport;
		p->tcp_flags = tcp.flags;
		return 0;
	default: /* UDP and SCTP start with their ports alike */
		header = p->protocol == IPPROTO_UDP ? UDP_HEADER : SCTP_HEADER;
		if (p->l4_off + header > end ||
		    bpf_skb_load_bytes(skb, p->l4_off, ports, sizeof(ports)))
			return DROP_CT_INVALID_HDR;
		p->sport = ports[0];
		p->dport = ports[1];
		return 0;
	}
}

/*
 * The IP header: who sends to whom.  0, or a drop reason.  Nothing is remembered of the packet, so
 * a sender may still be refused for not being who it says.
 */
static __always_inline int parse_ipv4_header(struct __sk_buff *skb, struct packet *p)
{
	struct ipv4_wire ip;
	__u32 ihl, total;

	if (bpf_skb_load_bytes(skb, L3_OFF, &ip, sizeof(ip)))
		return DROP_INVALID;
	ihl = (ip.version_ihl & 0xf) * 4;
	total = bpf_ntohs(ip.total_length);
	if (ip.version_ihl >> 4 != 4 || ihl < sizeof(ip) || total < ihl ||
	    L3_OFF + total > skb->len)
		return DROP_INVALID;
	addr_set_v4(&p->src, ip.src);
	addr_set_v4(&p->dst, ip.dst);
	p->protocol = ip.protocol;
	p->ttl = ip.ttl;
	p->ihl = ihl;
	p->l4_off = L3_OFF + ihl;
	p->end = L3_OFF + total;
	p->ip_id = ip.id;
	if (ip.fragment & bpf_htons(FRAGMENT_OFFSET))
		p->flags |= PKT_LATER_FRAGMENT;
	else if (ip.fragment & bpf_htons(FRAGMENT_MORE))
		p->flags |= PKT_FIRST_FRAGMENT;
	if (ip.fragment & bpf_htons(DONT_FRAGMENT))
		p->flags |= PKT_DONT_FRAGMENT;
	return 0;
}

/* Whether this family has that transport; others are refused. */
static __always_inline int is_known_protocol(const struct packet *p)
{
	switch (p->protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		return 1;
	case IPPROTO_ICMP:
		return !is_ipv6(p);
	case IPPROTO_ICMPV6:
		return is_ipv6(p);
	default:
		return 0;
	}
}

/* The transport header; fragments leave, or take, their ports.  0, or a drop reason. */
static __always_inline int parse_transport(struct __sk_buff *skb, struct packet *p)
{
	int reason = 0;

	if (!is_known_protocol(p))
		return DROP_CT_UNKNOWN_PROTO;
	if (!(p->flags & PKT_LATER_FRAGMENT))
		reason = parse_l4(skb, p, p->end);
	if (!reason && p->flags & (PKT_FIRST_FRAGMENT | PKT_LATER_FRAGMENT))
		reason = frag_ports(p, p->ip_id);
	return reason;
}

/* Whether the frame is of a family that pods may speak; the Ethernet header has been parsed. */
static __always_inline int is_ip(const struct packet *p)
{
	return p->ethertype == ETH_P_IP || (cfg_ipv6 && p->ethertype == ETH_P_IPV6);
}

/* Who sends to whom, of a frame for which is_ip() holds.  0, or a drop reason. */
static __always_inline int parse_ip_header(struct __sk_buff *skb, struct packet *p)
{
	return is_ipv6(p) ? parse_ipv6_header(skb, p) : parse_ipv4_header(skb, p);
}

/* What is behind that header.  0, or a drop reason. */
static __always_inline int parse_payload(struct __sk_buff *skb, struct packet *p)
{
	int reason = is_ipv6(p) ? parse_extensions(skb, p) : 0;

	return reason ? reason : parse_transport(skb, p);
}

/* Both.  0, or a drop reason. */
static __always_inline int parse_ip(struct __sk_buff *skb, struct packet *p)
{
	int reason;

	if (is_ipv6(p)) {
		reason = parse_ipv6_header(skb, p);
		if (!reason)
			reason = parse_extensions(skb, p);
	} else {
		reason = parse_ipv4_header(skb, p);
	}
	return reason ? reason : parse_transport(skb, p);
}

#endif /* CILIUMD_PARSE_H */
