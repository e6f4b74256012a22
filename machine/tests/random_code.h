/* SPDX-License-Identifier: GPL-2.0 */
/* Random bytes that are instructions more often than random bytes are. */
#ifndef RANDOM_CODE_H
#define RANDOM_CODE_H

#include "apx_test.h"

#define STRING	96		/* bytes of a string */

static int put_random_insn(u8 *p, bool long_mode)
{
	static const u8 prefixes[] = {
		0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65,
	};
	static const u8 sibs[] = { 0x00, 0x25, 0x65, 0xe4, 0x48 };
	int n = 0, k;

	while (rng_below(4) == 0 && n < 4)
		p[n++] = prefixes[rng_below(ARRAY_SIZE(prefixes))];
	switch (rng_below(6)) {
	case 0:					/* anything */
		break;
	case 1:
		p[n++] = 0xd5;			/* REX2 */
		p[n++] = rng();
		break;
	case 2:					/* EVEX, half of it map 4 */
		p[n++] = 0x62;
		p[n++] = (rng() & 0xf8) | (rng_below(2) ? 4 : rng_below(8));
		p[n++] = rng() | (rng_below(2) ? 4 : 0);
		p[n++] = rng();
		break;
	case 3:					/* VEX */
		p[n++] = 0xc4;
		p[n++] = (rng() & 0xe0) | (1 + rng_below(3));
		p[n++] = rng();
		break;
	case 4:
		if (long_mode && rng_below(2))
			p[n++] = 0x40 | rng_below(16);
		p[n++] = 0x0f;
		if (rng_below(4) == 0)
			p[n++] = rng_below(2) ? 0x38 : 0x3a;
		break;
	case 5:
		if (long_mode)
			p[n++] = 0x40 | rng_below(16);
		break;
	}
	p[n++] = rng();
	k = rng();
	p[n++] = k;
	if (k < 0xc0 && (k & 7) == 4)
		p[n++] = rng_below(2) ? rng() : sibs[rng_below(ARRAY_SIZE(sibs))];
	for (k = rng_below(5); k > 0; k--)
		p[n++] = rng_below(2) ? 0 : rng();
	return n;
}

static void random_code(u8 *p, bool long_mode)
{
	u8 buf[STRING + 32];
	int n = 0;

	while (n < STRING)
		n += put_random_insn(buf + n, long_mode);
	memcpy(p, buf, STRING);
}

#endif /* RANDOM_CODE_H */
