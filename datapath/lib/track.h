/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Conntrack and policy of one endpoint for one packet.
 *
 *   row found, same policy version, same peer     let through, no policy lookup
 *   row found, version or peer changed            judge again, in the flow's own direction
 *   no row                                        judge; an allowed packet makes the row
 *   ICMP error                                    goes with the flow of the packet it quotes
 *
 * Under audit a packet that policy would drop passes, and is told of.  Its row says that it was let
 * through by audit alone, so that it is judged again once there is none.
 */
#ifndef CILIUMD_TRACK_H
#define CILIUMD_TRACK_H

#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include "lib/addr.h"
#include "lib/ct.h"
#include "lib/event.h"
#include "lib/packet.h"
#include "lib/parse.h"
#include "lib/policy.h"

/* Who judges, and whom. */
struct track_context {
	enum cil_direction direction; /* of the packet, seen from the endpoint; a constant */
	__u32 policy_version;
	__u32 peer_identity;
	__u16 endpoint_id;
	__u16 endpoint_flags;
};

static __always_inline void ct_key_of_packet(struct packet *p, int from_local)
{
	struct ct_key *key = &p->key;

	key->local = from_local ? p->src : p->dst;
	key->remote = from_local ? p->dst : p->src;
	key->local_port = from_local ? p->sport : p->dport;
	key->remote_port = from_local ? p->dport : p->sport;
	key->protocol = p->protocol;
	key->kind = CT_KIND_FLOW;
	key->zone = 0;
}

/* An error about a packet runs against it: the quoted sender is where the error goes. */
static __always_inline void ct_key_of_quoted(struct packet *p, int from_local)
{
	struct ct_key *key = &p->key;

	key->local = from_local ? p->inner_dst : p->inner_src;
	key->remote = from_local ? p->inner_src : p->inner_dst;
	key->local_port = from_local ? p->inner_dport : p->inner_sport;
	key->remote_port = from_local ? p->inner_sport : p->inner_dport;
	key->protocol = p->inner_protocol;
	key->kind = CT_KIND_FLOW;
	key->zone = 0;
}

static __always_inline enum cil_direction opposite(enum cil_direction direction)
{
	return direction == DIR_EGRESS ? DIR_INGRESS : DIR_EGRESS;
}

/*
 * Whether a row's verdict is that of the policy in force.  Rows of audit come second: without it
 * nothing more is asked.
 */
static __always_inline int verdict_holds(const struct ct_entry *entry,
					 const struct track_context *by)
{
	if (entry->policy_version == by->policy_version)
		return 1;
	return by->endpoint_flags & ENDPOINT_F_AUDIT &&
	       entry->policy_version == (by->policy_version | CT_VERSION_AUDITED);
}

/* What rules say may be audited; that rows are missing or damaged is a fault, which allows nothing. */
static __always_inline int is_of_rules(int reason)
{
	return reason == DROP_POLICY || reason == DROP_POLICY_DENY;
}

/*
 * 0, or the drop reason of the endpoint's policy for what *peer* and it opened.  The row in hand gets
 * the version that it is under then.
 */
static __always_inline int judge(struct __sk_buff *skb, struct packet *p,
				 const struct track_context *by, enum cil_direction opened,
				 __u32 peer, __u8 protocol, __be16 port)
{
	struct event_args args = {
		.type = EVENT_POLICY_VERDICT,
		.direction = opened,
		.endpoint_id = by->endpoint_id,
	};
	enum cil_policy_verdict verdict;
	int reason;

	p->rule_cookie = 0;
	p->ct.policy_version = by->policy_version;
	verdict = policy_lookup(by->policy_version, peer, opened, protocol, port, &p->rule_cookie);
	reason = policy_drop_reason(verdict);
	args.reason = verdict;
	if (by->endpoint_flags & ENDPOINT_F_AUDIT && is_of_rules(reason)) {
		args.audit = 1;
		reason = 0;
		p->ct.policy_version |= CT_VERSION_AUDITED;
	}
	/* What a drop would have told is told in any case. */
	if (!reason && (args.audit || !is_silent(EVENT_POLICY_VERDICT)))
		send_event(skb, p, &args);
	return reason;
}

/* The flow's policy: its opener's peer's port, or for ICMP the request's type. */
static __always_inline int judge_flow(struct __sk_buff *skb, struct packet *p,
				      const struct track_context *by, enum cil_direction opened,
				      __u32 peer)
{
	__be16 port = opened == DIR_EGRESS ? p->key.remote_port : p->key.local_port;

	if (p->key.protocol == IPPROTO_ICMP)
		port = bpf_htons(ICMP_V4_ECHO);
	else if (p->key.protocol == IPPROTO_ICMPV6)
		port = bpf_htons(ICMP_V6_ECHO);
	return judge(skb, p, by, opened, peer, p->key.protocol, port);
}

/*
 * An ICMP error goes with the endpoint's own flow that the quoted packet is of, whoever reports
 * it; what the endpoint itself reports goes to the flow's other side and to nobody else.  Without
 * such a flow it is an ICMP packet like any other, but never makes a row.
 */
