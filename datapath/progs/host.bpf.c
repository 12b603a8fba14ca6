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
#include "lib/forward.h"
#include "lib/ipcache.h"
#include "lib/lb.h"
#include "lib/nat.h"
#include "lib/overlay.h"
#include "lib/packet.h"
#include "lib/parse.h"
#include "lib/service.h"

/* Who sent what the node's stack hands us: the node, one of its pods, or somebody it routes. */
static __always_inline void find_sender(struct packet *p)
{
	__u32 slot = slot_of_addr(&p->src);
	const struct endpoint *endpoint;
	struct ipcache_info info;
	__u32 version;

	if (slot == SLOT_HOST) {
		p->src_identity = ID_HOST;
		return;
	}
	endpoint = slot == SLOT_NONE ? NULL : endpoint_in_slot(slot, &version);
	if (endpoint) {
		p->src_identity = endpoint->identity;
		p->src_judged = judged_of_endpoint(p, endpoint);
		return;
	}
	ipcache_lookup(&p->src, &info);
	p->src_identity = info.identity;
	p->src_judged = info.judged;
}

/* What the node sends under its router's address takes its row among those of node ports' clients. */
static __always_inline void own_router(struct __sk_buff *skb, struct packet *p)
{
	struct cil_addr router;

	addr_set_router(&router, is_ipv6(p));
	if (is_ipv6(p))
		nat_own_v6(skb, p, &router);
	else
		nat_own(skb, p, cfg_router_ipv4);
}

/* From the node's stack to a pod of another node.  Nobody else's packets are the node's to send. */
static __always_inline int to_tunnel_from_stack(struct __sk_buff *skb, struct packet *p,
						const struct cil_addr *remote)
{
	int reason = DROP_INVALID_SIP;

	if (slot_of_addr(&p->src) == SLOT_HOST) {
		p->src_identity = ID_HOST;
		if (cfg_node_port && is_router(&p->src, p))
			own_router(skb, p);
		reason = encapsulate(skb, remote, tunnel_identity(ID_HOST));
	}
	if (reason)
		return DROP(skb, p, reason, DIR_EGRESS, 0);
	count_packet(FORWARDED, DIR_EGRESS, skb->len);
	return bpf_redirect(cfg_overlay_ifindex, 0);
}

/* From the node's stack to a local pod. */
static __always_inline int to_pod_from_stack(struct __sk_buff *skb, struct packet *p)
{
	if (p->dst_slot == SLOT_NONE || p->dst_slot == SLOT_HOST)
		return DROP(skb, p, DROP_NO_LXC, DIR_INGRESS, 0);
	find_sender(p);
	p->flags |= PKT_NO_TTL;
	return tail_call(skb, p, CALL_INGRESS);
}

/*
 * The node's route to pods leads into cilium_host, and so to cilium_net, its peer: an ingress hook,
 * from where a packet can be redirected into the pod's namespace, or the tunnel.
 */
SEC("tc")
int hook_from_host(struct __sk_buff *skb)
{
	struct packet *p = packet_start(HOOK_FROM_HOST);
	int reason;

	if (!p)
		return TC_ACT_SHOT;
	if (parse_ethernet(skb, p) || !is_ip(p))
		return TC_ACT_UNSPEC;
	reason = parse_ip(skb, p);
	/* The pair's own business, of one link: as ARP, nothing for pods. */
	if (is_ipv6(p) && (addr_is_multicast_v6(&p->dst) || addr_is_link_local(&p->dst)))
		return TC_ACT_UNSPEC;
	/* It is addressed to cilium_host's MAC; the pod's stack must take it as its own. */
	if (!reason && bpf_skb_change_type(skb, PACKET_HOST))
		reason = DROP_WRITE_ERROR;
	if (reason)
		return DROP(skb, p, reason, DIR_INGRESS, 0);
	p->dst_slot = slot_of_addr(&p->dst);
	if (cfg_tunnel && p->dst_slot == SLOT_NONE) {
		struct ipcache_info info;

		ipcache_lookup(&p->dst, &info);
		p->dst_identity = info.identity;
		if (behind_tunnel(&info))
			return to_tunnel_from_stack(skb, p, &info.tunnel);
	}
	return to_pod_from_stack(skb, p);
}

