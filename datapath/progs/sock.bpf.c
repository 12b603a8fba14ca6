// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Socket load balancing: a socket of this cgroup that connects or sends to a service talks to a
 * backend from its first packet on; no packet is translated.  The application keeps seeing the
 * service: getpeername and recvmsg show the frontend again.  No socket of the node may bind a port
 * at which a service is reached from outside: it would never be asked.
 *
 * Attached to the agent's --cgroup-root.  IPv6 sockets also carry IPv4 (::ffff:a.b.c.d), which is
 * the key form of our maps anyway.
 */
#include <ciliumd/abi.h>
#include <ciliumd/config.h>

#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "lib/addr.h"
#include "lib/affinity.h"
#include "lib/endpoint.h"
#include "lib/lb.h"

enum {
	SOCK_REFUSE = 0,
	SOCK_PROCEED = 1,
	ADDRESS_IN_USE = -98,	   /* -EADDRINUSE */
	CONNECTION_REFUSED = -111, /* -ECONNREFUSED */
};

CONFIG(__u64, node_netns_cookie, 0,
       "cookie of the node's network namespace; 0: the one that the kernel started with");

CONFIG(__u8, sock_host_only, 0,
       "leave sockets of pods as they are: their packets are translated one by one");
CONFIG(__u8, bind_protection, 1, "let no socket of the node bind the port of a service");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct sock_revnat_key);
	__type(value, struct sock_revnat);
} cilium_lb_sock_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, __u32);
} cilium_netns_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct lb_bind_key);
	__type(value, __u32);
} cilium_lb_bind_v1 SEC(".maps");

/*
 * Helper ids of the running kernel.  bpf_set_retval came with 5.18, for these hooks with 6.1 as did
 * bpf_ktime_get_tai_ns; before it the errno is EPERM.
 */
enum bpf_func_id___kernel {
	BPF_FUNC_ktime_get_tai_ns___kernel,
};

static __always_inline int refuse(int error)
{
	if (bpf_core_enum_value_exists(enum bpf_func_id___kernel,
				       BPF_FUNC_ktime_get_tai_ns___kernel))
		bpf_set_retval(error);
	return SOCK_REFUSE;
}

static __always_inline int refuse_connection(void)
{
	return refuse(CONNECTION_REFUSED);
}

/* The peer as an application means it, and after the call as the network does. */
struct sock_peer {
	struct cil_addr addr;
	__be16 port;
	__u8 protocol;
	__u8 translated;
};

static __always_inline void sock_key(struct sock_revnat_key *key, __u64 cookie,
				     const struct sock_peer *peer)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->cookie = cookie;
	key->addr = peer->addr;
	key->port = peer->port;
	key->protocol = peer->protocol;
}

/* *ctx* is that of any hook of sockets. */
static __always_inline int is_socket_of_node(void *ctx)
{
	__u64 node = cfg_node_netns_cookie ?: bpf_get_netns_cookie(NULL);

	return bpf_get_netns_cookie(ctx) == node;
}

/* The frontend that a socket means.  127.0.0.1 is another one in every network namespace. */
static __always_inline int sock_find(struct bpf_sock_addr *ctx, const struct sock_peer *peer,
				     struct lb_service_key *key, struct lb_slot *service)
{
	if (!addr_is_loopback(&peer->addr))
		return lb_find(&peer->addr, peer->port, peer->protocol, LB_SCOPE_INTERNAL, key,
			       service);
	if (!is_socket_of_node(ctx))
		return 0;
	lb_key(key, &peer->addr, peer->port, peer->protocol, LB_SCOPE_NODE);
	return lb_read_slot(key, service);
}

/*
 * Who connects: the pod, by the address that its packets would have, else the network namespace.
 * A socket has no address before it connects.
 */
static __always_inline void client_of_socket(struct bpf_sock_addr *ctx,
					     const struct sock_peer *peer, struct lb_client *client)
{
	__u64 cookie = bpf_get_netns_cookie(ctx);
	const __u32 *slot = bpf_map_lookup_elem(&cilium_netns_v1, &cookie);
	const struct endpoint *pod = NULL;
	__u32 version;

	__builtin_memset(client, 0, sizeof(*client));
	client->now = bpf_ktime_get_ns() / 1000000000ULL;
	if (slot)
		pod = endpoint_in_slot(*slot, &version);
	client->kind = pod ? LB_CLIENT_ADDRESS : LB_CLIENT_NETNS;
	if (!pod)
		__builtin_memcpy(client->id.w, &cookie, sizeof(cookie));
	else if (addr_is_v4(&peer->addr))
		addr_set_v4(&client->id, pod->ipv4);
	else
		client->id = pod->ipv6;
}

