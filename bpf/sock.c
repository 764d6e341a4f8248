/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A socket's calls on this node -> the same calls with a Service's address replaced by a backend's, and back.
 *
 * The choice is made once, when a socket connects or sends its first datagram; from then on its packets go straight to
 * the backend and nothing has to be translated. What a program asks the socket about its peer is answered with the
 * address it had asked for.
 *
 * Invariants: what is not in the maps is left as it is, and nftables underneath decides. The user-space half writes the
 * maps in such an order that after each single write every frontend leads to backends it has. An element found may be
 * reused for another key while it is being read, so every value of `frontends` and `slots` begins with its own key and
 * is taken for what it says only if that is still the key asked for when the rest has been read.
 *
 * Deliberately not here: source ranges, masquerading, dropping (nftables does these), SCTP (it has no such hooks), and
 * whatever comes to this node from elsewhere.
 *
 * Source: bpf(2) and bpf-helpers(7); the kernel's net/ipv4 and net/ipv6 for where each hook runs. The layout of keys and
 * values is read by crates/dataplane/src/sock/wire.rs; who changes one changes both, and the layout's number there.
 */
#include "kernel.h"

/* IPv4 as ::ffff:a.b.c.d, which is how a socket of either family may name it. */
struct address {
	__be32 words[4];
};

struct endpoint {
	struct address address;
	__be16 port;
	__u16 zero;
};

struct frontend_key {
	/* All zero (or ::ffff:0.0.0.0) for a NodePort: any of the addresses in `node_addresses`. */
	struct address address;
	__be16 port;
	__u8 protocol;
	__u8 zero;
};

enum verdict {
	FORWARD = 0,
	REJECT = 1,
	/* nftables decides. It is here so that an address of its own hides a NodePort of the same number. */
	LEAVE = 2,
};

struct frontend {
	struct frontend_key key;
	/* Never used again for another frontend. */
	__u32 id;
	__u32 count;
	/* 0 without session affinity. */
	__u32 affinity_seconds;
	__u32 verdict;
	/* With affinity, the frontend by which clients are remembered: one for all the addresses of a Service's port. */
	struct frontend_key together;
};

struct slot_key {
	__u32 id;
	__u32 index;
};

struct slot {
	struct slot_key key;
	struct endpoint backend;
};

struct member_key {
	__u32 id;
	struct endpoint backend;
};

enum client {
	/* Session affinity: the network namespace, which has one address towards Services. */
	CLIENT_NAMESPACE = 0,
	/* The flow of an unconnected socket. */
	CLIENT_SOCKET = 1,
};

struct session_key {
	__u64 cookie;
	struct frontend_key frontend;
	__u32 client;
};

struct session {
	struct endpoint backend;
	__u32 zero;
	__u64 used_at_ns;
};

struct connection {
	struct endpoint backend;
	struct frontend_key frontend;
};

struct reply_key {
	__u64 cookie;
	struct endpoint backend;
	__u32 zero;
};

struct counter {
	__u64 connections;
	__u64 datagrams;
	/* Of TCP connections that have ended: segments both ways, and the bytes in them. */
	__u64 segments;
	__u64 bytes;
};

/* Through which frontend a TCP socket was led; 0 once what went over it has been counted. */
struct account {
	__u32 id;
};

struct settings {
	/* The node's own network namespace, the only one whose ports a NodePort could be taken from. */
	__u64 node_cookie;
};

struct refused_bind {
	__u32 process;
	__u16 port;
	__u8 protocol;
	__u8 zero;
	char command[16];
};

/* How many elements there may be is set when the object is loaded. */
struct {
	NUMBER(type, BPF_MAP_TYPE_HASH);
	NUMBER(map_flags, BPF_F_NO_PREALLOC);
	NUMBER(max_entries, 1);
	TYPE(key, struct frontend_key);
	TYPE(value, struct frontend);
} frontends SEC(".maps");

struct {
	NUMBER(type, BPF_MAP_TYPE_HASH);
	NUMBER(map_flags, BPF_F_NO_PREALLOC);
	NUMBER(max_entries, 1);
	TYPE(key, struct slot_key);
	TYPE(value, struct slot);
} slots SEC(".maps");

