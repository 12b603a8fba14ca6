/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The map of masqueraded flows in two layouts: read from the new one, then from the old one, written
 * to both.  cilium_snat_v1, which both versions write, decides who has a port.
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
	__type(value, struct nat_entry_v1);
} cilium_snat_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 131072);
	__type(key, struct nat_key);
	__type(value, struct nat_entry);
} cilium_snat_v2 SEC(".maps");

static __always_inline void nat_from_v1(const struct nat_entry_v1 *old, struct nat_entry *entry)
{
	entry->check = old->check;
	entry->port = old->port;
	entry->flags = old->flags;
	entry->created = old->created;
	entry->carried = 1;
	entry->addr = old->addr;
	entry->pad0 = 0;
}

static __always_inline void nat_to_v1(const struct nat_entry *entry, struct nat_entry_v1 *old)
{
	old->check = entry->check;
	old->port = entry->port;
	old->flags = entry->flags;
	old->addr = entry->addr;
	old->created = entry->created;
	old->pad0 = 0;
}

/* A consistent copy of a row: 0 when there is none. */
static __always_inline int nat_read(const struct nat_key *key, struct nat_entry *copy)
{
	__u32 check = fold32(key, sizeof(*key));

#pragma unroll
	for (int i = 0; i < 2; i++) {
		struct nat_entry *row = bpf_map_lookup_elem(&cilium_snat_v2, key);
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
		struct nat_entry_v1 *row = bpf_map_lookup_elem(&cilium_snat_v1, key);
		__u64 word;

		if (!row)
			return 0;
		word = read_row_word(row);
		nat_from_v1(row, copy);
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
	struct nat_entry_v1 old;
	long failed;

	nat_to_v1(entry, &old);
	failed = bpf_map_update_elem(&cilium_snat_v1, key, &old, flags);
	return failed ? failed : bpf_map_update_elem(&cilium_snat_v2, key, entry, BPF_ANY);
}

static __always_inline void nat_delete(const struct nat_key *key)
{
	bpf_map_delete_elem(&cilium_snat_v1, key);
	bpf_map_delete_elem(&cilium_snat_v2, key);
}

/* Whether there is a row: both versions write the old layout. */
static __always_inline int nat_is_taken(const struct nat_key *key)
{
	return !!bpf_map_lookup_elem(&cilium_snat_v1, key);
}

#endif /* CILIUMD_NAT_MAP_H */
