// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Services asked from outside: node ports, external and load balancer addresses.
 *
 *   hook_from_netdev ─▶ call_node_port ─┬─ backend is a pod here ─▶ call_ingress; its answers show
 *                                       │                           the frontend in call_egress
 *                                       ├─ backend is this node  ─▶ up the stack; hook_to_netdev
 *                                       └─ backend elsewhere     ─▶ SNAT, tunnel or route
 *   hook_from_netdev, hook_from_overlay ─▶ call_node_port_reply  ─▶ back to the client
 *   hook_from_netdev ─▶ call_node_port_error: what the network says about an answer
 *
 * A backend elsewhere must answer through this node, so it sees an address of this node: of
 * cilium_host through the tunnel, else of the device.  A backend here sees the client.
 */
#include <ciliumd/abi.h>
#define CILIUMD_FILE FILE_NODEPORT

#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "lib/calls.h"
#include "lib/deliver.h"
#include "lib/endpoint.h"
#include "lib/event.h"
#include "lib/forward.h"
#include "lib/ipcache.h"
#include "lib/lb.h"
#include "lib/nat.h"
#include "lib/overlay.h"
#include "lib/packet.h"
#include "lib/parse.h"
#include "lib/refuse.h"
#include "lib/service.h"
#include "lib/track.h"
#include "lib/translate.h"

/* Of the client, under an address of this node: whatever is no node is the world there. */
static __always_inline __u32 client_identity(const struct packet *p)
{
	__u32 identity = p->src_identity;

	if (!identity_is_node(identity))
		return ID_WORLD;
	if (identity >> SCOPE_SHIFT != SCOPE_NODE)
		return identity;
	return identity & NODE_API_SERVER ? ID_KUBE_APISERVER : TUNNEL_NODE_CLIENT;
}

/* Out by *oif* as it is: no program behind us is to give it another address; the verdict. */
static __always_inline int leave_by_route(struct __sk_buff *skb, struct packet *p, __u32 oif)
{
	count_packet(FORWARDED, DIR_EGRESS, skb->len);
	trace_packet(skb, p, TRACE_TO_NETWORK, DIR_EGRESS, 0);
	skb->mark = MARK_SKIP_SNAT;
	return bpf_redirect_neigh(oif, NULL, 0, 0);
}

/* To the backend that is now its destination: by a node's tunnel, or by route.  The verdict. */
static __always_inline int send_elsewhere(struct __sk_buff *skb, struct packet *p,
					  const struct ipcache_info *info, int v6)
{
	int reason = 0, tunnel = cfg_tunnel && behind_tunnel(info);
	struct cil_addr address;
	__u32 oif = 0;

	if (!tunnel) {
		/* Under our address it would be a node's word. */
		reason = is_tunnel_packet(p) ? DROP_ENCAP_PROHIBITED : route_of(skb, p, &oif, v6);
		if (!native_address_for(oif, &address, v6) && !reason)
			reason = DROP_NAT_NO_MAPPING;
	} else {
		addr_set_router(&address, v6);
	}
	if (!reason)
		reason = v6 ? nat_egress_v6(skb, p, &address) :
			      nat_egress(skb, p, addr_v4(&address));
	if (!reason)
		reason = decrement_ttl(skb, p);
	if (!reason && tunnel)
		reason = encapsulate(skb, &info->tunnel, client_identity(p));
	if (reason)
		return DROP(skb, p, reason, DIR_INGRESS, 0);
	if (!tunnel)
		return leave_by_route(skb, p, oif);
	count_packet(FORWARDED, DIR_EGRESS, skb->len);
	trace_packet(skb, p, TRACE_TO_OVERLAY, DIR_EGRESS, 0);
	return bpf_redirect(cfg_overlay_ifindex, 0);
}

