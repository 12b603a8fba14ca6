/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flows that the node takes in for a service and that end at none of its pods: at a backend
 * elsewhere, or at the node's own stack.  Their conntrack row has the client as "local", names the
 * service, and judges nothing.  While it lives, user space keeps the flow's NAT rows.
 */
#ifndef CILIUMD_FORWARD_H
#define CILIUMD_FORWARD_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include "lib/ct.h"
#include "lib/packet.h"
#include "lib/service.h"
#include "lib/track.h"

CONFIG(__u8, node_port, 0,
       "take what comes from outside to node ports, external and load balancer addresses");

/* A translated packet of the client: make or refresh its row.  0, or a drop reason. */
static __always_inline int forward_track(struct packet *p)
{
	ct_key_of_packet(p, 1);
	p->ct_state = CT_STATE_ESTABLISHED;
	if (!ct_lookup(p) || p->ct.rev_nat != p->rev_nat || ct_starts_anew(p, &p->ct, 0)) {
		p->ct_state = CT_STATE_NEW;
		__builtin_memset(&p->ct, 0, sizeof(p->ct));
		p->ct.check = fold32(&p->key, sizeof(p->key));
		p->ct.peer_identity = p->src_identity;
		p->ct.rev_nat = p->rev_nat;
	}
	if (ct_advance(p, &p->ct, 1, 0) && ct_write(&p->key, &p->ct, BPF_ANY) &&
	    ct_write(&p->key, &p->ct, BPF_ANY))
		return DROP_CT_CREATE_FAILED;
	return 0;
}

/* 1 and p->ct when this packet goes from a backend to the client of such a flow. */
static __always_inline int forward_reply(struct packet *p)
{
	if (p->flags & PKT_ICMP_ERROR) {
		ct_key_of_quoted(p, 0);
		p->ct_state = CT_STATE_RELATED;
		return ct_lookup(p) && p->ct.rev_nat;
	}
	ct_key_of_packet(p, 0);
	if (!ct_lookup(p) || !p->ct.rev_nat)
		return 0;
	p->ct_state = CT_STATE_REPLY;
	if (ct_advance(p, &p->ct, 0, 1))
		ct_write(&p->key, &p->ct, BPF_EXIST);
	return 1;
}

#endif /* CILIUMD_FORWARD_H */