/* The backends of a frontend that somebody may stay with: those with session affinity, and those of UDP. */
struct {
	NUMBER(type, BPF_MAP_TYPE_HASH);
	NUMBER(map_flags, BPF_F_NO_PREALLOC);
	NUMBER(max_entries, 1);
	TYPE(key, struct member_key);
	TYPE(value, __u32);
} members SEC(".maps");

struct {
	NUMBER(type, BPF_MAP_TYPE_HASH);
	NUMBER(map_flags, BPF_F_NO_PREALLOC);
	NUMBER(max_entries, 1);
	TYPE(key, __u32);
	TYPE(value, struct counter);
} counters SEC(".maps");

/* The node's own addresses that take NodePort traffic. */
struct {
	NUMBER(type, BPF_MAP_TYPE_HASH);
	NUMBER(map_flags, BPF_F_NO_PREALLOC);
	NUMBER(max_entries, 1);
	TYPE(key, struct address);
	TYPE(value, __u32);
} node_addresses SEC(".maps");

/* Cgroups that are left to nftables, with all below them. */
struct {
	NUMBER(type, BPF_MAP_TYPE_HASH);
	NUMBER(map_flags, BPF_F_NO_PREALLOC);
	NUMBER(max_entries, 1);
	TYPE(key, __u64);
	TYPE(value, __u32);
} exempt_cgroups SEC(".maps");

/* Network namespaces that are left to nftables. */
struct {
	NUMBER(type, BPF_MAP_TYPE_HASH);
	NUMBER(map_flags, BPF_F_NO_PREALLOC);
	NUMBER(max_entries, 1);
	TYPE(key, __u64);
	TYPE(value, __u32);
} exempt SEC(".maps");

/* Where anything is or was left out: bit 0 for namespaces, bit N for cgroups N levels below their hierarchy's root. Nearly
 * always nothing is, and then nobody has to look. */
struct {
	NUMBER(type, BPF_MAP_TYPE_ARRAY);
	NUMBER(max_entries, 1);
	TYPE(key, __u32);
	TYPE(value, __u32);
} exempting SEC(".maps");

/* Every socket that is connected through a frontend, by its cookie, until it is closed. Allocated beforehand: an element
 * comes and goes with every connection, and is read only on behalf of the socket it is of. */
struct {
	NUMBER(type, BPF_MAP_TYPE_HASH);
	NUMBER(max_entries, 1);
	TYPE(key, __u64);
	TYPE(value, struct connection);
} connections SEC(".maps");

struct {
	NUMBER(type, BPF_MAP_TYPE_SK_STORAGE);
	NUMBER(map_flags, BPF_F_NO_PREALLOC);
	TYPE(key, __s32);
	TYPE(value, struct account);
} accounts SEC(".maps");

struct {
	NUMBER(type, BPF_MAP_TYPE_LRU_HASH);
	NUMBER(max_entries, 1);
	TYPE(key, struct session_key);
	TYPE(value, struct session);
} sessions SEC(".maps");

/* Which frontend an unconnected socket had meant by the backend that answers it. */
struct {
	NUMBER(type, BPF_MAP_TYPE_LRU_HASH);
	NUMBER(max_entries, 1);
	TYPE(key, struct reply_key);
	TYPE(value, struct endpoint);
} replies SEC(".maps");

struct {
	NUMBER(type, BPF_MAP_TYPE_ARRAY);
	NUMBER(max_entries, 1);
	TYPE(key, __u32);
	TYPE(value, struct settings);
} settings SEC(".maps");

struct {
	NUMBER(type, BPF_MAP_TYPE_RINGBUF);
	NUMBER(max_entries, 65536);
} refused_binds SEC(".maps");

/* As long as conntrack keeps an answered UDP flow, so that a socket stays with its backend under either. */
#define FLOW_SECONDS 120
#define NANOSECONDS 1000000000ULL
/* How often a choice is made again because an element went away between two looks. */
#define ATTEMPTS 3

#define V4_PREFIX htonl(0xffff)

INLINE struct address v4(__be32 word)
{
	return (struct address){ { 0, 0, V4_PREFIX, word } };
}

