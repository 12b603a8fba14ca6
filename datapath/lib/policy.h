/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The verdict of one policy version.  There is no precedence here: user space resolved deny,
 * wildcards and defaults, so the longest prefix is the answer.
 *
 *   identity, direction --hash--> class (a miss is class 0, "everybody else")
 *   class, direction, protocol, port --LPM--> verdict, proxy slot, rule cookie
 */
#ifndef CILIUMD_POLICY_H
#define CILIUMD_POLICY_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include "lib/addr.h"

/* Sizes, not types: of a type that only an inner map names, BTF keeps no more than the name. */
struct policy_classes {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(key_size, sizeof(struct policy_class_key));
	__uint(value_size, sizeof(struct policy_class));
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__array(values, struct policy_classes);
} cilium_policy_classes_v1 SEC(".maps");

struct policy_rules {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(key_size, sizeof(struct policy_key));
	__uint(value_size, sizeof(struct policy_entry));
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__array(values, struct policy_rules);
} cilium_policy_rules_v1 SEC(".maps");

/* 1 and the identity's class; 0 when its row is damaged or would not hold still: no verdict then. */
static __always_inline int policy_class_of(void *classes, __u32 identity,
					   enum cil_direction direction, __u16 *class_id)
{
	struct policy_class_key key = { .identity = identity, .direction = direction };

	*class_id = 0;
#pragma unroll
	for (int i = 0; i < 2; i++) {
		struct policy_class *row = bpf_map_lookup_elem(classes, &key);
		__u64 word;

		if (!row)
			return 1;
		word = read_row_word(row);
		if ((__u32)word == seal((word >> 32) << 32 | identity, direction)) {
			*class_id = word >> 32;
			return 1;
		}
	}
	return 0;
}

/*
 * What a row of rules says, if it is as the agent wrote it.  LPM tries of some kernels reuse rows at
 * once, so what is checked is what was read: a copy.
 */
static __always_inline enum cil_policy_verdict policy_of_row(const struct policy_entry *row,
							     __u32 place, __u32 *rule_cookie)
{
	struct policy_entry entry;
	__u32 said;

	__builtin_memcpy(&entry, row, sizeof(entry));
	barrier();
	said = entry.verdict | entry.flags << 8 | (__u32)entry.proxy_slot << 16;
	if (entry.check != seal((__u64)entry.rule_cookie << 32 | said, place))
		return POLICY_VERDICT_DAMAGED;
	*rule_cookie = entry.rule_cookie;
	return entry.verdict;
}

/* POLICY_VERDICT_NONE: this version does not exist, which the caller must treat as a drop. */
static __always_inline enum cil_policy_verdict policy_lookup(__u32 version, __u32 identity,
							     enum cil_direction direction,
							     __u8 protocol, __be16 port,
							     __u32 *rule_cookie)
{
	struct policy_key key = {
		.prefixlen = POLICY_PREFIX_PORT,
		.direction = direction,
		.protocol = protocol,
		.dport = port,
	};
	struct policy_entry *entry;
	void *classes, *rules;

	classes = bpf_map_lookup_elem(&cilium_policy_classes_v1, &version);
	rules = bpf_map_lookup_elem(&cilium_policy_rules_v1, &version);
	if (!classes || !rules)
		return POLICY_VERDICT_NONE;
	if (!policy_class_of(classes, identity, direction, &key.class_id))
		return POLICY_VERDICT_DAMAGED;
	entry = bpf_map_lookup_elem(rules, &key);
	if (!entry)
		return POLICY_VERDICT_NONE;
	return policy_of_row(entry, (__u32)direction << 16 | key.class_id, rule_cookie);
}

static __always_inline int policy_drop_reason(enum cil_policy_verdict verdict)
{
	switch (verdict) {
	case POLICY_VERDICT_ALLOW:
		return 0;
	case POLICY_VERDICT_DENY:
		return DROP_POLICY_DENY;
	case POLICY_VERDICT_DEFAULT_DENY:
		return DROP_POLICY;
	case POLICY_VERDICT_DAMAGED:
		return DROP_POLICY_DAMAGED;
	default:
		return DROP_POLICY_NO_CONFIG;
	}
}

#endif /* CILIUMD_POLICY_H */
