// SPDX-License-Identifier: GPL-2.0
/*
 * What do legacy and VEX-encoded integer instructions do on this CPU?  Runs
 * them with random operands and prints a line for each form: its name, the
 * number of cases, and a digest of all results: registers, flags, memory,
 * exceptions.  The same program with the same seed has to print the same lines
 * on a real CPU and on the machine, see ci/machine-check.
 *
 * What the manuals leave undefined is masked by the table below.
 *
 * Usage: host_insn [-s seed] [-n trials] [-o form]
 *   -o form   only this form, and its cases one by one
 * Output: "form NAME CASES DIGEST"; with -o for each case N "N bytes", "N in",
 *   "N out", and "N zero REGISTER DIGEST": its digest with that register zero.
 */
#define _GNU_SOURCE
#include "rex2_sweep.h"

#ifndef ONLY
#define ONLY NULL
#endif

/* Rows with this flag are VEX-encoded; pfx stands for pp. */
#define VEX	0x1000
#define NO_V	0x2000		/* vvvv is not used */
#define STRING	0x4000		/* RSI and RDI point to memory, RCX counts */

static const struct row more_rows[] = {
	{ 0, 0xa4, 0xa7, P_ALL, NONE, NONE, I0, 0, STRING },	/* MOVS, CMPS */
	{ 0, 0xaa, 0xaf, P_ALL, NONE, NONE, I0, 0, STRING },	/* STOS, LODS, SCAS */
	{ 2, 0xf0, 0xf1, P_INT, GPR, GPR, I0, 0, NOREG },	/* MOVBE */
	{ 2, 0xf0, 0xf1, P_F2, GPR, GPR, I0, 0, 0 },		/* CRC32 */
	{ 2, 0xf6, 0xf6, P_66 | P_F3, GPR, GPR, I0, 0, 0 },	/* ADCX, ADOX */
	{ 2, 0xf2, 0xf2, P_NP, GPR, GPR, I0, 0, VEX },		/* ANDN */
	{ 2, 0xf3, 0xf3, P_NP, DIG, GPR, I0, 0x0e, VEX },	/* BLSR, BLSMSK, BLSI */
	{ 2, 0xf5, 0xf5, P_NP | P_F3 | P_F2, GPR, GPR, I0, 0, VEX }, /* BZHI, PEXT, PDEP */
	{ 2, 0xf6, 0xf6, P_F2, GPR, GPR, I0, 0, VEX },		/* MULX */
	{ 2, 0xf7, 0xf7, P_ALL, GPR, GPR, I0, 0, VEX },		/* BEXTR, SHLX, SARX, SHRX */
	{ 3, 0xf0, 0xf0, P_F2, GPR, GPR, IB, 0, VEX | NO_V },	/* RORX */
};

/* ------------------------------------------------------------------------
 * What is undefined: SDM volume 2, "Flags Affected" of each instruction, and
 * the destination where it says so.
 */
#define O	0x800
#define S	0x80
#define Z	0x40
#define A	0x10
#define P	0x04
#define C	0x01
#define DEST	0x10000		/* the destination */

enum when {
	ALWAYS,
	COUNT,			/* the masked count of a shift is not 0 */
	COUNT_2,		/* ... is above 1 */
	COUNT_SIZE,		/* ... is the operand's size or more */
	COUNT_ABOVE,		/* ... is above it */
	SOURCE_0,		/* the source is zero */
	SIZE_16,		/* the operand has 16 bits */
};