INLINE int same_address(const struct address *a, const struct address *b)
{
	return a->words[3] == b->words[3] && a->words[2] == b->words[2] && a->words[1] == b->words[1] &&
	       a->words[0] == b->words[0];
}

INLINE int same_endpoint(const struct endpoint *a, const struct endpoint *b)
{
	return a->port == b->port && same_address(&a->address, &b->address);
}

INLINE int is_v4(const struct address *a)
{
	return !a->words[0] && !a->words[1] && a->words[2] == V4_PREFIX;
}

/* No address in particular, of the family of `like`. */
INLINE struct address any(const struct address *like)
{
	return (struct address){ { 0, 0, is_v4(like) ? V4_PREFIX : 0, 0 } };
}

/* A number below `n`, each equally likely but for a chance of less than 2^-60. */
INLINE __u32 below(__u32 n)
{
	__u64 product = (__u64)bpf_get_prandom_u32() * n;
	if ((__u32)product < n) {
		__u32 biased = -n % n;
		for (int i = 0; i < 4 && (__u32)product < biased; i++)
			product = (__u64)bpf_get_prandom_u32() * n;
	}
	return product >> 32;
}

/* Copies what is there for exactly this key. */
INLINE int find_exactly(const struct frontend_key *key, struct frontend *found)
{
	const volatile struct frontend *frontend = bpf_map_lookup_elem(&frontends, key);
	if (!frontend)
		return 0;
	found->id = frontend->id;
	found->count = frontend->count;
	found->affinity_seconds = frontend->affinity_seconds;
	found->verdict = frontend->verdict;
	found->key.address.words[0] = frontend->key.address.words[0];
	found->key.address.words[1] = frontend->key.address.words[1];
	found->key.address.words[2] = frontend->key.address.words[2];
	found->key.address.words[3] = frontend->key.address.words[3];
	found->key.port = frontend->key.port;
	found->key.protocol = frontend->key.protocol;
	if (found->affinity_seconds) {
		found->together.address.words[0] = frontend->together.address.words[0];
		found->together.address.words[1] = frontend->together.address.words[1];
		found->together.address.words[2] = frontend->together.address.words[2];
		found->together.address.words[3] = frontend->together.address.words[3];
		found->together.port = frontend->together.port;
		found->together.protocol = frontend->together.protocol;
		found->together.zero = 0;
	}
	return same_address(&found->key.address, &key->address) && found->key.port == key->port &&
	       found->key.protocol == key->protocol;
}

/* `key` becomes the NodePort's where that is what was found. */
INLINE int find(struct frontend_key *key, struct frontend *found)
{
	if (find_exactly(key, found))
		return 1;
	if (!bpf_map_lookup_elem(&node_addresses, &key->address))
		return 0;
	key->address = any(&key->address);
	return find_exactly(key, found);
}

INLINE int slot(__u32 id, __u32 index, struct endpoint *backend)
{
	struct slot_key key = { id, index };
	const volatile struct slot *slot = bpf_map_lookup_elem(&slots, &key);
	if (!slot)
		return 0;
	backend->address.words[0] = slot->backend.address.words[0];
	backend->address.words[1] = slot->backend.address.words[1];
	backend->address.words[2] = slot->backend.address.words[2];
	backend->address.words[3] = slot->backend.address.words[3];
	backend->port = slot->backend.port;
	backend->zero = 0;
	return slot->key.id == id && slot->key.index == index;
}

/* The backend that the client was given within the last `seconds`, if the frontend still has it. */
INLINE int remembered(const struct session_key *key, __u32 id, __u32 seconds, struct endpoint *backend)
{
	struct session *session = bpf_map_lookup_elem(&sessions, key);
	if (!session)
		return 0;
	__u64 now = bpf_ktime_get_coarse_ns();
	if (now - session->used_at_ns > seconds * NANOSECONDS)
		return 0;
	struct member_key member = { id, session->backend };
	if (!bpf_map_lookup_elem(&members, &member))
		return 0;
	session->used_at_ns = now;
	*backend = member.backend;
	return 1;
}

