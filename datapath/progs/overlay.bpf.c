// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What comes out of the tunnel.  Its outer source must be a node of the cluster, its inner source
 * must be of that node, and the identity it carries must fit that address:
 *
 *   a pod of that node      the identity that its row has; before that row is there, any of a pod
 *   that node itself        a node, or the client of a node port under the node's address
 *   anybody else            refused
 *
 * So nobody speaks for a node but itself, and a node speaks for nobody but itself and its pods.
 */
#include <ciliumd/abi.h>
#define CILIUMD_FILE FILE_OVERLAY

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "lib/calls.h"
#include "lib/deliver.h"
#include "lib/endpoint.h"
#include "lib/event.h"
#include "lib/forward.h"
#include "lib/ipcache.h"
#include "lib/nat.h"
#include "lib/overlay.h"
#include "lib/packet.h"
#include "lib/parse.h"

/* A node speaks under its own address; 0, or a drop reason. */
static __always_inline int judge_node(struct packet *p, const struct ipcache_info *info)
{
	switch (p->src_identity) {
	case ID_REMOTE_NODE:
		/* The tunnel does not tell which node it is, nor if it is the API server's: the row does. */
		if (identity_is_node(info->identity))
			p->src_identity = info->identity;
		return 0;
	case TUNNEL_NODE_CLIENT:
		p->src_identity = ID_REMOTE_NODE;
		/* fallthrough */
	case ID_KUBE_APISERVER:
	case ID_WORLD:
		if (p->src_identity != info->identity)
			p->flags |= PKT_CARRIED;
		return 0;
	default:
		return DROP_INVALID_IDENTITY;
	}
}

/* A pod speaks under its own identity; 0, or a drop reason. */
static __always_inline int judge_pod(struct packet *p, const struct ipcache_info *info)
{
	if (info->exact) {
		/* The tunnel does not know what this node's policies tell apart. */
		p->src_judged = info->judged;
		return p->src_identity == info->identity ? 0 : DROP_INVALID_IDENTITY;
	}
	switch (p->src_identity) {
	case ID_UNKNOWN:
	case ID_HOST:
	case ID_WORLD:
	case ID_REMOTE_NODE:
	case ID_KUBE_APISERVER:
	case ID_WORLD_IPV4:
	case ID_WORLD_IPV6:
	case ID_ENCRYPTED_OVERLAY:
	case TUNNEL_NODE_CLIENT:
		return DROP_INVALID_IDENTITY;
	default:
		if (p->src_identity != info->identity)
			p->flags |= PKT_CARRIED;
		return 0;
	}
}

/* May the node at *outer* have sent this, with this identity?  0, or a drop reason. */
static __always_inline int judge_sender(struct packet *p, const struct cil_addr *outer)
{
	__u32 node = node_of_addr(outer), owner;
	struct ipcache_info info;

	if (!node)
		return DROP_UNKNOWN_SENDER;
	if (slot_of_addr(&p->src) != SLOT_NONE)
		return DROP_INVALID_SIP;
	ipcache_lookup(&p->src, &info);
	owner = node_of_addr(&p->src);
	if (!owner && behind_tunnel(&info))
		owner = node_of_addr(&info.tunnel);
	if (owner != node)
		return DROP_INVALID_SIP;
	return is_node_address(&p->src, &info) ? judge_node(p, &info) : judge_pod(p, &info);
}

/* For the node itself, or for a client of its node ports; the verdict. */
static __always_inline int to_node(struct __sk_buff *skb, struct packet *p)
{
	int reason = 0;

	if (cfg_node_port && is_router(&p->dst, p)) {
		reason = is_ipv6(p) ? nat_ingress(skb, p, 1) : nat_ingress(skb, p, 0);
		if (!reason && !is_router(&p->dst, p))
			return tail_call(skb, p, CALL_NODE_PORT_REPLY);
	}
	if (!reason)
		reason = store_host_macs(skb);
	if (reason)
		return DROP(skb, p, reason, DIR_INGRESS, 0);
	p->dst_identity = ID_HOST;
	count_packet(FORWARDED, DIR_INGRESS, skb->len);
	return deliver_to_host(skb);
}

SEC("tc")
int hook_from_overlay(struct __sk_buff *skb)
{
	struct packet *p = packet_start(HOOK_FROM_OVERLAY);
	struct bpf_tunnel_key key = {};
	struct cil_addr outer;
	int reason;

	if (!p)
		return TC_ACT_SHOT;
	reason = parse_ethernet(skb, p);
	if (!reason && !is_ip(p))
		reason = DROP_UNKNOWN_L3;
	if (!reason && read_tunnel_key(skb, &key))
		reason = DROP_NO_TUNNEL_KEY;
	if (!reason)
		reason = parse_ip_header(skb, p);
	p->src_identity = key.tunnel_id;
	if (cfg_tunnel_ipv6)
		__builtin_memcpy(outer.w, key.remote_ipv6, sizeof(outer.w));
	else
		addr_set_v4(&outer, bpf_htonl(key.remote_ipv4));
	if (!reason)
		reason = judge_sender(p, &outer);
	if (!reason)
		reason = parse_payload(skb, p);
	/* Its MACs are the sender's, and mean nothing here. */
	if (!reason && bpf_skb_change_type(skb, PACKET_HOST))
		reason = DROP_WRITE_ERROR;
	if (reason)
		return DROP(skb, p, reason, DIR_INGRESS, 0);

	p->dst_slot = slot_of_addr(&p->dst);
	if (p->dst_slot == SLOT_HOST)
		return to_node(skb, p);
	if (p->dst_slot == SLOT_NONE)
		reason = !is_ipv6(p) && is_pod_address(addr_v4(&p->dst)) ? DROP_NO_LXC :
									   DROP_UNROUTABLE;
	else if (p->ttl <= 1)
		reason = DROP_TTL_EXCEEDED;
	if (reason)
		return DROP(skb, p, reason, DIR_INGRESS, 0);
	return tail_call(skb, p, CALL_INGRESS);
}

/* Only what our programs gave a destination may enter the tunnel; nothing of the stack has one. */
SEC("tc")
int hook_to_overlay(struct __sk_buff *skb)
{
	struct packet *p = packet_start(HOOK_TO_OVERLAY);
	struct bpf_tunnel_key key = {};

	if (!p)
		return TC_ACT_SHOT;
	if (!read_tunnel_key(skb, &key))
		return TC_ACT_UNSPEC;
	/* The device has no place to send it to; of neighbour discovery there is nothing to tell. */
	if (parse_ethernet(skb, p) || !is_ip(p))
		return TC_ACT_SHOT;
	parse_ip_header(skb, p);
	if (is_ipv6(p) && (addr_is_multicast_v6(&p->dst) || addr_is_link_local(&p->dst)))
		return TC_ACT_SHOT;
	return DROP(skb, p, DROP_ENCAP_PROHIBITED, DIR_EGRESS, 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
