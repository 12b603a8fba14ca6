/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What is known of the packet in hand.  It lives in a per-CPU row, not on the 512-byte stack, and
 * so travels through tail calls; a packet's programs run to their end before the next packet's
 * on that CPU.
 */
#ifndef CILIUMD_PACKET_H
#define CILIUMD_PACKET_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>

enum packet_flags {
	PKT_FIRST_FRAGMENT = 1,
	PKT_LATER_FRAGMENT = 2,	  /* no L4 header in it; ports come from the first fragment */
	PKT_ICMP_ERROR = 4,	  /* ports and addresses of the quoted packet are in inner_* */
	PKT_LOOPBACK = 8,	  /* a pod reaching itself through a service */
	PKT_PASS = 16,		  /* deliver by letting the packet go on, not by a redirect */
	PKT_REPORT = 32,	  /* worth a trace event */
	PKT_NO_TTL = 64,	  /* the host stack was the hop, or is the sender */
	PKT_REPLY = 128,	  /* of a flow the other side opened */
	PKT_CT_FOUND = 256,	  /* key and ct are the sender's live row, read for this packet */
	PKT_CARRIED = 512,	  /* the tunnel told its sender's identity, the address does not */
	PKT_DONT_FRAGMENT = 1024, /* of IPv6 every whole packet: only senders fragment */
	PKT_TURNED_BACK =
		2048, /* it came for an address of the node, under which another had sent */
};

enum {
	L3_OFF = ETH_HLEN,
	SLOT_NONE = 0xfffffffe,
};

static __always_inline int mac_equal(const __u8 *a, const __u8 *b)
{
	__u8 differ = 0;

#pragma unroll
	for (int i = 0; i < ETH_ALEN; i++)
		differ |= a[i] ^ b[i];
	return !differ;
}

/* What is made or looked for on the way out (lib/nat.h); here as the stack has no room for it. */
struct masquerade {
	struct nat_key out;
	struct nat_entry out_row;
	struct nat_key in;
	struct nat_entry in_row;
	struct ct_key in_flow; /* whose in_row is */
};

struct packet {
	struct cil_addr src;
	struct cil_addr dst;
	__be16 sport; /* ICMP echo: the requester's is the id, the responder's 0 */
	__be16 dport;
	__u8 protocol;
	__u8 tcp_flags;
	__u8 ttl;
	__u8 icmp_type;
	__u16 flags;
	__u16 l4_off;
	__u16 ihl; /* bytes; of IPv6 with all extension headers */
	__u32 end; /* of the IP packet, from the start of the frame; padding may follow */
	__u8 icmp_code;
	__u8 hook;
	__u8 ct_state;
	__u32 src_slot;
	__u32 dst_slot;
	__u32 src_identity;
	__u32 src_judged; /* what the receiver's policies judge the sender by; 0: src_identity */
	__u32 dst_identity;
	__u16 rev_nat;
	__u8 refuse_type; /* ICMP answer that CALL_REFUSE sends */
	__u8 refuse_code;
	__u16 refuse_mtu; /* with "fragmentation needed": what would fit, host order */
	__u16 ethertype;  /* host order */
	__u8 smac[6];
	__u8 dmac[6];
	__u16 endpoint_id; /* of the local sender, 0: none */
	__be32 ip_id;	   /* of IPv4 the upper half is 0 */
	__u32 now;	   /* packet_now() */
	/* the packet an ICMP error quotes */
	struct cil_addr inner_src;
	struct cil_addr inner_dst;
	__be16 inner_sport;
	__be16 inner_dport;
	__u16 inner_l4_off;
	__u8 inner_protocol;
	__u8 inner_icmp_type;
	/* conntrack row of the context at work */
	struct ct_key key;
	struct ct_entry ct;
	struct masquerade nat;
	/* verdict of the context at work */
	__u32 rule_cookie;
	__u32 policy_version;
};

/* Which family: hooks let in nothing but the two, and IPv6 only with cfg_ipv6. */
static __always_inline int is_ipv6(const struct packet *p)
{
	return p->ethertype == ETH_P_IPV6;
}

/*
 * The same as a 0 or 1 that the verifier remembers: who asks once and hands the answer on is walked once
 * for each family, and not for every family at every question.
 */
static __always_inline int family_of(const struct packet *p)
{
	int v6 = is_ipv6(p);

	barrier_var(v6);
	return v6;
}

/* Of one generation of programs: its layout may change with every build. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct packet);
} scratch SEC(".maps");

static __always_inline struct packet *packet_in_hand(void)
{
	__u32 row = 0;

	return bpf_map_lookup_elem(&scratch, &row);
}

/* Forget the last packet; the fields of headers are set by the parser. */
static __always_inline struct packet *packet_start(enum cil_hook hook)
{
	struct packet *p = packet_in_hand();

	if (!p)
		return p;
	p->hook = hook;
	p->flags = 0;
	p->protocol = 0;
	p->tcp_flags = 0;
	p->sport = 0;
	p->dport = 0;
	p->icmp_type = 0;
	p->icmp_code = 0;
	p->ct_state = CT_STATE_UNKNOWN;
	p->src_slot = SLOT_NONE;
	p->dst_slot = SLOT_NONE;
	p->src_identity = ID_UNKNOWN;
	p->src_judged = 0;
	p->dst_identity = ID_UNKNOWN;
	p->rev_nat = 0;
	p->refuse_mtu = 0;
	p->endpoint_id = 0;
	p->now = 0;
	p->rule_cookie = 0;
	p->policy_version = 0;
	__builtin_memset(&p->src, 0, sizeof(p->src));
	__builtin_memset(&p->dst, 0, sizeof(p->dst));
	return p;
}

/* Seconds of CLOCK_MONOTONIC: read once for a packet, and not at all for one that needs no time. */
static __always_inline __u32 packet_now(struct packet *p)
{
	if (!p->now)
		p->now = bpf_ktime_get_ns() / 1000000000ULL;
	return p->now;
}

#endif /* CILIUMD_PACKET_H */
