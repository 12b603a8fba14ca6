// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Pods.  What a pod sends:
 *
 *   hook_from_container   anti-spoofing, ARP and neighbour discovery, conntrack hit?
 *     |  miss               |  hit
 *     v                     v
 *   call_service ------> call_egress      egress policy; then into call_ingress of a local pod,
 *     no backend            |             up to the node, or out by the routing table
 *     v                     v
 *   call_refuse          call_ingress     ingress policy, revNAT, redirect into the pod
 *
 * call_ingress is the one place that judges what a pod receives, whichever hook saw the packet.
 */
#include <ciliumd/abi.h>
#define CILIUMD_FILE FILE_LXC

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "lib/arp.h"
#include "lib/calls.h"
#include "lib/deliver.h"
#include "lib/endpoint.h"
#include "lib/event.h"
#include "lib/ipcache.h"
#include "lib/lb.h"
#include "lib/ndp.h"
#include "lib/overlay.h"
#include "lib/packet.h"
#include "lib/parse.h"
#include "lib/refuse.h"
#include "lib/service.h"
#include "lib/track.h"
#include "lib/translate.h"

CONFIG(__be32, loopback_ipv4, 0, "source a pod sees when it reaches itself through a service");
CONFIG(__u64, loopback_ipv6_head, 0, "that of IPv6: the first eight bytes in memory order");
CONFIG(__u64, loopback_ipv6_tail, 0, "and the last eight");

/* The source that a pod sees when it reaches itself; 0: there is none. */
static __always_inline int loopback_address(const struct packet *p, struct cil_addr *addr)
{
	if (!is_ipv6(p)) {
		addr_set_v4(addr, cfg_loopback_ipv4);
		return !!cfg_loopback_ipv4;
	}
	addr_set_halves(addr, cfg_loopback_ipv6_head, cfg_loopback_ipv6_tail);
	return !addr_is_zero(addr);
}

/* Whether what a pod sends is its answer to itself. */
static __always_inline int is_loopback_answer(const struct packet *p)
{
	struct cil_addr addr;

	if (!is_ipv6(p))
		return cfg_loopback_ipv4 && addr_v4(&p->dst) == cfg_loopback_ipv4;
	return loopback_address(p, &addr) && addr_equal(&p->dst, &addr);
}

/* Whether this is one of the endpoint's own addresses; one it has none of is nobody's. */
static __always_inline int is_address_of(const struct cil_addr *addr, const struct packet *p,
					 const struct endpoint *endpoint)
{
	if (is_ipv6(p))
		return addr_equal(addr, &endpoint->ipv6) && !addr_is_zero(addr);
	return addr_v4(addr) == endpoint->ipv4 && endpoint->ipv4;
}

SEC("tc")
int hook_from_container(struct __sk_buff *skb)
{
	struct packet *p = packet_start(HOOK_FROM_CONTAINER);
	const struct endpoint *endpoint;
	int reason, answered = 0;
	__u32 version;

	if (!p)
		return TC_ACT_SHOT;
	reason = parse_ethernet(skb, p);
	if (reason)
		return DROP(skb, p, reason, DIR_EGRESS, 0);
	p->src_slot = slot_of_device(skb->ifindex);
	endpoint = endpoint_in_slot(p->src_slot, &version);
	if (!endpoint || endpoint->ifindex != skb->ifindex)
		return DROP(skb, p, DROP_HOST_NOT_READY, DIR_EGRESS, 0);
	p->src_identity = endpoint->identity;
	p->endpoint_id = endpoint->id;
	if (!mac_equal(p->smac, endpoint->mac))
		return DROP(skb, p, DROP_INVALID_SMAC, DIR_EGRESS, endpoint->id);

	/* A tag that the device took out of the frame would travel along, unseen. */
	if (skb->vlan_present)
		return DROP(skb, p, DROP_UNKNOWN_L3, DIR_EGRESS, endpoint->id);
	/* The families part here, once; nothing behind it is there twice. */
	if (p->ethertype == ETH_P_IP) {
		reason = parse_ipv4_header(skb, p);
		if (!reason && !is_address_of(&p->src, p, endpoint))
			reason = DROP_INVALID_SIP;
	} else if (cfg_ipv6 && is_ipv6(p)) {
		reason = parse_ipv6_header(skb, p);
		if (!reason && is_solicitation(skb, p)) {
			reason = ndp_answer(skb, p, endpoint);
			answered = 1;
		} else if (!reason) {
			reason = is_address_of(&p->src, p, endpoint) ? parse_extensions(skb, p) :
								       DROP_INVALID_SIP;
		}
	} else if (p->ethertype == ETH_P_ARP) {
		reason = arp_answer(skb, endpoint);
		answered = 1;
	} else {
		reason = DROP_UNKNOWN_L3;
	}
	if (!reason && !answered)
		reason = parse_transport(skb, p);
	if (reason)
		return DROP(skb, p, reason, DIR_EGRESS, endpoint->id);
	if (answered)
		return bpf_redirect_peer(skb->ifindex, 0);

	/* An established flow is no service's frontend: only others are looked up. */
	if (!(p->flags & PKT_ICMP_ERROR)) {
		ct_key_of_packet(p, 1);
		if (ct_lookup(p))
			p->flags |= PKT_CT_FOUND;
		else
			return tail_call(skb, p, CALL_SERVICE);
	}
	return tail_call(skb, p, CALL_EGRESS);
}

