/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The one ABI between the datapath and user space: map keys and values, events, enums.
 *
 * build/gen_abi.py reads these types from the objects' BTF and writes src/ciliumd/abi.py.
 * Rules of this file:
 *  - numbers user space needs are enum members (they reach BTF), never #define;
 *  - byte order is in the type: __be16, __be32; addresses are struct cil_addr (network order);
 *  - padding is explicit, named pad*, and always zero;
 *  - a map whose key or value changes layout gets a new version in its name (cilium_ct_v1 -> _v2),
 *    and the old struct stays beside the new one for a version, as struct NAME_v1.
 *
 * A row of a preallocated hash map is recycled at once when it is replaced or deleted: a reader
 * that holds a pointer to it may then see another key's row.  Values of hash maps that a packet
 * must not confuse therefore start with one aligned 8-byte word that holds a fold of their key
 * ("check"), which the reader loads with a single access and compares.
 */
#ifndef CILIUMD_ABI_H
#define CILIUMD_ABI_H

#include <linux/types.h>

/* IPv6 address, or an IPv4 address mapped as ::ffff:a.b.c.d (RFC 4291 2.5.5.2). */
struct cil_addr {
	__be32 w[4];
};

/* ---- hooks, tail calls, node state ------------------------------------------------------- */

/* Attach points; index of a program inside a generation's half of cilium_hooks_v1. */
enum cil_hook {
	HOOK_FROM_CONTAINER = 0, /* ingress of a pod's host-side veth: what the pod sends */
	HOOK_TO_CONTAINER = 1,	 /* egress of it: what the host stack sends there directly */
	HOOK_FROM_HOST = 2,	 /* ingress of cilium_net: what the host stack sends to pods */
	HOOK_FROM_NETDEV = 3,	 /* ingress of a native device */
	HOOK_TO_NETDEV = 4,	 /* egress of a native device */
	HOOK_FROM_OVERLAY = 5,	 /* ingress of cilium_vxlan */
	HOOK_TO_OVERLAY = 6,	 /* egress of cilium_vxlan */
	HOOK_MAX = 8,
};

/* Tail-call targets inside one generation of programs. */
enum cil_call {
	CALL_SERVICE = 0,	  /* per-packet service translation of what a pod sends */
	CALL_EGRESS = 1,	  /* conntrack, egress policy and routing of what a pod sends */
	CALL_INGRESS = 2,	  /* conntrack, ingress policy and delivery to a local pod */
	CALL_REFUSE = 3,	  /* answer the sender with an ICMP error */
	CALL_NODE_PORT = 4,	  /* from outside to a service: choose a backend, send it there */
	CALL_NODE_PORT_REPLY = 5, /* from a backend elsewhere, back to the client */
	CALL_NODE_PORT_ERROR = 6, /* ICMP error from outside about a service's answer */
	CALL_MAX = 16,
};

/* Rows of cilium_node_state_v1 (u64 each, written with one aligned store). */
enum cil_node_state {
	NODE_STATE_GENERATION = 0,	    /* active generation of tc programs */
	NODE_STATE_NEXT_POLICY_VERSION = 1, /* next policy version never used so far */
	NODE_STATE_NEXT_SLOT_GEN = 2,	    /* next endpoint slot generation never used so far */
	NODE_STATE_SILENT_EVENTS = 3,	    /* a bit per enum cil_event_type that is not sent */
	NODE_STATE_MAX = 16,
};

/* ---- endpoints --------------------------------------------------------------------------- */

enum cil_endpoint_flags {
	ENDPOINT_F_AUDIT = 1,	      /* what its policy would drop is reported and let through */
	ENDPOINT_F_DENY_RESPONSE = 2, /* what its own egress policy drops is answered with ICMP */
};

/* cilium_ifindex_v1: HASH u32 ifindex -> u32 slot.  The row's endpoint must agree (ifindex). */

/* cilium_lxc_v1: HASH address -> slot of a local endpoint, or the node itself. */
struct lxc_key {
	struct cil_addr addr;
};

enum cil_slot {
	SLOT_HOST = 0xffffffff, /* the address belongs to the node itself */
};

struct lxc_value {
	__u32 check; /* fold of the address */
	__u32 slot;
};

