/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A port for a masqueraded flow.  Who has IN row {destination, our address, port} has the port.
 *
 *   its own port, or the one it had   nat_claim(): one row is asked
 *   a free one                        nat_find_port(): thousands are looked at, from random ones on, in random strides
 *   the port of a flow that is over   nat_find_port_of_old(): conntrack says so, the agent has not tidied up yet
 *   none                              DROP_NAT_NO_MAPPING, and for NAT_REST others search for a moment only
 *
 * Strides are random, too: with a fixed one, runs of taken ports would grow together, and whoever came into one
 * would search to its end.  docs/decisions/0021 has the counts.
 */
#ifndef CILIUMD_NAT_PORT_H
#define CILIUMD_NAT_PORT_H

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include <ciliumd/config.h>
#include "lib/addr.h"
#include "lib/ct.h"
#include "lib/ct_map.h"
#include "lib/nat_map.h"
#include "lib/packet.h"

CONFIG(__u16, nat_port_min, 32768, "lowest port given to masqueraded flows");
CONFIG(__u16, nat_port_max, 65535, "highest port given to masqueraded flows");

enum {
	NAT_ROUNDS = 4, /* of so many tries each; in a round no port is tried twice */
	NAT_TRIES = 512,
	NAT_QUICK_TRIES = 16,
	NAT_HANDOVERS = 64,
	NAT_REST = 10, /* nat_tick()s */
};

/* Some milliseconds each, and around in a minute. */
static __always_inline __u16 nat_tick(void)
{
	return bpf_ktime_get_ns() >> 20;
}

/* The row that gives p->nat.in to the flow of *p*. */
static __always_inline long nat_give(struct packet *p, __u64 flags)
{
	struct nat_entry *row = &p->nat.in_row;

	row->check = fold32(&p->nat.in, sizeof(p->nat.in));
	row->port = p->sport;
	row->flags = 0;
	row->addr = p->src;
	row->created = packet_now(p);
	row->pad0 = 0;
	return nat_write(&p->nat.in, row, flags);
}

/* Claim *port* for the flow of *p*.  1 when it is ours now, or was already. */
static __always_inline int nat_claim(struct packet *p, __be16 port)
{
	p->nat.in.dport = port;
	if (nat_read(&p->nat.in, &p->nat.in_row))
		return p->nat.in_row.port == p->sport && addr_equal(&p->nat.in_row.addr, &p->src);
	return !nat_give(p, BPF_NOEXIST);
}

/* Nobody will miss the flow of p->nat.in_row, the IN row of p->nat.in; of the node's own nobody knows. */
static __always_inline int nat_is_over(struct packet *p)
{
	const __u16 closed = CT_F_LOCAL_CLOSED | CT_F_REMOTE_CLOSED;
	struct ct_key *flow = &p->nat.in_flow;
	struct ct_entry ct;

	if (addr_equal(&p->nat.in_row.addr, &p->nat.in.dst))
		return 0;
	flow->local = p->nat.in_row.addr;
	flow->remote = p->nat.in.src;
	flow->local_port = p->nat.in_row.port;
	flow->remote_port = p->nat.in.sport;
	flow->protocol = p->nat.in.protocol;
	flow->kind = CT_KIND_FLOW;
	flow->zone = 0;
	return !ct_read(flow, &ct) || ct.expires <= packet_now(p) || (ct.flags & closed) == closed;
}

/* A row of p->nat.in that is about another one. */
static __always_inline long nat_note(struct packet *p, enum cil_nat_dir dir, __u16 tick,
				     __u64 flags)
{
	struct nat_entry *row = &p->nat.in_row;
	long failed;

	p->nat.in.dir = dir;
	__builtin_memset(row, 0, sizeof(*row));
	row->check = fold32(&p->nat.in, sizeof(p->nat.in));
	row->flags = tick;
	row->created = packet_now(p);
	failed = nat_write(&p->nat.in, row, flags);
	p->nat.in.dir = NAT_IN;
	return failed;
}

/*
 * What follows are global functions: each is verified once, and not for every way that leads to it; on Linux
 * 5.10 they can be handed no pointer, so all they know is the packet in hand.  They are small, as the stacks of all
 * that are running come to 512 bytes at most.  Loops have one way through:
 * where two met again in each turn, the verifier would soon have forgotten that it was there.
 */

/* 1: a search towards there has just failed. */
__noinline int nat_rests(void)
{
	struct packet *p = packet_in_hand();
	int found;

	if (!p)
		return 0;
	p->nat.in.dport = 0;
	p->nat.in.dir = NAT_FULL;
	found = nat_read(&p->nat.in, &p->nat.in_row);
	p->nat.in.dir = NAT_IN;
	return found && packet_now(p) - p->nat.in_row.created <= 1 &&
	       (__u16)(nat_tick() - p->nat.in_row.flags) < NAT_REST;
}