static const struct undefined {
	u8 map, first, last;
	u8 pfx, digits;		/* sets, 0 for all */
	enum when when;
	u32 what;
} undefined[] = {
	/* OR, AND, XOR, TEST */
	{ 0, 0x08, 0x0d, 0, 0, ALWAYS, A },
	{ 0, 0x20, 0x25, 0, 0, ALWAYS, A },
	{ 0, 0x30, 0x35, 0, 0, ALWAYS, A },
	{ 0, 0x80, 0x83, 0, 0x52, ALWAYS, A },
	{ 0, 0x84, 0x85, 0, 0, ALWAYS, A },
	{ 0, 0xa8, 0xa9, 0, 0, ALWAYS, A },
	{ 0, 0xf6, 0xf7, 0, 0x03, ALWAYS, A },
	/* MUL, IMUL; DIV, IDIV */
	{ 0, 0x69, 0x69, 0, 0, ALWAYS, S | Z | A | P },
	{ 0, 0x6b, 0x6b, 0, 0, ALWAYS, S | Z | A | P },
	{ 1, 0xaf, 0xaf, 0, 0, ALWAYS, S | Z | A | P },
	{ 0, 0xf6, 0xf7, 0, 0x30, ALWAYS, S | Z | A | P },
	{ 0, 0xf6, 0xf7, 0, 0xc0, ALWAYS, O | S | Z | A | P | C },
	/* rotations; shifts, CF but for SAR */
	{ 0, 0xc0, 0xc1, 0, 0, COUNT_2, O },
	{ 0, 0xd0, 0xd3, 0, 0, COUNT_2, O },
	{ 0, 0xc0, 0xc1, 0, 0xf0, COUNT, A },
	{ 0, 0xd0, 0xd3, 0, 0xf0, COUNT, A },
	{ 0, 0xc0, 0xc1, 0, 0x70, COUNT_SIZE, C },
	{ 0, 0xd0, 0xd3, 0, 0x70, COUNT_SIZE, C },
	/* SHLD, SHRD */
	{ 1, 0xa4, 0xa5, 0, 0, COUNT, A },
	{ 1, 0xac, 0xad, 0, 0, COUNT, A },
	{ 1, 0xa4, 0xa5, 0, 0, COUNT_2, O },
	{ 1, 0xac, 0xad, 0, 0, COUNT_2, O },
	{ 1, 0xa4, 0xa5, 0, 0, COUNT_ABOVE, DEST | O | S | Z | A | P | C },
	{ 1, 0xac, 0xad, 0, 0, COUNT_ABOVE, DEST | O | S | Z | A | P | C },
	/* BT, BTS, BTR, BTC */
	{ 1, 0xa3, 0xa3, 0, 0, ALWAYS, O | S | A | P },
	{ 1, 0xab, 0xab, 0, 0, ALWAYS, O | S | A | P },
	{ 1, 0xb3, 0xb3, 0, 0, ALWAYS, O | S | A | P },
	{ 1, 0xba, 0xbb, 0, 0, ALWAYS, O | S | A | P },
	/* BSF, BSR; TZCNT, LZCNT; BSWAP */
	{ 1, 0xbc, 0xbd, P_INT, 0, ALWAYS, O | S | A | P | C },
	{ 1, 0xbc, 0xbd, P_INT, 0, SOURCE_0, DEST },
	{ 1, 0xbc, 0xbd, P_F3, 0, ALWAYS, O | S | A | P },
	{ 1, 0xc8, 0xcf, 0, 0, SIZE_16, DEST },
	/* ANDN, BLS*, BZHI, BEXTR; not PEXT, PDEP, MULX, SHLX and the like */
	{ 2, 0xf2, 0xf3, P_NP, 0, ALWAYS, A | P },
	{ 2, 0xf5, 0xf5, P_NP, 0, ALWAYS, A | P },
	{ 2, 0xf7, 0xf7, P_NP, 0, ALWAYS, S | A | P },
};

/* ------------------------------------------------------------------------
 * A case
 */
struct one {
	const struct row *row;
	struct insn n;
	int pfx, size;
	bool step;
	u64 end;
	u8 bytes[MAX_INSN];
	int len;
	struct cpu in;
};

static u8 mem_in[MEM_SIZE];

