/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The instructions of maps 0 and 1 that user space can run, as a table, and an
 * encoder for them: with REX, or with REX2.  make_insn() chooses operands.
 */
#ifndef REX2_SWEEP_H
#define REX2_SWEEP_H

#include "rex2_run.h"

enum role {
	NONE,		/* no ModRM */
	GPR,
	DIG,		/* opcode extension, segment or x87 register: R and B ignored */
	XMM,		/* only the low bit of R or B counts */
	MMX,		/* R and B ignored */
};

/* Prefix sets of a row. */
#define P_NP	1
#define P_66	2
#define P_F3	4
#define P_F2	8
#define P_INT	(P_NP | P_66)
#define P_ALL	(P_NP | P_66 | P_F3 | P_F2)

/* Immediates. */
enum { I0, IB, IW, IZ, IV, IWB };

/* What else a row needs. */
#define PLUSR	0x001	/* register in the opcode */
#define NOREG	0x002	/* memory forms only */
#define NOMEM	0x004	/* register forms only */
#define LEA	0x008	/* address only */
#define BITOFF	0x010	/* the register operand is a bit offset: keep it small */
#define BRANCH	0x020	/* the operand is where to go */
#define RETADR	0x040	/* the stack holds where to go */
#define FRAME	0x080	/* RBP is a frame pointer */
#define PTRB	0x100	/* RBX or RDI points to memory */
#define FLAGS	0x200	/* the stack holds flags */
#define LEAF	0x400	/* RAX is a CPUID leaf */
#define SELECTOR 0x800	/* operand is a selector */

