/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The map of masqueraded flows, and all that knows which layouts of it there are: nobody else names
 * it.  Rows are written by key only (lib/ct_map.h says why).
 */
#ifndef CILIUMD_NAT_MAP_H
#define CILIUMD_NAT_MAP_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include "lib/addr.h"

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 131072);
	__type(key, struct nat_key);
	__type(value, struct nat_entry);
} cilium_snat_v1 SEC(".maps");

/* A consistent copy of a row: 0 when there is none. */
static __always_inline int nat_read(const struct nat_key *key, struct nat_entry *copy)
{
	__u32 check = fold32(key, sizeof(*key));

#pragma unroll
	for (int i = 0; i < 2; i++) {
		struct nat_entry *row = bpf_map_lookup_elem(&cilium_snat_v1, key);
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

/* 0, or a negative errno: EEXIST with BPF_NOEXIST when somebody was faster. */
static __always_inline long nat_write(const struct nat_key *key, const struct nat_entry *entry,
				      __u64 flags)
{
	return bpf_map_update_elem(&cilium_snat_v1, key, entry, flags);
}

static __always_inline void nat_delete(const struct nat_key *key)
{
	bpf_map_delete_elem(&cilium_snat_v1, key);
}

/* Whether there is a row.  No reader's word: the memory may be another's row by now. */
static __always_inline int nat_is_taken(const struct nat_key *key)
{
	return !!bpf_map_lookup_elem(&cilium_snat_v1, key);
}

#endif /* CILIUMD_NAT_MAP_H */
