// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What is attached for good: one tiny program per hook that jumps into the active generation.
 * A restart or upgrade loads the next generation aside, fills the idle half of cilium_hooks_v1
 * and stores one word; every hook of every device switches with that store.
 */
#include <ciliumd/abi.h>
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "lib/hooks.h"
#include "lib/metrics.h"

/*
 * Text of each map's layout when it was created; user space alone reads and writes it.  Sizes
 * equal, fields moved: libbpf would reuse such a map silently, the agent refuses it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, struct layout_key);
	__type(value, struct layout_value);
} cilium_layout_v1 SEC(".maps");

static __always_inline int enter(struct __sk_buff *skb, enum cil_hook hook, int on_miss)
{
	__u32 row = NODE_STATE_GENERATION;
	__u64 *generation = bpf_map_lookup_elem(&cilium_node_state_v1, &row);

	if (generation) {
		__u32 half = *(volatile __u64 *)generation & 1;

		bpf_tail_call(skb, &cilium_hooks_v1, half * HOOK_MAX + hook);
	}
	/* Pods fail closed; the node's own traffic never depends on a program being there. */
	count_packet(DROP_MISSED_TAIL_CALL, hook_direction(hook), skb->len);
	return on_miss;
}

SEC("tc")
int entry_from_container(struct __sk_buff *skb)
{
	return enter(skb, HOOK_FROM_CONTAINER, TC_ACT_SHOT);
}

SEC("tc")
int entry_to_container(struct __sk_buff *skb)
{
	return enter(skb, HOOK_TO_CONTAINER, TC_ACT_SHOT);
}

SEC("tc")
int entry_from_host(struct __sk_buff *skb)
{
	return enter(skb, HOOK_FROM_HOST, TC_ACT_SHOT);
}

SEC("tc")
int entry_from_netdev(struct __sk_buff *skb)
{
	return enter(skb, HOOK_FROM_NETDEV, TC_ACT_UNSPEC);
}

SEC("tc")
int entry_to_netdev(struct __sk_buff *skb)
{
	return enter(skb, HOOK_TO_NETDEV, TC_ACT_UNSPEC);
}

SEC("tc")
int entry_from_overlay(struct __sk_buff *skb)
{
	return enter(skb, HOOK_FROM_OVERLAY, TC_ACT_SHOT);
}

SEC("tc")
int entry_to_overlay(struct __sk_buff *skb)
{
	return enter(skb, HOOK_TO_OVERLAY, TC_ACT_SHOT);
}

char _license[] SEC("license") = "Dual BSD/GPL";