/* Frontend to backend.  SOCK_REFUSE when the service has nobody behind it. */
static __always_inline int sock_to_backend(struct bpf_sock_addr *ctx, struct sock_peer *peer)
{
	const struct lb_backend *backend;
	struct sock_revnat frontend = {};
	struct lb_service_key key;
	struct sock_revnat_key sock;
	struct lb_client client = {};
	struct lb_slot service;

	peer->translated = 0;
	if (cfg_sock_host_only && !is_socket_of_node(ctx))
		return SOCK_PROCEED;
	if (peer->protocol != IPPROTO_TCP && peer->protocol != IPPROTO_UDP)
		return SOCK_PROCEED;
	if (!sock_find(ctx, peer, &key, &service))
		return lb_is_cluster_ip(&peer->addr) ? refuse_connection() : SOCK_PROCEED;
	if (service.flags & (LB_F_AFFINITY | LB_F_SOURCES))
		client_of_socket(ctx, peer, &client);
	/* The node's own processes are not kept out: they have no address before they connect. */
	if (client.kind == LB_CLIENT_ADDRESS && !lb_admits(&service, &client.id))
		return refuse_connection();
	backend = lb_choose(&key, &service, peer->protocol, &client);
	if (!backend)
		return refuse_connection();
	frontend.addr = peer->addr;
	frontend.port = peer->port;
	frontend.rev_nat = service.rev_nat;
	peer->addr = backend->addr;
	peer->port = backend->port;
	peer->translated = 1;
	sock_key(&sock, bpf_get_socket_cookie(ctx), peer);
	/* Without the row the application would see a stranger answer: better no connection. */
	if (bpf_map_update_elem(&cilium_lb_sock_v1, &sock, &frontend, BPF_ANY))
		return refuse_connection();
	return SOCK_PROCEED;
}

/* Backend to frontend, for what the application is told. */
static __always_inline void sock_to_frontend(struct bpf_sock_addr *ctx, struct sock_peer *peer)
{
	struct sock_revnat_key key;
	struct sock_revnat *frontend;

	sock_key(&key, bpf_get_socket_cookie(ctx), peer);
	frontend = bpf_map_lookup_elem(&cilium_lb_sock_v1, &key);
	peer->translated = frontend && lb_revnat(frontend->rev_nat);
	if (!peer->translated)
		return;
	peer->addr = frontend->addr;
	peer->port = frontend->port;
}

static __always_inline void peer_from_v4(struct bpf_sock_addr *ctx, struct sock_peer *peer)
{
	addr_set_v4(&peer->addr, ctx->user_ip4);
	peer->port = (__be16)ctx->user_port;
	peer->protocol = ctx->protocol;
}

static __always_inline void peer_to_v4(struct bpf_sock_addr *ctx, const struct sock_peer *peer)
{
	if (!peer->translated)
		return;
	ctx->user_ip4 = addr_v4(&peer->addr);
	ctx->user_port = peer->port;
}

static __always_inline void peer_from_v6(struct bpf_sock_addr *ctx, struct sock_peer *peer)
{
	peer->addr.w[0] = ctx->user_ip6[0];
	peer->addr.w[1] = ctx->user_ip6[1];
	peer->addr.w[2] = ctx->user_ip6[2];
	peer->addr.w[3] = ctx->user_ip6[3];
	peer->port = (__be16)ctx->user_port;
	peer->protocol = ctx->protocol;
}

static __always_inline void peer_to_v6(struct bpf_sock_addr *ctx, const struct sock_peer *peer)
{
	if (!peer->translated)
		return;
	ctx->user_ip6[0] = peer->addr.w[0];
	ctx->user_ip6[1] = peer->addr.w[1];
	ctx->user_ip6[2] = peer->addr.w[2];
	ctx->user_ip6[3] = peer->addr.w[3];
	ctx->user_port = peer->port;
}

static __always_inline int forward_v4(struct bpf_sock_addr *ctx)
{
	struct sock_peer peer;
	int verdict;

	peer_from_v4(ctx, &peer);
	verdict = sock_to_backend(ctx, &peer);
	peer_to_v4(ctx, &peer);
	return verdict;
}