static const struct row {
	u8 map, first, last, pfx;
	enum role reg, rm;
	u8 imm, digits;		/* digits: set of ModRM.reg for DIG rows */
	u32 flags;
} rows[] = {
	/* map 0 */
#define ALU(op)								\
	{ 0, op, (op) + 3, P_INT, GPR, GPR, I0, 0, 0 },			\
	{ 0, (op) + 4, (op) + 4, P_INT, NONE, NONE, IB, 0, 0 },		\
	{ 0, (op) + 5, (op) + 5, P_INT, NONE, NONE, IZ, 0, 0 }
	ALU(0x00), ALU(0x08), ALU(0x10), ALU(0x18), ALU(0x20), ALU(0x28), ALU(0x30), ALU(0x38),
	{ 0, 0x50, 0x5f, P_INT, NONE, NONE, I0, 0, PLUSR },
	{ 0, 0x63, 0x63, P_INT, GPR, GPR, I0, 0, 0 },
	{ 0, 0x68, 0x68, P_INT, NONE, NONE, IZ, 0, 0 },
	{ 0, 0x69, 0x69, P_INT, GPR, GPR, IZ, 0, 0 },
	{ 0, 0x6a, 0x6a, P_INT, NONE, NONE, IB, 0, 0 },
	{ 0, 0x6b, 0x6b, P_INT, GPR, GPR, IB, 0, 0 },
	{ 0, 0x6c, 0x6f, P_INT, NONE, NONE, I0, 0, 0 },
	{ 0, 0x80, 0x80, P_INT, DIG, GPR, IB, 0xff, 0 },
	{ 0, 0x81, 0x81, P_INT, DIG, GPR, IZ, 0xff, 0 },
	{ 0, 0x83, 0x83, P_INT, DIG, GPR, IB, 0xff, 0 },
	{ 0, 0x84, 0x8b, P_INT, GPR, GPR, I0, 0, 0 },
	{ 0, 0x8c, 0x8c, P_INT, DIG, GPR, I0, 0xff, 0 },
	{ 0, 0x8d, 0x8d, P_INT, GPR, GPR, I0, 0, LEA },
	{ 0, 0x8f, 0x8f, P_INT, DIG, GPR, I0, 0x01, 0 },
	{ 0, 0x90, 0x97, P_INT, NONE, NONE, I0, 0, PLUSR },
	{ 0, 0x98, 0x99, P_INT, NONE, NONE, I0, 0, 0 },
	{ 0, 0x9b, 0x9c, P_INT, NONE, NONE, I0, 0, 0 },
	{ 0, 0x9d, 0x9d, P_INT, NONE, NONE, I0, 0, FLAGS },
	{ 0, 0x9e, 0x9f, P_INT, NONE, NONE, I0, 0, 0 },
	{ 0, 0xb0, 0xb7, P_INT, NONE, NONE, IB, 0, PLUSR },
	{ 0, 0xb8, 0xbf, P_INT, NONE, NONE, IV, 0, PLUSR },
	{ 0, 0xc0, 0xc1, P_INT, DIG, GPR, IB, 0xff, 0 },
	{ 0, 0xc2, 0xc2, P_NP, NONE, NONE, IW, 0, RETADR },
	{ 0, 0xc3, 0xc3, P_NP, NONE, NONE, I0, 0, RETADR },
	{ 0, 0xc6, 0xc6, P_INT, DIG, GPR, IB, 0x7f, 0 },
	{ 0, 0xc7, 0xc7, P_INT, DIG, GPR, IZ, 0x7f, 0 },
	{ 0, 0xc8, 0xc8, P_INT, NONE, NONE, IWB, 0, FRAME },
	{ 0, 0xc9, 0xc9, P_INT, NONE, NONE, I0, 0, FRAME },
	{ 0, 0xcc, 0xcc, P_INT, NONE, NONE, I0, 0, 0 },
	{ 0, 0xd0, 0xd3, P_INT, DIG, GPR, I0, 0xff, 0 },
	{ 0, 0xd7, 0xd7, P_INT, NONE, NONE, I0, 0, PTRB },
	{ 0, 0xd8, 0xd8, P_INT, DIG, DIG, I0, 0xff, 0 },
	{ 0, 0xd9, 0xd9, P_INT, DIG, DIG, I0, 0xff, NOMEM },
	{ 0, 0xd9, 0xd9, P_INT, DIG, DIG, I0, 0xaf, NOREG },	/* not FLDENV, FNSTENV */
	{ 0, 0xda, 0xdc, P_INT, DIG, DIG, I0, 0xff, 0 },
	{ 0, 0xdd, 0xdd, P_INT, DIG, DIG, I0, 0xff, NOMEM },
	{ 0, 0xdd, 0xdd, P_INT, DIG, DIG, I0, 0xaf, NOREG },	/* not FRSTOR, FNSAVE */
	{ 0, 0xde, 0xdf, P_INT, DIG, DIG, I0, 0xff, 0 },
	{ 0, 0xf1, 0xf1, P_NP, NONE, NONE, I0, 0, 0 },
	{ 0, 0xf4, 0xf5, P_INT, NONE, NONE, I0, 0, 0 },
	{ 0, 0xf6, 0xf6, P_INT, DIG, GPR, IB, 0x03, 0 },
	{ 0, 0xf6, 0xf6, P_INT, DIG, GPR, I0, 0xfc, 0 },
	{ 0, 0xf7, 0xf7, P_INT, DIG, GPR, IZ, 0x03, 0 },
	{ 0, 0xf7, 0xf7, P_INT, DIG, GPR, I0, 0xfc, 0 },
	{ 0, 0xf8, 0xfd, P_INT, NONE, NONE, I0, 0, 0 },
	{ 0, 0xfe, 0xfe, P_INT, DIG, GPR, I0, 0xff, 0 },
	{ 0, 0xff, 0xff, P_INT, DIG, GPR, I0, 0xc3, 0 },
	{ 0, 0xff, 0xff, P_NP, DIG, GPR, I0, 0x14, BRANCH },
	/* map 1, integer and system */
	{ 1, 0x00, 0x00, P_NP, DIG, GPR, I0, 0x30, SELECTOR },	/* VERR, VERW */
	{ 1, 0x02, 0x03, P_INT, GPR, GPR, I0, 0, SELECTOR },
	{ 1, 0x06, 0x06, P_NP, NONE, NONE, I0, 0, 0 },
	{ 1, 0x08, 0x09, P_NP, NONE, NONE, I0, 0, 0 },
	{ 1, 0x0b, 0x0b, P_NP, NONE, NONE, I0, 0, 0 },
	{ 1, 0x0d, 0x0d, P_NP, DIG, GPR, I0, 0x03, NOREG },
	{ 1, 0x18, 0x18, P_INT, DIG, GPR, I0, 0x0f, NOREG },
	{ 1, 0x19, 0x19, P_INT, DIG, GPR, I0, 0xff, 0 },
	{ 1, 0x1f, 0x1f, P_INT, DIG, GPR, I0, 0xff, 0 },
	{ 1, 0x40, 0x4f, P_INT, GPR, GPR, I0, 0, 0 },
	{ 1, 0x90, 0x9f, P_INT, DIG, GPR, I0, 0x81, 0 },
	{ 1, 0xa2, 0xa2, P_NP, NONE, NONE, I0, 0, LEAF },
	{ 1, 0xa3, 0xa3, P_INT, GPR, GPR, I0, 0, BITOFF },
	{ 1, 0xa4, 0xa4, P_INT, GPR, GPR, IB, 0, 0 },
	{ 1, 0xa5, 0xa5, P_INT, GPR, GPR, I0, 0, 0 },
	{ 1, 0xab, 0xab, P_INT, GPR, GPR, I0, 0, BITOFF },
	{ 1, 0xac, 0xac, P_INT, GPR, GPR, IB, 0, 0 },
	{ 1, 0xad, 0xad, P_INT, GPR, GPR, I0, 0, 0 },
	{ 1, 0xae, 0xae, P_NP, DIG, GPR, I0, 0x8c, NOREG },	/* MXCSR, CLFLUSH */
	{ 1, 0xae, 0xae, P_NP, DIG, DIG, I0, 0xe0, NOMEM },	/* fences */
	{ 1, 0xae, 0xae, P_F3, DIG, GPR, I0, 0x03, NOMEM },	/* RDFSBASE, RDGSBASE */
	{ 1, 0xaf, 0xaf, P_INT, GPR, GPR, I0, 0, 0 },
	{ 1, 0xb0, 0xb1, P_INT, GPR, GPR, I0, 0, 0 },
	{ 1, 0xb3, 0xb3, P_INT, GPR, GPR, I0, 0, BITOFF },
	{ 1, 0xb6, 0xb7, P_INT, GPR, GPR, I0, 0, 0 },
	{ 1, 0xb8, 0xb8, P_F3, GPR, GPR, I0, 0, 0 },
	{ 1, 0xb9, 0xb9, P_NP, GPR, GPR, I0, 0, 0 },
	{ 1, 0xba, 0xba, P_INT, DIG, GPR, IB, 0xff, 0 },
	{ 1, 0xbb, 0xbb, P_INT, GPR, GPR, I0, 0, BITOFF },
	{ 1, 0xbc, 0xbd, P_INT | P_F3, GPR, GPR, I0, 0, 0 },
	{ 1, 0xbe, 0xbf, P_INT, GPR, GPR, I0, 0, 0 },
	{ 1, 0xc0, 0xc1, P_INT, GPR, GPR, I0, 0, 0 },
	{ 1, 0xc3, 0xc3, P_NP, GPR, GPR, I0, 0, NOREG },
	{ 1, 0xc7, 0xc7, P_NP, DIG, GPR, I0, 0x02, NOREG },	/* CMPXCHG8B, 16B */
	{ 1, 0xc8, 0xcf, P_NP, NONE, NONE, I0, 0, PLUSR },
	{ 1, 0xff, 0xff, P_NP, GPR, GPR, I0, 0, 0 },
	/* map 1, vector */
	{ 1, 0x10, 0x17, P_ALL, XMM, XMM, I0, 0, 0 },
	{ 1, 0x28, 0x29, P_INT, XMM, XMM, I0, 0, 0 },
	{ 1, 0x2a, 0x2a, P_INT, XMM, MMX, I0, 0, 0 },
	{ 1, 0x2a, 0x2a, P_F3 | P_F2, XMM, GPR, I0, 0, 0 },
	{ 1, 0x2b, 0x2b, P_INT, XMM, XMM, I0, 0, NOREG },
	{ 1, 0x2c, 0x2d, P_INT, MMX, XMM, I0, 0, 0 },
	{ 1, 0x2c, 0x2d, P_F3 | P_F2, GPR, XMM, I0, 0, 0 },
	{ 1, 0x2e, 0x2f, P_INT, XMM, XMM, I0, 0, 0 },
	{ 1, 0x50, 0x50, P_INT, GPR, XMM, I0, 0, 0 },
	{ 1, 0x51, 0x5f, P_ALL, XMM, XMM, I0, 0, 0 },
	{ 1, 0x60, 0x6b, P_NP, MMX, MMX, I0, 0, 0 },
	{ 1, 0x60, 0x6d, P_66, XMM, XMM, I0, 0, 0 },
	{ 1, 0x6e, 0x6e, P_NP, MMX, GPR, I0, 0, 0 },
	{ 1, 0x6e, 0x6e, P_66, XMM, GPR, I0, 0, 0 },
	{ 1, 0x6f, 0x6f, P_NP, MMX, MMX, I0, 0, 0 },
	{ 1, 0x6f, 0x6f, P_66 | P_F3, XMM, XMM, I0, 0, 0 },
	{ 1, 0x70, 0x70, P_NP, MMX, MMX, IB, 0, 0 },
	{ 1, 0x70, 0x70, P_66 | P_F3 | P_F2, XMM, XMM, IB, 0, 0 },
	{ 1, 0x71, 0x73, P_NP, DIG, MMX, IB, 0xff, NOMEM },
	{ 1, 0x71, 0x73, P_66, DIG, XMM, IB, 0xff, NOMEM },
	{ 1, 0x74, 0x76, P_NP, MMX, MMX, I0, 0, 0 },
	{ 1, 0x74, 0x76, P_66, XMM, XMM, I0, 0, 0 },
	{ 1, 0x77, 0x77, P_NP, NONE, NONE, I0, 0, 0 },
	{ 1, 0x7c, 0x7d, P_66 | P_F2, XMM, XMM, I0, 0, 0 },
	{ 1, 0x7e, 0x7e, P_NP, MMX, GPR, I0, 0, 0 },
	{ 1, 0x7e, 0x7e, P_66, XMM, GPR, I0, 0, 0 },
	{ 1, 0x7e, 0x7e, P_F3, XMM, XMM, I0, 0, 0 },
	{ 1, 0x7f, 0x7f, P_NP, MMX, MMX, I0, 0, 0 },
	{ 1, 0x7f, 0x7f, P_66 | P_F3, XMM, XMM, I0, 0, 0 },
	{ 1, 0xc2, 0xc2, P_ALL, XMM, XMM, IB, 0, 0 },
	{ 1, 0xc4, 0xc4, P_NP, MMX, GPR, IB, 0, 0 },
	{ 1, 0xc4, 0xc4, P_66, XMM, GPR, IB, 0, 0 },
	{ 1, 0xc5, 0xc5, P_NP, GPR, MMX, IB, 0, NOMEM },
	{ 1, 0xc5, 0xc5, P_66, GPR, XMM, IB, 0, NOMEM },
	{ 1, 0xc6, 0xc6, P_INT, XMM, XMM, IB, 0, 0 },
	{ 1, 0xd0, 0xd0, P_66 | P_F2, XMM, XMM, I0, 0, 0 },
	{ 1, 0xd1, 0xd5, P_NP, MMX, MMX, I0, 0, 0 },
	{ 1, 0xd1, 0xd6, P_66, XMM, XMM, I0, 0, 0 },
	{ 1, 0xd6, 0xd6, P_F3, XMM, MMX, I0, 0, NOMEM },
	{ 1, 0xd6, 0xd6, P_F2, MMX, XMM, I0, 0, NOMEM },
	{ 1, 0xd7, 0xd7, P_NP, GPR, MMX, I0, 0, NOMEM },
	{ 1, 0xd7, 0xd7, P_66, GPR, XMM, I0, 0, NOMEM },
	{ 1, 0xd8, 0xe5, P_NP, MMX, MMX, I0, 0, 0 },
	{ 1, 0xd8, 0xe5, P_66, XMM, XMM, I0, 0, 0 },
	{ 1, 0xe6, 0xe6, P_66 | P_F3 | P_F2, XMM, XMM, I0, 0, 0 },
	{ 1, 0xe7, 0xe7, P_NP, MMX, MMX, I0, 0, NOREG },
	{ 1, 0xe7, 0xe7, P_66, XMM, XMM, I0, 0, NOREG },
	{ 1, 0xe8, 0xef, P_NP, MMX, MMX, I0, 0, 0 },
	{ 1, 0xe8, 0xef, P_66, XMM, XMM, I0, 0, 0 },
	{ 1, 0xf0, 0xf0, P_F2, XMM, XMM, I0, 0, NOREG },
	{ 1, 0xf1, 0xf6, P_NP, MMX, MMX, I0, 0, 0 },
	{ 1, 0xf1, 0xf6, P_66, XMM, XMM, I0, 0, 0 },
	{ 1, 0xf7, 0xf7, P_NP, MMX, MMX, I0, 0, NOMEM | PTRB },
	{ 1, 0xf7, 0xf7, P_66, XMM, XMM, I0, 0, NOMEM | PTRB },
	{ 1, 0xf8, 0xfe, P_NP, MMX, MMX, I0, 0, 0 },
	{ 1, 0xf8, 0xfe, P_66, XMM, XMM, I0, 0, 0 },
};