INLINE int choose(struct frontend *frontend, struct endpoint *backend)
{
	for (int i = 0; i < ATTEMPTS; i++) {
		if (frontend->verdict != FORWARD || !frontend->count)
			return 0;
		if (slot(frontend->id, below(frontend->count), backend))
			return 1;
		struct frontend_key key = frontend->key;
		key.zero = 0;
		if (!find_exactly(&key, frontend))
			return 0;
	}
	return 0;
}

/* Levels of cgroups that may be left out; kubelet's pods are on the fourth at most. */
#define LEVELS 16

/* Whether the process is in a cgroup that is left out, of those on the levels that are marked. */
INLINE int is_in_exempt_cgroup(__u32 levels)
{
	for (int level = 1; level < LEVELS; level++) {
		if (!(levels & 1u << level))
			continue;
		__u64 cgroup = bpf_get_current_ancestor_cgroup_id(level);
		if (cgroup && bpf_map_lookup_elem(&exempt_cgroups, &cgroup))
			return 1;
	}
	return 0;
}

/* What goes over this socket is counted when it ends. */
INLINE void keep_account(struct bpf_sock_addr *ctx, __u32 id)
{
	struct bpf_sock *socket = ctx->sk;
	if (ctx->protocol != IPPROTO_TCP || !socket)
		return;
	struct account *account = bpf_sk_storage_get(&accounts, socket, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (account)
		account->id = id;
}

enum outcome { AS_IT_IS, REFUSED, TRANSLATED };

/* Who the destination stands for, for a socket that connects (`is_connect`) or sends a datagram. */
INLINE enum outcome translate(struct bpf_sock_addr *ctx, struct address address, int is_connect,
			      struct endpoint *backend)
{
	if (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP)
		return AS_IT_IS;
	struct frontend_key asked = { address, (__be16)ctx->user_port, (__u8)ctx->protocol, 0 };
	struct frontend_key key = asked;
	struct frontend frontend;
	if (!find(&key, &frontend) || frontend.verdict == LEAVE)
		return AS_IT_IS;
	__u64 namespace = 0;
	__u32 zero = 0;
	const __u32 *exempting_here = bpf_map_lookup_elem(&exempting, &zero);
	__u32 exempted = exempting_here ? *exempting_here : 0;
	if (exempted || frontend.affinity_seconds)
		namespace = bpf_get_netns_cookie(ctx);
	if (exempted && bpf_map_lookup_elem(&exempt, &namespace))
		return AS_IT_IS;
	if (exempted > 1 && is_in_exempt_cgroup(exempted))
		return AS_IT_IS;
	if (frontend.verdict == REJECT) {
		bpf_set_retval(-ECONNREFUSED);
		return REFUSED;
	}

	__u64 socket = bpf_get_socket_cookie(ctx);
	__u32 seconds = frontend.affinity_seconds;
	struct session_key session = { namespace, key, CLIENT_NAMESPACE };
	if (seconds) {
		session.frontend = frontend.together;
	} else if (!is_connect) {
		seconds = FLOW_SECONDS;
		session.cookie = socket;
		session.client = CLIENT_SOCKET;
	}
	int is_new = !seconds || !remembered(&session, frontend.id, seconds, backend);
	if (is_new) {
		if (!choose(&frontend, backend))
			return AS_IT_IS;
		if (seconds) {
			struct session value = { *backend, 0, bpf_ktime_get_coarse_ns() };
			bpf_map_update_elem(&sessions, &session, &value, BPF_ANY);
		}
	}

	if (is_connect) {
		struct connection connection = { *backend, asked };
		bpf_map_update_elem(&connections, &socket, &connection, BPF_ANY);
		keep_account(ctx, frontend.id);
	} else {
		struct reply_key reply = { socket, *backend, 0 };
		struct endpoint meant = { asked.address, asked.port, 0 };
		const struct endpoint *known = bpf_map_lookup_elem(&replies, &reply);
		if (!known || !same_endpoint(known, &meant))
			bpf_map_update_elem(&replies, &reply, &meant, BPF_ANY);
	}
	struct counter *counter = bpf_map_lookup_elem(&counters, &frontend.id);
	if (counter && is_connect)
		__sync_fetch_and_add(&counter->connections, 1);
	else if (counter)
		__sync_fetch_and_add(&counter->datagrams, 1);
	return TRANSLATED;
}

/* The socket names its peer itself: what it was led to before says nothing about this one. */
INLINE void forget(struct bpf_sock_addr *ctx, struct address address, int is_connect)
{
	__u64 socket = bpf_get_socket_cookie(ctx);
	if (is_connect) {
		/* One of TCP connects once in its life, but for those that were made to forget it (AF_UNSPEC). */
		if (ctx->protocol == IPPROTO_UDP)
			bpf_map_delete_elem(&connections, &socket);
		return;
	}
	struct reply_key reply = { socket, { address, (__be16)ctx->user_port, 0 }, 0 };
	if (bpf_map_lookup_elem(&replies, &reply))
		bpf_map_delete_elem(&replies, &reply);
}

INLINE int outbound4(struct bpf_sock_addr *ctx, int is_connect)
{
	struct endpoint backend = {};
	struct address address = v4(ctx->user_ip4);
	enum outcome outcome = translate(ctx, address, is_connect, &backend);
	if (outcome == AS_IT_IS)
		forget(ctx, address, is_connect);
	if (outcome == TRANSLATED) {
		ctx->user_ip4 = backend.address.words[3];
		ctx->user_port = backend.port;
	}
	return outcome != REFUSED;
}

INLINE int outbound6(struct bpf_sock_addr *ctx, int is_connect)
{
	struct endpoint backend = {};
	struct address address = { { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] } };
	enum outcome outcome = translate(ctx, address, is_connect, &backend);
	if (outcome == AS_IT_IS)
		forget(ctx, address, is_connect);
	if (outcome == TRANSLATED) {
		ctx->user_ip6[0] = backend.address.words[0];
		ctx->user_ip6[1] = backend.address.words[1];
		ctx->user_ip6[2] = backend.address.words[2];
		ctx->user_ip6[3] = backend.address.words[3];
		ctx->user_port = backend.port;
	}
	return outcome != REFUSED;
}

