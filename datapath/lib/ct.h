/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Conntrack rows: what a packet makes of them, and how they age. */
#ifndef CILIUMD_CT_H
#define CILIUMD_CT_H

#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include <ciliumd/config.h>
#include "lib/ct_map.h"
#include "lib/packet.h"
#include "lib/parse.h"

CONFIG(__u32, ct_timeout_tcp, 8000, "seconds an established TCP connection may be silent");
CONFIG(__u32, ct_timeout_tcp_syn, 60, "seconds a TCP handshake may take");
CONFIG(__u32, ct_timeout_tcp_fin, 10, "seconds a closed TCP connection is remembered");
CONFIG(__u32, ct_timeout_any, 60, "seconds any other flow may be silent");
CONFIG(__u32, report_interval, 5,
       "seconds between trace events and conntrack refreshes of one flow");

/* A consistent copy, p->ct, of the live row of p->key; 0 when there is none. */
static __always_inline int ct_lookup(struct packet *p)
{
	return ct_read(&p->key, &p->ct) && p->ct.expires > packet_now(p);
}

static __always_inline __u32 ct_timeout(__u8 protocol, __u16 flags)
{
	const __u16 closed = CT_F_LOCAL_CLOSED | CT_F_REMOTE_CLOSED;

	if (protocol != IPPROTO_TCP)
		return cfg_ct_timeout_any;
	if ((flags & closed) == closed)
		return cfg_ct_timeout_tcp_fin;
	return flags & CT_F_SEEN_NON_SYN ? cfg_ct_timeout_tcp : cfg_ct_timeout_tcp_syn;
}

/*
 * A SYN without ACK or an echo request starts anew when it runs against the flow's direction: the
 * row allowed one side to open it, not the other.  A SYN also does when the old one is closed.
 */
static __always_inline int ct_starts_anew(const struct packet *p, const struct ct_entry *entry,
					  int reply)
{
	if (p->protocol == IPPROTO_TCP)
		return (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN &&
		       (reply || entry->flags & (CT_F_LOCAL_CLOSED | CT_F_REMOTE_CLOSED));
	return reply && is_icmp(p->protocol) &&
	       icmp_class(p->protocol, p->icmp_type) == ICMP_ECHO_ASKED;
}

/* What this packet does to the row.  1 when the row must be written. */
static __always_inline int ct_advance(struct packet *p, struct ct_entry *entry, int from_local,
				      int reply)
{
	__u32 now = packet_now(p);
	__u8 *seen = from_local ? &entry->tcp_flags_local : &entry->tcp_flags_remote;
	__u16 flags = entry->flags;

	if (reply)
		flags |= CT_F_SEEN_REPLY;
	if (p->protocol == IPPROTO_TCP && !(p->flags & PKT_LATER_FRAGMENT)) {
		if (!(p->tcp_flags & TCP_SYN))
			flags |= CT_F_SEEN_NON_SYN;
		if (p->tcp_flags & TCP_RST)
			flags |= CT_F_LOCAL_CLOSED | CT_F_REMOTE_CLOSED;
		else if (p->tcp_flags & TCP_FIN)
			flags |= from_local ? CT_F_LOCAL_CLOSED : CT_F_REMOTE_CLOSED;
	}
	if (flags == entry->flags && (*seen | p->tcp_flags) == *seen &&
	    now - entry->last_report < cfg_report_interval)
		return 0;
	entry->flags = flags;
	*seen |= p->tcp_flags;
	entry->last_report = now;
	entry->expires = now + ct_timeout(p->protocol, flags);
	p->flags |= PKT_REPORT;
	return 1;
}

#endif /* CILIUMD_CT_H */