static __always_inline int forward_v6(struct bpf_sock_addr *ctx)
{
	struct sock_peer peer;
	int verdict;

	peer_from_v6(ctx, &peer);
	verdict = sock_to_backend(ctx, &peer);
	peer_to_v6(ctx, &peer);
	return verdict;
}

static __always_inline int backward_v4(struct bpf_sock_addr *ctx)
{
	struct sock_peer peer;

	peer_from_v4(ctx, &peer);
	sock_to_frontend(ctx, &peer);
	peer_to_v4(ctx, &peer);
	return SOCK_PROCEED;
}

static __always_inline int backward_v6(struct bpf_sock_addr *ctx)
{
	struct sock_peer peer;

	peer_from_v6(ctx, &peer);
	sock_to_frontend(ctx, &peer);
	peer_to_v6(ctx, &peer);
	return SOCK_PROCEED;
}

SEC("cgroup/connect4")
int sock_connect4(struct bpf_sock_addr *ctx)
{
	return forward_v4(ctx);
}

SEC("cgroup/sendmsg4")
int sock_sendmsg4(struct bpf_sock_addr *ctx)
{
	return forward_v4(ctx);
}

SEC("cgroup/recvmsg4")
int sock_recvmsg4(struct bpf_sock_addr *ctx)
{
	return backward_v4(ctx);
}

SEC("cgroup/getpeername4")
int sock_getpeername4(struct bpf_sock_addr *ctx)
{
	return backward_v4(ctx);
}

SEC("cgroup/connect6")
int sock_connect6(struct bpf_sock_addr *ctx)
{
	return forward_v6(ctx);
}

SEC("cgroup/sendmsg6")
int sock_sendmsg6(struct bpf_sock_addr *ctx)
{
	return forward_v6(ctx);
}

SEC("cgroup/recvmsg6")
int sock_recvmsg6(struct bpf_sock_addr *ctx)
{
	return backward_v6(ctx);
}

SEC("cgroup/getpeername6")
int sock_getpeername6(struct bpf_sock_addr *ctx)
{
	return backward_v6(ctx);
}

enum {
	/* Who has these has the port for himself; others share the address with the node's services. */
	RESERVES_PORT = LB_F_NODE_PORT | LB_F_EXTERNAL_IP | LB_F_LOAD_BALANCER,
};

static __always_inline int addr_is_any(const struct cil_addr *addr)
{
	return !addr->w[0] && !addr->w[1] && !addr->w[3] &&
	       (!addr->w[2] || addr->w[2] == bpf_htonl(0xffff));
}

/* Whether a service is reached at what a socket of the node has just bound. */
static __always_inline int bind_is_taken(struct bpf_sock *ctx, const struct cil_addr *addr)
{
	struct lb_bind_key key = { .port = bpf_htons((__u16)ctx->src_port),
				   .protocol = ctx->protocol };
	struct lb_service_key service;
	struct lb_slot row;

	if (addr_is_any(addr))
		return bpf_map_lookup_elem(&cilium_lb_bind_v1, &key) != NULL;
	return lb_find(addr, key.port, key.protocol, LB_SCOPE_EXTERNAL, &service, &row) &&
	       row.flags & RESERVES_PORT;
}

/* Pods have ports of their own. */
static __always_inline int bind_is_judged(struct bpf_sock *ctx)
{
	return cfg_bind_protection &&
	       (ctx->protocol == IPPROTO_TCP || ctx->protocol == IPPROTO_UDP) &&
	       is_socket_of_node(ctx);
}

SEC("cgroup/post_bind4")
int sock_post_bind4(struct bpf_sock *ctx)
{
	struct cil_addr addr;

	if (!bind_is_judged(ctx))
		return SOCK_PROCEED;
	addr_set_v4(&addr, ctx->src_ip4);
	return bind_is_taken(ctx, &addr) ? refuse(ADDRESS_IN_USE) : SOCK_PROCEED;
}

SEC("cgroup/post_bind6")
int sock_post_bind6(struct bpf_sock *ctx)
{
	struct cil_addr addr;

	if (!bind_is_judged(ctx))
		return SOCK_PROCEED;
	addr.w[0] = ctx->src_ip6[0];
	addr.w[1] = ctx->src_ip6[1];
	addr.w[2] = ctx->src_ip6[2];
	addr.w[3] = ctx->src_ip6[3];
	return bind_is_taken(ctx, &addr) ? refuse(ADDRESS_IN_USE) : SOCK_PROCEED;
}

char _license[] SEC("license") = "Dual BSD/GPL";
