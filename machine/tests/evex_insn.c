// SPDX-License-Identifier: GPL-2.0
/*
 * EVEX with APX: do map 4, the promoted VEX instructions and R16-R31 in
 * vector instructions do what they should?
 *
 * The model is the CPU itself: the legacy (or VEX) form runs with the same
 * values in low registers.  The EVEX form has to give the same result and
 * flags, but for what ND (new destination, zero extended), ZU (zero extended)
 * and NF (flags stay) say.  What has no legacy form is modelled in C.
 *
 * Without APX all of these are #UD, and without APX_NCI_NDD_NF those that
 * have no legacy form.
 *
 * Usage: evex_insn [-s seed] [-n trials]
 * Exit status: 0 pass, 1 fail.  Runs on every x86-64 CPU, is never skipped.
 */
#define _GNU_SOURCE
#include "rex2_run.h"
#include "evex_encode.h"

#define MAX_REPORTS 5

static u8 mem_in[MEM_SIZE], mem_legacy[MEM_SIZE];
static u32 trials = TRIALS;
static u32 failed, cases;

static u64 zero_extend(u64 v, int size)
{
	return size == 8 ? v : v & ((1ull << size * 8) - 1);
}

static u64 anywhere(int len)
{
	u64 page = CODE_BASE + 0x1000 * (1 + rng_below(CODE_SIZE / 0x1000 - 2));

	if (rng_below(4) == 0)
		return page + 1 + rng_below(len - 1);
	return page + 0x20 + rng_below(0xfc0);
}

/* A register for an address: not RSP, which cannot be an index. */
static int any_reg(void)
{
	int r = rng_below(NR_GPR);

	return r == RSP ? 16 : r;
}

enum operand { REGISTER, MEMORY, NO_MEMORY, RIP_MEMORY, OPERANDS };

/* The address of memory that is not there. */
#define NOWHERE	(MEM_BASE + MEM_SIZE + 0x100)

/* A random operand; its address is written to the registers of @in. */
static void random_rm(struct rm *rm, enum operand what, struct cpu *in, u64 *addr)
{
	memset(rm, 0, sizeof(*rm));
	rm->index = 4;
	if (what == REGISTER) {
		rm->mod = 3;
		rm->reg = rng_below(NR_GPR);
		return;
	}
	*addr = what == NO_MEMORY ? NOWHERE : MEM_BASE + 0x100 + rng_below(0x800);
	if (what == RIP_MEMORY) {	/* B and X stand for nothing then */
		rm->reg = 5 | rng_below(4) << 3;
		rm->index = rng_below(4) << 3;
		return;
	}
	rm->mod = 1 + rng_below(2);
	rm->reg = any_reg();
	rm->disp = rm->mod == 1 ? (int8_t)rng() : (int32_t)rng();
	in->gpr[rm->reg] = *addr - rm->disp;
	if (rng_below(2)) {
		do
			rm->index = any_reg();
		while (rm->index == rm->reg);
		rm->scale = rng_below(4);
		in->gpr[rm->index] = rng_below(0x1000);
		in->gpr[rm->reg] -= in->gpr[rm->index] << rm->scale;
	}
}

/* Another address, in place of what random_rm() chose. */
static void set_address(struct cpu *in, const struct rm *rm, u64 addr)
{
	in->gpr[rm->reg] = addr - rm->disp;
	if (rm->index != 4)
		in->gpr[rm->reg] -= in->gpr[rm->index] << rm->scale;
}

/* Run @i, which ends at @end, and compare registers, flags, exception and memory. */
static void check_at(u64 end, const char *name, const struct insn *i, const struct cpu *in,
		     const struct cpu *want, const u8 *mem_want)
{
	struct cpu got, w = *want;
	bool step = rng_below(4) == 0;
	u32 k;

	if (w.trap == TRAP_NONE)
		w.err = w.cr2 = 0;
	w.rip = w.trap == TRAP_NONE ? end : end - i->n;
	run(end, i->b, i->n, in, mem_in, step, &got);
	cases++;
	if (same_regs(&w, &got) && w.trap == got.trap && w.rip == got.rip &&
	    w.err == got.err && w.cr2 == got.cr2 && !memcmp(mem, mem_want, MEM_SIZE))
		return;
	if (failed++ >= MAX_REPORTS)
		return;
	ktap_note("%s(%s)%s", hex(i->b, i->n), name, step ? ", single step" : "");
	print_diff("effect", in, &w, &got);
	for (k = 0; k < MEM_SIZE; k++) {
		if (mem[k] == mem_want[k])
			continue;
		ktap_note("  memory at M+%x is %02x, expected %02x", k, mem[k], mem_want[k]);
		break;
	}
}

static void check(const char *name, const struct insn *i, const struct cpu *in,
		  const struct cpu *want, const u8 *mem_want)
{
	check_at(anywhere(i->n), name, i, in, want, mem_want);
}

/* @i has @rm, which stands for @addr, and then @behind bytes: it may be that of RIP. */
static void check_rm(const char *name, struct insn *i, const struct rm *rm, u64 addr, int behind,
		     const struct cpu *in, const struct cpu *want, const u8 *mem_want)
{
	u64 end = anywhere(i->n);
	int32_t disp = addr - end;

	if (rm->mod == 0)
		memcpy(i->b + i->n - behind - 4, &disp, 4);
	check_at(end, name, i, in, want, mem_want);
}

static void check_trap(const char *name, const struct insn *i, int trap)
{
	struct cpu in, want;

	random_state(&in, mem_in);
	want = in;
	want.trap = trap;
	want.err = want.cr2 = 0;
	check(name, i, &in, &want, mem_in);
}

static void report(const char *what)
{
	ktap_result(!failed && cases, "%s: %u cases, %u failed", what, cases, failed);
	failed = cases = 0;
}

/* ------------------------------------------------------------------------
 * 1. Instructions with a legacy form
 */
enum { I0, IB, IZ };

/* operand order and what is allowed */
#define G	0x001		/* ModRM.reg is the destination, and the first source */
#define DST_ONLY 0x002		/* the destination is not a source */
#define BYTE	0x004		/* byte operands */
#define NOW	0x008		/* no 16-bit form, 66 is no operand size */
#define ZU	0x010		/* ND zeroes the upper part, no third register */
#define NO_ND	0x020
#define NO_NF	0x040
#define IMPL	0x080		/* RAX and RDX are destination */
#define MEMONLY	0x100
#define SRC8	0x200		/* the source is a byte */
#define NO_BASE	0x400		/* ND=0 is something else */
#define DST32	0x800		/* the destination has 32 bits at least */

