/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Asks the datapath's own policy lookup one question per test run; for tests only.
 *
 * The "packet" is the question, and carries the answer back.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <ciliumd/abi.h>
#include "lib/policy.h"

struct policy_question {
	__u32 version;
	__u32 identity;
	__u8 direction;
	__u8 protocol;
	__be16 port;
	__u32 verdict;
	__u32 rule_cookie;
};

SEC("tc")
int policy_probe(struct __sk_buff *skb)
{
	struct policy_question *question = (void *)(long)skb->data;
	__u32 rule_cookie = 0;

	if ((void *)(question + 1) > (void *)(long)skb->data_end)
		return 1;
	question->verdict =
		policy_lookup(question->version, question->identity, question->direction,
			      question->protocol, question->port, &rule_cookie);
	question->rule_cookie = rule_cookie;
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