/* cilium_endpoints_v1: ARRAY[slot], facts of a local endpoint. */
struct endpoint {
	__u32 identity;
	__u16 id; /* endpoint id as users see it */
	__u16 flags;
	__u32 ifindex;	      /* host side of the veth */
	__u32 slot_gen;	      /* must equal the upper half of cilium_endpoint_state_v1[slot] */
	__be32 ipv4;	      /* 0: none */
	__u32 judged_ipv4;    /* what policies of this node judge that address by; 0: identity */
	struct cil_addr ipv6; /* all zero: none */
	__u8 mac[6];	      /* the pod's own */
	__u16 pad1;
	__u8 node_mac[6]; /* of the host side; answered to the pod's ARP and neighbour discovery */
	__u16 pad2;
	__u32 judged_ipv6; /* as judged_ipv4 */
	__u32 pad3;
};

/*
 * cilium_endpoint_state_v1: ARRAY[slot] of u64, mapped into the agent and written with one
 * aligned store: slot generation << 32 | policy version.  0: no endpoint in this slot.
 */

/* ---- ipcache ----------------------------------------------------------------------------- */

/* cilium_ipcache_v1: HASH of single addresses. */
struct ipcache_key {
	struct cil_addr addr;
	__u32 cluster_id;
};

/* cilium_ipcache_lpm_v1: LPM of prefixes; prefixlen counts cluster_id (32) + address bits. */
struct ipcache_lpm_key {
	__u32 prefixlen;
	__u32 cluster_id;
	struct cil_addr addr;
};

struct ipcache_entry {
	__u32 check; /* fold of the address; 0 in the LPM */
	__u32 identity;
	struct cil_addr tunnel_endpoint; /* all zero: reached without encapsulation */
	__u8 encrypt_key;
	__u8 flags;
	__u16 pad0;
	__u32 judged; /* what policies of this node judge it by; 0: identity */
};

/*
 * cilium_nodes_v1: HASH of every address that a node of the cluster has in the network, this node
 * included.  A packet out of the tunnel must come from one, and its inner source must be of the same
 * node: be in this map itself, or have an ipcache row whose tunnel_endpoint is.
 */
struct node_key {
	struct cil_addr addr;
};

struct node_value {
	__u32 check;   /* fold of the address */
	__u32 node_id; /* the same for all addresses of a node; not 0 */
};

/* Reserved numeric identities, as in Cilium. */
enum cil_identity {
	ID_UNKNOWN = 0,
	ID_HOST = 1,
	ID_WORLD = 2,
	ID_UNMANAGED = 3,
	ID_HEALTH = 4,
	ID_INIT = 5,
	ID_REMOTE_NODE = 6,
	ID_KUBE_APISERVER = 7,
	ID_INGRESS = 8,
	ID_WORLD_IPV4 = 9,
	ID_WORLD_IPV6 = 10,
	ID_ENCRYPTED_OVERLAY = 11,
};

/*
 * Who gave an identity its number: above SCOPE_SHIFT the node itself, for itself alone.  No packet
 * carries such a number to another node.
 */
enum cil_identity_scope {
	SCOPE_CLUSTER = 0,
	SCOPE_CIDR = 1,
	SCOPE_NODE = 2, /* another node, by its labels */
	SCOPE_PART = 3, /* pods of one label set in a block of addresses; nothing but judged by */
	SCOPE_SHIFT = 24,
};

/* Bits of a number in SCOPE_NODE. */
enum cil_node_scope {
	NODE_API_SERVER = 1 << 16, /* under an address of the API server */
};

/* ---- policy ------------------------------------------------------------------------------ */

/* Direction seen from the endpoint; also the "direction" of metrics. */
enum cil_direction {
	DIR_UNKNOWN = 0,
	DIR_INGRESS = 1,
	DIR_EGRESS = 2,
	DIR_SERVICE = 3,
	DIR_MAX = 4,
};

/*
 * A policy version is two maps under one u32 key that is never used twice:
 * cilium_policy_classes_v1[version]: HASH  policy_class_key -> policy_class   (miss: class 0)
 * cilium_policy_rules_v1[version]:   LPM   policy_key -> policy_entry
 * Identities whose rules resolve alike share a class; class 0 is everybody else.
 * An LPM miss is an error (DROP_POLICY_NO_CONFIG): every class in use has a full-wildcard row.
 */