static const struct row {
	const char *name;
	int op, pp;			/* map 4 */
	int prefix, map, legacy_op;	/* legacy */
	int digit;			/* -1: register */
	int imm;
	u32 flags;
} rows[] = {
#define ALU(name, op, flags)						\
	{ name, op, 0, 0, 0, op, -1, I0, BYTE | (flags) },		\
	{ name, (op) + 1, 0, 0, 0, (op) + 1, -1, I0, flags },		\
	{ name, (op) + 2, 0, 0, 0, (op) + 2, -1, I0, BYTE | G | (flags) }, \
	{ name, (op) + 3, 0, 0, 0, (op) + 3, -1, I0, G | (flags) },	\
	{ name, 0x80, 0, 0, 0, 0x80, (op) >> 3, IB, BYTE | (flags) },	\
	{ name, 0x81, 0, 0, 0, 0x81, (op) >> 3, IZ, flags },		\
	{ name, 0x83, 0, 0, 0, 0x83, (op) >> 3, IB, flags }
	ALU("add", 0x00, 0),
	ALU("or", 0x08, 0),
	ALU("adc", 0x10, NO_NF),
	ALU("sbb", 0x18, NO_NF),
	ALU("and", 0x20, 0),
	ALU("sub", 0x28, 0),
	ALU("xor", 0x30, 0),
	{ "shld", 0x24, 0, 0, 1, 0xa4, -1, IB, 0 },
	{ "shrd", 0x2c, 0, 0, 1, 0xac, -1, IB, 0 },
	{ "shld", 0xa5, 0, 0, 1, 0xa5, -1, I0, 0 },
	{ "shrd", 0xad, 0, 0, 1, 0xad, -1, I0, 0 },
#define SHIFT(name, digit, flags)					\
	{ name, 0xc0, 0, 0, 0, 0xc0, digit, IB, BYTE | (flags) },	\
	{ name, 0xc1, 0, 0, 0, 0xc1, digit, IB, flags },		\
	{ name, 0xd0, 0, 0, 0, 0xd0, digit, I0, BYTE | (flags) },	\
	{ name, 0xd1, 0, 0, 0, 0xd1, digit, I0, flags },		\
	{ name, 0xd2, 0, 0, 0, 0xd2, digit, I0, BYTE | (flags) },	\
	{ name, 0xd3, 0, 0, 0, 0xd3, digit, I0, flags }
	SHIFT("rol", 0, 0),
	SHIFT("ror", 1, 0),
	SHIFT("rcl", 2, NO_NF),
	SHIFT("rcr", 3, NO_NF),
	SHIFT("shl", 4, 0),
	SHIFT("shr", 5, 0),
	SHIFT("shl /6", 6, 0),
	SHIFT("sar", 7, 0),
	{ "not", 0xf6, 0, 0, 0, 0xf6, 2, I0, BYTE | NO_NF },
	{ "not", 0xf7, 0, 0, 0, 0xf7, 2, I0, NO_NF },
	{ "neg", 0xf6, 0, 0, 0, 0xf6, 3, I0, BYTE },
	{ "neg", 0xf7, 0, 0, 0, 0xf7, 3, I0, 0 },
	{ "inc", 0xfe, 0, 0, 0, 0xfe, 0, I0, BYTE },
	{ "inc", 0xff, 0, 0, 0, 0xff, 0, I0, 0 },
	{ "dec", 0xfe, 0, 0, 0, 0xfe, 1, I0, BYTE },
	{ "dec", 0xff, 0, 0, 0, 0xff, 1, I0, 0 },
	{ "mul", 0xf6, 0, 0, 0, 0xf6, 4, I0, BYTE | IMPL | NO_ND },
	{ "mul", 0xf7, 0, 0, 0, 0xf7, 4, I0, IMPL | NO_ND },
	{ "imul", 0xf6, 0, 0, 0, 0xf6, 5, I0, BYTE | IMPL | NO_ND },
	{ "imul", 0xf7, 0, 0, 0, 0xf7, 5, I0, IMPL | NO_ND },
	{ "div", 0xf6, 0, 0, 0, 0xf6, 6, I0, BYTE | IMPL | NO_ND },
	{ "div", 0xf7, 0, 0, 0, 0xf7, 6, I0, IMPL | NO_ND },
	{ "idiv", 0xf6, 0, 0, 0, 0xf6, 7, I0, BYTE | IMPL | NO_ND },
	{ "idiv", 0xf7, 0, 0, 0, 0xf7, 7, I0, IMPL | NO_ND },
	{ "imul", 0xaf, 0, 0, 1, 0xaf, -1, I0, G },
	{ "imul imm", 0x69, 0, 0, 0, 0x69, -1, IZ, G | DST_ONLY | ZU },
	{ "imul imm8", 0x6b, 0, 0, 0, 0x6b, -1, IB, G | DST_ONLY | ZU },
	{ "popcnt", 0x88, 0, 0xf3, 1, 0xb8, -1, I0, G | DST_ONLY | NO_ND },
	{ "tzcnt", 0xf4, 0, 0xf3, 1, 0xbc, -1, I0, G | DST_ONLY | NO_ND },
	{ "lzcnt", 0xf5, 0, 0xf3, 1, 0xbd, -1, I0, G | DST_ONLY | NO_ND },
	{ "movbe load", 0x60, 0, 0, 2, 0xf0, -1, I0, G | DST_ONLY | NO_ND | NO_NF | MEMONLY },
	{ "movbe store", 0x61, 0, 0, 2, 0xf1, -1, I0, NO_ND | NO_NF | MEMONLY },
	{ "crc32 byte", 0xf0, 0, 0xf2, 2, 0xf0, -1, I0, G | SRC8 | NOW | NO_ND | NO_NF },
	{ "crc32", 0xf1, 0, 0xf2, 2, 0xf1, -1, I0, G | DST32 | NO_ND | NO_NF },
	{ "adcx", 0x66, 1, 0x66, 2, 0xf6, -1, I0, G | NOW | NO_NF },
	{ "adox", 0x66, 2, 0xf3, 2, 0xf6, -1, I0, G | NOW | NO_NF },
#define CMOV(cc) { "cmov", 0x40 + (cc), 0, 0, 1, 0x40 + (cc), -1, I0, G | NO_NF | NO_BASE }
	CMOV(0), CMOV(1), CMOV(2), CMOV(3), CMOV(4), CMOV(5), CMOV(6), CMOV(7),
	CMOV(8), CMOV(9), CMOV(10), CMOV(11), CMOV(12), CMOV(13), CMOV(14), CMOV(15),
};

/* The legacy form works on these. */
#define L_RM	3
#define L_REG	6
#define L_ADDR	7

