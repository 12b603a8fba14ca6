/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What became of a packet, told to user space; what the ring could not hold is counted. */
#ifndef CILIUMD_EVENT_H
#define CILIUMD_EVENT_H

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include "lib/hooks.h"
#include "lib/icmp.h"
#include "lib/metrics.h"
#include "lib/packet.h"

#ifndef CILIUMD_FILE
#error "a program file names itself (enum cil_source_file) before it includes lib/event.h"
#endif

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8 * 1024 * 1024);
} cilium_events_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, EVENT_LOSS_MAX);
	__type(key, __u32);
	__type(value, __u64);
} cilium_event_losses_v1 SEC(".maps");

/* Asked where there is something to tell only; on a running node, so that nothing is loaded anew for it. */
static __always_inline int is_silent(enum cil_event_type type)
{
	__u32 row = NODE_STATE_SILENT_EVENTS;
	__u64 *silent = bpf_map_lookup_elem(&cilium_node_state_v1, &row);

	return silent && *silent & 1ULL << type;
}

struct event_args {
	__u8 type;
	__u8 reason;
	__u8 direction;
	__u8 trace_point;
	__u8 audit;
	__u16 line;
	__u16 endpoint_id;
};

static __always_inline void send_event(struct __sk_buff *skb, const struct packet *p,
				       const struct event_args *args)
{
	struct event *event = bpf_ringbuf_reserve(&cilium_events_v1, sizeof(*event), 0);

	if (!event) {
		__u32 row = EVENT_LOSS_RING_FULL;
		__u64 *lost = bpf_map_lookup_elem(&cilium_event_losses_v1, &row);

		if (lost)
			*lost += 1;
		return;
	}
	event->timestamp = bpf_ktime_get_ns();
	event->type = args->type;
	event->reason = args->reason;
	event->hook = p->hook;
	event->direction = args->direction;
	event->endpoint_id = args->endpoint_id;
	event->line = args->line;
	event->src_identity = p->src_identity;
	event->dst_identity = p->dst_identity;
	event->ifindex = skb->ifindex;
	event->length = skb->len;
	event->rule_cookie = p->rule_cookie;
	event->policy_version = p->policy_version;
	event->src = p->src;
	event->dst = p->dst;
	if (is_icmp(p->protocol)) {
		event->sport = bpf_htons((__u16)p->icmp_type << 8 | p->icmp_code);
		event->dport = 0;
	} else {
		event->sport = p->sport;
		event->dport = p->dport;
	}
	event->protocol = p->protocol;
	event->tcp_flags = p->tcp_flags;
	event->ct_state = p->ct_state;
	event->trace_point = args->trace_point;
	__builtin_memcpy(event->smac, p->smac, 6);
	__builtin_memcpy(event->dmac, p->dmac, 6);
	event->file = CILIUMD_FILE;
	event->audit = args->audit;
	event->ethertype = p->ethertype;
	bpf_ringbuf_submit(event, 0);
}

/* Count, tell, and drop.  Use DROP(), which adds the line. */
static __always_inline int drop_packet(struct __sk_buff *skb, const struct packet *p, __u8 reason,
				       enum cil_direction direction, __u16 endpoint_id, __u16 line)
{
	count_packet(reason, direction, skb->len);
	if (!is_silent(EVENT_DROP)) {
		struct event_args args = {
			.type = EVENT_DROP,
			.reason = reason,
			.direction = direction,
			.line = line,
			.endpoint_id = endpoint_id,
		};

		send_event(skb, p, &args);
	}
	return TC_ACT_SHOT;
}

#define DROP(skb, p, reason, direction, endpoint_id)                                               \
	drop_packet(skb, p, reason, direction, endpoint_id, __LINE__)

static __always_inline void trace_packet(struct __sk_buff *skb, const struct packet *p,
					 enum cil_trace_point point, enum cil_direction direction,
					 __u16 endpoint_id)
{
	if (p->flags & PKT_REPORT && !is_silent(EVENT_TRACE)) {
		struct event_args args = {
			.type = EVENT_TRACE,
			.direction = direction,
			.trace_point = point,
			.endpoint_id = endpoint_id,
		};

		send_event(skb, p, &args);
	}
}

#endif /* CILIUMD_EVENT_H */