static __always_inline int track_error(struct __sk_buff *skb, struct packet *p,
				       const struct track_context *by)
{
	int from_local = by->direction == DIR_EGRESS;
	const struct cil_addr *endpoint = from_local ? &p->src : &p->dst;
	struct ct_entry *entry = &p->ct;

	ct_key_of_quoted(p, from_local);
	/*
	 * Rows of all endpoints are in one map: quoting another's flow must give nothing, nor must
	 * quoting one's own on the way to somebody else.
	 */
	if (!addr_equal(&p->key.local, endpoint) ||
	    (from_local && !addr_equal(&p->key.remote, &p->dst)) || !ct_lookup(p)) {
		/* Of the row, or of the packet before, nothing holds for this one. */
		entry->rev_nat = 0;
		entry->flags = 0;
		p->ct_state = CT_STATE_NEW;
		return judge(skb, p, by, by->direction, by->peer_identity, p->protocol,
			     bpf_htons(p->icmp_type));
	}
	p->ct_state = CT_STATE_RELATED;
	p->rule_cookie = entry->rule_cookie;
	if (!(entry->flags & CT_F_ORIGIN_REMOTE) == (by->direction == DIR_INGRESS))
		p->flags |= PKT_REPLY;
	if (verdict_holds(entry, by) || entry->flags & CT_F_LOOPBACK)
		return 0;
	return judge_flow(skb, p, by, entry->flags & CT_F_ORIGIN_REMOTE ? DIR_INGRESS : DIR_EGRESS,
			  entry->peer_identity);
}

/*
 * 0 and p->ct, p->ct_state filled, or a drop reason.  A new flow takes p->rev_nat, the service it
 * was translated by, along.  A loopback flow is the endpoint's own: no policy judges it.  When the
 * tunnel tells who opens a flow, that holds for the replies, too, whatever their address says.
 */
static __always_inline int track(struct __sk_buff *skb, struct packet *p,
				 const struct track_context *by)
{
	int from_local = by->direction == DIR_EGRESS;
	struct ct_entry *entry = &p->ct;
	__u16 carried = p->flags & PKT_CARRIED ? CT_F_CARRIED_PEER : 0;
	__u32 peer = by->peer_identity;
	int found, reply, write, changed = 0;

	p->flags &= ~PKT_REPLY;
	p->policy_version = by->policy_version;
	if (p->flags & PKT_ICMP_ERROR)
		return track_error(skb, p, by);

	if (from_local && p->flags & PKT_CT_FOUND) {
		p->flags &= ~PKT_CT_FOUND;
		found = 1;
	} else {
		ct_key_of_packet(p, from_local);
		found = ct_lookup(p);
	}
	reply = found && !!(entry->flags & CT_F_ORIGIN_REMOTE) == from_local;
	if (found && ct_starts_anew(p, entry, reply)) {
		found = 0;
		reply = 0;
	}
	if (found) {
		p->ct_state = reply ? CT_STATE_REPLY : CT_STATE_ESTABLISHED;
		p->rule_cookie = entry->rule_cookie;
		if (reply) {
			p->flags |= PKT_REPLY;
			if (from_local && entry->flags & CT_F_CARRIED_PEER)
				peer = entry->peer_identity;
		} else {
			/* One socket may mean the service now and its backend then: replies follow. */
			changed = entry->rev_nat != p->rev_nat ||
				  (entry->flags & CT_F_CARRIED_PEER) != carried;
			entry->rev_nat = p->rev_nat;
			entry->flags = (entry->flags & ~CT_F_CARRIED_PEER) | carried;
		}
		write = !verdict_holds(entry, by) || entry->peer_identity != peer;
	} else {
		p->ct_state = CT_STATE_NEW;
		p->rule_cookie = 0;
		__builtin_memset(entry, 0, sizeof(*entry));
		entry->check = fold32(&p->key, sizeof(p->key));
		entry->flags = (from_local ? 0 : CT_F_ORIGIN_REMOTE) | carried;
		if (p->flags & PKT_LOOPBACK)
			entry->flags |= CT_F_LOOPBACK;
		if (!from_local && p->hook == HOOK_FROM_HOST)
			entry->flags |= CT_F_FROM_STACK;
		entry->rev_nat = p->rev_nat;
		write = 1;
	}
	/* Who comes from elsewhere under the loopback address is not the endpoint itself. */
	if (write && entry->flags & CT_F_LOOPBACK && (reply || p->flags & PKT_LOOPBACK)) {
		entry->policy_version = by->policy_version;
	} else if (write) {
		int reason = judge_flow(skb, p, by, reply ? opposite(by->direction) : by->direction,
					peer);

		if (reason)
			return reason;
	}
	write |= changed | ct_advance(p, entry, from_local, reply);
	if (!write)
		return 0;
	entry->peer_identity = peer;
	entry->rule_cookie = p->rule_cookie;
	p->flags |= PKT_REPORT;
	if (found) {
		ct_write(&p->key, entry, BPF_EXIST);
		return 0;
	}
	/* The LRU may be busy for a moment (EBUSY): ask twice before giving up. */
	if (ct_write(&p->key, entry, BPF_ANY) && ct_write(&p->key, entry, BPF_ANY))
		return DROP_CT_CREATE_FAILED;
	return 0;
}

#endif /* CILIUMD_TRACK_H */
