/* SPDX-License-Identifier: GPL-2.0 */
/*
 * --shim: prove the expected values on any 64-bit CPU, without APX.
 *
 * Rewrites a REX2 instruction to the REX form that names R8-R15 (or another
 * free low register) in place of R16-R31; the caller swaps the register
 * values around the run.  Says nothing about APX hardware: it checks the
 * table and the harness, not the machine.
 */
#ifndef REX2_SHIM_H
#define REX2_SHIM_H

#include "rex2_run.h"

struct shim {
	int n, hi[3], lo[3];
};

static bool is_prefix(u8 b)
{
	return b == 0x66 || b == 0x67 || b == 0xf2 || b == 0xf3 || b == 0xf0 ||
	       b == 0x26 || b == 0x2e || b == 0x36 || b == 0x3e || b == 0x64 || b == 0x65;
}

static bool has_modrm(int map, u8 op)
{
	if (map == 0)
		return (op < 0x40 && (op & 7) < 4) || op == 0x63 || op == 0x69 || op == 0x6b ||
		       (op & 0xf0) == 0x80 || op == 0xc0 || op == 0xc1 ||
		       (op >= 0xc4 && op <= 0xc7) || (op & 0xfc) == 0xd0 ||
		       (op & 0xf8) == 0xd8 || (op & 0xf6) == 0xf6;
	return !((op >= 0x04 && op <= 0x0c) || op == 0x0e || (op & 0xf0) == 0x30 ||
		 op == 0x77 || (op & 0xf0) == 0x80 || (op & 0xf6) == 0xa0 ||
		 op == 0xa2 || op == 0xaa || (op & 0xf8) == 0xc8);
}

/* A free register that can stand in for @hi; same low three bits if possible. */
static int shim_pick(struct shim *s, int hi, u32 used)
{
	int i, lo;

	for (i = 0; i < s->n; i++)
		if (s->hi[i] == hi)
			return s->lo[i];
	lo = 8 + (hi & 7);
	for (i = 0; i < s->n; i++)
		used |= 1u << s->lo[i];
	if (used >> lo & 1)
		lo = hi & 7;
	if (lo < 5 || (used >> lo & 1))
		return -1;
	s->hi[s->n] = hi;
	s->lo[s->n++] = lo;
	return lo;
}

/* Returns the new length, 0 if there is no counterpart. */
static int shim_insn(const u8 *in, int len, u8 *out, struct shim *s)
{
	int i = 0, o = 0, map, r = -1, x = -1, b = -1, rex, lo;
	u8 p, op, m = 0, sib;
	u32 used = 0;

	s->n = 0;
	while (is_prefix(in[i]))
		i++;
	if (in[i] != 0xd5 || len < i + 3) {
		memcpy(out, in, len);
		return len;
	}
	p = in[i + 1];
	op = in[i + 2];
	map = p >> 7;
	rex = 0x40 | (p & 8);
	if (has_modrm(map, op)) {
		m = in[i + 3];
		sib = in[i + 4];
		r = (p >> 6 & 1) << 4 | (p >> 2 & 1) << 3 | (m >> 3 & 7);
		if (m >> 6 == 3) {
			b = (p >> 4 & 1) << 4 | (p & 1) << 3 | (m & 7);
		} else if ((m & 7) == 4) {
			x = (p >> 5 & 1) << 4 | (p >> 1 & 1) << 3 | (sib >> 3 & 7);
			if (!(m >> 6 == 0 && (sib & 7) == 5))
				b = (p >> 4 & 1) << 4 | (p & 1) << 3 | (sib & 7);
		} else if (m >> 6 || (m & 7) != 5) {
			b = (p >> 4 & 1) << 4 | (p & 1) << 3 | (m & 7);
		}
	} else {
		b = (p >> 4 & 1) << 4 | (p & 1) << 3 | (op & 7);
	}
	used |= r >= 0 ? 1u << r : 0;
	used |= x >= 0 ? 1u << x : 0;
	used |= b >= 0 ? 1u << b : 0;
	if (r >= 16) {
		lo = shim_pick(s, r, used);
		if (lo < 0)
			return 0;
		r = lo;
	}
	if (x >= 16) {
		lo = shim_pick(s, x, used);
		if (lo < 0)
			return 0;
		x = lo;
	}
	if (b >= 16) {
		lo = shim_pick(s, b, used);
		if (lo < 0)
			return 0;
		b = lo;
	}
	rex |= (r >= 8) << 2 | (x >= 8) << 1 | (b >= 8);

	/* A useless CS override in front keeps the length. */
	if (map == 0)
		out[o++] = 0x2e;
	memcpy(out + o, in, i);
	o += i;
	out[o++] = rex;
	if (map)
		out[o++] = 0x0f;
	memcpy(out + o, in + i + 2, len - i - 2);
	return o + len - i - 2;
}

/* run() with the rewritten instruction; false if it has no counterpart. */
static bool shim_run(u64 end, const u8 *insn, int len, const struct cpu *in, const u8 *mem_in,
		     bool step, struct cpu *out)
{
	struct cpu c = *in;
	u8 buf[MAX_INSN + 2];
	struct shim s;
	int i, n;
	u64 v;

	n = shim_insn(insn, len, buf, &s);
	if (!n)
		return false;
	for (i = 0; i < s.n; i++)
		c.gpr[s.lo[i]] = in->gpr[s.hi[i]];
	run(end, buf, n, &c, mem_in, step, out);
	for (i = 0; i < s.n; i++) {
		v = out->gpr[s.lo[i]];
		out->gpr[s.lo[i]] = in->gpr[s.lo[i]];
		out->gpr[s.hi[i]] = v;
	}
	return true;
}

#endif /* REX2_SHIM_H */
