/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The last step of a packet: into a pod, up to the node, or out by the routing table. */
#ifndef CILIUMD_DELIVER_H
#define CILIUMD_DELIVER_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include <ciliumd/config.h>
#include "lib/addr.h"
#include "lib/packet.h"

CONFIG(__u32, cilium_host_ifindex, 0, "ifindex of cilium_host");
CONFIG(__be32, router_ipv4, 0, "address of cilium_host, the gateway of the pods");
CONFIG(__u64, router_ipv6_head, 0, "its IPv6 address: the first eight bytes in memory order");
CONFIG(__u64, router_ipv6_tail, 0, "and the last eight");
CONFIG(__u64, cilium_host_mac, 0, "its MAC: the six bytes in memory order");

CONFIG(__u8, host_legacy_routing, 0,
       "1: what pods send out of the node goes through its stack, where netfilter sees it");

enum {
	AF_INET_WIRE = 2,
	AF_INET6_WIRE = 10,
};

/* The router's IPv6 address. */
static __always_inline void addr_set_router_v6(struct cil_addr *addr)
{
	addr_set_halves(addr, cfg_router_ipv6_head, cfg_router_ipv6_tail);
}

/* That of either family. */
static __always_inline void addr_set_router(struct cil_addr *addr, int v6)
{
	if (v6)
		addr_set_router_v6(addr);
	else
		addr_set_v4(addr, cfg_router_ipv4);
}

static __always_inline int is_router(const struct cil_addr *addr, const struct packet *p)
{
	struct cil_addr router;

	if (!is_ipv6(p))
		return addr_v4(addr) == cfg_router_ipv4;
	addr_set_router_v6(&router);
	return addr_equal(addr, &router);
}

static __always_inline int store_macs(struct __sk_buff *skb, const void *dst, const void *src)
{
	__u8 macs[2 * ETH_ALEN];

	__builtin_memcpy(macs, dst, ETH_ALEN);
	__builtin_memcpy(macs + ETH_ALEN, src, ETH_ALEN);
	return bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0) ? DROP_WRITE_ERROR : 0;
}

/*
 * Into the pod's namespace at once.  Mark and time stamp are seen there: they are ours, not the
 * sender's.  Only ingress hooks may do this.
 */
static __always_inline int deliver_to_pod(struct __sk_buff *skb, const struct packet *p,
					  const struct endpoint *endpoint)
{
	skb->mark = 0;
	if (p->flags & PKT_PASS)
		return TC_ACT_UNSPEC;
	skb->tstamp = 0;
	return bpf_redirect_peer(endpoint->ifindex, 0);
}

/* Addressed to cilium_host; 0, or a drop reason. */
static __always_inline int store_host_macs(struct __sk_buff *skb)
{
	__u64 mac = cfg_cilium_host_mac;

	return store_macs(skb, &mac, &mac);
}

/* Up the node's stack, as if it came in by cilium_host, where the route to pods points. */
static __always_inline int deliver_to_host(struct __sk_buff *skb)
{
	skb->mark = 0;
	return bpf_redirect(cfg_cilium_host_ifindex, BPF_F_INGRESS);
}

/*
 * Out of the node the long way: netfilter may have to undo for an answer what it did to the question,
 * such as a node port of kube-proxy's.  The stack decrements the TTL.  *mark* lasts to the native device.
 */
static __always_inline int leave_by_stack(struct __sk_buff *skb, __u32 mark)
{
	skb->mark = mark;
	return bpf_redirect(cfg_cilium_host_ifindex, BPF_F_INGRESS);
}

/*
 * Whether a router may send this on at all: not to "this network", a group, or everybody (RFC 1122
 * 3.2.1.3, RFC 1812 5.3.5).  A default route leads there too, and then the kernel loses the packet
 * without a word, or the node's own stack takes it as a broadcast.
 */
static __always_inline int is_routable(__be32 addr)
{
	__u32 host = bpf_ntohl(addr);

	return host >> 24 && host >> 28 != 0xe && host != 0xffffffff;
}

/* Neither a group nor one link's own, nor of ::/96: "this node", "nobody", and IPv4 in old dress. */
static __always_inline int is_routable_v6(const struct cil_addr *addr)
{
	return (addr->w[0] || addr->w[1] || addr->w[2]) && !addr_is_multicast_v6(addr) &&
	       !addr_is_link_local(addr);
}

/* The device towards *p->dst*; 0 and *ifindex*, or a drop reason. */
static __always_inline int route_of(struct __sk_buff *skb, const struct packet *p, __u32 *ifindex,
				    int v6)
{
	struct bpf_fib_lookup fib = { .ifindex = skb->ifindex };
	long result;

	if (v6) {
		if (!is_routable_v6(&p->dst))
			return DROP_NO_FIB;
		fib.family = AF_INET6_WIRE;
		/* The kernel wants a device through which IPv6 is forwarded: ours is one, others may be. */
		if (p->hook != HOOK_FROM_CONTAINER)
			fib.ifindex = cfg_cilium_host_ifindex;
		__builtin_memcpy(fib.ipv6_src, &p->src, sizeof(p->src));
		__builtin_memcpy(fib.ipv6_dst, &p->dst, sizeof(p->dst));
	} else {
		if (!is_routable(p->dst.w[3]))
			return DROP_NO_FIB;
		fib.family = AF_INET_WIRE;
		fib.ipv4_src = p->src.w[3];
		fib.ipv4_dst = p->dst.w[3];
	}
	result = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	/* Without a neighbour the device is known, and the redirect resolves it. */
	if (result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH)
		return DROP_NO_FIB;
	/* The route to our own pods: this one does not exist (any more). */
	if (fib.ifindex == cfg_cilium_host_ifindex)
		return DROP_UNROUTABLE;
	*ifindex = fib.ifindex;
	return 0;
}

#endif /* CILIUMD_DELIVER_H */