struct insn {
	u8 pfx[4];
	int npfx;
	int map, op;
	bool w;
	bool modrm, plusr, is_mem;
	enum role rreg, rrm;
	int reg, rm;		/* rm: register operand, or the opcode's register */
	int base, index;	/* -1: none; base RIP_BASE: RIP-relative */
	int scale, dispsize;
	s64 disp;
	u8 imm[8];
	int nimm;
};
#define RIP_BASE (-2)

/*
 * Encode.  @end is needed for RIP-relative addresses only.  Bits of the REX2
 * payload that do not count are taken from @junk.  Map 2 is 0F 38, which REX2
 * does not have.
 */
static int encode(const struct insn *n, bool rex2, u64 end, u8 junk, u8 *out)
{
	int o = 0, r = 0, x = 0, b = 0, keep_r = 0, keep_x = 0, keep_b = 0, dispsize = n->dispsize;
	u8 modrm = 0, sib = 0, payload;
	bool has_sib = false;
	s64 disp = n->disp;

	if (n->plusr) {
		b = n->rm;
		keep_b = 3;
	}
	if (n->modrm) {
		r = n->reg;
		keep_r = n->rreg == GPR ? 3 : n->rreg == XMM ? 1 : 0;
		modrm = (r & 7) << 3;
	}
	if (n->modrm && !n->is_mem) {
		b = n->rm;
		keep_b = n->rrm == GPR ? 3 : n->rrm == XMM ? 1 : 0;
		modrm |= 0xc0 | (b & 7);
	} else if (n->modrm && n->base == RIP_BASE) {
		modrm |= 5;
		dispsize = 4;
		disp -= end;
	} else if (n->modrm) {
		has_sib = n->base < 0 || n->index >= 0 || (n->base & 7) == 4;
		if (has_sib) {
			x = n->index < 0 ? 4 : n->index;
			keep_x = 3;
			modrm |= 4;
			sib = n->scale << 6 | (x & 7) << 3;
		}
		if (n->base < 0) {
			dispsize = 4;
			sib |= 5;
		} else {
			b = n->base;
			keep_b = 3;
			if ((b & 7) == 5 && !dispsize)
				dispsize = 1;
			modrm |= dispsize == 4 ? 0x80 : dispsize ? 0x40 : 0;
			if (has_sib)
				sib |= b & 7;
			else
				modrm |= b & 7;
		}
	}

	memcpy(out, n->pfx, n->npfx);
	o = n->npfx;
	/* bit pairs: 2 is the fifth bit of an id, 1 the fourth */
	r = (r >> 3 & keep_r) | (junk & ~keep_r & 3);
	x = (x >> 3 & keep_x) | (junk >> 2 & ~keep_x & 3);
	b = (b >> 3 & keep_b) | (junk >> 4 & ~keep_b & 3);
	if (rex2) {
		payload = n->map << 7 | (r & 2) << 5 | (x & 2) << 4 | (b & 2) << 3 |
			  n->w << 3 | (r & 1) << 2 | (x & 1) << 1 | (b & 1);
		out[o++] = 0xd5;
		out[o++] = payload;
	} else {
		out[o++] = 0x40 | n->w << 3 | (r & 1) << 2 | (x & 1) << 1 | (b & 1);
		if (n->map)
			out[o++] = 0x0f;
		if (n->map == 2)
			out[o++] = 0x38;
	}
	out[o++] = n->plusr ? (n->op & 0xf8) | (n->rm & 7) : n->op;
	if (n->modrm)
		out[o++] = modrm;
	if (has_sib)
		out[o++] = sib;
	if (n->modrm && n->is_mem && dispsize) {
		memcpy(out + o, &disp, dispsize);
		o += dispsize;
	}
	memcpy(out + o, n->imm, n->nimm);
	return o + n->nimm;
}

