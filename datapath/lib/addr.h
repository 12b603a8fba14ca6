/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Addresses: IPv4 lives in the IPv6 space as ::ffff:a.b.c.d, so that maps need one key form. */
#ifndef CILIUMD_ADDR_H
#define CILIUMD_ADDR_H

#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>

static __always_inline void addr_set_v4(struct cil_addr *addr, __be32 v4)
{
	addr->w[0] = 0;
	addr->w[1] = 0;
	addr->w[2] = bpf_htonl(0xffff);
	addr->w[3] = v4;
}

/* Of an option, which is a number: the first eight bytes and the last, in memory order. */
static __always_inline void addr_set_halves(struct cil_addr *addr, __u64 head, __u64 tail)
{
	__builtin_memcpy(&addr->w[0], &head, sizeof(head));
	__builtin_memcpy(&addr->w[2], &tail, sizeof(tail));
}

static __always_inline __be32 addr_v4(const struct cil_addr *addr)
{
	return addr->w[3];
}

static __always_inline int addr_is_v4(const struct cil_addr *addr)
{
	return !addr->w[0] && !addr->w[1] && addr->w[2] == bpf_htonl(0xffff);
}

/* The unspecified address; IPv4's is none in this form. */
static __always_inline int addr_is_zero(const struct cil_addr *addr)
{
	return !addr->w[0] && !addr->w[1] && !addr->w[2] && !addr->w[3];
}

/* fe80::/10, which no router forwards (RFC 4291 2.5.6); never an IPv4 address. */
static __always_inline int addr_is_link_local(const struct cil_addr *addr)
{
	return (addr->w[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* ff00::/8; never an IPv4 address. */
static __always_inline int addr_is_multicast_v6(const struct cil_addr *addr)
{
	return (addr->w[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

/* 224.0.0.0/4, and above it the broadcast address and what nobody may use (RFC 1112 4). */
static __always_inline int addr_is_group_v4(const struct cil_addr *addr)
{
	return (addr_v4(addr) & bpf_htonl(0xe0000000)) == bpf_htonl(0xe0000000);
}

/* 127.0.0.0/8 or ::1. */
static __always_inline int addr_is_loopback(const struct cil_addr *addr)
{
	if (addr_is_v4(addr))
		return (addr->w[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return !addr->w[0] && !addr->w[1] && !addr->w[2] && addr->w[3] == bpf_htonl(1);
}

static __always_inline int addr_equal(const struct cil_addr *a, const struct cil_addr *b)
{
	return a->w[3] == b->w[3] && a->w[2] == b->w[2] && a->w[1] == b->w[1] && a->w[0] == b->w[0];
}

/* The "check" of rows: user space computes the same (model/net.py fold32). */
static __always_inline __u32 fold32(const void *key, __u32 size)
{
	const __u32 *word = key;
	__u32 fold = 0;

#pragma unroll
	for (__u32 i = 0; i < size / 4; i++)
		fold = fold * 31 + word[i];
	return fold;
}

/*
 * The "check" of rows that must not be believed once a bit of them changed; user space computes the
 * same (desired/policy/maprows.py seal).  Both rounds are needed: after one a change of the highest
 * bits shows in the highest bits only.
 */
static __always_inline __u32 seal(__u64 content, __u32 key)
{
	const __u64 odd = 0x9e3779b97f4a7c15;
	__u64 mixed = (content ^ (__u64)key << 32 ^ key) * odd;

	mixed = (mixed ^ mixed >> 32) * odd;
	return mixed >> 32;
}

/* The first word of a recyclable row: one access, so "check" and its neighbour belong together. */
static __always_inline __u64 read_row_word(const void *row)
{
	return *(const volatile __u64 *)row;
}

#endif /* CILIUMD_ADDR_H */
