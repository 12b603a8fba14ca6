/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Node state words and the table of hook programs that the entry programs jump through. */
#ifndef CILIUMD_HOOKS_H
#define CILIUMD_HOOKS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>

/*
 * Never called, and so never loaded.  struct __sk_buff only points to these two: as types that are
 * declared and not defined, clang puts them into BTF in the order of its own pointers, and two
 * builds of one release would differ.
 */
__attribute__((used)) static __noinline int define_types(struct bpf_flow_keys *keys,
							 struct bpf_sock *sock)
{
	return !keys && !sock;
}

/* Written by the agent alone, one aligned store per word (enum cil_node_state). */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NODE_STATE_MAX);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} cilium_node_state_v1 SEC(".maps");

/* Two halves of HOOK_MAX rows: generation g owns half g & 1, so a cut-over is one store. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 2 * HOOK_MAX);
	__type(key, __u32);
	__type(value, __u32);
} cilium_hooks_v1 SEC(".maps");

/* What a hook's packets are, seen from the pod or node: the direction that metrics count. */
static __always_inline enum cil_direction hook_direction(enum cil_hook hook)
{
	switch (hook) {
	case HOOK_FROM_CONTAINER:
	case HOOK_TO_NETDEV:
	case HOOK_TO_OVERLAY:
		return DIR_EGRESS;
	default:
		return DIR_INGRESS;
	}
}

#endif /* CILIUMD_HOOKS_H */