/*
 * Registers for explicit operands before renaming: none that an instruction
 * uses implicitly, and all kinds of ModRM and SIB corner cases.
 */
static const int low_regs[] = { 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 };

static int low_reg(void)
{
	return low_regs[rng_below(ARRAY_SIZE(low_regs))];
}

/* Choose operands and the state that makes the memory operand hit the page. */
static void make_insn(const struct row *row, int op, int pfx, bool w, int digit, bool is_mem,
		      struct insn *n, struct cpu *c, u8 *m)
{
	u64 target, seg = 0, pad = PAD_ADDR, v;
	bool addr32 = false;
	int i;

	memset(n, 0, sizeof(*n));
	random_state(c, m);
	n->map = row->map;
	n->op = op;
	n->w = w;
	n->modrm = row->reg != NONE;
	n->plusr = row->flags & PLUSR;
	n->is_mem = is_mem;
	n->rreg = row->reg;
	n->rrm = row->rm;
	n->base = n->index = -1;

	if (pfx == P_66)
		n->pfx[n->npfx++] = 0x66;
	else if (pfx == P_F3)
		n->pfx[n->npfx++] = 0xf3;
	else if (pfx == P_F2)
		n->pfx[n->npfx++] = 0xf2;
	if (rng_below(8) == 0)
		n->pfx[n->npfx++] = 0xf0;

