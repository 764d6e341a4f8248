/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The part of the kernel's BPF interface that sock.c uses: contexts, constants and helpers, each by its number.
 *
 * All of it is user-space ABI and the same on every kernel, so that nothing needs relocating and no header of a kernel
 * or of libbpf is needed to build. Source: include/uapi/linux/bpf.h, Linux 5.18.
 */
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
/* In network byte order. */
typedef __u16 __be16;
typedef __u32 __be32;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))

/* Map definitions, as the loader reads them from the type information. */
#define NUMBER(name, value) int (*name)[value]
#define TYPE(name, type) typeof(type) *name

enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_RINGBUF = 27,
};

enum { BPF_ANY = 0 };
enum { BPF_F_NO_PREALLOC = 1 };

/* What a program of sockops is called for. */
enum { BPF_SOCK_OPS_TCP_CONNECT_CB = 3, BPF_SOCK_OPS_STATE_CB = 10 };
enum { BPF_SOCK_OPS_STATE_CB_FLAG = 4 };
enum { BPF_TCP_CLOSE = 7 };

enum { IPPROTO_TCP = 6, IPPROTO_UDP = 17 };
enum { EADDRINUSE = 98, ECONNREFUSED = 111 };

struct bpf_sock;

/* For the hooks of connect, sendmsg, recvmsg and getpeername. */
struct bpf_sock_addr {
	__u32 user_family;
	__be32 user_ip4;
	__be32 user_ip6[4];
	/* The lower half is the port, in network byte order. */
	__u32 user_port;
	__u32 family;
	__u32 type;
	__u32 protocol;
	__be32 msg_src_ip4;
	__be32 msg_src_ip6[4];
	struct bpf_sock *sk;
};

/* For the hooks of bind and of a socket's end. */
struct bpf_sock {
	__u32 bound_dev_if;
	__u32 family;
	__u32 type;
	__u32 protocol;
	__u32 mark;
	__u32 priority;
	__be32 src_ip4;
	__be32 src_ip6[4];
	/* In host byte order. */
	__u32 src_port;
};

/* For the hooks of a TCP socket's life. */
struct bpf_sock_ops {
	__u32 op;
	/* With BPF_SOCK_OPS_STATE_CB the state before, and the state to come. */
	__u32 args[4];
	__u32 family;
	__be32 remote_ip4;
	__be32 local_ip4;
	__be32 remote_ip6[4];
	__be32 local_ip6[4];
	__u32 remote_port;
	__u32 local_port;
	__u32 is_fullsock;
	__u32 snd_cwnd;
	__u32 srtt_us;
	__u32 bpf_sock_ops_cb_flags;
	__u32 state;
	__u32 rtt_min;
	__u32 snd_ssthresh;
	__u32 rcv_nxt;
	__u32 snd_nxt;
	__u32 snd_una;
	__u32 mss_cache;
	__u32 ecn_flags;
	__u32 rate_delivered;
	__u32 rate_interval_us;
	__u32 packets_out;
	__u32 retrans_out;
	__u32 total_retrans;
	__u32 segs_in;
	__u32 data_segs_in;
	__u32 segs_out;
	__u32 data_segs_out;
	__u32 lost_out;
	__u32 sacked_out;
	__u32 sk_txhash;
	__u64 bytes_received;
	__u64 bytes_acked;
	struct bpf_sock *sk;
};

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*const bpf_map_update_elem)(void *map, const void *key, const void *value, __u64 flags) = (void *)2;
static long (*const bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
static __u32 (*const bpf_get_prandom_u32)(void) = (void *)7;
static __u64 (*const bpf_get_current_pid_tgid)(void) = (void *)14;
static long (*const bpf_get_current_comm)(void *buffer, __u32 size) = (void *)16;
static __u64 (*const bpf_get_socket_cookie)(void *context) = (void *)46;
static long (*const bpf_sock_ops_cb_flags_set)(struct bpf_sock_ops *context, int flags) = (void *)59;
static __u64 (*const bpf_get_netns_cookie)(void *context) = (void *)122;
static __u64 (*const bpf_get_current_ancestor_cgroup_id)(int level) = (void *)123;
static long (*const bpf_ringbuf_output)(void *ringbuf, void *data, __u64 size, __u64 flags) = (void *)130;
static __u64 (*const bpf_ktime_get_coarse_ns)(void) = (void *)160;
static int (*const bpf_set_retval)(int value) = (void *)187;

#define htons(port) ((__be16)__builtin_bswap16(port))
#define htonl(word) ((__be32)__builtin_bswap32(word))
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the object is built and read for little-endian machines"
#endif
