/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Types of ICMP, and what is made of each, in both families: requests, answers, errors, and others. */
#ifndef CILIUMD_ICMP_H
#define CILIUMD_ICMP_H

#include <linux/in.h>
#include <linux/in6.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>

enum icmp_v4 {
	ICMP_V4_ECHO_REPLY = 0,
	ICMP_V4_UNREACHABLE = 3,
	ICMP_V4_PORT_UNREACHABLE = 3,  /* code */
	ICMP_V4_FRAG_NEEDED = 4,       /* code */
	ICMP_V4_ADMIN_PROHIBITED = 13, /* code */
	ICMP_V4_ECHO = 8,
	ICMP_V4_TIME_EXCEEDED = 11,
	ICMP_V4_PARAMETER_PROBLEM = 12,
};

enum icmp_v6 {
	ICMP_V6_UNREACHABLE = 1,
	ICMP_V6_ADMIN_PROHIBITED = 1, /* code */
	ICMP_V6_PORT_UNREACHABLE = 4, /* code */
	ICMP_V6_PACKET_TOO_BIG = 2,
	ICMP_V6_TIME_EXCEEDED = 3,
	ICMP_V6_PARAMETER_PROBLEM = 4,
	ICMP_V6_ECHO = 128,
	ICMP_V6_ECHO_REPLY = 129,
	ICMP_V6_NEIGHBOUR_SOLICITATION = 135,
	ICMP_V6_NEIGHBOUR_ADVERTISEMENT = 136,
};

/* Of both families; read as a whole. */
struct icmp_wire {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be16 id;
	__be16 sequence;
};

enum icmp_class {
	ICMP_OTHER, /* of one link (neighbours, routers, groups), or of no use to a pod */
	ICMP_ECHO_ASKED,
	ICMP_ECHO_ANSWERED,
	ICMP_ERROR, /* quotes a packet */
};

static __always_inline int is_icmp(__u8 protocol)
{
	return protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6;
}

static __always_inline enum icmp_class icmp_class(__u8 protocol, __u8 type)
{
	if (protocol == IPPROTO_ICMPV6) {
		switch (type) {
		case ICMP_V6_ECHO:
			return ICMP_ECHO_ASKED;
		case ICMP_V6_ECHO_REPLY:
			return ICMP_ECHO_ANSWERED;
		case ICMP_V6_UNREACHABLE:
		case ICMP_V6_PACKET_TOO_BIG:
		case ICMP_V6_TIME_EXCEEDED:
		case ICMP_V6_PARAMETER_PROBLEM:
			return ICMP_ERROR;
		default:
			return ICMP_OTHER;
		}
	}
	switch (type) {
	case ICMP_V4_ECHO:
		return ICMP_ECHO_ASKED;
	case ICMP_V4_ECHO_REPLY:
		return ICMP_ECHO_ANSWERED;
	case ICMP_V4_UNREACHABLE:
	case ICMP_V4_TIME_EXCEEDED:
	case ICMP_V4_PARAMETER_PROBLEM:
		return ICMP_ERROR;
	default:
		return ICMP_OTHER;
	}
}

/* Why a type that is none of these does not pass. */
static __always_inline int icmp_refused(__u8 protocol)
{
	return protocol == IPPROTO_ICMPV6 ? DROP_ICMP6_TYPE : DROP_ICMP_TYPE;
}

#endif /* CILIUMD_ICMP_H */