	n->reg = row->reg == GPR ? low_reg() : row->reg == XMM ? (int)rng_below(16) :
		 row->reg == MMX ? (int)rng_below(8) : digit;
	n->rm = row->rm == GPR || n->plusr ? low_reg() : row->rm == XMM ? (int)rng_below(16) :
		(int)rng_below(8);

	switch (row->imm) {
	case IB: n->nimm = 1; break;
	case IW: n->nimm = 2; break;
	case IWB: n->nimm = 3; break;
	case IZ: n->nimm = pfx == P_66 && !w ? 2 : 4; break;
	case IV: n->nimm = w ? 8 : pfx == P_66 ? 2 : 4; break;
	}
	v = rng_value();
	memcpy(n->imm, &v, 8);

	/* Operands with a meaning. */
	if (row->flags & BITOFF) {
		v = (s64)(int)rng_below(0x4000) - 0x2000;
		if (!w)
			v = (u32)v | rng() << 32;
		c->gpr[n->reg] = v;
	}
	if (row->flags & RETADR)
		memcpy(m + STACK_TOP - MEM_BASE, &pad, 8);
	if (row->flags & FRAME)
		c->gpr[5] = STACK_TOP + 8 * rng_below(16);
	if (row->flags & FLAGS) {
		v = FL_BASE | (rng() & FL_STATUS);
		memcpy(m + STACK_TOP - MEM_BASE, &v, 8);
	}
	if (row->flags & PTRB)
		c->gpr[3] = c->gpr[7] = MEM_BASE + 0x400 + rng_below(0x100);
	if (row->flags & LEAF) {
		c->gpr[0] = rng_below(8);
		c->gpr[1] = 0;
	}
	if (row->map == 0 && (op == 0xf6 || op == 0xf7) && rng_below(2))
		c->gpr[2] = 0;		/* let some divisions succeed */
	if (row->flags & SELECTOR)
		c->gpr[n->rm] = (c->gpr[n->rm] & ~0xffffull) | rng_below(0x80);
	if (!n->modrm || !is_mem) {
		if (row->flags & BRANCH)
			c->gpr[n->rm] = PAD_ADDR;
		return;
	}