static void one_legacy(const struct row *r, int size, enum operand what, int p2)
{
	bool is_mem = what != REGISTER, fault = what == NO_MEMORY;
	struct insn e = { .n = 0 }, l = { .n = 0 };
	struct rm rm, lrm = { .index = 4 };
	struct cpu in, lin, lout, want;
	int reg, v, w = size == 8, pp = r->pp, lreg, immsize;
	u64 addr = 0, imm = rng(), end, dst;
	bool to_mem = is_mem && !(r->flags & G);

	random_state(&in, mem_in);
	reg = r->digit >= 0 ? r->digit : (int)rng_below(NR_GPR);
	v = rng_below(NR_GPR);
	if ((r->flags & IMPL) && rng_below(2)) {	/* quotients that fit */
		in.gpr[2] = 0;
		in.gpr[0] &= 0xff;
	}
	random_rm(&rm, what, &in, &addr);
	immsize = r->imm == I0 ? 0 : r->imm == IB ? 1 : size == 2 ? 2 : 4;

	/* same values in low registers */
	lin = in;
	lreg = reg;
	if (is_mem) {
		lrm.mod = 2;
		lrm.reg = L_ADDR;
		lin.gpr[L_ADDR] = addr;
	} else {
		lrm.mod = 3;
		lrm.reg = L_RM;
		lin.gpr[L_RM] = in.gpr[rm.reg];
	}
	if (r->digit < 0) {
		lreg = !is_mem && reg == rm.reg ? L_RM : L_REG;
		lin.gpr[lreg] = in.gpr[reg];
	}
	if (size == 2 && !(r->flags & NOW))
		put_byte(&l, 0x66);
	legacy(&l, r->prefix, r->map, r->legacy_op, w, lreg, &lrm);
	put_imm(&l, imm, immsize);
	end = CODE_BASE + 0x800;
	run(end, l.b, l.n, &lin, mem_in, false, &lout);
	memcpy(mem_legacy, mem, MEM_SIZE);

	want = in;
	want.trap = lout.trap;
	want.err = lout.err;
	want.cr2 = lout.cr2;
	if (fault && to_mem && p2 & ND)
		want.err &= ~2;		/* it only reads */
	if (lout.trap == TRAP_NONE) {
		dst = lout.gpr[r->flags & G ? lreg : L_RM];
		if (!(p2 & NF))
			want.rflags = lout.rflags;
		if (r->flags & IMPL) {
			want.gpr[0] = lout.gpr[0];
			want.gpr[2] = lout.gpr[2];
		} else if (p2 & ND && r->flags & ZU) {
			want.gpr[reg] = zero_extend(dst, size);
		} else if (p2 & ND) {
			if (to_mem) {	/* the result is in memory of the legacy form */
				dst = 0;
				memcpy(&dst, mem_legacy + (addr - MEM_BASE), size);
				memcpy(mem_legacy, mem_in, MEM_SIZE);
			}
			want.gpr[v] = zero_extend(dst, size);
		} else if (!to_mem) {
			want.gpr[r->flags & G ? reg : rm.reg] = dst;
		}
	}

	if (size == 2 && !(r->flags & NOW))
		pp = 1;
	evex(&e, 4, r->op, pp, w, p2, p2 & ND && !(r->flags & ZU) ? v : 0, reg, &rm);
	put_imm(&e, imm, immsize);
	check_rm(r->name, &e, &rm, addr, immsize, &in, &want, mem_legacy);
}

static void test_legacy(int p2, const char *what)
{
	enum operand m;
	u32 i, t;
	int size;

	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		const struct row *r = &rows[i];

		if ((p2 & ND && r->flags & NO_ND) || (p2 & NF && r->flags & NO_NF) ||
		    (!(p2 & ND) && r->flags & NO_BASE))
			continue;
		for (size = 1; size <= 8; size *= 2) {
			if ((size == 1) != !!(r->flags & BYTE) || (size == 2 && r->flags & NOW))
				continue;
			for (m = REGISTER; m < OPERANDS; m++) {
				if (m == REGISTER && r->flags & MEMONLY)
					continue;
				for (t = 0; t < trials; t++)
					one_legacy(r, size, m, p2);
			}
		}
	}
	report(what);
}

/* ------------------------------------------------------------------------
 * 2. BMI: the VEX form is the model
 */
static const struct bmi {
	const char *name;
	int map, op, pp, digit;
	bool nf, imm;
} bmi[] = {
	{ "andn", 2, 0xf2, 0, -1, true, false },
	{ "blsr", 2, 0xf3, 0, 1, true, false },
	{ "blsmsk", 2, 0xf3, 0, 2, true, false },
	{ "blsi", 2, 0xf3, 0, 3, true, false },
	{ "bzhi", 2, 0xf5, 0, -1, true, false },
	{ "pext", 2, 0xf5, 2, -1, false, false },
	{ "pdep", 2, 0xf5, 3, -1, false, false },
	{ "mulx", 2, 0xf6, 3, -1, false, false },
	{ "bextr", 2, 0xf7, 0, -1, true, false },
	{ "shlx", 2, 0xf7, 1, -1, false, false },
	{ "sarx", 2, 0xf7, 2, -1, false, false },
	{ "shrx", 2, 0xf7, 3, -1, false, false },
	{ "rorx", 3, 0xf0, 3, -1, false, true },
};

static void one_bmi(const struct bmi *b, int w, enum operand what, int p2)
{
	struct insn e = { .n = 0 }, l = { .n = 0 };
	struct rm rm, lrm = { .mod = 3, .reg = L_RM, .index = 4 };
	struct cpu in, lin, lout, want;
	int reg, v, lv = 5, lreg = L_REG;
	u64 addr = 0;
	u8 imm = rng();

	random_state(&in, mem_in);
	reg = b->digit >= 0 ? b->digit : (int)rng_below(NR_GPR);
	v = b->imm ? 0 : rng_below(NR_GPR);
	if (b->op == 0xf6 && v == reg)		/* MULX: one destination, another rule */
		v = reg ^ 1;
	random_rm(&rm, what, &in, &addr);
	lin = in;
	if (what != REGISTER) {
		lrm.mod = 2;
		lrm.reg = L_ADDR;
		lin.gpr[L_ADDR] = addr;
	} else {
		lin.gpr[L_RM] = in.gpr[rm.reg];
	}
	lin.gpr[lv] = in.gpr[v];
	if (b->digit >= 0)
		lreg = b->digit;
	vex(&l, b->map, b->op, b->pp, w, b->imm ? 0 : lv, lreg, &lrm);
	evex(&e, b->map, b->op, b->pp, w, p2, v, reg, &rm);
	if (b->imm) {
		put_byte(&l, imm);
		put_byte(&e, imm);
	}
	run(CODE_BASE + 0x800, l.b, l.n, &lin, mem_in, false, &lout);
	want = in;
	want.trap = lout.trap;
	want.err = lout.err;
	want.cr2 = lout.cr2;
	if (lout.trap == TRAP_NONE) {
		if (!(p2 & NF))
			want.rflags = lout.rflags;
		if (b->digit >= 0 || b->op == 0xf6)
			want.gpr[v] = lout.gpr[lv];
		if (b->digit < 0)
			want.gpr[reg] = lout.gpr[L_REG];
	}
	check_rm(b->name, &e, &rm, addr, b->imm, &in, &want, mem_in);
}

