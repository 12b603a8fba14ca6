/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packets and bytes by drop reason (0: forwarded) and direction. */
#ifndef CILIUMD_METRICS_H
#define CILIUMD_METRICS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, METRICS_MAX);
	__type(key, __u32);
	__type(value, struct metric);
} cilium_metrics_v1 SEC(".maps");

static __always_inline void count_packet(__u8 reason, enum cil_direction direction, __u32 bytes)
{
	__u32 row = (__u32)reason * DIR_MAX + (direction & (DIR_MAX - 1));
	struct metric *metric = bpf_map_lookup_elem(&cilium_metrics_v1, &row);

	if (metric) {
		metric->packets++;
		metric->bytes += bytes;
	}
}

#endif /* CILIUMD_METRICS_H */