SEC("cgroup/connect4") int connect4(struct bpf_sock_addr *ctx)
{
	return outbound4(ctx, 1);
}

SEC("cgroup/connect6") int connect6(struct bpf_sock_addr *ctx)
{
	return outbound6(ctx, 1);
}

SEC("cgroup/sendmsg4") int sendmsg4(struct bpf_sock_addr *ctx)
{
	return outbound4(ctx, 0);
}

SEC("cgroup/sendmsg6") int sendmsg6(struct bpf_sock_addr *ctx)
{
	return outbound6(ctx, 0);
}

/* What the socket had asked for when it got this backend, if it ever did. */
INLINE int meant_by(struct bpf_sock_addr *ctx, struct address address, int is_datagram, struct endpoint *frontend)
{
	__u64 socket = bpf_get_socket_cookie(ctx);
	struct endpoint backend = { address, (__be16)ctx->user_port, 0 };
	const struct connection *connection = bpf_map_lookup_elem(&connections, &socket);
	if (connection && same_endpoint(&connection->backend, &backend)) {
		frontend->address = connection->frontend.address;
		frontend->port = connection->frontend.port;
		return 1;
	}
	if (!is_datagram)
		return 0;
	struct reply_key reply = { socket, backend, 0 };
	const struct endpoint *meant = bpf_map_lookup_elem(&replies, &reply);
	if (!meant)
		return 0;
	*frontend = *meant;
	return 1;
}

INLINE int inbound4(struct bpf_sock_addr *ctx, int is_datagram)
{
	struct endpoint frontend = {};
	if (meant_by(ctx, v4(ctx->user_ip4), is_datagram, &frontend)) {
		ctx->user_ip4 = frontend.address.words[3];
		ctx->user_port = frontend.port;
	}
	return 1;
}

INLINE int inbound6(struct bpf_sock_addr *ctx, int is_datagram)
{
	struct endpoint frontend = {};
	struct address address = { { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] } };
	if (meant_by(ctx, address, is_datagram, &frontend)) {
		ctx->user_ip6[0] = frontend.address.words[0];
		ctx->user_ip6[1] = frontend.address.words[1];
		ctx->user_ip6[2] = frontend.address.words[2];
		ctx->user_ip6[3] = frontend.address.words[3];
		ctx->user_port = frontend.port;
	}
	return 1;
}