SEC("tc")
int call_service(struct __sk_buff *skb)
{
	struct packet *p = packet_in_hand();
	const struct lb_backend *backend;
	struct lb_service_key key;
	struct lb_slot service;
	int reason;

	if (!p)
		return TC_ACT_SHOT;
	if (!lb_find(&p->dst, p->dport, p->protocol, LB_SCOPE_INTERNAL, &key, &service)) {
		if (lb_is_cluster_ip(&p->dst))
			return DROP_AND_REFUSE(skb, p, DROP_IS_CLUSTER_IP, ICMP_V4_UNREACHABLE,
					       ICMP_V4_PORT_UNREACHABLE);
		return tail_call(skb, p, CALL_EGRESS);
	}
	if (!lb_admits(&service, &p->src))
		return DROP(skb, p, DROP_NOT_IN_SRC_RANGE, DIR_EGRESS, p->endpoint_id);
	backend = service.target ? service_backend(p, &key, &service) : NULL;
	if (!backend && service.flags & LB_F_ELSEWHERE)
		return DROP(skb, p, DROP_NO_SERVICE, DIR_EGRESS, p->endpoint_id);
	if (!backend)
		return DROP_AND_REFUSE(skb, p, DROP_NO_SERVICE, ICMP_V4_UNREACHABLE,
				       ICMP_V4_PORT_UNREACHABLE);
	p->rev_nat = service.rev_nat;
	reason = translate(skb, p, REWRITE_DESTINATION, &backend->addr, backend->port, is_ipv6(p));
	if (addr_equal(&p->dst, &p->src))
		p->flags |= PKT_LOOPBACK;
	if (reason)
		return DROP(skb, p, reason, DIR_EGRESS, p->endpoint_id);
	return tail_call(skb, p, CALL_EGRESS);
}

/* The answer of a pod to itself through a service goes back to it; 0, or a drop reason. */
static __always_inline int turn_loopback(struct __sk_buff *skb, struct packet *p)
{
	struct cil_addr self = p->src;
	int reason;

	if (!(p->ct.flags & CT_F_LOOPBACK))
		return DROP_UNROUTABLE;
	p->flags |= PKT_LOOPBACK;
	if (p->flags & PKT_ICMP_ERROR) {
		reason =
			translate_quoted(skb, p, REWRITE_SOURCE, &self, p->inner_sport, is_ipv6(p));
		if (reason)
			return reason;
		p->inner_src = self;
	}
	return translate(skb, p, REWRITE_DESTINATION, &self, p->dport, is_ipv6(p));
}

/*
 * Whether *p->dst* is reached by the tunnel, of the node that *info* names then.  A pod answers the
 * node that came to it through the tunnel by the tunnel, whatever address that node used.
 */
static __always_inline int goes_by_tunnel(const struct packet *p, struct ipcache_info *info)
{
	if (!cfg_tunnel)
		return 0;
	if (behind_tunnel(info))
		return 1;
	/* Who came by a node port came past the tunnel, ours or another's that the stack knows of. */
	if (!(p->flags & PKT_REPLY) || p->ct.rev_nat || p->ct.flags & CT_F_FROM_STACK)
		return 0;
	if (is_ipv6(p) != !!cfg_tunnel_ipv6 || !node_of_addr(&p->dst))
		return 0;
	info->tunnel = p->dst;
	return 1;
}