struct policy_class_key {
	__u32 identity;
	__u8 direction;
	__u8 pad[3];
};

struct policy_class {
	__u32 check; /* seal of the class and the key */
	__u32 class_id;
};

enum cil_policy_prefix {
	POLICY_PREFIX_CLASS = 24,    /* class_id, direction: any protocol, any port */
	POLICY_PREFIX_PROTOCOL = 32, /* + protocol: any port */
	POLICY_PREFIX_PORT = 48,     /* + one port; 33..47: port ranges of a power of two */
};

struct policy_key {
	__u32 prefixlen;
	__u16 class_id;
	__u8 direction;
	__u8 protocol; /* IPPROTO_*; ICMP types live in dport as htons(type) */
	__be16 dport;
	__u8 pad[2];
};

enum cil_policy_verdict {
	POLICY_VERDICT_NONE = 0,
	POLICY_VERDICT_ALLOW = 1,
	POLICY_VERDICT_DENY = 2,	 /* by a deny rule */
	POLICY_VERDICT_DEFAULT_DENY = 3, /* no rule allows it; cookie names whose default deny */
	POLICY_VERDICT_DAMAGED = 4,	 /* the row is not as the agent wrote it; never in a row */
};

struct policy_entry {
	__u8 verdict;
	__u8 flags;
	__u16 proxy_slot; /* 0: no L7 redirect */
	__u32 rule_cookie;
	__u32 check; /* seal of all above, the key's class_id and direction */
};

/* ---- conntrack --------------------------------------------------------------------------- */

enum cil_ct_kind {
	CT_KIND_FLOW = 0,      /* a flow as one local endpoint sees it, after translation */
	CT_KIND_SERVICE = 1,   /* the backend chosen for (client, service frontend) */
	CT_KIND_PROXY_LEG = 2, /* upstream leg of a proxied connection */
};

/*
 * cilium_ct_v1: LRU_HASH.  One row per flow and local endpoint: "local" is that endpoint's side
 * whatever the direction of the packet, so one lookup finds the row for original and reply
 * packets alike.  ICMP echo: the requester's port is the echo id, the responder's 0.
 * A flow from outside that is sent on to a backend elsewhere has no local endpoint: its client is
 * "local", and the row carries the service alone.
 */
struct ct_key {
	struct cil_addr local;
	struct cil_addr remote;
	__be16 local_port;
	__be16 remote_port;
	__u8 protocol;
	__u8 kind;
	__u16 zone;
};

enum cil_ct_flags {
	CT_F_ORIGIN_REMOTE = 1, /* opened by the remote side: judged by ingress policy */
	CT_F_SEEN_REPLY = 2,	/* a packet of the reply direction was let through */
	CT_F_LOCAL_CLOSED = 4,	/* FIN or RST sent by local */
	CT_F_REMOTE_CLOSED = 8, /* FIN or RST sent by remote */
	CT_F_LOOPBACK = 16,	/* pod reaching itself through a service */
	CT_F_SEEN_NON_SYN = 32, /* TCP beyond the handshake */
	CT_F_CARRIED_PEER = 64, /* the tunnel told who the peer is; its address says less */
	CT_F_FROM_STACK = 128,	/* the node's stack brought it: answers go back there */
};

/* In a row's policy_version: that policy would have dropped it.  It holds while the endpoint is audited. */
enum cil_ct_version {
	CT_VERSION_AUDITED = 0x80000000,
};

struct ct_entry {
	__u32 check;	      /* fold of the key */
	__u32 policy_version; /* the policy that allowed it (kind FLOW) */
	__u32 peer_identity;  /* and the peer it was allowed for */
	__u32 rule_cookie;
	__u32 expires; /* seconds, CLOCK_MONOTONIC */
	__u32 last_report;
	__u16 rev_nat; /* service whose frontend replies must show; 0: none */
	__u16 flags;
	__u32 backend_id; /* kind SERVICE */
	__u8 tcp_flags_local;
	__u8 tcp_flags_remote;
	__u16 proxy_slot;
	__u32 pad0;
};

