/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The maps, which user space fills for the programs, and the programs for each other.
 *
 * How many elements there may be is set when the object is loaded.
 */
#pragma once
#include "layout.h"

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

/* What kinds of things are or were left out. Nearly always nothing is, and then nobody has to look. */
enum { EXEMPTING_NAMESPACES = 1, EXEMPTING_CGROUPS = 2 };

struct {
	NUMBER(type, BPF_MAP_TYPE_ARRAY);
	NUMBER(max_entries, 1);
	TYPE(key, __u32);
	TYPE(value, __u32);
} exempting SEC(".maps");

/* Every socket that is connected through a frontend, by its cookie, until it is closed, and of TCP until it has ended.
 * Allocated beforehand: an element comes and goes with every connection, and is read only on behalf of the socket it is
 * of. Storage in the socket itself (BPF_MAP_TYPE_SK_STORAGE) would have no limit, but costs a short connection more. */
struct {
	NUMBER(type, BPF_MAP_TYPE_HASH);
	NUMBER(max_entries, 1);
	TYPE(key, __u64);
	TYPE(value, struct connection);
} connections SEC(".maps");

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
