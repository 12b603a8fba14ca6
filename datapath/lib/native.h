/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Native devices, by which the world is reached, their addresses, and whose own address leaves by them. */
#ifndef CILIUMD_NATIVE_H
#define CILIUMD_NATIVE_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include <ciliumd/config.h>
#include "lib/addr.h"

CONFIG(__be32, pod_cidr_ipv4, 0xffffffff, "network of this node's pods; this one holds nobody");
CONFIG(__be32, pod_cidr_mask, 0xffffffff, "netmask of this node's pods");
CONFIG(__be32, native_cidr_ipv4, 0xffffffff, "network that pods reach with their own address");
CONFIG(__be32, native_cidr_mask, 0xffffffff, "netmask of that network");
CONFIG(__u64, pod_cidr_ipv6_head, -1,
       "IPv6 network of this node's pods: eight bytes in memory order");
CONFIG(__u64, pod_cidr_ipv6_tail, -1, "and the last eight");
CONFIG(__u64, pod_cidr_ipv6_mask_head, -1, "its netmask: the first eight bytes in memory order");
CONFIG(__u64, pod_cidr_ipv6_mask_tail, -1, "and the last eight");
CONFIG(__u64, native_cidr_ipv6_head, -1, "IPv6 network that pods reach with their own address, so");
CONFIG(__u64, native_cidr_ipv6_tail, -1, "and the last eight");
CONFIG(__u64, native_cidr_ipv6_mask_head, -1, "its netmask, so");
CONFIG(__u64, native_cidr_ipv6_mask_tail, -1, "and the last eight");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, struct native_device);
} cilium_devices_v1 SEC(".maps");

/* Address of a native device, 0 when it is none or has none. */
static __always_inline __be32 native_address(__u32 ifindex)
{
	struct native_device *device = bpf_map_lookup_elem(&cilium_devices_v1, &ifindex);
	__u64 word;

	if (!device)
		return 0;
	word = read_row_word(device);
	return word >> 32 == ifindex ? (__be32)word : 0;
}

/* 1 and *address when the device is native and has an IPv6 address. */
static __always_inline int native_address_v6(__u32 ifindex, struct cil_addr *address)
{
	struct native_device *device = bpf_map_lookup_elem(&cilium_devices_v1, &ifindex);

	if (!device)
		return 0;
	*address = device->ipv6;
	barrier();
	return read_row_word(device) >> 32 == ifindex && !addr_is_zero(address);
}

/* 1 and *address when the device is native and has one of that family. */
static __always_inline int native_address_for(__u32 ifindex, struct cil_addr *address, int v6)
{
	__be32 v4;

	if (v6)
		return native_address_v6(ifindex, address);
	v4 = native_address(ifindex);
	addr_set_v4(address, v4);
	return !!v4;
}

static __always_inline __u64 addr_head(const struct cil_addr *addr)
{
	return (__u64)addr->w[1] << 32 | addr->w[0];
}

static __always_inline __u64 addr_tail(const struct cil_addr *addr)
{
	return (__u64)addr->w[3] << 32 | addr->w[2];
}

/* Without a network the option is a group of no use, which is nobody's address. */
static __always_inline int is_pod_address_v6(const struct cil_addr *addr)
{
	return (addr_head(addr) & cfg_pod_cidr_ipv6_mask_head) == cfg_pod_cidr_ipv6_head &&
	       (addr_tail(addr) & cfg_pod_cidr_ipv6_mask_tail) == cfg_pod_cidr_ipv6_tail;
}

static __always_inline int is_native_address_v6(const struct cil_addr *addr)
{
	return (addr_head(addr) & cfg_native_cidr_ipv6_mask_head) == cfg_native_cidr_ipv6_head &&
	       (addr_tail(addr) & cfg_native_cidr_ipv6_mask_tail) == cfg_native_cidr_ipv6_tail;
}

static __always_inline int is_pod_address(__be32 addr)
{
	return (addr & cfg_pod_cidr_mask) == cfg_pod_cidr_ipv4;
}

static __always_inline int is_native_address(__be32 addr)
{
	return (addr & cfg_native_cidr_mask) == cfg_native_cidr_ipv4;
}

#endif /* CILIUMD_NATIVE_H */
