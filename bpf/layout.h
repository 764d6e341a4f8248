/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the maps hold: keys, values and records.
 *
 * An element found may be reused for another key while it is being read, so every value of `frontends` and `slots`
 * begins with its own key and is taken for what it says only if that is still the key asked for when the rest has been
 * read.
 *
 * The same layout is read by crates/dataplane/src/sock/wire.rs; who changes one changes both, and the layout's number
 * there.
 */
#pragma once
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
	/* The frontend's. */
	__u32 id;
	/* Of a TCP socket: what goes over it is counted when it ends, which is after it was closed. */
	__u32 is_counted;
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
