/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Gives a test run what it has not, a tunnel key, and goes on in the program under test; for tests only.
 *
 * skb->cb says where the packet came from: the outer source in host order, then the identity.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include "lib/hooks.h"

SEC("tc")
int tunnel_brings(struct __sk_buff *skb)
{
	/* A receiver's "remote" is the source of the outer packet, a sender's its destination. */
	struct bpf_tunnel_key key = {
		.local_ipv4 = skb->cb[0],
		.tunnel_id = skb->cb[1],
		.tunnel_ttl = 64,
	};

	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), 0))
		return TC_ACT_PIPE;
	bpf_tail_call(skb, &cilium_hooks_v1, HOOK_FROM_OVERLAY);
	return TC_ACT_PIPE;
}

char _license[] SEC("license") = "Dual BSD/GPL";