/* A search has failed. */
__noinline int nat_rest(void)
{
	struct packet *p = packet_in_hand();

	if (!p)
		return 0;
	p->nat.in.dport = 0;
	return nat_note(p, NAT_FULL, nat_tick(), BPF_ANY);
}

/* 1: the port of p->nat.in is free, or nobody will miss the flow that has it. */
__noinline int nat_port_is_over(void)
{
	struct packet *p = packet_in_hand();

	return p && (!nat_read(&p->nat.in, &p->nat.in_row) || nat_is_over(p));
}

/* Take such a port over: 1 when it is ours now. */
__noinline int nat_take_over(void)
{
	struct packet *p = packet_in_hand();
	int ours;

	/* Two at once would both think they have it. */
	if (!p || nat_note(p, NAT_HANDOVER, 0, BPF_NOEXIST))
		return 0;
	if (nat_read(&p->nat.in, &p->nat.in_row))
		ours = nat_is_over(p) && !nat_give(p, BPF_ANY);
	else
		ours = !nat_give(p, BPF_NOEXIST);
	p->nat.in.dir = NAT_HANDOVER;
	nat_delete(&p->nat.in);
	p->nat.in.dir = NAT_IN;
	return ours;
}

/* Ports of the range from a random one on; of a range of 2^n ports an odd stride misses none. */
struct nat_walk {
	__u32 start;
	__u32 stride;
};

/* A small range is walked as a whole, whatever its size. */
static __always_inline struct nat_walk nat_walk_from_anywhere(__u32 tries)
{
	int is_small = (__u32)cfg_nat_port_max - cfg_nat_port_min < tries;

	return (struct nat_walk){
		.start = bpf_get_prandom_u32() >> 16,
		.stride = is_small ? 1 : bpf_get_prandom_u32() >> 16 | 1,
	};
}

static __always_inline __be16 nat_port_at(const struct nat_walk *walk, __u32 i)
{
	__u32 range = (__u32)cfg_nat_port_max - cfg_nat_port_min + 1;

	return bpf_htons(cfg_nat_port_min + (walk->start + i * walk->stride) % range);
}

/* 1: one of *tries* ports is free; p->nat.in has it then. */
static __always_inline int nat_look_for_free(__u32 tries)
{
	struct nat_walk walk = nat_walk_from_anywhere(tries);
	struct packet *p = packet_in_hand();

	if (!p)
		return 0;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < tries; i++) {
		p->nat.in.dport = nat_port_at(&walk, i);
		if (!nat_is_taken(&p->nat.in))
			return 1;
	}
	return 0;
}

__noinline int nat_look(void)
{
	return nat_look_for_free(NAT_TRIES);
}

__noinline int nat_look_quickly(void)
{
	return nat_look_for_free(NAT_QUICK_TRIES);
}

/* 1: one of NAT_HANDOVERS ports is over; p->nat.in has it then. */
__noinline int nat_look_for_old(void)
{
	struct nat_walk walk = nat_walk_from_anywhere(NAT_HANDOVERS);
	struct packet *p = packet_in_hand();

	if (!p)
		return 0;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < NAT_HANDOVERS; i++) {
		p->nat.in.dport = nat_port_at(&walk, i);
		if (nat_port_is_over())
			return 1;
	}
	return 0;
}

/* A free port for the flow of the packet in hand, of whose IN row p->nat.in has all but the port; 0: none. */
__noinline int nat_find_port(void)
{
	struct packet *p = packet_in_hand();

	if (!p)
		return 0;
	if (nat_rests())
		return nat_look_quickly() && !nat_give(p, BPF_NOEXIST) ?
			       bpf_ntohs(p->nat.in.dport) :
			       0;
	/* Not as a loop: clang enters that in the middle, and Linux 5.10 takes no way back to there. */
#pragma unroll
	for (int round = 0; round < NAT_ROUNDS; round++) {
		if (nat_look() && !nat_give(p, BPF_NOEXIST))
			return bpf_ntohs(p->nat.in.dport);
	}
	return 0;
}

/* The same when no port is free: one whose flow is over. */
__noinline int nat_find_port_of_old(void)
{
	struct packet *p = packet_in_hand();

	if (!p || nat_rests())
		return 0;
#pragma unroll
	for (int round = 0; round < NAT_ROUNDS; round++) {
		if (nat_look_for_old() && nat_take_over())
			return bpf_ntohs(p->nat.in.dport);
	}
	nat_rest();
	return 0;
}

#endif /* CILIUMD_NAT_PORT_H */
