/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Session affinity: a client's new connections go to the backend it had last, for as long as
 * none of them came later than the service's timeout after the one before (sessionAffinity
 * ClientIP; the API says nothing of the packets in between).
 */
#ifndef CILIUMD_AFFINITY_H
#define CILIUMD_AFFINITY_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include "lib/addr.h"

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct lb_affinity_key);
	__type(value, struct lb_affinity);
} cilium_lb_affinity_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct lb_affinity_match);
	__type(value, __u32);
} cilium_lb_affinity_match_v1 SEC(".maps");

/* Who asks, and when. */
struct lb_client {
	struct cil_addr id; /* an address, or the cookie of a network namespace */
	__u8 kind;	    /* enum cil_lb_client */
	__u32 now;	    /* seconds, CLOCK_MONOTONIC */
};

/* A client at a frontend, and the fold of both. */
struct affinity {
	struct lb_affinity_key key;
	__u32 check;
};

static __always_inline void affinity_of(struct affinity *who, const struct lb_client *client,
					__u16 rev_nat)
{
	__builtin_memset(who, 0, sizeof(*who));
	who->key.client = client->id;
	who->key.kind = client->kind;
	who->key.rev_nat = rev_nat;
	who->check = fold32(&who->key, sizeof(who->key));
}

/* The id of the backend that it is to keep, 0: none. */
static __always_inline __u32 affinity_recall(const struct affinity *who, __u32 now, __u32 timeout)
{
	struct lb_affinity *row = bpf_map_lookup_elem(&cilium_lb_affinity_v1, &who->key);
	struct lb_affinity_match match = { .rev_nat = who->key.rev_nat };
	__u32 last_used;
	__u64 word;

	if (!row)
		return 0;
	last_used = row->last_used;
	word = read_row_word(row);
	if ((__u32)word != who->check || now - last_used >= timeout)
		return 0;
	match.backend_id = word >> 32;
	return bpf_map_lookup_elem(&cilium_lb_affinity_match_v1, &match) ? match.backend_id : 0;
}

static __always_inline void affinity_remember(const struct affinity *who, __u32 now,
					      __u32 backend_id)
{
	struct lb_affinity row = {
		.check = who->check,
		.backend_id = backend_id,
		.last_used = now,
	};

	/* Without room the client chooses anew next time. */
	bpf_map_update_elem(&cilium_lb_affinity_v1, &who->key, &row, BPF_ANY);
}

#endif /* CILIUMD_AFFINITY_H */