SEC("cgroup/recvmsg4") int recvmsg4(struct bpf_sock_addr *ctx)
{
	return inbound4(ctx, 1);
}

SEC("cgroup/recvmsg6") int recvmsg6(struct bpf_sock_addr *ctx)
{
	return inbound6(ctx, 1);
}

SEC("cgroup/getpeername4") int getpeername4(struct bpf_sock_addr *ctx)
{
	return inbound4(ctx, 0);
}

SEC("cgroup/getpeername6") int getpeername6(struct bpf_sock_addr *ctx)
{
	return inbound6(ctx, 0);
}

INLINE int is_node_port(struct bpf_sock *ctx, struct address family)
{
	struct frontend_key key = { family, htons((__u16)ctx->src_port), (__u8)ctx->protocol, 0 };
	return bpf_map_lookup_elem(&frontends, &key) != 0;
}

/* A socket of the node itself may not take a port that a Service has on every node: its clients would never reach it. */
INLINE int may_bind(struct bpf_sock *ctx, struct address address, int is_any, int is_both)
{
	if (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP)
		return 1;
	__u32 zero = 0;
	const struct settings *known = bpf_map_lookup_elem(&settings, &zero);
	if (!known || known->node_cookie != bpf_get_netns_cookie(ctx))
		return 1;
	if (!is_any && !bpf_map_lookup_elem(&node_addresses, &address))
		return 1;
	struct address of_v4 = { { 0, 0, V4_PREFIX, 0 } };
	if (!is_node_port(ctx, any(&address)) && !(is_both && is_node_port(ctx, of_v4)))
		return 1;
	struct refused_bind refused = { .process = bpf_get_current_pid_tgid() >> 32,
					.port = ctx->src_port,
					.protocol = ctx->protocol };
	bpf_get_current_comm(refused.command, sizeof(refused.command));
	bpf_ringbuf_output(&refused_binds, &refused, sizeof(refused), 0);
	bpf_set_retval(-EADDRINUSE);
	return 0;
}

SEC("cgroup/post_bind4") int post_bind4(struct bpf_sock *ctx)
{
	__be32 word = ctx->src_ip4;
	return may_bind(ctx, v4(word), !word, 0);
}

SEC("cgroup/post_bind6") int post_bind6(struct bpf_sock *ctx)
{
	struct address address = { { ctx->src_ip6[0], ctx->src_ip6[1], ctx->src_ip6[2], ctx->src_ip6[3] } };
	struct address unspecified = any(&address);
	int is_any = same_address(&address, &unspecified);
	return may_bind(ctx, address, is_any, is_any);
}

SEC("cgroup/sock_release") int sock_release(struct bpf_sock *ctx)
{
	__u64 socket = bpf_get_socket_cookie(ctx);
	bpf_map_delete_elem(&connections, &socket);
	return 1;
}

/* Called a few times in the life of every TCP socket, and for none of its packets. */
SEC("sockops") int account(struct bpf_sock_ops *ctx)
{
	__u32 op = ctx->op;
	if (op != BPF_SOCK_OPS_TCP_CONNECT_CB && (op != BPF_SOCK_OPS_STATE_CB || ctx->args[1] != BPF_TCP_CLOSE))
		return 1;
	struct bpf_sock *socket = ctx->sk;
	if (!socket)
		return 1;
	struct account *account = bpf_sk_storage_get(&accounts, socket, 0, 0);
	if (!account || !account->id)
		return 1;
	if (op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
		bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
		return 1;
	}
	__u32 id = account->id;
	account->id = 0;
	struct counter *counter = bpf_map_lookup_elem(&counters, &id);
	if (!counter)
		return 1;
	__sync_fetch_and_add(&counter->segments, (__u64)ctx->segs_in + ctx->segs_out);
	__sync_fetch_and_add(&counter->bytes, ctx->bytes_received + ctx->bytes_acked);
	return 1;
}

/* No helper above is reserved for programs under the GPL. */
char apache[] SEC("license") = "Apache-2.0";
