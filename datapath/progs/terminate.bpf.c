// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Destroys connected sockets whose backend is gone: iterators over the sockets of the network
 * namespace that reads them.  The agent says which, and loads this object when it has to.
 *
 * Before Linux 6.5 there is no bpf_sock_destroy; the programs load and do nothing.
 */
#include <ciliumd/abi.h>

#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "lib/addr.h"

enum {
	FAMILY_INET = 2,
	FAMILY_INET6 = 10,
	/* Neither is a whole socket, and both end by themselves. */
	STATE_TIME_WAIT = 6,
	STATE_NEW_SYN_RECV = 12,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct in6_addr___kernel {
	__u8 octets[16];
};

struct sock_common {
	__be32 skc_daddr;
	__be16 skc_dport;
	unsigned short skc_family;
	unsigned char skc_state;
	struct in6_addr___kernel skc_v6_daddr;
};

struct udp_sock;

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
};

struct bpf_iter__udp {
	struct bpf_iter_meta *meta;
	struct udp_sock *udp_sk;
};

#pragma clang attribute pop

int bpf_sock_destroy(struct sock_common *sock) __ksym __weak;

/* The rows of cilium_lb_sock_v1 that lead to nobody: only sockets that we translated are here. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct sock_revnat_key);
	__type(value, __u32);
} doomed SEC(".maps");

/* A socket that is connected elsewhere by now, or to nobody, has another key. */
static __always_inline int is_doomed(struct sock_common *sock, __u8 protocol)
{
	struct sock_revnat_key key = {};

	key.port = BPF_CORE_READ(sock, skc_dport);
	if (!key.port)
		return 0;
	if (BPF_CORE_READ(sock, skc_family) == FAMILY_INET)
		addr_set_v4(&key.addr, BPF_CORE_READ(sock, skc_daddr));
	else if (BPF_CORE_READ(sock, skc_family) == FAMILY_INET6)
		bpf_core_read(&key.addr, sizeof(key.addr), &sock->skc_v6_daddr);
	else
		return 0;
	key.protocol = protocol;
	key.cookie = bpf_get_socket_cookie(sock);
	return bpf_map_lookup_elem(&doomed, &key) != NULL;
}

/* A byte to the reader for each socket that was destroyed. */
static __always_inline void destroy(struct seq_file *seq, struct sock_common *sock, __u8 protocol)
{
	if (is_doomed(sock, protocol) && !bpf_sock_destroy(sock))
		bpf_seq_write(seq, &protocol, sizeof(protocol));
}

SEC("iter/udp")
int terminate_udp(struct bpf_iter__udp *ctx)
{
	struct udp_sock *sock;

	if (!bpf_sock_destroy)
		return 0;
	sock = ctx->udp_sk;
	if (sock)
		destroy(ctx->meta->seq, (struct sock_common *)sock, IPPROTO_UDP);
	return 0;
}

SEC("iter/tcp")
int terminate_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sock;
	__u8 state;

	if (!bpf_sock_destroy)
		return 0;
	sock = ctx->sk_common;
	if (!sock)
		return 0;
	state = BPF_CORE_READ(sock, skc_state);
	if (state != STATE_TIME_WAIT && state != STATE_NEW_SYN_RECV)
		destroy(ctx->meta->seq, sock, IPPROTO_TCP);
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
