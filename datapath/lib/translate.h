/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Changing addresses and ports of a packet of either family: lib/rewrite.h or lib/rewrite6.h.  Addresses
 * are as keys have them; the new one is of the packet's own family, and may lie in a row: it is read once.
 * A program that asks for the family once and hands it on as *v6* (family_of()) is walked once for each.
 */
#ifndef CILIUMD_TRANSLATE_H
#define CILIUMD_TRANSLATE_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include "lib/addr.h"
#include "lib/packet.h"
#include "lib/rewrite.h"
#include "lib/rewrite6.h"

/* Address and port of one side of the packet, and of *p*.  0, or a drop reason. */
static __always_inline int translate(struct __sk_buff *skb, struct packet *p,
				     enum rewrite_side side, const struct cil_addr *addr,
				     __be16 port, int v6)
{
	struct cil_addr once;

	if (!v6)
		return rewrite(skb, p, side, addr_v4(addr), port);
	once = *addr;
	return rewrite_v6(skb, p, side, &once, port);
}

/* One side of the packet that an ICMP error quotes. */
static __always_inline int translate_quoted(struct __sk_buff *skb, struct packet *p,
					    enum rewrite_side side, const struct cil_addr *addr,
					    __be16 port, int v6)
{
	struct cil_addr once;

	if (!v6)
		return rewrite_quoted(skb, p, side, addr_v4(addr), port);
	once = *addr;
	return rewrite_quoted_v6(skb, p, side, &once, port);
}

/* Address of the header that an ICMP error travels by. */
static __always_inline int translate_outer(struct __sk_buff *skb, struct packet *p,
					   enum rewrite_side side, const struct cil_addr *addr,
					   int v6)
{
	struct cil_addr once;

	if (!v6)
		return rewrite_outer(skb, p, side, addr_v4(addr));
	once = *addr;
	return rewrite_outer_v6(skb, p, side, &once);
}

#endif /* CILIUMD_TRANSLATE_H */