static void test_bmi(bool nci)
{
	enum operand m;
	u32 i, t;
	int w, nf;

	for (i = 0; i < ARRAY_SIZE(bmi); i++)
		for (nf = 0; nf <= (bmi[i].nf && nci); nf++)
			for (w = 0; w < 2; w++)
				for (m = REGISTER; m < OPERANDS; m++)
					for (t = 0; t < trials; t++)
						one_bmi(&bmi[i], w, m, nf ? NF : 0);
	report("BMI1 and BMI2");
}

/* ------------------------------------------------------------------------
 * 3. Conditions
 */
static bool condition(u64 fl, int cc)
{
	bool cf = fl & 1, pf = fl & 4, zf = fl & 0x40, sf = fl & 0x80, of = fl & 0x800, r;

	switch (cc >> 1) {
	case 0: r = of; break;
	case 1: r = cf; break;
	case 2: r = zf; break;
	case 3: r = cf || zf; break;
	case 4: r = sf; break;
	case 5: r = pf; break;
	case 6: r = sf != of; break;
	default: r = zf || sf != of; break;
	}
	return r != (cc & 1);
}

/* opcode, digit or -1, immediate */
static const struct ccmp {
	const char *name;
	int op, digit, imm;
	bool byte;
} ccmps[] = {
	{ "ccmp", 0x38, -1, I0, true }, { "ccmp", 0x39, -1, I0, false },
	{ "ccmp", 0x3a, -1, I0, true }, { "ccmp", 0x3b, -1, I0, false },
	{ "ccmp", 0x80, 7, IB, true }, { "ccmp", 0x81, 7, IZ, false },
	{ "ccmp", 0x83, 7, IB, false },
	{ "ctest", 0x84, -1, I0, true }, { "ctest", 0x85, -1, I0, false },
	{ "ctest", 0xf6, 0, IB, true }, { "ctest", 0xf7, 0, IZ, false },
	{ "ctest", 0xf6, 1, IB, true }, { "ctest", 0xf7, 1, IZ, false },
};

/* What the source is compared with is loaded, whatever the condition. */
static void one_ccmp(const struct ccmp *c, int scc, int size, enum operand what)
{
	struct insn e = { .n = 0 }, l = { .n = 0 };
	struct rm rm, lrm = { .index = 4, .mod = 3, .reg = L_RM };
	struct cpu in, lin, lout, want;
	int reg, lreg, dfv = rng_below(16), immsize, w = size == 8;
	u64 addr = 0, imm = rng();
	bool true_;

	random_state(&in, mem_in);
	reg = c->digit >= 0 ? c->digit : (int)rng_below(NR_GPR);
	random_rm(&rm, what, &in, &addr);
	immsize = c->imm == I0 ? 0 : c->imm == IB ? 1 : size == 2 ? 2 : 4;
	lin = in;
	if (what != REGISTER) {
		lrm.mod = 2;
		lrm.reg = L_ADDR;
		lin.gpr[L_ADDR] = addr;
	} else {
		lin.gpr[L_RM] = in.gpr[rm.reg];
	}
	lreg = c->digit >= 0 ? c->digit : L_REG;
	if (c->digit < 0)
		lin.gpr[L_REG] = in.gpr[reg];
	if (size == 2)
		put_byte(&l, 0x66);
	legacy(&l, 0, 0, c->op, w, lreg, &lrm);
	put_imm(&l, imm, immsize);
	run(CODE_BASE + 0x800, l.b, l.n, &lin, mem_in, false, &lout);

	want = in;
	want.trap = lout.trap;
	want.err = lout.err;
	want.cr2 = lout.cr2;
	true_ = scc == 10 ? true : scc == 11 ? false : condition(in.rflags, scc);
	if (true_)
		want.rflags = lout.rflags;
	else if (what != NO_MEMORY)
		want.rflags = (in.rflags & ~(u64)FL_STATUS) | (dfv & 8 ? 0x800 : 0) |
			      (dfv & 4 ? 0x80 : 0) | (dfv & 2 ? 0x40 : 0) | (dfv & 1 ? 5 : 0);
	/* V3..V0 are the flags, not inverted; V4 is a bit of the condition */
	evex(&e, 4, c->op, size == 2, w, scc & 7, 0, reg, &rm);
	e.b[2] = (e.b[2] & ~0x78) | dfv << 3;
	e.b[3] = scc;
	put_imm(&e, imm, immsize);
	check_rm(c->name, &e, &rm, addr, immsize, &in, &want, mem_in);
}

static void test_ccmp(void)
{
	enum operand m;
	int scc, size;
	u32 i, t;

	for (i = 0; i < ARRAY_SIZE(ccmps); i++)
		for (scc = 0; scc < 16; scc++)
			for (size = 1; size <= 8; size *= 2)
				for (m = REGISTER; m < OPERANDS; m++)
					for (t = 0; (size == 1) == ccmps[i].byte && t < 2; t++)
						one_ccmp(&ccmps[i], scc, size, m);
	report("CCMPscc and CTESTscc");
}

static void one_cfcmov(int cc, int size, enum operand what, int p2)
{
	struct insn e = { .n = 0 };
	struct rm rm;
	struct cpu in, want;
	int reg = rng_below(NR_GPR), v = rng_below(NR_GPR);
	u64 addr = 0, val = 0;
	bool c, load = p2 != NF;

	random_state(&in, mem_in);
	random_rm(&rm, what, &in, &addr);
	c = condition(in.rflags, cc);
	want = in;
	want.trap = TRAP_NONE;
	want.err = want.cr2 = 0;
	memcpy(mem_legacy, mem_in, MEM_SIZE);
	if (what == NO_MEMORY && c) {
		want.trap = TRAP_PF;
		want.err = load ? 4 : 6;
		want.cr2 = addr;
	} else if (load) {
		if (what == REGISTER)
			val = in.gpr[rm.reg];
		else if (c)
			memcpy(&val, mem_in + (addr - MEM_BASE), size);
		if (!c)
			val = p2 & ND ? in.gpr[reg] : 0;
		want.gpr[p2 & ND ? v : reg] = zero_extend(val, size);
	} else if (what == REGISTER) {
		want.gpr[rm.reg] = c ? zero_extend(in.gpr[reg], size) : 0;
	} else if (c) {
		memcpy(mem_legacy + (addr - MEM_BASE), &in.gpr[reg], size);
	}
	evex(&e, 4, 0x40 + cc, size == 2, size == 8, p2, p2 & ND ? v : 0, reg, &rm);
	check_rm("cfcmov", &e, &rm, addr, 0, &in, &want, mem_legacy);
}

