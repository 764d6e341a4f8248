/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A destination -> its frontend, and one of the frontend's backends.
 *
 * The user-space half writes the maps in such an order that after each single write every frontend leads to backends it
 * has; what is found half gone is looked for again.
 */
#pragma once
#include "maps.h"

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

/* What an element says now, a word at a time: it may become another's meanwhile. */
INLINE void read_address(struct address *to, const volatile struct address *from)
{
	to->words[0] = from->words[0];
	to->words[1] = from->words[1];
	to->words[2] = from->words[2];
	to->words[3] = from->words[3];
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
	read_address(&found->key.address, &frontend->key.address);
	found->key.port = frontend->key.port;
	found->key.protocol = frontend->key.protocol;
	if (found->affinity_seconds) {
		read_address(&found->together.address, &frontend->together.address);
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
	read_address(&backend->address, &slot->backend.address);
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
	__u64 used_at = session->used_at_ns;
	/* Another processor may have used it after this one looked at the time. */
	if (now > used_at && now - used_at > seconds * NANOSECONDS)
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
