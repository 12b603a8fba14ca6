/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Services: frontend -> slot -> backend, and revNAT id -> frontend.
 *
 * Every row of a frontend repeats its service id (rev_nat), backends and revNAT rows repeat
 * their own key: a row recycled between two reads shows itself and the lookup fails or retries.
 */
#ifndef CILIUMD_LB_H
#define CILIUMD_LB_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include "lib/addr.h"
#include "lib/affinity.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct lb_service_key);
	__type(value, struct lb_service);
} cilium_lb_services_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct lb_backend);
} cilium_lb_backends_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct lb_revnat);
} cilium_lb_revnat_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct lb_source_key);
	__type(value, __u32);
} cilium_lb_source_range_v1 SEC(".maps");

enum {
	/* Frontends that are reached from outside, too. */
	LB_F_OUTSIDE =
		LB_F_NODE_PORT | LB_F_EXTERNAL_IP | LB_F_LOAD_BALANCER | LB_F_HOST_PORT | LB_F_OPEN,
	/* Frontends that not everybody may ask. */
	LB_F_SOURCES = LB_F_SOURCES_ALLOW | LB_F_SOURCES_DENY,
};

/* What is read of struct lb_service. */
struct lb_slot {
	__u32 target;
	__u16 rev_nat;
	__u16 flags;
	__u32 affinity_timeout;
};

static __always_inline int lb_read_slot(const struct lb_service_key *key, struct lb_slot *slot)
{
	struct lb_service *row = bpf_map_lookup_elem(&cilium_lb_services_v1, key);
	__u64 word;

	if (!row)
		return 0;
	word = read_row_word(row);
	slot->target = (__u32)word;
	slot->rev_nat = (__u16)(word >> 32);
	slot->flags = word >> 48;
	slot->affinity_timeout = row->affinity_timeout;
	return 1;
}

static __always_inline void lb_key(struct lb_service_key *key, const struct cil_addr *addr,
				   __be16 port, __u8 protocol, enum cil_lb_scope scope)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->addr = *addr;
	key->port = port;
	key->protocol = protocol;
	key->scope = scope;
}

/*
 * 1 and the frontend's row 0 when *addr*:*port* is a service.  Who is inside the cluster may have
 * backends of its own there (LB_F_TWO_SCOPES).
 */
static __always_inline int lb_find(const struct cil_addr *addr, __be16 port, __u8 protocol,
				   enum cil_lb_scope scope, struct lb_service_key *key,
				   struct lb_slot *service)
{
	lb_key(key, addr, port, protocol, LB_SCOPE_EXTERNAL);
	if (!lb_read_slot(key, service))
		return 0;
	if (scope == LB_SCOPE_EXTERNAL || !(service->flags & LB_F_TWO_SCOPES))
		return 1;
	key->scope = scope;
	return lb_read_slot(key, service);
}

/* Whether a client at *source* may ask at the frontend whose row 0 is *service*. */
static __always_inline int lb_admits(const struct lb_slot *service, const struct cil_addr *source)
{
	struct lb_source_key key = { .prefixlen = LB_SOURCE_PREFIX_ADDRESS };
	int listed;

	if (!(service->flags & LB_F_SOURCES))
		return 1;
	key.rev_nat = service->rev_nat;
	key.policy = service->flags & LB_F_SOURCES;
	key.addr = *source;
	listed = bpf_map_lookup_elem(&cilium_lb_source_range_v1, &key) != NULL;
	return service->flags & LB_F_SOURCES_DENY ? !listed : listed;
}

/* Whether a service has this address for itself: what none of its ports takes leads nowhere. */
static __always_inline int lb_is_cluster_ip(const struct cil_addr *addr)
{
	struct lb_service_key key;
	struct lb_slot row;

	return lb_find(addr, 0, 0, LB_SCOPE_EXTERNAL, &key, &row) && row.flags & LB_F_CLUSTER_IP;
}

/* A live backend of that id that still speaks *protocol*, or NULL. */
static __always_inline const struct lb_backend *lb_backend(__u32 id, __u8 protocol)
{
	const struct lb_backend *backend = bpf_map_lookup_elem(&cilium_lb_backends_v1, &id);

	if (!backend || backend->id != id || backend->protocol != protocol)
		return NULL;
	return backend;
}

/* A backend chosen at random among the frontend's slots; NULL only when rows are in flux. */
static __always_inline const struct lb_backend *
lb_draw(struct lb_service_key *key, const struct lb_slot *service, __u8 protocol)
{
	/* Slots may shrink while we choose: the second try reads the count again. */
	struct lb_slot frontend = *service;

#pragma unroll
	for (int i = 0; i < 2; i++) {
		const struct lb_backend *backend;
		struct lb_slot slot;

		if (!frontend.target)
			return NULL;
		key->slot = bpf_get_prandom_u32() % frontend.target + 1;
		if (lb_read_slot(key, &slot) && slot.rev_nat == frontend.rev_nat) {
			backend = lb_backend(slot.target, protocol);
			if (backend)
				return backend;
		}
		key->slot = 0;
		if (!lb_read_slot(key, &frontend))
			return NULL;
	}
	return NULL;
}

/* The backend for a new connection of *client*, which only a frontend with affinity looks at. */
static __always_inline const struct lb_backend *lb_choose(struct lb_service_key *key,
							  const struct lb_slot *service,
							  __u8 protocol,
							  const struct lb_client *client)
{
	const struct lb_backend *backend = NULL;
	struct affinity who;
	__u32 id;

	if (!(service->flags & LB_F_AFFINITY))
		return lb_draw(key, service, protocol);
	affinity_of(&who, client, service->rev_nat);
	id = affinity_recall(&who, client->now, service->affinity_timeout);
	if (id)
		backend = lb_backend(id, protocol);
	if (!backend)
		backend = lb_draw(key, service, protocol);
	if (backend)
		affinity_remember(&who, client->now, backend->id);
	return backend;
}

static __always_inline const struct lb_revnat *lb_revnat(__u16 rev_nat)
{
	__u32 id = rev_nat;
	const struct lb_revnat *row = bpf_map_lookup_elem(&cilium_lb_revnat_v1, &id);

	return row && row->id == id ? row : NULL;
}

#endif /* CILIUMD_LB_H */