/* The node's own stack is the backend; its answers are met in hook_to_netdev.  The verdict. */
static __always_inline int send_to_stack(struct __sk_buff *skb, struct packet *p)
{
	if (is_tunnel_packet(p))
		return DROP(skb, p, DROP_ENCAP_PROHIBITED, DIR_INGRESS, 0);
	count_packet(FORWARDED, DIR_INGRESS, skb->len);
	trace_packet(skb, p, TRACE_TO_HOST, DIR_INGRESS, 0);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int call_node_port(struct __sk_buff *skb)
{
	struct packet *p = packet_in_hand();
	const struct lb_backend *backend = NULL;
	struct ipcache_info info = {};
	struct lb_slot service = {};
	struct lb_service_key key;
	struct cil_addr addr;
	__be16 port;
	int reason, v6;

	if (!p)
		return TC_ACT_SHOT;
	v6 = family_of(p);
	ct_key_of_packet(p, 1);
	if (lb_find(&p->dst, p->dport, p->protocol, LB_SCOPE_EXTERNAL, &key, &service)) {
		if (!lb_admits(&service, &p->src))
			return DROP(skb, p, DROP_NOT_IN_SRC_RANGE, DIR_INGRESS, 0);
		if (service.target)
			backend = service_backend(p, &key, &service);
	}
	/* Who came by a balancer is not told no: it is about to learn that nobody is here any more. */
	if (!backend && service.flags & LB_F_ELSEWHERE)
		return DROP(skb, p, DROP_NO_SERVICE, DIR_INGRESS, 0);
	if (!backend)
		return DROP_AND_REFUSE(skb, p, DROP_NO_SERVICE, ICMP_V4_UNREACHABLE,
				       ICMP_V4_PORT_UNREACHABLE);
	addr = backend->addr;
	port = backend->port;
	p->dst_slot = slot_of_addr(&addr);
	if (p->dst_slot != SLOT_HOST && p->ttl <= 1)
		return DROP_AND_REFUSE(skb, p, DROP_TTL_EXCEEDED, ICMP_V4_TIME_EXCEEDED, 0);
	if (p->dst_slot == SLOT_NONE) {
		ipcache_lookup(&addr, &info);
		p->dst_identity = info.identity;
		if (cfg_tunnel && behind_tunnel(&info) && exceeds_tunnel(skb, p)) {
			p->refuse_mtu = cfg_overlay_mtu;
			return DROP_AND_REFUSE(skb, p, DROP_FRAG_NOSUPPORT, ICMP_V4_UNREACHABLE,
					       ICMP_V4_FRAG_NEEDED);
		}
	}
	p->rev_nat = service.rev_nat;
	reason = translate(skb, p, REWRITE_DESTINATION, &addr, port, v6);
	if (!reason && (p->dst_slot == SLOT_NONE || p->dst_slot == SLOT_HOST))
		reason = forward_track(p);
	if (reason)
		return DROP(skb, p, reason, DIR_INGRESS, 0);
	if (p->dst_slot == SLOT_NONE)
		return send_elsewhere(skb, p, &info, v6);
	if (p->dst_slot == SLOT_HOST)
		return send_to_stack(skb, p);
	return tail_call(skb, p, CALL_INGRESS);
}

/* A masquerade has been turned back, and the client is none of our pods. */
SEC("tc")
int call_node_port_reply(struct __sk_buff *skb)
{
	struct packet *p = packet_in_hand();
	int reason = 0, v6;
	__u32 oif;

	if (!p)
		return TC_ACT_SHOT;
	v6 = family_of(p);
	if (p->ttl <= 1)
		reason = DROP_TTL_EXCEEDED;
	/* The pod or the flow that this was for is gone. */
	else if (!forward_reply(p))
		reason = DROP_UNROUTABLE;
	else
		reason = show_frontend(skb, p, SHOW_OUTSIDE, v6);
	if (!reason)
		reason = route_of(skb, p, &oif, v6);
	if (!reason)
		reason = decrement_ttl(skb, p);
	if (reason)
		return DROP(skb, p, reason, DIR_INGRESS, 0);
	return leave_by_route(skb, p, oif);
}

/* The quoted packet is an answer as the client saw it: it, and the error, go where it came from. */
SEC("tc")
int call_node_port_error(struct __sk_buff *skb)
{
	struct packet *p = packet_in_hand();
	const struct lb_backend *backend = NULL;
	struct ipcache_info info = {};
	struct cil_addr addr;
	__be16 port;
	int reason, v6;

	if (!p)
		return TC_ACT_SHOT;
	v6 = family_of(p);
	ct_key_of_quoted(p, 1);
	p->key.kind = CT_KIND_SERVICE;
	if (ct_lookup(p))
		backend = lb_backend(p->ct.backend_id, p->inner_protocol);
	/* About a flow nobody knows: the stack will not know it either. */
	if (!backend)
		return TC_ACT_UNSPEC;
	addr = backend->addr;
	port = backend->port;
	p->dst_slot = slot_of_addr(&addr);
	p->ct_state = CT_STATE_RELATED;
	reason = p->dst_slot != SLOT_HOST && p->ttl <= 1 ? DROP_TTL_EXCEEDED : 0;
	if (!reason)
		reason = translate_quoted(skb, p, REWRITE_SOURCE, &addr, port, v6);
	if (!reason) {
		p->inner_src = addr;
		p->inner_sport = port;
		reason = translate_outer(skb, p, REWRITE_DESTINATION, &addr, v6);
	}
	if (reason)
		return DROP(skb, p, reason, DIR_INGRESS, 0);
	if (p->dst_slot == SLOT_HOST)
		return send_to_stack(skb, p);
	if (p->dst_slot != SLOT_NONE)
		return tail_call(skb, p, CALL_INGRESS);
	ipcache_lookup(&addr, &info);
	p->dst_identity = info.identity;
	return send_elsewhere(skb, p, &info, v6);
}

char _license[] SEC("license") = "Dual BSD/GPL";
