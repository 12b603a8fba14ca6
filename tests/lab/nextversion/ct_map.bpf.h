/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The map of conntrack rows in two layouts: read from the new one, then from the old one, written to
 * both.  The version before reads and writes cilium_ct_v1 alone, so that has every row.
 */
#ifndef CILIUMD_CT_MAP_H
#define CILIUMD_CT_MAP_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include "lib/addr.h"

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 262144);
	__type(key, struct ct_key);
	__type(value, struct ct_entry_v1);
} cilium_ct_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 262144);
	__type(key, struct ct_key);
	__type(value, struct ct_entry);
} cilium_ct_v2 SEC(".maps");

static __always_inline void ct_from_v1(const struct ct_entry_v1 *old, struct ct_entry *entry)
{
	entry->check = old->check;
	entry->policy_version = old->policy_version;
	entry->peer_identity = old->peer_identity;
	entry->rule_cookie = old->rule_cookie;
	entry->flags = old->flags;
	entry->tcp_flags_local = old->tcp_flags_local;
	entry->tcp_flags_remote = old->tcp_flags_remote;
	entry->rev_nat = old->rev_nat;
	entry->backend_id = old->backend_id;
	entry->proxy_slot = old->proxy_slot;
	entry->last_report = old->last_report;
	entry->expires = old->expires;
	entry->carried = 1;
}

static __always_inline void ct_to_v1(const struct ct_entry *entry, struct ct_entry_v1 *old)
{
	old->check = entry->check;
	old->policy_version = entry->policy_version;
	old->peer_identity = entry->peer_identity;
	old->rule_cookie = entry->rule_cookie;
	old->expires = entry->expires;
	old->last_report = entry->last_report;
	old->rev_nat = entry->rev_nat;
	old->flags = entry->flags;
	old->backend_id = entry->backend_id;
	old->tcp_flags_local = entry->tcp_flags_local;
	old->tcp_flags_remote = entry->tcp_flags_remote;
	old->proxy_slot = entry->proxy_slot;
	old->pad0 = 0;
}

/* A consistent copy of a row: 0 when there is none. */
static __always_inline int ct_read(const struct ct_key *key, struct ct_entry *copy)
{
	__u32 check = fold32(key, sizeof(*key));

#pragma unroll
	for (int i = 0; i < 2; i++) {
		struct ct_entry *row = bpf_map_lookup_elem(&cilium_ct_v2, key);
		__u64 word;

		if (!row)
			break;
		word = read_row_word(row);
		*copy = *row;
		barrier();
		if ((__u32)word == check && read_row_word(row) == word)
			return 1;
	}
#pragma unroll
	for (int i = 0; i < 2; i++) {
		struct ct_entry_v1 *row = bpf_map_lookup_elem(&cilium_ct_v1, key);
		__u64 word;

		if (!row)
			return 0;
		word = read_row_word(row);
		ct_from_v1(row, copy);
		barrier();
		if ((__u32)word == check && read_row_word(row) == word)
			return 1;
	}
	return 0;
}

/* 0, or a negative errno: EBUSY for a moment when the LRU has nothing to give at once. */
static __always_inline long ct_write(const struct ct_key *key, const struct ct_entry *entry,
				     __u64 flags)
{
	struct ct_entry_v1 old;
	long failed;

	/* What was found may be in one of them only. */
	if (flags == BPF_EXIST)
		flags = BPF_ANY;
	ct_to_v1(entry, &old);
	failed = bpf_map_update_elem(&cilium_ct_v1, key, &old, flags);
	return failed ? failed : bpf_map_update_elem(&cilium_ct_v2, key, entry, BPF_ANY);
}

#endif /* CILIUMD_CT_MAP_H */