/* What somebody on the node sends by the pod's device itself, past the route. */
SEC("tc")
int hook_to_container(struct __sk_buff *skb)
{
	struct packet *p = packet_start(HOOK_TO_CONTAINER);
	int reason;

	if (!p)
		return TC_ACT_SHOT;
	if (parse_ethernet(skb, p))
		return DROP(skb, p, DROP_UNSUPPORTED_L2, DIR_INGRESS, 0);
	if (p->ethertype == ETH_P_ARP)
		return TC_ACT_UNSPEC;
	if (!is_ip(p))
		return DROP(skb, p, DROP_UNKNOWN_L3, DIR_INGRESS, 0);
	reason = parse_ip(skb, p);
	if (reason)
		return DROP(skb, p, reason, DIR_INGRESS, 0);
	p->dst_slot = slot_of_addr(&p->dst);
	p->flags |= PKT_PASS;
	return to_pod_from_stack(skb, p);
}

/*
 * Who sends this from the network; a drop reason when it cannot be from there.  Nobody out there
 * has the address of a local pod, of this node, or of a pod that is reached by the tunnel.
 */
static __always_inline int judge_source(struct packet *p)
{
	struct ipcache_info info;

	/* No router forwards what is from one link, and we are one. */
	if (slot_of_addr(&p->src) != SLOT_NONE || (is_ipv6(p) && addr_is_link_local(&p->src)))
		return DROP_INVALID_SIP;
	ipcache_lookup(&p->src, &info);
	p->src_identity = info.identity;
	p->src_judged = info.judged;
	return cfg_tunnel && behind_tunnel(&info) ? DROP_INVALID_SIP : 0;
}

/*
 * What comes from the network and is no pod's: for a service's address outside the cluster, an ICMP
 * error about an answer from there, or not ours at all.
 */
static __always_inline int from_outside(struct __sk_buff *skb, struct packet *p)
{
	int error = p->flags & PKT_ICMP_ERROR;
	const struct cil_addr *addr = error ? &p->inner_src : &p->dst;
	__be16 port = error ? p->inner_sport : p->dport;
	__u8 protocol = error ? p->inner_protocol : p->protocol;
	struct lb_service_key key;
	struct lb_slot service;
	int reason;

	/* An error goes to whom it quotes. */
	if (error && !addr_equal(addr, &p->dst))
		return TC_ACT_UNSPEC;
	if (!lb_find(addr, port, protocol, LB_SCOPE_EXTERNAL, &key, &service)) {
		/* The node's own addresses are no ClusterIPs: its traffic is not asked twice. */
		if (p->dst_slot == SLOT_HOST || !lb_is_cluster_ip(&p->dst))
			return TC_ACT_UNSPEC;
		return DROP(skb, p, DROP_IS_CLUSTER_IP, DIR_INGRESS, 0);
	}
	if (!(service.flags & LB_F_OUTSIDE))
		return DROP(skb, p, DROP_IS_CLUSTER_IP, DIR_INGRESS, 0);
	reason = judge_source(p);
	if (reason)
		return DROP(skb, p, reason, DIR_INGRESS, 0);
	return tail_call(skb, p, error ? CALL_NODE_PORT_ERROR : CALL_NODE_PORT);
}

/* What arrives for the device's own IPv6 address may be another's; 0, or a drop reason. */
static __noinline int unmasquerade_v6(struct __sk_buff *skb, struct packet *p)
{
	struct cil_addr own;

	if (!native_address_v6(skb->ifindex, &own) || !addr_equal(&p->dst, &own))
		return 0;
	return nat_ingress(skb, p, 1);
}

SEC("tc")
int hook_from_netdev(struct __sk_buff *skb)
{
	struct packet *p = packet_start(HOOK_FROM_NETDEV);
	int reason;

	if (!p || parse_ethernet(skb, p) || !is_ip(p))
		return TC_ACT_UNSPEC;
	reason = parse_ip(skb, p);
	if (!reason && (cfg_masquerade || cfg_node_port) && !is_ipv6(p) && !is_tunnel_packet(p) &&
	    addr_v4(&p->dst) == native_address(skb->ifindex))
		reason = nat_ingress(skb, p, 0);
	else if ((cfg_masquerade_ipv6 || cfg_node_port) && is_ipv6(p) && !reason &&
		 !is_tunnel_packet(p))
		reason = unmasquerade_v6(skb, p);
	p->dst_slot = slot_of_addr(&p->dst);
	if (p->dst_slot == SLOT_NONE || p->dst_slot == SLOT_HOST) {
		/* The node's own traffic is not ours to refuse. */
		if (reason || !cfg_node_port || is_tunnel_packet(p))
			return TC_ACT_UNSPEC;
		if (p->dst_slot == SLOT_NONE && p->flags & PKT_TURNED_BACK)
			return tail_call(skb, p, CALL_NODE_PORT_REPLY);
		return from_outside(skb, p);
	}
	if (!reason)
		reason = judge_source(p);
	if (!reason && p->ttl <= 1)
		reason = DROP_TTL_EXCEEDED;
	if (reason)
		return DROP(skb, p, reason, DIR_INGRESS, 0);
	return tail_call(skb, p, CALL_INGRESS);
}

