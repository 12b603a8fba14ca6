// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The node: what its stack sends to pods (cilium_net, the pod's device), and its native devices.
 * The node's own traffic never depends on this file: what is not a pod's goes on untouched.
 */
#include <ciliumd/abi.h>
#define CILIUMD_FILE FILE_HOST

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "lib/calls.h"
#include "lib/endpoint.h"
#include "lib/event.h"
#include "lib/ipcache.h"
#include "lib/nat.h"
#include "lib/packet.h"
#include "lib/parse.h"

/* Who sent what the node's stack hands us: the node, one of its pods, or somebody it routes. */
static __always_inline __u32 identity_behind_stack(const struct packet *p)
{
	__u32 slot = slot_of_addr(&p->src);
	const struct endpoint *endpoint;
	__u32 version;

	if (slot == SLOT_HOST)
		return ID_HOST;
	endpoint = slot == SLOT_NONE ? NULL : endpoint_in_slot(slot, &version);
	return endpoint ? endpoint->identity : ipcache_identity(&p->src);
}

/* From the node's stack to a local pod. */
static __always_inline int to_pod_from_stack(struct __sk_buff *skb, struct packet *p)
{
	int reason = parse_ipv4(skb, p);

	if (reason)
		return DROP(skb, p, reason, DIR_INGRESS, 0);
	p->dst_slot = slot_of_addr(&p->dst);
	if (p->dst_slot == SLOT_NONE || p->dst_slot == SLOT_HOST)
		return DROP(skb, p, DROP_NO_LXC, DIR_INGRESS, 0);
	p->src_identity = identity_behind_stack(p);
	p->flags |= PKT_NO_TTL;
	return tail_call(skb, p, CALL_INGRESS);
}

/*
 * The node's route to its pods leads into cilium_host, and so to cilium_net, its peer: an ingress
 * hook, from where a packet can be redirected into the pod's namespace.
 */
SEC("tc")
int hook_from_host(struct __sk_buff *skb)
{
	struct packet *p = packet_start(HOOK_FROM_HOST);

	if (!p)
		return TC_ACT_SHOT;
	if (parse_ethernet(skb, p) || p->ethertype != ETH_P_IP)
		return TC_ACT_UNSPEC;
	/* It is addressed to cilium_host's MAC; the pod's stack must take it as its own. */
	if (bpf_skb_change_type(skb, PACKET_HOST))
		return DROP(skb, p, DROP_WRITE_ERROR, DIR_INGRESS, 0);
	return to_pod_from_stack(skb, p);
}

/* What somebody on the node sends by the pod's device itself, past the route. */
SEC("tc")
int hook_to_container(struct __sk_buff *skb)
{
	struct packet *p = packet_start(HOOK_TO_CONTAINER);

	if (!p)
		return TC_ACT_SHOT;
	if (parse_ethernet(skb, p))
		return DROP(skb, p, DROP_UNSUPPORTED_L2, DIR_INGRESS, 0);
	if (p->ethertype == ETH_P_ARP)
		return TC_ACT_UNSPEC;
	if (p->ethertype != ETH_P_IP)
		return DROP(skb, p, DROP_UNKNOWN_L3, DIR_INGRESS, 0);
	p->flags |= PKT_PASS;
	return to_pod_from_stack(skb, p);
}

SEC("tc")
int hook_from_netdev(struct __sk_buff *skb)
{
	struct packet *p = packet_start(HOOK_FROM_NETDEV);
	__u32 slot;
	int reason;

	if (!p || parse_ethernet(skb, p) || p->ethertype != ETH_P_IP)
		return TC_ACT_UNSPEC;
	reason = parse_ipv4(skb, p);
	if (!reason && cfg_masquerade && addr_v4(&p->dst) == native_address(skb->ifindex))
		reason = nat_ingress(skb, p);
	p->dst_slot = slot_of_addr(&p->dst);
	if (p->dst_slot == SLOT_NONE || p->dst_slot == SLOT_HOST)
		return TC_ACT_UNSPEC;
	if (reason)
		return DROP(skb, p, reason, DIR_INGRESS, 0);
	/* Nobody out there has the address of a local pod, or of this node. */
	slot = slot_of_addr(&p->src);
	if (slot != SLOT_NONE)
		return DROP(skb, p, DROP_INVALID_SIP, DIR_INGRESS, 0);
	if (p->ttl <= 1)
		return DROP(skb, p, DROP_TTL_EXCEEDED, DIR_INGRESS, 0);
	p->src_identity = ipcache_identity(&p->src);
	return tail_call(skb, p, CALL_INGRESS);
}

/* Pods reach other pods and nodes of the cluster with their own address. */
static __always_inline int wants_masquerade(const struct packet *p)
{
	__u32 identity;

	if (is_native_address(addr_v4(&p->dst)))
		return 0;
	identity = ipcache_identity(&p->dst);
	return identity == ID_WORLD || identity == ID_WORLD_IPV4 || identity >= 1 << 24;
}

SEC("tc")
int hook_to_netdev(struct __sk_buff *skb)
{
	struct packet *p;
	__be32 address;
	int reason;

	if (!cfg_masquerade)
		return TC_ACT_UNSPEC;
	if ((skb->mark & MARK_MASK) == MARK_SKIP_SNAT) {
		skb->mark &= ~MARK_MASK;
		return TC_ACT_UNSPEC;
	}
	p = packet_start(HOOK_TO_NETDEV);
	address = native_address(skb->ifindex);
	if (!p || !address || parse_ethernet(skb, p) || p->ethertype != ETH_P_IP)
		return TC_ACT_UNSPEC;
	reason = parse_ipv4(skb, p);
	if (is_pod_address(addr_v4(&p->src))) {
		if (!reason && wants_masquerade(p))
			reason = nat_egress(skb, p, address);
		return reason ? DROP(skb, p, reason, DIR_EGRESS, 0) : TC_ACT_UNSPEC;
	}
	/* The node's own: it takes its row, and no failure of ours stops it. */
	if (!reason && addr_v4(&p->src) == address && !(p->flags & PKT_ICMP_ERROR) &&
	    p->protocol != IPPROTO_SCTP && bpf_ntohs(p->sport) >= cfg_nat_port_min)
		nat_egress(skb, p, address);
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual BSD/GPL";
