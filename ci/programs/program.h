/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Shared by the programs of ci/machine-programs: data to work on, and a number
 * that stands for what became of it.
 */
#ifndef PROGRAM_H
#define PROGRAM_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t random_state = 20261121;

static inline uint64_t next_random(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

/* Words that come again, and now and then bytes that do not. */
static inline void fill(unsigned char *p, size_t size)
{
	static const char * const words[] = {
		"register ", "of ", "the ", "guest ", "is ", "extended", "state\n", "and ", "0x", "EVEX ",
	};
	size_t at = 0, n;

	while (at < size) {
		const char *word = words[next_random() % (sizeof(words) / sizeof(*words))];

		n = strlen(word);
		if (at + n > size)
			n = size - at;
		memcpy(p + at, word, n);
		at += n;
		if (at < size && next_random() % 16 == 0)
			p[at++] = next_random();
	}
}

static inline uint64_t fnv1a(const void *data, size_t size)
{
	const unsigned char *p = data;
	uint64_t hash = 0xcbf29ce484222325;

	while (size--)
		hash = (hash ^ *p++) * 0x100000001b3;
	return hash;
}

#endif /* PROGRAM_H */
