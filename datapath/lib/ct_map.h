/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The map of conntrack rows, and all that knows which layouts of it there are: nobody else names it.
 * A row is never written through the pointer a lookup gave: the LRU may have handed that memory to
 * another flow.  All writes go by key.
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
	__type(value, struct ct_entry);
} cilium_ct_v1 SEC(".maps");

/* A consistent copy of a row: 0 when there is none. */
static __always_inline int ct_read(const struct ct_key *key, struct ct_entry *copy)
{
	__u32 check = fold32(key, sizeof(*key));

#pragma unroll
	for (int i = 0; i < 2; i++) {
		struct ct_entry *row = bpf_map_lookup_elem(&cilium_ct_v1, key);
		__u64 word;

		if (!row)
			return 0;
		word = read_row_word(row);
		*copy = *row;
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
	return bpf_map_update_elem(&cilium_ct_v1, key, entry, flags);
}

#endif /* CILIUMD_CT_MAP_H */
