// SPDX-License-Identifier: GPL-2.0
/* Compresses with zstd, at all levels, at once, in a stream and with a dictionary, and back. */
#include <zstd.h>

#include "program.h"

#define SIZE 16000

int main(void)
{
	static unsigned char in[SIZE], packed[2 * SIZE], out[SIZE], dictionary[4000];
	ZSTD_CCtx *c = ZSTD_createCCtx();
	ZSTD_DCtx *d = ZSTD_createDCtx();
	size_t size, back;

	fill(dictionary, sizeof(dictionary));
	fill(in, SIZE);
	for (int level = -3; level <= 19; level++) {
		size = ZSTD_compressCCtx(c, packed, sizeof(packed), in, SIZE, level);
		back = ZSTD_decompressDCtx(d, out, SIZE, packed, size);
		if (ZSTD_isError(size) || back != SIZE || memcmp(in, out, SIZE))
			return 1;
		printf("level %d: %zu bytes, %016llx\n", level, size, (unsigned long long)fnv1a(packed, size));
	}
	for (int level = 1; level <= 16; level += 5) {
		size = ZSTD_compress_usingDict(c, packed, sizeof(packed), in, SIZE, dictionary, sizeof(dictionary), level);
		back = ZSTD_decompress_usingDict(d, out, SIZE, packed, size, dictionary, sizeof(dictionary));
		if (ZSTD_isError(size) || back != SIZE || memcmp(in, out, SIZE))
			return 2;
		printf("dictionary, level %d: %zu bytes, %016llx\n", level, size, (unsigned long long)fnv1a(packed, size));
	}

	ZSTD_inBuffer from = { in, 0, 0 };
	ZSTD_outBuffer to = { packed, sizeof(packed), 0 };

	ZSTD_CCtx_setParameter(c, ZSTD_c_checksumFlag, 1);
	ZSTD_CCtx_setParameter(c, ZSTD_c_enableLongDistanceMatching, 1);
	while (from.size < SIZE) {
		from.size += 1000;
		if (ZSTD_isError(ZSTD_compressStream2(c, &to, &from, ZSTD_e_flush)))
			return 3;
	}
	if (ZSTD_compressStream2(c, &to, &from, ZSTD_e_end))
		return 4;
	back = ZSTD_decompressDCtx(d, out, SIZE, packed, to.pos);
	if (back != SIZE || memcmp(in, out, SIZE))
		return 5;
	printf("stream: %zu bytes, %016llx\n", to.pos, (unsigned long long)fnv1a(packed, to.pos));
	packed[to.pos / 2] ^= 0x40;
	printf("broken: %s\n", ZSTD_getErrorName(ZSTD_decompressDCtx(d, out, SIZE, packed, to.pos)));
	return 0;
}
