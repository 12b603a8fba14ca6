/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the next version's programs read and write, row by row: a packet of 14 bytes and then a key
 * and an entry.  Reading fills the entry in; 0: done, 1: there is none, 2: refused.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include "lib/ct_map.h"
#include "lib/nat_map.h"

enum {
	START = 14,
};

struct ct_row {
	struct ct_key key;
	struct ct_entry entry;
};

struct nat_row {
	struct nat_key key;
	struct nat_entry entry;
};

SEC("tc")
int probe_read_ct(struct __sk_buff *skb)
{
	struct ct_row row = {};

	if (bpf_skb_load_bytes(skb, START, &row, sizeof(row)))
		return 2;
	if (!ct_read(&row.key, &row.entry))
		return 1;
	return bpf_skb_store_bytes(skb, START, &row, sizeof(row), 0) ? 2 : 0;
}

SEC("tc")
int probe_write_ct(struct __sk_buff *skb)
{
	struct ct_row row = {};

	if (bpf_skb_load_bytes(skb, START, &row, sizeof(row)))
		return 2;
	return ct_write(&row.key, &row.entry, BPF_ANY) ? 2 : 0;
}

SEC("tc")
int probe_read_nat(struct __sk_buff *skb)
{
	struct nat_row row = {};

	if (bpf_skb_load_bytes(skb, START, &row, sizeof(row)))
		return 2;
	if (!nat_read(&row.key, &row.entry))
		return 1;
	return bpf_skb_store_bytes(skb, START, &row, sizeof(row), 0) ? 2 : 0;
}

SEC("tc")
int probe_claim_nat(struct __sk_buff *skb)
{
	struct nat_row row = {};

	if (bpf_skb_load_bytes(skb, START, &row, sizeof(row)))
		return 2;
	return nat_write(&row.key, &row.entry, BPF_NOEXIST) ? 2 : 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
