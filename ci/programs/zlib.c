// SPDX-License-Identifier: GPL-2.0
/* Compresses with zlib, at all levels and with all strategies, and back. */
#include <zlib.h>

#include "program.h"

#define SIZE 20000

int main(void)
{
	static unsigned char in[SIZE], packed[2 * SIZE], out[SIZE];
	z_stream s;
	int size, n;

	fill(in, SIZE);
	for (int level = 0; level <= 9; level++) {
		for (int strategy = Z_DEFAULT_STRATEGY; strategy <= Z_FIXED; strategy++) {
			if (strategy != Z_DEFAULT_STRATEGY && level % 4 != 1)
				continue;
			memset(&s, 0, sizeof(s));
			if (deflateInit2(&s, level, Z_DEFLATED, 9 + (level + strategy) % 7, 1 + level % 9, strategy))
				return 1;
			s.next_in = in;
			s.avail_in = SIZE;
			s.next_out = packed;
			s.avail_out = sizeof(packed);
			if (deflate(&s, Z_FINISH) != Z_STREAM_END)
				return 2;
			size = s.total_out;
			deflateEnd(&s);

			/* back, in pieces */
			memset(&s, 0, sizeof(s));
			if (inflateInit(&s))
				return 3;
			s.next_in = packed;
			s.next_out = out;
			do {
				s.avail_in = (unsigned int)size - s.total_in < 777 ? size - s.total_in : 777;
				s.avail_out = SIZE - s.total_out < 5000 ? SIZE - s.total_out : 5000;
				n = inflate(&s, Z_NO_FLUSH);
			} while (n == Z_OK);
			if (n != Z_STREAM_END || s.total_out != SIZE || memcmp(in, out, SIZE))
				return 4;
			inflateEnd(&s);
			printf("level %d strategy %d: %d bytes, %08lx %08lx %016llx\n", level, strategy, size,
			       adler32(1, packed, size), crc32(0, packed, size), (unsigned long long)fnv1a(packed, size));
		}
	}
	/* what is broken has to be noticed */
	packed[size / 2] ^= 0x40;
	uLongf length = SIZE;

	printf("broken: %d\n", uncompress(out, &length, packed, size));
	return 0;
}