/* ---- load balancing ---------------------------------------------------------------------- */

enum cil_lb_scope {
	LB_SCOPE_EXTERNAL = 0,
	LB_SCOPE_INTERNAL = 1,
	LB_SCOPE_NODE = 2, /* loopback addresses: for sockets of the node's own network namespace */
};

/*
 * cilium_lb_services_v1: HASH; slot 0 is the frontend, slots 1..count its backends.  A row with
 * port, protocol and slot 0 says that the address is a ClusterIP: what none of its ports takes is
 * dropped, instead of following the default route.
 */
struct lb_service_key {
	struct cil_addr addr;
	__be16 port;
	__u8 protocol;
	__u8 scope;
	__u16 slot;
	__u16 pad0;
};

enum cil_lb_service_flags {
	LB_F_CLUSTER_IP = 1,
	LB_F_NODE_PORT = 2,
	LB_F_EXTERNAL_IP = 4,
	LB_F_LOAD_BALANCER = 8,
	LB_F_HOST_PORT = 16,
	LB_F_AFFINITY = 32,
	LB_F_TWO_SCOPES = 64, /* inside the cluster, the rows of LB_SCOPE_INTERNAL count instead */
	LB_F_OPEN = 128,      /* a cluster address that is reached from outside, too */
	LB_F_ELSEWHERE = 256, /* no backend here may be chosen, but there are some elsewhere */
	LB_F_SOURCES_ALLOW = 512, /* only who is in cilium_lb_source_range_v1 may ask */
	LB_F_SOURCES_DENY = 1024, /* who is in it may not */
};

/* Some flags are in slot 0 only: OPEN, ELSEWHERE and SOURCES_*. */
struct lb_service {
	__u32 target;  /* slot 0: number of backends; else backend id */
	__u16 rev_nat; /* service id: the same in every row of one frontend */
	__u16 flags;
	__u32 affinity_timeout; /* seconds */
	__u32 pad0;
};

enum cil_lb_backend_state {
	BACKEND_ACTIVE = 0,
	BACKEND_TERMINATING = 1,
	BACKEND_QUARANTINED = 2,
	BACKEND_MAINTENANCE = 3,
};

/* cilium_lb_backends_v1: HASH u32 backend id -> */
struct lb_backend {
	__u32 id; /* the key again */
	__be16 port;
	__u8 protocol;
	__u8 state;
	struct cil_addr addr;
};

/* cilium_lb_revnat_v1: HASH u32 service id -> */
struct lb_revnat {
	__u32 id; /* the key again */
	__be16 port;
	__u16 pad0;
	struct cil_addr addr;
};

/*
 * cilium_lb_source_range_v1: LPM -> 1, the ranges of addresses that a frontend with LB_F_SOURCES_ALLOW
 * or LB_F_SOURCES_DENY names; prefixlen counts rev_nat and policy (32) + address bits.  Ranges to allow
 * and ranges to deny are rows apart, so the one write of a frontend that changes its flag changes at
 * once which are read, too.
 */
enum cil_lb_source_prefix {
	LB_SOURCE_PREFIX_FRONTEND = 32,
	LB_SOURCE_PREFIX_ADDRESS = 160,
};

struct lb_source_key {
	__u32 prefixlen;
	__u16 rev_nat;
	__u16 policy; /* the frontend's LB_F_SOURCES_* */
	struct cil_addr addr;
};

/*
 * cilium_lb_affinity_v1: LRU_HASH, which backend a client had last (frontends with LB_F_AFFINITY).
 * A pod is known by its address, whether its sockets or its packets are translated.
 */
enum cil_lb_client {
	LB_CLIENT_ADDRESS = 0,
	LB_CLIENT_NETNS =
		1, /* a network namespace that is no pod's: client.w[0..1] is its cookie */
};

struct lb_affinity_key {
	struct cil_addr client;
	__u16 rev_nat;
	__u8 kind; /* enum cil_lb_client */
	__u8 pad0;
};

struct lb_affinity {
	__u32 check; /* fold of the key */
	__u32 backend_id;
	__u32 last_used; /* by a new connection; seconds, CLOCK_MONOTONIC */
	__u32 pad0;
};

