/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A flow and its service: which backend it goes to, and what its answers must look like. */
#ifndef CILIUMD_SERVICE_H
#define CILIUMD_SERVICE_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include "lib/addr.h"
#include "lib/ct.h"
#include "lib/lb.h"
#include "lib/packet.h"
#include "lib/translate.h"

/* Remember, or recall, which backend this flow's frontend was translated to. */
static __always_inline const struct lb_backend *
service_backend(struct packet *p, struct lb_service_key *key, const struct lb_slot *service)
{
	const struct lb_backend *backend = NULL;
	struct lb_client client = {};
	int advanced;

	p->key.kind = CT_KIND_SERVICE;
	if (ct_lookup(p) && p->ct.rev_nat == service->rev_nat && !ct_starts_anew(p, &p->ct, 0))
		backend = lb_backend(p->ct.backend_id, p->protocol);
	if (!backend) {
		client.id = p->src;
		client.kind = LB_CLIENT_ADDRESS;
		client.now = packet_now(p);
		backend = lb_choose(key, service, p->protocol, &client);
		if (!backend)
			return NULL;
		__builtin_memset(&p->ct, 0, sizeof(p->ct));
		p->ct.check = fold32(&p->key, sizeof(p->key));
		p->ct.rev_nat = service->rev_nat;
		p->ct.backend_id = backend->id;
	}
	advanced = ct_advance(p, &p->ct, 1, 0);
	/* Answers do not pass here: the client's word that it is done has to do. */
	if (p->ct.flags & CT_F_LOCAL_CLOSED && !(p->ct.flags & CT_F_REMOTE_CLOSED)) {
		p->ct.flags |= CT_F_REMOTE_CLOSED;
		p->ct.expires = packet_now(p) + ct_timeout(p->protocol, p->ct.flags);
	}
	if (advanced)
		ct_write(&p->key, &p->ct, BPF_ANY);
	return backend;
}

enum show_mode {
	SHOW_INSIDE,  /* to a pod: an ICMP error may come from the backend itself */
	SHOW_OUTSIDE, /* to the world, which knows no backend's address */
};

/* Replies of a translated flow (p->ct) show the frontend again; 0, or a drop reason. */
static __always_inline int show_frontend(struct __sk_buff *skb, struct packet *p,
					 enum show_mode mode, int v6)
{
	const struct lb_revnat *frontend = lb_revnat(p->ct.rev_nat);
	struct cil_addr addr;
	__be16 port;
	int reason;

	/* The service is gone: its connections end with it. */
	if (!frontend)
		return DROP_NO_SERVICE;
	if (!(p->flags & PKT_ICMP_ERROR))
		return translate(skb, p, REWRITE_SOURCE, &frontend->addr, frontend->port, v6);
	addr = frontend->addr;
	port = frontend->port;
	reason = translate_quoted(skb, p, REWRITE_DESTINATION, &addr, port, v6);
	if (reason || mode == SHOW_INSIDE)
		return reason;
	return translate_outer(skb, p, REWRITE_SOURCE, &addr, v6);
}

#endif /* CILIUMD_SERVICE_H */