/* A pod must not speak for a node: what it sends to a tunnel's port never leaves, nor goes up. */
static __always_inline int forges_tunnel(const struct packet *p, const struct ipcache_info *info)
{
	if (!is_tunnel_packet(p))
		return 0;
	return p->dst_slot == SLOT_HOST ||
	       (p->dst_slot == SLOT_NONE &&
		(!behind_tunnel(info) || is_node_address(&p->dst, info)));
}

/* Through the tunnel to the node at *remote*; the verdict. */
static __always_inline int leave_by_tunnel(struct __sk_buff *skb, struct packet *p,
					   const struct cil_addr *remote)
{
	int reason;

	if (exceeds_tunnel(skb, p)) {
		p->refuse_mtu = cfg_overlay_mtu;
		return DROP_AND_REFUSE(skb, p, DROP_FRAG_NOSUPPORT, ICMP_V4_UNREACHABLE,
				       ICMP_V4_FRAG_NEEDED);
	}
	reason = decrement_ttl(skb, p);
	if (!reason)
		reason = encapsulate(skb, remote, tunnel_identity(p->src_identity));
	if (reason)
		return DROP(skb, p, reason, DIR_EGRESS, p->endpoint_id);
	count_packet(FORWARDED, DIR_EGRESS, skb->len);
	trace_packet(skb, p, TRACE_TO_OVERLAY, DIR_EGRESS, p->endpoint_id);
	return bpf_redirect(cfg_overlay_ifindex, 0);
}

SEC("tc")
int call_egress(struct __sk_buff *skb)
{
	struct packet *p = packet_in_hand();
	struct track_context by = { .direction = DIR_EGRESS };
	const struct endpoint *endpoint, *peer;
	struct ipcache_info info = {};
	int reason, loopback, by_stack;
	__u32 version, oif, mark;

	if (!p)
		return TC_ACT_SHOT;
	endpoint = endpoint_in_slot(p->src_slot, &by.policy_version);
	if (!endpoint)
		return DROP(skb, p, DROP_HOST_NOT_READY, DIR_EGRESS, 0);

	p->dst_slot = slot_of_addr(&p->dst);
	loopback = p->dst_slot == SLOT_NONE && is_loopback_answer(p);
	if (loopback)
		p->dst_slot = p->src_slot;
	if (p->dst_slot == SLOT_HOST) {
		p->dst_identity = ID_HOST;
		by.peer_identity = ID_HOST;
	} else {
		peer = p->dst_slot == SLOT_NONE ? NULL : endpoint_in_slot(p->dst_slot, &version);
		if (peer) {
			p->dst_identity = peer->identity;
			by.peer_identity = judged_of_endpoint(p, peer);
		} else {
			ipcache_lookup(&p->dst, &info);
			p->dst_identity = info.identity;
			by.peer_identity = info.judged;
		}
	}
	if (forges_tunnel(p, &info))
		return DROP(skb, p, DROP_ENCAP_PROHIBITED, DIR_EGRESS, endpoint->id);
	by.endpoint_id = endpoint->id;
	by.endpoint_flags = endpoint->flags;
	reason = track(skb, p, &by);
	/* A reply that is stopped was asked for by the other side: its sender has nothing to give up. */
	if (is_of_rules(reason) && by.endpoint_flags & ENDPOINT_F_DENY_RESPONSE &&
	    !(p->flags & PKT_REPLY))
		return DROP_AND_REFUSE(skb, p, reason, ICMP_V4_UNREACHABLE,
				       ICMP_V4_ADMIN_PROHIBITED);
	/* Who came in by a node port knows this pod by that alone. */
	if (!reason && p->ct.rev_nat && p->flags & PKT_REPLY)
		reason = show_frontend(skb, p, SHOW_OUTSIDE, is_ipv6(p));
	if (!reason && loopback)
		reason = turn_loopback(skb, p);
	if (reason)
		return DROP(skb, p, reason, DIR_EGRESS, endpoint->id);
	if (p->dst_slot == SLOT_HOST) {
		reason = store_host_macs(skb);
		if (reason)
			return DROP(skb, p, reason, DIR_EGRESS, endpoint->id);
		count_packet(FORWARDED, DIR_EGRESS, skb->len);
		trace_packet(skb, p, TRACE_TO_HOST, DIR_EGRESS, endpoint->id);
		return deliver_to_host(skb);
	}
	if (p->ttl <= 1)
		return DROP_AND_REFUSE(skb, p, DROP_TTL_EXCEEDED, ICMP_V4_TIME_EXCEEDED, 0);
	if (p->dst_slot != SLOT_NONE) {
		/* The service is the sender's affair: its row has it. */
		p->rev_nat = 0;
		p->src_judged = judged_of_endpoint(p, endpoint);
		count_packet(FORWARDED, DIR_EGRESS, skb->len);
		return tail_call(skb, p, CALL_INGRESS);
	}
	if (goes_by_tunnel(p, &info))
		return leave_by_tunnel(skb, p, &info.tunnel);
	/* The stack takes nothing from a pod that has an address of the node, as a frontend may be. */
	by_stack = cfg_host_legacy_routing && !(p->ct.rev_nat && p->flags & PKT_REPLY);
	reason = route_of(skb, p, &oif, is_ipv6(p));
	if (!reason)
		reason = by_stack ? store_host_macs(skb) : decrement_ttl(skb, p);
	if (reason)
		return DROP(skb, p, reason, DIR_EGRESS, endpoint->id);
	/* Who came in with the pod's own address gets its answers from that address. */
	mark = p->flags & PKT_REPLY ? MARK_SKIP_SNAT : 0;
	count_packet(FORWARDED, DIR_EGRESS, skb->len);
	trace_packet(skb, p, TRACE_TO_NETWORK, DIR_EGRESS, endpoint->id);
	if (by_stack)
		return leave_by_stack(skb, mark);
	skb->mark = mark;
	return bpf_redirect_neigh(oif, NULL, 0, 0);
}

