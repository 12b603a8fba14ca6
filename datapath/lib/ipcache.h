/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Identity of an address that is no local endpoint: a hash for single addresses, then an LPM for
 * prefixes.  (An LPM of many /32 costs ten times the hash.)
 */
#ifndef CILIUMD_IPCACHE_H
#define CILIUMD_IPCACHE_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include "lib/addr.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 512000);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct ipcache_key);
	__type(value, struct ipcache_entry);
} cilium_ipcache_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 512000);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct ipcache_lpm_key);
	__type(value, struct ipcache_entry);
} cilium_ipcache_lpm_v1 SEC(".maps");

enum {
	IPCACHE_LPM_FULL = 32 + 128, /* cluster id and a whole address */
};

/* Whether it is another node: as all of them, as the API server's, or by a number of its own. */
static __always_inline int identity_is_node(__u32 identity)
{
	return identity == ID_REMOTE_NODE || identity == ID_KUBE_APISERVER ||
	       identity >> SCOPE_SHIFT == SCOPE_NODE;
}

/* The number that policies judge by, of a row with or without one of its own for that. */
static __always_inline __u32 judged_by(__u32 identity, __u32 judged)
{
	return judged ? judged : identity;
}

/* What is known of an address that is no local endpoint. */
struct ipcache_info {
	__u32 identity;
	__u32 judged;		/* what policies judge it by */
	int exact;		/* of this address alone, not of a network around it */
	struct cil_addr tunnel; /* node to reach it by; all zero: without a tunnel */
};

/* Whether it lies behind a node's tunnel.  One question instead of four: the verifier walks each. */
static __always_inline int behind_tunnel(const struct ipcache_info *info)
{
	const struct cil_addr *node = &info->tunnel;

	return !!(node->w[0] | node->w[1] | node->w[2] | node->w[3]);
}

/* An address nobody told us about is the world's, each family's its own. */
static __always_inline void ipcache_lookup(const struct cil_addr *addr, struct ipcache_info *info)
{
	struct ipcache_key key = { .addr = *addr };
	struct ipcache_lpm_key lpm = { .prefixlen = IPCACHE_LPM_FULL, .addr = *addr };
	__u32 check = fold32(addr, sizeof(*addr));
	struct ipcache_entry *entry;

	info->exact = 1;
#pragma unroll
	for (int i = 0; i < 2; i++) {
		__u64 word;

		entry = bpf_map_lookup_elem(&cilium_ipcache_v1, &key);
		if (!entry)
			break;
		word = read_row_word(entry);
		info->tunnel = entry->tunnel_endpoint;
		info->judged = entry->judged;
		barrier();
		if ((__u32)word == check && read_row_word(entry) == word) {
			info->identity = word >> 32;
			info->judged = judged_by(info->identity, info->judged);
			return;
		}
	}
	info->exact = 0;
	entry = bpf_map_lookup_elem(&cilium_ipcache_lpm_v1, &lpm);
	if (entry) {
		info->identity = entry->identity;
		info->judged = info->identity;
		info->tunnel = entry->tunnel_endpoint;
		return;
	}
	info->identity = addr_is_v4(addr) ? ID_WORLD : ID_WORLD_IPV6;
	info->judged = info->identity;
	__builtin_memset(&info->tunnel, 0, sizeof(info->tunnel));
}

static __always_inline __u32 ipcache_identity(const struct cil_addr *addr)
{
	struct ipcache_info info;

	ipcache_lookup(addr, &info);
	return info.identity;
}

#endif /* CILIUMD_IPCACHE_H */
