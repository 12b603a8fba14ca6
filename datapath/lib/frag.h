/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Ports of fragmented datagrams: later fragments have no L4 header, the first one tells. */
#ifndef CILIUMD_FRAG_H
#define CILIUMD_FRAG_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include "lib/packet.h"

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct frag_key);
	__type(value, struct frag_ports);
} cilium_frags_v1 SEC(".maps");

/* Remember the ports (first fragment) or recall them (later ones).  0, or a drop reason. */
static __always_inline int frag_ports(struct packet *p, __be32 id)
{
	struct frag_key key = {
		.src = p->src,
		.dst = p->dst,
		.id = id,
		.protocol = p->protocol,
	};
	struct frag_ports *known;

	if (p->flags & PKT_FIRST_FRAGMENT) {
		struct frag_ports ports = { .sport = p->sport, .dport = p->dport };

		if (bpf_map_update_elem(&cilium_frags_v1, &key, &ports, BPF_ANY))
			return DROP_FRAG_NOT_FOUND;
		return 0;
	}
	known = bpf_map_lookup_elem(&cilium_frags_v1, &key);
	if (!known)
		return DROP_FRAG_NOT_FOUND;
	p->sport = known->sport;
	p->dport = known->dport;
	return 0;
}

#endif /* CILIUMD_FRAG_H */
