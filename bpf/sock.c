/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A socket's calls on this node -> the same calls with a Service's address replaced by a backend's, and back.
 *
 * The choice is made once, when a socket connects or sends its first datagram; from then on its packets go straight to
 * the backend and nothing has to be translated. What a program asks the socket about its peer is answered with the
 * address it had asked for.
 *
 * Invariant: what is not in the maps is left as it is, and nftables underneath decides.
 *
 * Deliberately not here: source ranges, masquerading, dropping (nftables does these), SCTP (it has no such hooks), and
 * whatever comes to this node from elsewhere.
 *
 * Source: bpf(2) and bpf-helpers(7); the kernel's net/ipv4 and net/ipv6 for where each hook runs.
 */
#include "choose.h"

/* As long as conntrack keeps an answered UDP flow, so that a socket stays with its backend under either. */
#define FLOW_SECONDS 120

/* How deep below its hierarchy's root a cgroup may be to be left out; the kubelet's pods are on the third or fourth
 * level, and a few deeper where a whole node is a container. */
#define LEVELS 16

/* Whether the process is in a cgroup that is left out, or below one. */
INLINE int is_in_exempt_cgroup(void)
{
	for (int level = 1; level < LEVELS; level++) {
		__u64 cgroup = bpf_get_current_ancestor_cgroup_id(level);
		if (!cgroup)
			return 0;
		if (bpf_map_lookup_elem(&exempt_cgroups, &cgroup))
			return 1;
	}
	return 0;
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
	if (exempted & EXEMPTING_NAMESPACES || frontend.affinity_seconds)
		namespace = bpf_get_netns_cookie(ctx);
	if (exempted & EXEMPTING_NAMESPACES && bpf_map_lookup_elem(&exempt, &namespace))
		return AS_IT_IS;
	if (exempted & EXEMPTING_CGROUPS && is_in_exempt_cgroup())
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
		struct connection connection = { *backend, asked, frontend.id, 0 };
		bpf_map_update_elem(&connections, &socket, &connection, BPF_ANY);
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

/* A socket of the node itself may not take a port that a Service has on every node: no client would reach it. */
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
	if (ctx->protocol == IPPROTO_TCP) {
		const struct connection *connection = bpf_map_lookup_elem(&connections, &socket);
		if (!connection || connection->is_counted)
			return 1;
	}
	bpf_map_delete_elem(&connections, &socket);
	return 1;
}

/* Called a few times in the life of every TCP socket, and for none of its packets. */
SEC("sockops") int account(struct bpf_sock_ops *ctx)
{
	__u32 op = ctx->op;
	if (op != BPF_SOCK_OPS_TCP_CONNECT_CB && (op != BPF_SOCK_OPS_STATE_CB || ctx->args[1] != BPF_TCP_CLOSE))
		return 1;
	__u64 socket = bpf_get_socket_cookie(ctx);
	struct connection *connection = bpf_map_lookup_elem(&connections, &socket);
	if (!connection)
		return 1;
	if (op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
		int failed = bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
		connection->is_counted = !failed;
		return 1;
	}
	__u32 id = connection->id;
	bpf_map_delete_elem(&connections, &socket);
	struct counter *counter = bpf_map_lookup_elem(&counters, &id);
	if (!counter)
		return 1;
	__sync_fetch_and_add(&counter->segments, (__u64)ctx->segs_in + ctx->segs_out);
	__sync_fetch_and_add(&counter->bytes, ctx->bytes_received + ctx->bytes_acked);
	return 1;
}

/* No helper above is reserved for programs under the GPL. */
char apache[] SEC("license") = "Apache-2.0";