static u64 source_of(const struct one *o)
{
	u64 v = 0, at;

	if (!o->n.is_mem) {
		v = o->in.gpr[o->n.rm];
	} else {
		/* make_insn() made them hit the page, with 67H in 32 bits */
		at = o->n.disp + (o->n.index >= 0 ? o->in.gpr[o->n.index] << o->n.scale : 0);
		if (o->n.base >= 0)
			at += o->in.gpr[o->n.base];
		if (memchr(o->n.pfx, 0x65, o->n.npfx))
			at += GS_BASE;
		at = (u32)at - MEM_BASE;
		if (at <= MEM_SIZE - 8)
			memcpy(&v, mem_in + at, 8);
	}
	return o->size == 8 ? v : v & ((1ull << o->size * 8) - 1);
}

static bool applies(const struct one *o, const struct undefined *u)
{
	bool by_1 = o->n.map == 0 && (o->n.op == 0xd0 || o->n.op == 0xd1);
	u32 count = by_1 ? 1 : o->n.nimm ? o->n.imm[0] : o->in.gpr[1];

	count &= o->size == 8 ? 63 : 31;
	switch (u->when) {
	case COUNT: return count;
	case COUNT_2: return count > 1;
	case COUNT_SIZE: return count >= (u32)o->size * 8;
	case COUNT_ABOVE: return count > (u32)o->size * 8;
	case SOURCE_0: return !source_of(o);
	case SIZE_16: return o->size == 2;
	default: return true;
	}
}

static u32 undefined_of(const struct one *o)
{
	u32 what = 0, i;

	for (i = 0; i < ARRAY_SIZE(undefined); i++) {
		const struct undefined *u = &undefined[i];

		if (u->map == o->n.map && o->n.op >= u->first && o->n.op <= u->last &&
		    (!u->pfx || u->pfx & o->pfx) &&
		    (!u->digits || u->digits >> o->n.reg & 1) && applies(o, u))
			what |= u->what;
	}
	return what;
}

static u64 mix(u64 hash, const void *p, size_t n)
{
	const u8 *b = p;
	u64 v;

	for (; n; n -= n < 8 ? n : 8, b += 8) {
		v = 0;
		memcpy(&v, b, n < 8 ? n : 8);
		hash = (hash ^ v) * 0x9e3779b97f4a7c15ull;
		hash ^= hash >> 29;
	}
	return hash;
}

/* Runs a case; what is undefined is zero in @out, and in memory. */
static u64 run_one(const struct one *o, const struct cpu *in, struct cpu *out)
{
	u32 what = undefined_of(o), k;
	u64 hash;

	run(o->end, o->bytes, o->len, in, mem_in, o->step, out);
	if (out->rip == o->end - o->len)
		out->rip = 0;
	else if (out->rip == o->end)
		out->rip = 1;
	out->rflags &= ~(u64)what;
	if (what & DEST && out->trap == TRAP_NONE) {
		/* BSF and BSR have it in ModRM.reg, the others in ModRM.rm */
		if (o->n.map == 1 && (o->n.op | 1) == 0xbd)
			out->gpr[o->n.reg] = 0;
		else if (!o->n.is_mem)
			out->gpr[o->n.rm] = 0;
		else
			memcpy(mem, mem_in, MEM_SIZE);
	}
	hash = mix(0, out->gpr, 16 * 8);
	hash = mix(hash, &out->rflags, 8);
	hash = mix(hash, &out->rip, 8);
	hash = mix(hash, &out->trap, sizeof(out->trap));
	hash = mix(hash, &out->err, 8);
	hash = mix(hash, &out->cr2, 8);
	/* as same_fx() compares them */
	hash = mix(hash, out->fx, 6);
	hash = mix(hash, out->fx + XS_MXCSR, 4);
	hash = mix(hash, out->fx + XS_ST0, sizeof(out->fx) - XS_ST0);
	for (k = 0; k < MEM_SIZE; k += 256)
		if (memcmp(mem + k, mem_in + k, 256))
			hash = mix(hash ^ k, mem + k, 256);
	return hash;
}