static void one_setcc(int cc, bool is_mem, bool zu, int w)
{
	struct insn e = { .n = 0 };
	struct rm rm;
	struct cpu in, want;
	u64 addr = 0;
	bool c;

	random_state(&in, mem_in);
	random_rm(&rm, is_mem, &in, &addr);
	c = condition(in.rflags, cc);
	want = in;
	want.trap = TRAP_NONE;
	memcpy(mem_legacy, mem_in, MEM_SIZE);
	if (is_mem)
		mem_legacy[addr - MEM_BASE] = c;
	else
		want.gpr[rm.reg] = zu ? c : (in.gpr[rm.reg] & ~0xffull) | c;
	evex(&e, 4, 0x40 + cc, 3, w, zu ? ND : 0, 0, rng_below(NR_GPR), &rm);
	check("setcc", &e, &in, &want, mem_legacy);
}

static void test_conditions(void)
{
	static const int forms[] = { 0, NF, ND | NF };
	u32 t, f;
	int cc, size, m;

	for (cc = 0; cc < 16; cc++)
		for (size = 2; size <= 8; size *= 2)
			for (f = 0; f < ARRAY_SIZE(forms); f++)
				for (t = 0; t < trials; t++) {
					for (m = REGISTER; m < OPERANDS; m++)
						one_cfcmov(cc, size, m, forms[f]);
				}
	report("CFCMOVcc");
	for (cc = 0; cc < 16; cc++)
		for (m = 0; m < 2; m++)
			for (f = 0; f < 4; f++)
				for (t = 0; t < trials; t++)
					one_setcc(cc, m, f & 1, f >> 1);
	report("SETcc and SETZUcc");
}

/* ------------------------------------------------------------------------
 * 4. PUSH2, POP2, MOVBE between registers
 */
static void test_push2_pop2(void)
{
	struct rm rm = { .mod = 3, .index = 4 };
	struct cpu in, want;
	struct insn e;
	int v, b, w, pop;
	u64 sp, off;
	u32 t;

	for (t = 0; t < 64 * trials; t++) {
		pop = t & 1;
		w = t >> 1 & 1;
		do {
			v = rng_below(NR_GPR);
			b = rng_below(NR_GPR);
		} while (v == RSP || b == RSP || (pop && v == b));
		random_state(&in, mem_in);
		sp = MEM_BASE + 0x200 + rng_below(0x80) * 16;
		off = sp - MEM_BASE;
		in.gpr[RSP] = sp;
		want = in;
		want.trap = TRAP_NONE;
		memcpy(mem_legacy, mem_in, MEM_SIZE);
		if (pop) {
			memcpy(&want.gpr[v], mem_in + off, 8);
			memcpy(&want.gpr[b], mem_in + off + 8, 8);
			want.gpr[RSP] += 16;
		} else {
			memcpy(mem_legacy + off - 8, &in.gpr[v], 8);
			memcpy(mem_legacy + off - 16, &in.gpr[b], 8);
			want.gpr[RSP] -= 16;
		}
		rm.reg = b;
		e.n = 0;
		evex(&e, 4, pop ? 0x8f : 0xff, 0, w, ND, v, pop ? 0 : 6, &rm);
		check(pop ? "pop2" : "push2", &e, &in, &want, mem_legacy);

		/* not aligned */
		in.gpr[RSP] += 1 + rng_below(15);
		want = in;
		want.trap = TRAP_GP;
		want.err = 0;
		check(pop ? "pop2, not aligned" : "push2, not aligned", &e, &in, &want, mem_in);

		/* no stack there */
		in.gpr[RSP] = pop ? NOWHERE & ~15ull : MEM_BASE;
		want = in;
		want.trap = TRAP_PF;
		want.err = pop ? 4 : 6;
		want.cr2 = pop ? in.gpr[RSP] : MEM_BASE - 16;
		check(pop ? "pop2, no stack" : "push2, no stack", &e, &in, &want, mem_in);
	}
	for (b = 0; b < NR_GPR; b++) {
		rm.reg = b;
		e.n = 0;
		evex(&e, 4, 0xff, 0, 0, ND, RSP, 6, &rm);
		check_trap("push2 with RSP", &e, TRAP_UD);
		e.n = 0;
		evex(&e, 4, 0x8f, 0, 0, ND, RSP, 0, &rm);
		check_trap("pop2 with RSP", &e, TRAP_UD);
		e.n = 0;
		evex(&e, 4, 0x8f, 0, 0, ND, b, 0, &rm);
		check_trap("pop2 of one register", &e, TRAP_UD);
		rm.reg = RSP;
		e.n = 0;
		evex(&e, 4, 0xff, 0, 0, ND, b, 6, &rm);
		check_trap("push2 with RSP", &e, TRAP_UD);
		e.n = 0;
		evex(&e, 4, 0x8f, 0, 0, ND, b, 0, &rm);
		check_trap("pop2 with RSP", &e, TRAP_UD);
	}
	report("PUSH2 and POP2");
}

static void test_movbe(void)
{
	struct rm rm = { .mod = 3, .index = 4 };
	struct cpu in, want;
	struct insn e;
	int reg, size, src, dst;
	u32 t;
	u64 v;

	for (t = 0; t < 48 * trials; t++) {
		size = 2 << t % 3;
		random_state(&in, mem_in);
		reg = rng_below(NR_GPR);
		rm.reg = rng_below(NR_GPR);
		src = t & 1 ? reg : rm.reg;
		dst = t & 1 ? rm.reg : reg;
		want = in;
		want.trap = TRAP_NONE;
		v = __builtin_bswap64(in.gpr[src]) >> (64 - size * 8);
		want.gpr[dst] = size == 2 ? (in.gpr[dst] & ~0xffffull) | v : v;
		e.n = 0;
		evex(&e, 4, 0x60 + (t & 1), size == 2, size == 8, 0, 0, reg, &rm);
		check("movbe", &e, &in, &want, mem_in);
	}
	report("MOVBE between registers");
}

