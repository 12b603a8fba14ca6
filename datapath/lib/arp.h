/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A pod asks for its gateway, and only for that: the answer is its own device's MAC. */
#ifndef CILIUMD_ARP_H
#define CILIUMD_ARP_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include "lib/deliver.h"
#include "lib/packet.h"

/* linux/if_arp.h drags in libc; these three are all we need of it. */
enum {
	ARPHRD_ETHER = 1,
	ARPOP_REQUEST = 1,
	ARPOP_REPLY = 2,
};

struct arp_wire {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__u8 sender_mac[ETH_ALEN];
	__u8 sender_ip[4];
	__u8 target_mac[ETH_ALEN];
	__u8 target_ip[4];
};

/* 0 when *skb* now is the answer, or a drop reason. */
static __always_inline int arp_answer(struct __sk_buff *skb, const struct endpoint *endpoint)
{
	__be32 sender, target, router = cfg_router_ipv4;
	struct arp_wire arp;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &arp, sizeof(arp)))
		return DROP_INVALID;
	__builtin_memcpy(&sender, arp.sender_ip, sizeof(sender));
	__builtin_memcpy(&target, arp.target_ip, sizeof(target));
	if (arp.hardware != bpf_htons(ARPHRD_ETHER) || arp.protocol != bpf_htons(ETH_P_IP) ||
	    arp.hardware_length != ETH_ALEN || arp.protocol_length != sizeof(sender) ||
	    arp.operation != bpf_htons(ARPOP_REQUEST))
		return DROP_INVALID;
	/* Nobody else's name, neither in the frame nor in the question. */
	if (!sender || sender != endpoint->ipv4)
		return DROP_INVALID_SIP;
	if (target != router)
		return DROP_UNKNOWN_TARGET;
	arp.operation = bpf_htons(ARPOP_REPLY);
	__builtin_memcpy(arp.target_mac, endpoint->mac, ETH_ALEN);
	__builtin_memcpy(arp.target_ip, &sender, sizeof(sender));
	__builtin_memcpy(arp.sender_mac, endpoint->node_mac, ETH_ALEN);
	__builtin_memcpy(arp.sender_ip, &router, sizeof(router));
	if (bpf_skb_store_bytes(skb, ETH_HLEN, &arp, sizeof(arp), 0))
		return DROP_WRITE_ERROR;
	return store_macs(skb, endpoint->mac, endpoint->node_mac);
}

#endif /* CILIUMD_ARP_H */
