/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Local endpoints: from a device or an address to a slot, from a slot to its facts. */
#ifndef CILIUMD_ENDPOINT_H
#define CILIUMD_ENDPOINT_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include "lib/addr.h"
#include "lib/ipcache.h"
#include "lib/packet.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, __u32);
} cilium_ifindex_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct lxc_key);
	__type(value, struct lxc_value);
} cilium_lxc_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct endpoint);
} cilium_endpoints_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} cilium_endpoint_state_v1 SEC(".maps");

/*
 * Facts of the endpoint in *slot*, and the policy version in force, read once.  NULL when the
 * slot is free or changes hands right now: its generation and its facts must agree.
 */
static __always_inline const struct endpoint *endpoint_in_slot(__u32 slot, __u32 *policy_version)
{
	__u64 *state = bpf_map_lookup_elem(&cilium_endpoint_state_v1, &slot);
	const struct endpoint *endpoint;
	__u64 word;

	if (!state)
		return NULL;
	word = *(volatile __u64 *)state;
	endpoint = bpf_map_lookup_elem(&cilium_endpoints_v1, &slot);
	if (!word || !endpoint || endpoint->slot_gen != word >> 32)
		return NULL;
	*policy_version = (__u32)word;
	return endpoint;
}

/* What policies judge a local endpoint by, under the address of the packet's family. */
static __always_inline __u32 judged_of_endpoint(const struct packet *p,
						const struct endpoint *endpoint)
{
	return judged_by(endpoint->identity,
			 is_ipv6(p) ? endpoint->judged_ipv6 : endpoint->judged_ipv4);
}

static __always_inline __u32 slot_of_device(__u32 ifindex)
{
	__u32 *slot = bpf_map_lookup_elem(&cilium_ifindex_v1, &ifindex);

	return slot ? *(volatile __u32 *)slot : SLOT_NONE;
}

/* Slot of a local endpoint, SLOT_HOST for the node's own addresses, else SLOT_NONE. */
static __always_inline __u32 slot_of_addr(const struct cil_addr *addr)
{
	__u32 check = fold32(addr, sizeof(*addr));

	/* A row recycled under our eyes shows another address's fold: look again. */
#pragma unroll
	for (int i = 0; i < 2; i++) {
		struct lxc_value *row = bpf_map_lookup_elem(&cilium_lxc_v1, addr);
		__u64 word;

		if (!row)
			return SLOT_NONE;
		word = read_row_word(row);
		if ((__u32)word == check)
			return word >> 32;
	}
	return SLOT_NONE;
}

#endif /* CILIUMD_ENDPOINT_H */