/* #GP at CPL 3, if the CPU has it, wherever a page ends. */
static void test_msr_imm(void)
{
	bool msr_imm = cpu_bit(7, 1, 2, 5);
	struct rm rm = { .mod = 3, .index = 4 };
	struct cpu in, want;
	struct insn e;
	u32 t;
	int k;

	for (t = 0; t < 2 * trials; t++) {
		random_state(&in, mem_in);
		want = in;
		want.trap = msr_imm ? TRAP_GP : TRAP_UD;
		want.err = want.cr2 = 0;
		rm.reg = rng_below(NR_GPR);
		e.n = 0;
		evex(&e, 7, 0xf6, t & 1 ? 2 : 3, 0, 0, 0, 0, &rm);
		put_imm(&e, rng(), 4);
		for (k = 0; k < e.n; k++)
			check_at(CODE_BASE + 0x2000 + k, t & 1 ? "wrmsrns imm" : "rdmsr imm", &e, &in,
				 &want, mem_in);
	}
	report("RDMSR and WRMSRNS with an immediate, across pages");
}

/* ------------------------------------------------------------------------
 * 5. R16-R31 in vector instructions
 */
static void set_xmm(struct cpu *c, int n, const void *v)
{
	memcpy(c->fx + XS_XMM0 + 16 * n, v, 16);
}

static void test_vector(void)
{
	struct cpu in, want;
	struct insn e;
	struct rm rm;
	u64 addr = 0, q[2];
	u32 t, x;

	for (t = 0; t < 64 * trials; t++) {
		x = rng_below(16);

		/* vmovdqu64 xmm, m128 and back: disp8 counts 16 bytes */
		random_state(&in, mem_in);
		random_rm(&rm, true, &in, &addr);
		if (rm.mod == 1)
			set_address(&in, &rm, addr - 15 * rm.disp);
		memcpy(mem_legacy, mem_in, MEM_SIZE);
		want = in;
		want.trap = TRAP_NONE;
		set_xmm(&want, x, mem_in + (addr - MEM_BASE));
		e.n = 0;
		evex(&e, 1, 0x6f, 2, 1, 0, 0, x, &rm);
		check("vmovdqu64 load", &e, &in, &want, mem_legacy);

		want = in;
		want.trap = TRAP_NONE;
		memcpy(mem_legacy + (addr - MEM_BASE), in.fx + XS_XMM0 + 16 * x, 16);
		e.n = 0;
		evex(&e, 1, 0x7f, 2, 1, 0, 0, x, &rm);
		check("vmovdqu64 store", &e, &in, &want, mem_legacy);

		/* vmovq xmm, r64 and back */
		random_state(&in, mem_in);
		random_rm(&rm, false, &in, &addr);
		want = in;
		want.trap = TRAP_NONE;
		q[0] = in.gpr[rm.reg];
		q[1] = 0;
		set_xmm(&want, x, q);
		e.n = 0;
		evex(&e, 1, 0x6e, 1, 1, 0, 0, x, &rm);
		check("vmovq from register", &e, &in, &want, mem_in);

		want = in;
		want.trap = TRAP_NONE;
		memcpy(&want.gpr[rm.reg], in.fx + XS_XMM0 + 16 * x, 8);
		e.n = 0;
		evex(&e, 1, 0x7e, 1, 1, 0, 0, x, &rm);
		check("vmovq to register", &e, &in, &want, mem_in);

		/* vcvttsd2si r64 in ModRM.reg, xmm in ModRM.rm: B4 is ignored there */
		random_state(&in, mem_in);
		q[0] = 0x4059000000000000;	/* 100.0 */
		set_xmm(&in, x, q);
		memset(&rm, 0, sizeof(rm));
		rm.mod = 3;
		rm.index = 4;
		rm.reg = x | (t & 1 ? 16 : 0);
		want = in;
		want.trap = TRAP_NONE;
		want.gpr[x + 16] = 100;
		e.n = 0;
		evex(&e, 1, 0x2c, 3, 1, 0, 0, x + 16, &rm);
		check("vcvttsd2si", &e, &in, &want, mem_in);

		/* kmovq k1, r64 behind it in the legacy form kmovq k1, r64 */
		random_state(&in, mem_in);
		random_rm(&rm, false, &in, &addr);
		want = in;
		want.trap = TRAP_NONE;
		want.gpr[0] = in.gpr[rm.reg];
		e.n = 0;
		evex(&e, 1, 0x92, 3, 1, 0, 0, 1, &rm);
		memcpy(e.b + e.n, "\xc4\xe1\xfb\x93\xc1", 5);	/* kmovq %k1,%rax */
		e.n += 5;
		if (rng_below(2))
			continue;
		{
			struct cpu got;

			run(CODE_BASE + 0x900, e.b, e.n, &in, mem_in, false, &got);
			cases++;
			if (!same_regs(&want, &got) || got.trap != TRAP_NONE) {
				if (failed++ < MAX_REPORTS)
					print_diff("kmovq", &in, &want, &got);
			}
		}
	}
	report("R16-R31 in vector instructions");
}

/*
 * vpgatherdd and vpscatterdd, the vector index being XMM16-XMM31: EVEX.V' is a bit
 * of its number.
 */
static void one_vsib(bool scatter)
{
	struct rm rm = { .mod = 2 }, low = { .mod = 3, .index = 4 };
	struct cpu in, want, got;
	struct insn e = { .n = 0 };
	int index = 16 + rng_below(16), x = rng_below(16), k;
	int indices[4];
	u32 v[4], at;

	random_state(&in, mem_in);
	rm.reg = any_reg();
	rm.index = index & 15;
	rm.scale = rng_below(4);
	rm.disp = (int32_t)rng();
	in.gpr[rm.reg] = MEM_BASE + 0x800 - rm.disp;
	low.reg = rng_below(16);
	for (k = 0; k < 4; k++)
		indices[k] = (int)rng_below(0x100) - 0x80;
	set_xmm(&in, low.reg, indices);

	memcpy(mem_legacy, mem_in, MEM_SIZE);
	memcpy(v, in.fx + XS_XMM0 + 16 * x, 16);
	for (k = 0; k < 4; k++) {
		at = 0x800 + indices[k] * (1 << rm.scale);
		if (scatter)
			memcpy(mem_legacy + at, &v[k], 4);
		else
			memcpy(&v[k], mem_in + at, 4);
	}
	want = in;
	want.trap = TRAP_NONE;
	set_xmm(&want, x, v);

	evex(&e, 1, 0x6f, 1, 0, 0, 0, index, &low);		/* vmovdqa32 */
	memcpy(e.b + e.n, "\xc5\xf4\x46\xc9", 4);		/* kxnorw %k1,%k1,%k1 */
	e.n += 4;
	evex(&e, 2, scatter ? 0xa0 : 0x90, 1, 0, 1, index & 16, x, &rm);
	run(CODE_BASE + 0x900, e.b, e.n, &in, mem_in, false, &got);
	cases++;
	if (same_regs(&want, &got) && got.trap == TRAP_NONE && !memcmp(mem, mem_legacy, MEM_SIZE))
		return;
	if (failed++ < MAX_REPORTS) {
		ktap_note("%s(index XMM%d)", hex(e.b, e.n), index);
		print_diff(scatter ? "vpscatterdd" : "vpgatherdd", &in, &want, &got);
	}
}