	target = MEM_BASE + 0x400 + rng_below(0x200);
	if (rng_below(2))
		target &= ~63ull;
	if (rng_below(8) == 0) {
		n->pfx[n->npfx++] = 0x67;
		addr32 = true;
	}
	if (rng_below(8) == 0) {
		n->pfx[n->npfx++] = 0x65;
		seg = GS_BASE;
	}
	n->scale = rng_below(4);
	i = rng_below(16);
	if (i == 0) {
		n->base = RIP_BASE;
		n->disp = target - seg;
	} else if (i == 1 || i == 2) {
		/* no base; with and without an index */
		if (i == 2) {
			do
				n->index = low_reg();
			while (row->reg == GPR && n->index == n->reg && row->flags & BITOFF);
			c->gpr[n->index] = rng_below(0x10000);
		}
		n->disp = target - seg - (i == 2 ? c->gpr[n->index] << n->scale : 0);
	} else {
		static const int sizes[] = { 0, 1, 4 };

		do
			n->base = low_reg();
		while (row->flags & BITOFF && n->base == n->reg);
		n->dispsize = sizes[rng_below(3)];
		n->disp = n->dispsize == 1 ? (s64)(int8_t)rng() :
			  n->dispsize == 4 ? (s64)(int32_t)rng() : 0;
		if (rng_below(2)) {
			do
				n->index = low_reg();
			while ((n->index == n->base && !(row->flags & LEA)) ||
			       (row->flags & BITOFF && n->index == n->reg));
		}
		c->gpr[n->base] = target - seg - n->disp -
				  (n->index >= 0 ? c->gpr[n->index] << n->scale : 0);
		if (addr32)
			c->gpr[n->base] += rng() << 32;
	}
	if (row->flags & SELECTOR) {
		v = rng_below(0x80);
		memcpy(m + target - MEM_BASE, &v, 2);
	}
	if (row->flags & BRANCH)
		memcpy(m + target - MEM_BASE, &pad, 8);
	if (row->map == 1 && op == 0xae) {
		if (rng_below(2))
			memcpy(m + target - MEM_BASE, "\x80\x1f\0\0", 4);
		m[target - MEM_BASE + 2] &= ~2;	/* MXCSR.MM is AMD's only */
	}
	if (row->map == 1 && op == 0xc7 && rng_below(2)) {
		memcpy(&c->gpr[0], m + target - MEM_BASE, 8);
		memcpy(&c->gpr[2], m + target - MEM_BASE + (w ? 8 : 4), 8);
	}
}

/* A place for an instruction to end at; some straddle a page. */
static u64 random_end(bool straddle, int len)
{
	u64 page = CODE_BASE + 0x1000 * (1 + rng_below(CODE_SIZE / 0x1000 - 2));

	if (straddle && len > 1)
		return page + 1 + rng_below(len - 1);
	return page + 0x20 + rng_below(0xfc0);
}

#endif /* REX2_SWEEP_H */