static void print_one(u32 nr, const struct one *o)
{
	struct cpu in, out;
	int i;
	u32 k;

	printf("%u bytes %s%s\n", nr, hex(o->bytes, o->len), o->step ? "single step" : "");
	printf("%u in flags=%llx", nr, (unsigned long long)o->in.rflags);
	for (i = 0; i < 16; i++)
		printf(" %s=%llx", reg_name(i), (unsigned long long)o->in.gpr[i]);
	in = o->in;
	run_one(o, &in, &out);
	printf("\n%u out exception=%d err=%llx cr2=%llx rip=%llx flags=%llx", nr, out.trap,
	       (unsigned long long)out.err, (unsigned long long)out.cr2,
	       (unsigned long long)out.rip, (unsigned long long)out.rflags);
	for (i = 0; i < 16; i++)
		if (out.gpr[i] != in.gpr[i])
			printf(" %s=%llx", reg_name(i), (unsigned long long)out.gpr[i]);
	for (k = 0; k < MEM_SIZE; k++)
		if (mem[k] != mem_in[k])
			printf(" %llx:%02x->%02x", MEM_BASE + k, mem_in[k], mem[k]);
	if (!same_fx(&in, &out))
		printf(" x87, MXCSR or XMM: %llx", (unsigned long long)mix(0, out.fx, sizeof(out.fx)));
	putchar('\n');
	for (i = 0; i < 16; i++) {
		if (i == RSP)
			continue;
		in = o->in;
		in.gpr[i] = 0;
		printf("%u zero %s %llx\n", nr, reg_name(i), (unsigned long long)run_one(o, &in, &out));
	}
}

static void make_one(struct one *o, const struct row *row, int op, int pfx, bool w, int digit,
		     bool is_mem)
{
	static const u8 pp[] = { [P_NP] = 0, [P_66] = 1, [P_F3] = 2, [P_F2] = 3 };
	bool vex = row->flags & VEX;
	struct row r = *row;
	u8 *b, rex;
	int v;

	/* In the encoding the bytes of C4 stand where REX 0F 38 stands. */
	if (vex)
		r.map = 2;
	make_insn(&r, op, vex ? P_NP : pfx, w, digit, is_mem, &o->n, &o->in, mem_in);
	if (row->flags & STRING) {
		o->in.gpr[6] = MEM_BASE + 0x400 + rng_below(0x100);
		o->in.gpr[7] = MEM_BASE + 0x800 + rng_below(0x100);
		if (rng_below(2))	/* in one another */
			o->in.gpr[7] = o->in.gpr[6] + rng_below(33) - 16;
		o->in.gpr[1] = rng_below(32);
	}
	o->row = row;
	o->pfx = pfx;
	o->step = rng_below(16) == 0;
	o->end = random_end(rng_below(8) == 0, 4);
	o->len = encode(&o->n, false, o->end, 0, o->bytes);
	o->size = r.map < 2 && !(op & 1) && (r.map == 0 || op == 0xb0 || op == 0xc0) ? 1 :
		  w ? 8 : pfx == P_66 ? 2 : 4;
	if (!vex)
		return;
	v = row->reg == DIG || !(row->flags & NO_V) ? low_reg() : 0;
	b = o->bytes + o->n.npfx;
	rex = b[0];
	b[0] = 0xc4;
	b[1] = (~rex & 7) << 5 | row->map;
	b[2] = w << 7 | (~v & 15) << 3 | pp[pfx];
}

/* ------------------------------------------------------------------------
 * Forms
 */
static u64 seed = SEED, cases;
static u32 trials = TRIALS;
static const char *only = ONLY;

/* What this CPU has, and what depends on more than the CPU. */
static bool wanted(const struct row *row, int op, int pfx, int digit)
{
	if (row->flags & (LEAF | SELECTOR) || row->reg >= XMM || row->rm >= XMM)
		return false;
	/* not x87; RIP after INT1 is another one if a hypervisor intercepts #DB */
	if (row->map == 0)
		return (op < 0xd8 || op > 0xdf) && op != 0xf1;
	if (row->map == 1)
		return op != 0x77 &&
		       !(op == 0xae && pfx == P_F3 && (digit == 0 || !cpu_bit(7, 0, 1, 0)));
	if (op < 0xf2 && pfx != P_F2)
		return cpu_bit(1, 0, 2, 22);
	if (!(row->flags & VEX))
		return op == 0xf6 ? cpu_bit(7, 0, 1, 19) : cpu_bit(1, 0, 2, 20);
	return cpu_bit(7, 0, 1, 3) && cpu_bit(7, 0, 1, 8);
}