SEC("tc")
int call_ingress(struct __sk_buff *skb)
{
	struct packet *p = packet_in_hand();
	struct track_context by = { .direction = DIR_INGRESS };
	const struct endpoint *endpoint;
	struct cil_addr loopback;
	int reason = 0;

	if (!p)
		return TC_ACT_SHOT;
	endpoint = endpoint_in_slot(p->dst_slot, &by.policy_version);
	if (!endpoint || !is_address_of(&p->dst, p, endpoint))
		return DROP(skb, p, DROP_NO_LXC, DIR_INGRESS, 0);
	/* New to itself through a service: from an address that its answer can be known by. */
	if (p->flags & PKT_LOOPBACK && !(p->flags & PKT_REPLY)) {
		loopback_address(p, &loopback);
		reason = translate(skb, p, REWRITE_SOURCE, &loopback, p->sport, is_ipv6(p));
	}
	if (reason)
		return DROP(skb, p, reason, DIR_INGRESS, endpoint->id);
	p->dst_identity = endpoint->identity;
	by.peer_identity = judged_by(p->src_identity, p->src_judged);
	by.endpoint_id = endpoint->id;
	by.endpoint_flags = endpoint->flags;
	reason = track(skb, p, &by);
	if (!reason && p->ct.rev_nat && p->flags & PKT_REPLY)
		reason = show_frontend(skb, p, SHOW_INSIDE, is_ipv6(p));
	if (!reason && !(p->flags & PKT_NO_TTL))
		reason = decrement_ttl(skb, p);
	if (!reason && !(p->flags & PKT_PASS))
		reason = store_macs(skb, endpoint->mac, endpoint->node_mac);
	if (reason)
		return DROP(skb, p, reason, DIR_INGRESS, endpoint->id);
	count_packet(FORWARDED, DIR_INGRESS, skb->len);
	trace_packet(skb, p, TRACE_TO_ENDPOINT, DIR_INGRESS, endpoint->id);
	return deliver_to_pod(skb, p, endpoint);
}

SEC("tc")
int call_refuse(struct __sk_buff *skb)
{
	struct packet *p = packet_in_hand();
	const struct lb_revnat *frontend;

	/* The drop is counted already; what cannot be answered stays a silent drop. */
	if (!p)
		return TC_ACT_SHOT;
	if (p->rev_nat) {
		/* Its sender knows the frontend only: quote what it sent. */
		frontend = lb_revnat(p->rev_nat);
		if (!frontend)
			return TC_ACT_SHOT;
		if (translate(skb, p, REWRITE_DESTINATION, &frontend->addr, frontend->port,
			      is_ipv6(p)))
			return TC_ACT_SHOT;
	}
	if (is_ipv6(p) ? refuse_v6(skb, p, p->refuse_type, p->refuse_code) :
			 refuse(skb, p, p->refuse_type, p->refuse_code))
		return TC_ACT_SHOT;
	if (p->hook == HOOK_FROM_NETDEV)
		return bpf_redirect(skb->ifindex, 0);
	return bpf_redirect_peer(skb->ifindex, 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