/* cilium_lb_affinity_match_v1: HASH -> 1: the backend is one that this frontend may choose. */
struct lb_affinity_match {
	__u32 backend_id;
	__u16 rev_nat;
	__u16 pad0;
};

/* cilium_lb_bind_v1: HASH -> 1: a NodePort of that number, which no socket of the node may bind. */
struct lb_bind_key {
	__be16 port;
	__u8 protocol;
	__u8 pad0;
};

/* cilium_netns_v1: HASH u64 cookie of a pod's network namespace -> u32 slot of its endpoint. */

/* cilium_lb_sock_v1: LRU_HASH, what a socket's peer was before translation. */
struct sock_revnat_key {
	__u64 cookie;
	struct cil_addr addr;
	__be16 port;
	__u8 protocol;
	__u8 pad[5];
};

struct sock_revnat {
	struct cil_addr addr;
	__be16 port;
	__u16 rev_nat;
	__u32 pad0;
};

/* ---- masquerading ------------------------------------------------------------------------ */

/* cilium_devices_v1: HASH u32 ifindex of a native device -> */
struct native_device {
	__be32 ipv4; /* source of masqueraded packets; 0: none */
	__u32 check; /* ifindex again */
	struct cil_addr ipv6;
	__u8 mac[6];
	__u16 flags;
};

enum cil_nat_dir {
	NAT_OUT = 0, /* pod -> world, as the pod sent it */
	NAT_IN = 1,  /* world -> node, as it arrives */
	/* Rows about IN rows: with their key, and the time in "created". */
	NAT_HANDOVER = 2, /* held while the port of a flow that is over is given to another */
	NAT_FULL = 3,	  /* dport 0: a search found none; "flags": when, see lib/nat_port.h */
};

/* cilium_snat_v1: LRU_HASH, both directions of every masqueraded flow. */
struct nat_key {
	struct cil_addr src;
	struct cil_addr dst;
	__be16 sport;
	__be16 dport;
	__u8 protocol;
	__u8 dir;
	__u16 zone;
};

struct nat_entry {
	__u32 check; /* fold of the key */
	__be16 port; /* OUT: new source port; IN: new destination port */
	__u16 flags;
	struct cil_addr addr; /* OUT: new source; IN: new destination */
	__u32 created;	      /* seconds, CLOCK_MONOTONIC */
	__u32 pad0;
};

/* cilium_frags_v1: LRU_HASH, ports of a fragmented datagram. */
struct frag_key {
	struct cil_addr src;
	struct cil_addr dst;
	__be32 id;
	__u8 protocol;
	__u8 pad[3];
};

struct frag_ports {
	__be16 sport;
	__be16 dport;
};

/* ---- what became of packets -------------------------------------------------------------- */

/* Numbers and texts as Cilium users know them (text in src/ciliumd/flows/reasons.py). */
enum cil_drop_reason {
	FORWARDED = 0,
	DROP_INVALID_SMAC = 130,
	DROP_INVALID_DMAC = 131,
	DROP_INVALID_SIP = 132,
	DROP_POLICY = 133,
	DROP_INVALID = 134,
	DROP_CT_INVALID_HDR = 135,
	DROP_CT_UNKNOWN_PROTO = 137,
	DROP_UNKNOWN_L3 = 139,
	DROP_MISSED_TAIL_CALL = 140,
	DROP_WRITE_ERROR = 141,
	DROP_UNKNOWN_L4 = 142,
	DROP_ICMP_TYPE = 144,
	DROP_ICMP6_TYPE = 146,
	DROP_NO_TUNNEL_KEY = 147,
	DROP_UNKNOWN_TARGET = 150,
	DROP_UNROUTABLE = 151,
	DROP_NO_LXC = 152,
	DROP_CSUM_L3 = 153,
	DROP_CSUM_L4 = 154,
	DROP_CT_CREATE_FAILED = 155,
	DROP_INVALID_EXTHDR = 156,
	DROP_FRAG_NOSUPPORT = 157,
	DROP_NO_SERVICE = 158,
	DROP_POLICY_NO_CONFIG = 165,
	DROP_UNSUPPORTED_L2 = 166,
	DROP_NAT_NO_MAPPING = 167,
	DROP_NAT_UNSUPP_PROTO = 168,
	DROP_NO_FIB = 169,
	DROP_ENCAP_PROHIBITED = 170,
	DROP_INVALID_IDENTITY = 171,
	DROP_UNKNOWN_SENDER = 172,
	DROP_IS_CLUSTER_IP = 174,
	DROP_FRAG_NOT_FOUND = 175,
	DROP_NOT_IN_SRC_RANGE = 177,
	DROP_POLICY_DENY = 181,
	DROP_TTL_EXCEEDED = 196,
	DROP_HOST_NOT_READY = 202,
	/* Not one of Cilium's. */
	DROP_POLICY_DAMAGED = 250,
};

