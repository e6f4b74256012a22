/* SPDX-License-Identifier: GPL-2.0 */
/* Encodes legacy, VEX and EVEX forms with general purpose registers. */
#ifndef EVEX_ENCODE_H
#define EVEX_ENCODE_H

#include "apx_test.h"

struct insn {
	u8 b[MAX_INSN];
	int n;
};

/* A memory operand, or a register with mod = 3. */
struct rm {
	int mod, reg;		/* register or base; mod 0 and 5: RIP */
	int index, scale;	/* index 4: none */
	s64 disp;
};

static void put_byte(struct insn *i, u8 b)
{
	i->b[i->n++] = b;
}

static void put_imm(struct insn *i, u64 v, int size)
{
	for (; size > 0; size--, v >>= 8)
		put_byte(i, v);
}

static void put_modrm(struct insn *i, int reg, const struct rm *rm)
{
	if (rm->mod == 3) {
		put_byte(i, 0xc0 | (reg & 7) << 3 | (rm->reg & 7));
		return;
	}
	if (rm->mod == 0) {
		put_byte(i, (reg & 7) << 3 | 5);
		put_imm(i, rm->disp, 4);
		return;
	}
	/* always with SIB: then all bases look the same */
	put_byte(i, rm->mod << 6 | (reg & 7) << 3 | 4);
	put_byte(i, rm->scale << 6 | (rm->index & 7) << 3 | (rm->reg & 7));
	put_imm(i, rm->disp, rm->mod == 1 ? 1 : 4);
}

/* P2 without V4 */
#define ND	0x10
#define NF	0x04
#define LL(l)	((l) << 5)

static void evex(struct insn *i, int map, int op, int pp, int w, int p2, int v, int reg,
		 const struct rm *rm)
{
	int x = rm->mod == 3 ? 0 : rm->index;

	put_byte(i, 0x62);
	put_byte(i, (~reg & 8) << 4 | (~x & 8) << 3 | (~rm->reg & 8) << 2 | (~reg & 16) |
		    (rm->reg & 16) >> 1 | map);
	put_byte(i, w << 7 | (~v & 15) << 3 | (~x & 16) >> 2 | pp);
	put_byte(i, p2 | (~v & 16) >> 1);
	put_byte(i, op);
	put_modrm(i, reg, rm);
}

/* map 0, 1, or 2 for 0F 38 */
static void legacy(struct insn *i, int prefix, int map, int op, int w, int reg, const struct rm *rm)
{
	if (prefix)
		put_byte(i, prefix);
	put_byte(i, 0x40 | w << 3 | (reg & 8) >> 1 | (rm->reg & 8) >> 3);
	if (map)
		put_byte(i, 0x0f);
	if (map == 2)
		put_byte(i, 0x38);
	put_byte(i, op);
	put_modrm(i, reg, rm);
}

static void vex(struct insn *i, int map, int op, int pp, int w, int v, int reg, const struct rm *rm)
{
	put_byte(i, 0xc4);
	put_byte(i, (~reg & 8) << 4 | 0x40 | (~rm->reg & 8) << 2 | map);
	put_byte(i, w << 7 | (~v & 15) << 3 | pp);
	put_byte(i, op);
	put_modrm(i, reg, rm);
}

#endif /* EVEX_ENCODE_H */