/*
 * Pods reach other pods of the cluster with their own address.  So they do nodes, unless pods are
 * hidden in a tunnel: then the network between the nodes has no way back to them.
 */
static __always_inline int wants_masquerade(const struct packet *p, int v6)
{
	__u32 identity;

	if (v6 ? is_native_address_v6(&p->dst) : is_native_address(addr_v4(&p->dst)))
		return 0;
	identity = ipcache_identity(&p->dst);
	if (identity == ID_WORLD || identity == (v6 ? ID_WORLD_IPV6 : ID_WORLD_IPV4) ||
	    identity >> SCOPE_SHIFT == SCOPE_CIDR)
		return 1;
	return cfg_tunnel && identity_is_node(identity);
}

/* An IPv6 packet leaves by a native device; the verdict. */
static __always_inline int to_netdev_v6(struct __sk_buff *skb, struct packet *p)
{
	struct cil_addr address;
	int reason;

	if (!native_address_v6(skb->ifindex, &address))
		return TC_ACT_UNSPEC;
	reason = parse_ip(skb, p);
	if (is_pod_address_v6(&p->src)) {
		if (!reason && cfg_masquerade_ipv6 && wants_masquerade(p, 1))
			reason = nat_egress_v6(skb, p, &address);
		return reason ? DROP(skb, p, reason, DIR_EGRESS, 0) : TC_ACT_UNSPEC;
	}
	if (reason || is_tunnel_packet(p))
		return TC_ACT_UNSPEC;
	if (cfg_node_port && forward_reply(p)) {
		reason = show_frontend(skb, p, SHOW_OUTSIDE, 1);
		return reason ? DROP(skb, p, reason, DIR_EGRESS, 0) : TC_ACT_UNSPEC;
	}
	if (addr_equal(&p->src, &address))
		nat_own_v6(skb, p, &address);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int hook_to_netdev(struct __sk_buff *skb)
{
	struct packet *p;
	__be32 address;
	int reason;

	if (!cfg_masquerade && !cfg_node_port && !cfg_masquerade_ipv6)
		return TC_ACT_UNSPEC;
	if ((skb->mark & MARK_MASK) == MARK_SKIP_SNAT) {
		skb->mark &= ~MARK_MASK;
		return TC_ACT_UNSPEC;
	}
	p = packet_start(HOOK_TO_NETDEV);
	/* Before the frame is read: behind a call the compiler knows nothing of *p any more. */
	address = native_address(skb->ifindex);
	if (!p || parse_ethernet(skb, p))
		return TC_ACT_UNSPEC;
	if (p->ethertype != ETH_P_IP) {
		if (cfg_ipv6 && (cfg_masquerade_ipv6 || cfg_node_port) && is_ipv6(p))
			return to_netdev_v6(skb, p);
		return TC_ACT_UNSPEC;
	}
	if (!address)
		return TC_ACT_UNSPEC;
	reason = parse_ip(skb, p);
	if (is_pod_address(addr_v4(&p->src))) {
		if (!reason && cfg_masquerade && wants_masquerade(p, 0))
			reason = nat_egress(skb, p, address);
		return reason ? DROP(skb, p, reason, DIR_EGRESS, 0) : TC_ACT_UNSPEC;
	}
	if (reason || is_tunnel_packet(p))
		return TC_ACT_UNSPEC;
	/* The node itself may be the backend of a service that was asked from outside. */
	if (cfg_node_port && forward_reply(p)) {
		reason = show_frontend(skb, p, SHOW_OUTSIDE, 0);
		return reason ? DROP(skb, p, reason, DIR_EGRESS, 0) : TC_ACT_UNSPEC;
	}
	/* The node's own: it takes its row, and no failure of ours stops it. */
	if ((cfg_masquerade || cfg_node_port) && addr_v4(&p->src) == address)
		nat_own(skb, p, address);
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual BSD/GPL";