static void test_vsib(void)
{
	u32 t;

	for (t = 0; t < 64 * trials; t++)
		one_vsib(t & 1);
	report("vector index 16-31");
}

/* ------------------------------------------------------------------------
 * 6. #UD
 */
static void test_ud(void)
{
	struct rm reg = { .mod = 3, .reg = 17, .index = 4 };
	struct rm memop = { .mod = 1, .reg = 17, .index = 4 };
	struct insn e, bad;
	u32 i, k;
	int op, pp, p2;

	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		const struct row *r = &rows[i];
		const struct rm *rm = r->flags & MEMONLY ? &memop : &reg;
		int base = r->flags & NO_BASE ? ND : 0;

		static const struct { const char *name; int byte; u8 set, clear; } bits[] = {
			{ "z", 3, 0x80, 0 }, { "L'", 3, 0x40, 0 }, { "L", 3, 0x20, 0 },
			{ "P2[1]", 3, 2, 0 }, { "P2[0]", 3, 1, 0 },
		};
		e.n = 0;
		evex(&e, 4, r->op, r->pp, 1, base, base ? 2 : 0, r->digit >= 0 ? r->digit : 16, rm);
		put_imm(&e, 0, r->imm == I0 ? 0 : r->imm == IB ? 1 : 4);
		for (k = 0; k < ARRAY_SIZE(bits); k++) {
			bad = e;
			bad.b[bits[k].byte] |= bits[k].set;
			check_trap(bits[k].name, &bad, TRAP_UD);
		}
		if (r->flags & NO_ND) {
			bad = e;
			bad.b[3] |= ND;
			check_trap("ND", &bad, TRAP_UD);
		}
		if (r->flags & NO_NF && !(r->flags & NO_BASE)) {
			bad = e;
			bad.b[3] |= NF;
			check_trap("NF", &bad, TRAP_UD);
		}
		if (!base) {
			for (k = 0; k < 5; k++) {	/* V is not used */
				bad = e;
				bad.b[k == 4 ? 3 : 2] &= ~(k == 4 ? 8 : 8 << k);
				check_trap("V", &bad, TRAP_UD);
			}
		}
		if (!(r->flags & MEMONLY)) {
			bad = e;
			bad.b[2] &= ~4;
			check_trap("X4 with a register", &bad, TRAP_UD);
		}
		for (k = 0; k < 6; k++) {
			static const u8 prefix[] = { 0x66, 0xf2, 0xf3, 0xf0, 0x48, 0x40 };

			bad.n = 0;
			put_byte(&bad, prefix[k]);
			memcpy(bad.b + 1, e.b, e.n);
			bad.n += e.n;
			check_trap("prefix", &bad, TRAP_UD);
		}
		bad.n = 0;
		put_byte(&bad, 0xd5);
		put_byte(&bad, 0);
		memcpy(bad.b + 2, e.b, e.n);
		bad.n += e.n;
		check_trap("REX2", &bad, TRAP_UD);
		if (r->flags & BYTE || r->pp == 0) {
			bad = e;
			bad.b[2] = (bad.b[2] & ~3) | 2;
			if (r->op != 0xf0 && r->op != 0xf1 && r->op != 0x66)
				check_trap("pp=F3", &bad, TRAP_UD);
		}
		if (r->flags & BYTE) {
			bad = e;
			bad.b[2] |= 1;
			check_trap("pp=66 with bytes", &bad, TRAP_UD);
		}
	}

	/* opcodes that are not in map 4 */
	for (op = 0; op < 256; op++) {
		if ((op < 0x40 && (op & 7) < 4) || op == 0x24 || op == 0x2c || (op >= 0x40 && op < 0x50) ||
		    op == 0x60 || op == 0x61 || op == 0x65 || op == 0x66 || op == 0x69 || op == 0x6b ||
		    op == 0x80 || op == 0x81 || (op >= 0x83 && op <= 0x85) || op == 0x88 ||
		    op == 0x8a || op == 0x8b || op == 0x8f || op == 0xa5 || op == 0xad || op == 0xaf ||
		    op == 0xc0 || op == 0xc1 || (op >= 0xd0 && op <= 0xd3) ||
		    (op >= 0xf0 && op <= 0xf2) || (op >= 0xf4 && op <= 0xf9) || op == 0xfc ||
		    op == 0xfe || op == 0xff)
			continue;
		for (pp = 0; pp < 4; pp++)
			for (p2 = 0; p2 < 4; p2++) {
				e.n = 0;
				evex(&e, 4, op, pp, pp & 1, (p2 & 1 ? ND : 0) | (p2 & 2 ? NF : 0), 0, 0,
				     p2 & 1 ? &reg : &memop);
				put_imm(&e, 0, 4);
				check_trap("no such opcode", &e, TRAP_UD);
			}
	}

	/* vpgatherdd xmm with VEX and with EVEX, and no SIB byte */
	for (i = 0; i < 2; i++) {
		static const struct insn gathers[] = {
			{ { 0xc4, 0xe2, 0x61, 0x90, 0x4a, 0x00 }, 6 },
			{ { 0x62, 0xf2, 0x7d, 0x09, 0x90, 0x4a, 0x00 }, 7 },
		};

		check_trap("gather without SIB", &gathers[i], TRAP_UD);
	}
	report("#UD");
}

