/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Internet checksums of headers that programs make themselves. */
#ifndef CILIUMD_SUM_H
#define CILIUMD_SUM_H

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "lib/parse6.h"

static __always_inline __u16 fold_checksum(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* *sum* of an IPv6 packet's payload, and of what the transport's sum covers besides (RFC 8200 8.1). */
static __always_inline long pseudo_sum(struct ipv6_wire *ip, __u32 sum)
{
	__be32 rest[2] = { bpf_htonl(bpf_ntohs(ip->payload_length)), bpf_htonl(ip->next_header) };

	sum = bpf_csum_diff(NULL, 0, ip->src.w, sizeof(ip->src) + sizeof(ip->dst), sum);
	return bpf_csum_diff(NULL, 0, rest, sizeof(rest), sum);
}

#endif /* CILIUMD_SUM_H */
