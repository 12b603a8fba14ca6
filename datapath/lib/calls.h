/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Tail calls inside one generation; programs are split so that each stays easy to verify. */
#ifndef CILIUMD_CALLS_H
#define CILIUMD_CALLS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include "lib/event.h"
#include "lib/packet.h"

/* Belongs to one generation, never reused by the next: a call cannot land in another build. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, CALL_MAX);
	__type(key, __u32);
	__type(value, __u32);
} calls SEC(".maps");

/* Does not return unless the target is missing, which drops the packet. */
static __always_inline int tail_call(struct __sk_buff *skb, struct packet *p, enum cil_call target)
{
	bpf_tail_call(skb, &calls, target);
	return DROP(skb, p, DROP_MISSED_TAIL_CALL, hook_direction(p->hook), 0);
}

#endif /* CILIUMD_CALLS_H */