/* The CPU lacks APX_NCI_NDD_NF, and with @base APX at all. */
static void test_absent(bool base)
{
	static const struct rm reg = { .mod = 3, .reg = 3, .index = 4 };
	static const struct rm mem1 = { .mod = 1, .reg = 3, .index = 4 };
	static const int p2s[] = { 0, NF, ND, ND | NF };
	struct insn e;
	u32 i, k;
	int pp;

	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		const struct row *r = &rows[i];

		for (k = 0; k < ARRAY_SIZE(p2s); k++) {
			if (!base && !p2s[k] && !(r->flags & NO_BASE))
				continue;
			e.n = 0;
			evex(&e, 4, r->op, r->pp, 1, p2s[k], p2s[k] & ND && !(r->flags & ZU) ? 2 : 0,
			     r->digit >= 0 ? r->digit : 6, r->flags & MEMONLY ? &mem1 : &reg);
			put_imm(&e, 0, r->imm == I0 ? 0 : r->imm == IB ? 1 : 4);
			check_trap(r->name, &e, TRAP_UD);
		}
	}
	for (i = 0; i < ARRAY_SIZE(ccmps); i++) {
		e.n = 0;
		evex(&e, 4, ccmps[i].op, 0, 1, 2, 0, ccmps[i].digit >= 0 ? ccmps[i].digit : 6, &reg);
		put_imm(&e, 0, ccmps[i].imm == I0 ? 0 : ccmps[i].imm == IB ? 1 : 4);
		check_trap(ccmps[i].name, &e, TRAP_UD);
	}
	for (k = 0; k < ARRAY_SIZE(p2s); k++) {
		for (i = 0x40; i < 0x50; i++) {
			for (pp = 0; pp < 4; pp++) {
				e.n = 0;
				evex(&e, 4, i, pp, 0, p2s[k], 0, 6, &reg);
				check_trap("conditional", &e, TRAP_UD);
			}
		}
		for (i = 0; i < ARRAY_SIZE(bmi); i++) {
			if (p2s[k] != NF && (p2s[k] || !base))
				continue;
			e.n = 0;
			evex(&e, bmi[i].map, bmi[i].op, bmi[i].pp, 1, p2s[k], 0, bmi[i].digit >= 0 ? bmi[i].digit : 6,
			     &reg);
			put_imm(&e, 0, bmi[i].imm);
			check_trap(bmi[i].name, &e, TRAP_UD);
		}
	}
	e.n = 0;
	evex(&e, 4, 0xff, 0, 0, ND, 2, 6, &reg);
	check_trap("push2", &e, TRAP_UD);
	e.n = 0;
	evex(&e, 4, 0x8f, 0, 0, ND, 2, 0, &reg);
	check_trap("pop2", &e, TRAP_UD);
	if (base) {
		static const struct rm bad[] = {
			{ .mod = 1, .reg = 19, .index = 4 },
			{ .mod = 1, .reg = 3, .index = 17 },
		};

		for (i = 0; i < ARRAY_SIZE(bad); i++) {
			e.n = 0;
			evex(&e, 1, 0x6f, 2, 1, 0, 0, 0, &bad[i]);
			check_trap("vmovdqu64 with R16-R31", &e, TRAP_UD);
		}
		e.n = 0;
		evex(&e, 1, 0x2c, 3, 1, 0, 0, 16, &reg);
		check_trap("vcvttsd2si to R16", &e, TRAP_UD);
	}
	report(base ? "#UD without APX" : "#UD without APX_NCI_NDD_NF");
}

/* Lengths: 15 bytes are fine, 16 are not.  67H and segments are fine. */
static void test_length(void)
{
	struct rm rm = { .mod = 2, .reg = 20, .index = 21, .scale = 1, .disp = 0x1000 };
	struct cpu in, want;
	struct insn e, longer;
	u32 a, t;

	for (t = 0; t < 16 * trials; t++) {
		random_state(&in, mem_in);
		in.gpr[21] = 0x100;
		in.gpr[20] = MEM_BASE + 0x400 - 0x1000 - 0x200;
		e.n = 0;
		evex(&e, 4, 0x81, 0, 0, NF, 0, 0, &rm);	/* {nf} add $imm,mem */
		put_imm(&e, 0x12345678, 4);
		want = in;
		want.trap = TRAP_NONE;
		memcpy(mem_legacy, mem_in, MEM_SIZE);
		memcpy(&a, mem_legacy + 0x400, 4);
		a += 0x12345678;
		memcpy(mem_legacy + 0x400, &a, 4);
		check("15 bytes", &e, &in, &want, mem_legacy);

		longer.n = 0;
		put_byte(&longer, t & 1 ? 0x67 : 0x2e);
		memcpy(longer.b + 1, e.b, e.n);
		longer.n += e.n;
		want = in;
		want.trap = TRAP_GP;
		check("16 bytes", &longer, &in, &want, mem_in);

		/* inc with 32-bit addresses and a segment override */
		in.gpr[20] |= rng() << 32;
		in.gpr[21] |= rng() << 32;
		longer.n = 0;
		put_byte(&longer, 0x2e);
		put_byte(&longer, 0x67);
		evex(&longer, 4, 0xff, 0, 0, NF, 0, 0, &rm);
		want = in;
		want.trap = TRAP_NONE;
		memcpy(mem_legacy, mem_in, MEM_SIZE);
		memcpy(&a, mem_legacy + 0x400, 4);
		a++;
		memcpy(mem_legacy + 0x400, &a, 4);
		check("67H", &longer, &in, &want, mem_legacy);
	}
	report("length and prefixes");
}

int main(int argc, char **argv)
{
	const char *missing = apx_missing();
	u64 seed = SEED;
	bool avx512, nci;
	int i;

	for (i = 1; i + 1 < argc; i += 2) {
		if (!strcmp(argv[i], "-s"))
			seed = strtoull(argv[i + 1], NULL, 0);
		else if (!strcmp(argv[i], "-n"))
			trials = strtoul(argv[i + 1], NULL, 0);
	}
	nci = !missing && cpu_bit(0x29, 0, 1, 0);
	/* F, BW, VL, and the OS has enabled them */
	avx512 = cpu_bit(7, 0, 1, 16) && cpu_bit(7, 0, 1, 30) && cpu_bit(7, 0, 1, 31) &&
		 cpu_has_osxsave() && (xgetbv(0) & 0xe0) == 0xe0;
	ktap_plan(missing ? 1 : (nci ? 13 : 5) + 2 * avx512);
	ktap_note("seed %llu", (unsigned long long)seed);
	rng_seed(seed);
	run_init(!missing);

	if (missing) {
		ktap_note("%s", missing);
		test_absent(true);
		return ktap_exit();
	}
	test_legacy(0, "as the legacy form");
	test_bmi(nci);
	test_movbe();
	test_msr_imm();
	if (avx512) {
		test_vector();
		test_vsib();
	} else {
		ktap_note("no AVX-512, no vector instructions");
	}
	if (!nci) {
		test_absent(false);
		return ktap_exit();
	}
	test_legacy(NF, "NF");
	test_legacy(ND, "ND and ZU");
	test_legacy(ND | NF, "ND and ZU with NF");
	test_ccmp();
	test_conditions();
	test_push2_pop2();
	test_ud();
	test_length();
	ktap_note("%llu instructions run", (unsigned long long)run_count);
	return ktap_exit();
}
