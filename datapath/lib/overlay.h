/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The tunnel between nodes: VXLAN, with the sender's identity where a network's number would be.
 * A receiver believes that identity only as far as it fits the inner source (progs/overlay.bpf.c).
 */
#ifndef CILIUMD_OVERLAY_H
#define CILIUMD_OVERLAY_H

#include <stddef.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include <ciliumd/config.h>
#include "lib/addr.h"
#include "lib/deliver.h"
#include "lib/ipcache.h"
#include "lib/packet.h"
#include "lib/parse.h"

CONFIG(__u8, tunnel, 0, "reach the pods of other nodes through VXLAN");
CONFIG(__u8, tunnel_ipv6, 0, "nodes reach each other over IPv6, not over IPv4");
CONFIG(__u16, tunnel_port, 8472, "UDP port of the tunnel, in host byte order");
CONFIG(__u32, overlay_ifindex, 0, "ifindex of cilium_vxlan");
CONFIG(__u32, overlay_mtu, 0, "bytes of the largest IP packet that fits the tunnel; 0: any");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct node_key);
	__type(value, struct node_value);
} cilium_nodes_v1 SEC(".maps");

enum {
	/* As far as kernel 5.10 knows the structure; newer ones take that, too. */
	TUNNEL_KEY_SIZE = offsetof(struct bpf_tunnel_key, local_ipv4),
	TUNNEL_TTL = 64,
	/*
	 * In place of an identity: a node that is a client of the sender's node ports, where nodes have
	 * identities by their labels.  It is no more than a node to the receiver: which one is behind
	 * the sender's address nobody can tell, and it must not pass for the sender.
	 */
	TUNNEL_NODE_CLIENT = 127,
};

/* The node that has this address, 0: none of the cluster. */
static __always_inline __u32 node_of_addr(const struct cil_addr *addr)
{
	__u32 check = fold32(addr, sizeof(*addr));

#pragma unroll
	for (int i = 0; i < 2; i++) {
		struct node_value *row = bpf_map_lookup_elem(&cilium_nodes_v1, addr);
		__u64 word;

		if (!row)
			return 0;
		word = read_row_word(row);
		if ((__u32)word == check)
			return word >> 32;
	}
	return 0;
}

/* One of a node's addresses in the network, or of its cilium_host, which lies behind the tunnel. */
static __always_inline int is_node_address(const struct cil_addr *addr,
					   const struct ipcache_info *info)
{
	return (info->exact && identity_is_node(info->identity)) || node_of_addr(addr);
}

/* Whether this is a packet of the tunnel itself, to be seen on native devices only. */
static __always_inline int is_tunnel_packet(const struct packet *p)
{
	return cfg_tunnel && p->protocol == IPPROTO_UDP && p->dport == bpf_htons(cfg_tunnel_port);
}

/*
 * Whether a packet, or one of those it will be cut into, must not be fragmented and does not fit
 * the tunnel.  Others that do not fit travel in fragments of the outer packet; over IPv6 there are
 * none, for the kernel fragments what a socket sent, and nothing else.
 */
static __always_inline int exceeds_tunnel(const struct __sk_buff *skb, const struct packet *p)
{
	__u32 size = skb->len - L3_OFF;

	if (!cfg_overlay_mtu || (!cfg_tunnel_ipv6 && !(p->flags & PKT_DONT_FRAGMENT)))
		return 0;
	if (skb->gso_size)
		size = skb->gso_size + p->ihl +
		       (p->protocol == IPPROTO_TCP ? sizeof(struct tcp_wire) : UDP_HEADER);
	return size > cfg_overlay_mtu;
}

/*
 * How the tunnel names the sender: the node itself is another node to the receiver, and networks
 * that only this node numbers are the world.
 */
static __always_inline __u32 tunnel_identity(__u32 identity)
{
	if (identity == ID_HOST)
		return ID_REMOTE_NODE;
	return identity >> SCOPE_SHIFT == SCOPE_CLUSTER ? identity : ID_WORLD;
}

/* Whose outer packet this is, if it came out of the tunnel as we send into it; 0, or not 0. */
static __always_inline int read_tunnel_key(struct __sk_buff *skb, struct bpf_tunnel_key *key)
{
	return bpf_skb_get_tunnel_key(skb, key, TUNNEL_KEY_SIZE,
				      cfg_tunnel_ipv6 ? BPF_F_TUNINFO_IPV6 : 0);
}

/*
 * Make it leave for the node at *remote* as a packet of *identity*; 0, or a drop reason.  Over IPv6
 * it has a checksum: without one a receiver drops it that was not told to expect that (RFC 6936).
 */
static __always_inline int encapsulate(struct __sk_buff *skb, const struct cil_addr *remote,
				       __u32 identity)
{
	struct bpf_tunnel_key key = {
		.tunnel_id = identity,
		.tunnel_ttl = TUNNEL_TTL,
	};
	int reason = store_host_macs(skb);

	if (reason)
		return reason;
	if (cfg_tunnel_ipv6)
		__builtin_memcpy(key.remote_ipv6, remote->w, sizeof(key.remote_ipv6));
	else
		key.remote_ipv4 = bpf_ntohl(addr_v4(remote));
	if (bpf_skb_set_tunnel_key(skb, &key, TUNNEL_KEY_SIZE,
				   cfg_tunnel_ipv6 ? BPF_F_TUNINFO_IPV6 : BPF_F_ZERO_CSUM_TX))
		return DROP_WRITE_ERROR;
	skb->mark = 0;
	return 0;
}

#endif /* CILIUMD_OVERLAY_H */