static void form(const struct row *row, int op, int pfx, bool w, int digit, bool is_mem)
{
	static const char * const prefix[] = { [P_NP] = "", [P_66] = "66.", [P_F3] = "f3.", [P_F2] = "f2." };
	struct cpu out;
	struct one o;
	char name[48];
	u64 hash = 0;
	u32 t, uds = 0;

	snprintf(name, sizeof(name), "%s%smap%d.%02x", row->flags & VEX ? "vex." : "", prefix[pfx],
		 row->map, op);
	if (row->reg == DIG)
		sprintf(name + strlen(name), "/%d", digit);
	if (w)
		strcat(name, ".w");
	if (row->reg != NONE)
		strcat(name, is_mem ? ".mem" : ".reg");
	if (only && strcmp(only, name))
		return;
	rng_seed(seed ^ mix(0, name, strlen(name)));
	/* what is always #UD costs a signal each time, and shows nothing new */
	for (t = 0; t < trials && (t < 32 || uds < t); t++) {
		/* too long, or #UD? which one comes first is not said */
		do
			make_one(&o, row, op, pfx, w, digit, is_mem);
		while (o.len > 15);
		/* TF shows in pushed flags, and in what a trap instruction does */
		if (row->map == 0 && (op == 0x9c || op == 0x9d || op == 0xcc || op == 0xf1))
			o.step = false;
		if (only) {
			print_one(t, &o);
		} else {
			u64 h = run_one(&o, &o.in, &out);

			hash = mix(hash, &h, 8);
			uds += out.trap == TRAP_UD;
		}
	}
	cases += t;
	if (!only)
		printf("form %s %u %016llx\n", name, t, (unsigned long long)hash);
}

static void forms(const struct row *row)
{
	int op, pfx, digit, k;

	for (op = row->first; op <= row->last; op += row->flags & PLUSR ? 8 : 1)
		for (pfx = 1; pfx <= P_F2; pfx <<= 1)
			for (digit = 0; digit < (row->reg == DIG ? 8 : 1); digit++) {
				if (!(row->pfx & pfx) || (row->reg == DIG && !(row->digits >> digit & 1)) ||
				    !wanted(row, op, pfx, digit))
					continue;
				for (k = 0; k < 4; k++) {
					bool is_mem = row->reg != NONE && !(k & 2);

					if ((k & 2 && (row->reg == NONE || row->flags & NOREG)) ||
					    (is_mem && row->flags & NOMEM))
						continue;
					form(row, op, pfx, k & 1, digit, is_mem);
				}
			}
}

int main(int argc, char **argv)
{
	size_t i;
	int a;

	for (a = 1; a + 1 < argc; a += 2) {
		if (!strcmp(argv[a], "-s"))
			seed = strtoull(argv[a + 1], NULL, 0);
		else if (!strcmp(argv[a], "-n"))
			trials = strtoul(argv[a + 1], NULL, 0);
		else if (!strcmp(argv[a], "-o"))
			only = argv[a + 1];
		else
			break;
	}
	if (a != argc) {
		fprintf(stderr, "usage: host_insn [-s seed] [-n trials] [-o form]\n");
		return EXIT_FAIL;
	}
	run_init(false);
	for (i = 0; i < ARRAY_SIZE(rows); i++)
		forms(&rows[i]);
	for (i = 0; i < ARRAY_SIZE(more_rows); i++)
		forms(&more_rows[i]);
	printf("seed %llu cases %llu\n", (unsigned long long)seed, (unsigned long long)cases);
	return EXIT_PASS;
}