/* cilium_metrics_v1: PERCPU_ARRAY[reason * DIR_MAX + direction]. */
enum cil_metrics {
	METRICS_MAX = 1024,
};

struct metric {
	__u64 packets;
	__u64 bytes;
};

enum cil_event_type {
	EVENT_DROP = 1,
	EVENT_TRACE = 4,
	EVENT_POLICY_VERDICT = 5,
};

/* Where a traced packet went (numbers of Hubble's TraceObservationPoint). */
enum cil_trace_point {
	TRACE_TO_PROXY = 1,
	TRACE_TO_HOST = 2,
	TRACE_TO_STACK = 3,
	TRACE_TO_OVERLAY = 4,
	TRACE_FROM_ENDPOINT = 5,
	TRACE_FROM_HOST = 7,
	TRACE_FROM_NETWORK = 10,
	TRACE_TO_NETWORK = 11,
	TRACE_TO_ENDPOINT = 101,
};

enum cil_ct_state {
	CT_STATE_NEW = 0,
	CT_STATE_ESTABLISHED = 1,
	CT_STATE_REPLY = 2,
	CT_STATE_RELATED = 3,
	CT_STATE_UNKNOWN = 255,
};

enum cil_source_file {
	FILE_UNKNOWN = 0,
	FILE_LXC = 1,
	FILE_HOST = 2,
	FILE_ENTRY = 3,
	FILE_OVERLAY = 4,
	FILE_NODEPORT = 5,
};

/* Record of cilium_events_v1 (RINGBUF). */
struct event {
	__u64 timestamp; /* ns, CLOCK_MONOTONIC */
	__u8 type;
	__u8 reason; /* EVENT_DROP: drop reason; EVENT_POLICY_VERDICT: policy verdict */
	__u8 hook;
	__u8 direction;
	__u16 endpoint_id; /* whose policy judged */
	__u16 line;
	__u32 src_identity;
	__u32 dst_identity;
	__u32 ifindex;
	__u32 length; /* bytes of the whole packet */
	__u32 rule_cookie;
	__u32 policy_version;
	struct cil_addr src;
	struct cil_addr dst;
	__be16 sport; /* ICMP: type << 8 | code, in host order, as be16 */
	__be16 dport;
	__u8 protocol;
	__u8 tcp_flags;
	__u8 ct_state;
	__u8 trace_point;
	__u8 smac[6];
	__u8 dmac[6];
	__u8 file;
	__u8 audit; /* 1: reported, not dropped */
	__u16 ethertype;
};

/* Rows of cilium_event_losses_v1 (PERCPU_ARRAY of u64): events that found the ring full. */
enum cil_event_loss {
	EVENT_LOSS_RING_FULL = 0,
	EVENT_LOSS_MAX = 4,
};

/* cilium_layout_v1: HASH map name -> text of that map's layout when it was created. */
struct layout_key {
	char name[32];
};

struct layout_value {
	char text[1024];
};

/* skb->mark: bits kubelet and kube-proxy use (0x4000, 0x8000) stay free. */
enum cil_mark {
	MARK_MASK = 0x0f00,
	MARK_TO_PROXY = 0x0200,
	MARK_SKIP_SNAT = 0x0300, /* reply of a flow opened from outside: keep its source */
	MARK_PROXY_INGRESS = 0x0a00,
	MARK_PROXY_EGRESS = 0x0b00,
	MARK_HOST = 0x0c00,
	MARK_DECRYPT = 0x0d00,
	MARK_ENCRYPT = 0x0e00,
	MARK_IDENTITY = 0x0f00,
};

#endif /* CILIUMD_ABI_H */
