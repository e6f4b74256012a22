// SPDX-License-Identifier: GPL-2.0
/*
 * The XSAVE family against a model: random states of all components that the OS
 * lets a process have, random masks, all formats.  The model says for each
 * instruction what it has to leave in memory, byte by byte, and in registers.
 * It knows of no component but by number, size and offset: what it says is
 * checked on the CPU of the build host as well, see docs/testing.md.
 *
 * What the architecture leaves open, the model does, too: XSTATE_BV may say that
 * a component in its initial configuration is in use.
 *
 * Usage: xsave_model [-s seed]
 * Exit status: 0 pass, 1 fail, 4 skipped: the CPU or the OS has no XSAVE.
 */
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <unistd.h>

#include "apx_test.h"

#define AREA_SIZE	0x4000
#define COMPACT		(1ull << 63)
#define XSTATE_BV	XS_HEADER
#define XCOMP_BV	(XS_HEADER + 8)
#define MXCSR_INIT	0x1f80
#define TRIALS		1000

#define FP		0
#define SSE		1
#define YMM		2
#define PKRU		9
#define TILECFG		17
#define TILEDATA	18
#define TILES		(1ull << TILECFG | 1ull << TILEDATA)
#define MAX_COMP	20
#define BIT(i)		(1ull << (i))

#ifndef ARCH_REQ_XCOMP_PERM
#define ARCH_REQ_XCOMP_PERM	0x1023
#endif

struct area {
	u8 b[AREA_SIZE];
} __attribute__((aligned(64)));

/* Components, MXCSR: what a state is.  The rest of an area does not belong to it. */
static struct area state, initial;
static u64 all;
static u32 mxcsr_mask;
static struct { u32 size, offset; bool align; } comp[MAX_COMP];

static u32 get32(const struct area *a, u32 at)
{
	u32 v;

	memcpy(&v, a->b + at, 4);
	return v;
}

static void put32(struct area *a, u32 at, u32 v)
{
	memcpy(a->b + at, &v, 4);
}

/* Where a component is in an area of this format, and how far that reaches. */
static u32 offset_of(u64 xcomp_bv, int i)
{
	u32 at = XS_EXTENDED;
	int k;

	if (!(xcomp_bv & COMPACT) || i < YMM)
		return comp[i].offset;
	for (k = YMM; ; k++) {
		if (!(xcomp_bv & BIT(k)))
			continue;
		if (comp[k].align)
			at = (at + 63) & ~63u;
		if (k == i)
			return at;
		at += comp[k].size;
	}
}

static void copy_comp(int i, struct area *to, u64 to_format, const struct area *from, u64 from_format)
{
	u8 *t = to->b + offset_of(to_format, i);
	const u8 *f = from->b + offset_of(from_format, i);

	if (i == FP) {
		memcpy(t, f, XS_MXCSR);
		memcpy(t + XS_ST0, f + XS_ST0, XS_XMM0 - XS_ST0);
	} else {
		memcpy(t, f, comp[i].size);
	}
}

static bool same_comp(int i, const struct area *a, const struct area *b)
{
	u32 at = comp[i].offset;

	if (i == FP)
		return !memcmp(a->b, b->b, XS_MXCSR) &&
		       !memcmp(a->b + XS_ST0, b->b + XS_ST0, XS_XMM0 - XS_ST0);
	return !memcmp(a->b + at, b->b + at, comp[i].size);
}

static void random_bytes(u8 *p, u32 size)
{
	u32 i;

	for (i = 0; i < size; i++)
		p[i] = rng() >> 56;
}

/* Half of the time most of it, then all of it, one bit of it or nothing of it. */
static u64 random_mask(u64 of)
{
	switch (rng_below(6)) {
	case 0:
		return of;
	case 1:
		return of & BIT(rng_below(MAX_COMP));
	case 2:
		return of & rng() & rng();
	default:
		return of & rng();
	}
}

/* Tiles and their configuration belong together, but for what is saved. */
static u64 with_tiles(u64 mask)
{
	return mask & TILES ? (mask | TILES) & all : mask;
}

static u32 random_mxcsr(void)
{
	return rng_below(3) ? MXCSR_INIT | (rng() & mxcsr_mask & 0xffff) : MXCSR_INIT;
}

/* A value of a component that XRSTOR takes and that raises nothing. */
static void random_comp(struct area *a, u32 at, int i)
{
	u8 *p = a->b + at;
	int k;

	if (i == FP) {
		random_bytes(p, XS_MXCSR);
		p[0] = 0x7f;			/* FCW: all masked */
		p[1] &= 0x0f;
		p[2] &= 0x7f;			/* FSW: no summary, not busy */
		p[3] &= 0x7f;
		p[5] = 0;
		p[7] &= 0x07;			/* FOP */
		p[13] = p[14] = p[15] = 0;	/* FIP, FDP: canonical */
		p[21] = p[22] = p[23] = 0;
		for (k = 0; k < 8; k++) {
			random_bytes(p + XS_ST0 + 16 * k, 10);
			memset(p + XS_ST0 + 16 * k + 10, 0, 6);
		}
		return;
	}
	random_bytes(p, comp[i].size);
	switch (i) {
	case PKRU:
		p[0] &= ~3;			/* this program's own memory */
		memset(p + 4, 0, comp[i].size - 4);
		break;
	case TILECFG:				/* eight tiles of full size */
		memset(p, 0, comp[i].size);
		p[0] = 1;
		for (k = 0; k < 8; k++) {
			p[16 + 2 * k] = 64;
			p[48 + k] = 16;
		}
		break;
	default:
		if (rng_below(4) == 0) {	/* a single bit of it */
			memset(p, 0, comp[i].size);
			p[rng_below(comp[i].size)] = 1 << rng_below(8);
		}
	}
}

/* An area of this format with these components; all else is noise. */
static void random_area(struct area *a, u64 xcomp_bv, u64 xstate_bv)
{
	int i;

	random_bytes(a->b, XS_HEADER);
	memset(a->b + XS_HEADER, 0, 64);
	random_bytes(a->b + XS_EXTENDED, AREA_SIZE - XS_EXTENDED);
	put32(a, XS_MXCSR, random_mxcsr());
	put64(a, XSTATE_BV, xstate_bv);
	put64(a, XCOMP_BV, xcomp_bv);
	for (i = 0; i < MAX_COMP; i++)
		if (xstate_bv & BIT(i))
			random_comp(a, offset_of(xcomp_bv, i), i);
}

/* ------------------------------------------------------------------------
 * The instructions.  Nothing but one of them may come between setting a state and
 * saving it, so that it is one piece of assembly.
 */
enum insn { XSAVE, XSAVEOPT, XSAVEC, XRSTOR };

#define RUN(name, insn)								\
static void __attribute__((noinline)) name(const struct area *load, struct area *area,	\
					   u64 rfbm, struct area *after)	\
{										\
	static struct area own;							\
										\
	asm volatile("mov %[all], %%eax; mov %[all_hi], %%edx; xsave64 (%[own])\n\t"	\
		     "xrstor64 (%[load])\n\t"					\
		     "mov %[rfbm], %%eax; mov %[rfbm_hi], %%edx\n\t"		\
		     #insn "64 (%[area])\n\t"					\
		     "mov %[all], %%eax; mov %[all_hi], %%edx; xsave64 (%[after])\n\t"	\
		     "xrstor64 (%[own])"					\
		     : : [own] "r"(&own), [load] "r"(load), [area] "r"(area), [after] "r"(after),	\
		       [all] "r"((u32)all), [all_hi] "r"((u32)(all >> 32)),	\
		       [rfbm] "r"((u32)rfbm), [rfbm_hi] "r"((u32)(rfbm >> 32))	\
		     : "eax", "edx", "memory");					\
}

RUN(run_xsave, xsave)
RUN(run_xsaveopt, xsaveopt)
RUN(run_xsavec, xsavec)
RUN(run_xrstor, xrstor)

static void (* const run[])(const struct area *load, struct area *area, u64 rfbm, struct area *after) = {
	[XSAVE] = run_xsave, [XSAVEOPT] = run_xsaveopt, [XSAVEC] = run_xsavec, [XRSTOR] = run_xrstor,
};

/* ------------------------------------------------------------------------
 * The model
 */
static u64 not_initial(void)
{
	u64 mask = 0;
	int i;

	for (i = 0; i < MAX_COMP; i++)
		if (all & BIT(i) && !same_comp(i, &state, &initial))
			mask |= BIT(i);
	return mask;
}

/*
 * What a save leaves in an area that was OLD.  XSTATE_BV is taken from GOT within
 * what the architecture leaves open; false if it is not.
 */
static bool model_save(enum insn insn, u64 rfbm, const struct area *old, const struct area *got,
		       struct area *want)
{
	u64 must = not_initial() & rfbm, bv = get64(got, XSTATE_BV), format = get64(old, XCOMP_BV) & ~COMPACT;
	int i;

	*want = *old;
	if (insn == XSAVEC) {
		format = COMPACT | rfbm;
		put64(want, XCOMP_BV, format);
		if (rfbm & BIT(SSE) && get32(&state, XS_MXCSR) != MXCSR_INIT)
			must |= BIT(SSE);
	} else if ((bv & ~rfbm) != (get64(old, XSTATE_BV) & ~rfbm)) {
		return false;
	}
	if (must & ~bv || (insn == XSAVEC && bv & ~rfbm))
		return false;
	put64(want, XSTATE_BV, bv);
	if (insn == XSAVEC ? bv & BIT(SSE) : rfbm & (BIT(SSE) | BIT(YMM))) {
		put32(want, XS_MXCSR, get32(&state, XS_MXCSR));
		put32(want, XS_MXCSR + 4, mxcsr_mask);
	}
	for (i = 0; i < MAX_COMP; i++)
		if (rfbm & BIT(i) && (insn == XSAVE || bv & BIT(i)))
			copy_comp(i, want, insn == XSAVEC ? format : 0, &state, 0);
	return true;
}

static void model_restore(u64 rfbm, const struct area *a)
{
	u64 bv = get64(a, XSTATE_BV), format = get64(a, XCOMP_BV);
	int i;

	for (i = 0; i < MAX_COMP; i++)
		if (rfbm & BIT(i) && bv & BIT(i))
			copy_comp(i, &state, 0, a, format);
		else if (rfbm & BIT(i))
			copy_comp(i, &state, 0, &initial, 0);
	if (!(format & COMPACT) ? rfbm & (BIT(SSE) | BIT(YMM)) : rfbm & bv & BIT(SSE))
		put32(&state, XS_MXCSR, get32(a, XS_MXCSR));
	else if (format & COMPACT && rfbm & BIT(SSE))
		put32(&state, XS_MXCSR, MXCSR_INIT);
}

/* ------------------------------------------------------------------------ */
static unsigned int failed;

static void complain(const char *name, const char *what, u64 rfbm, const struct area *a)
{
	if (failed++ < 5)
		ktap_note("%s: %s: RFBM %llx, XSTATE_BV %llx, XCOMP_BV %llx, in use %llx", name, what,
			  (unsigned long long)rfbm, (unsigned long long)get64(a, XSTATE_BV),
			  (unsigned long long)get64(a, XCOMP_BV), (unsigned long long)not_initial());
}

static void check_registers(const char *name, u64 rfbm, const struct area *a, const struct area *after)
{
	char what[40];
	int i;

	for (i = 0; i < MAX_COMP; i++) {
		if (all & BIT(i) && !same_comp(i, after, &state)) {
			sprintf(what, "component %d", i);
			complain(name, what, rfbm, a);
		}
	}
	if (get32(after, XS_MXCSR) != get32(&state, XS_MXCSR))
		complain(name, "MXCSR", rfbm, a);
	if (not_initial() & ~get64(after, XSTATE_BV))
		complain(name, "in use, and XSAVE does not say so", rfbm, a);
}

static void test(const char *name, enum insn insn, bool compacted)
{
	static struct area load, area, old, want, after;
	u64 rfbm, bv, format = 0;
	int n;
	u32 i;

	failed = 0;
	for (n = 0; n < TRIALS; n++) {
		random_area(&load, 0, with_tiles(random_mask(all)));
		state = initial;
		model_restore(all, &load);

		if (insn == XRSTOR) {
			rfbm = with_tiles(random_mask(all));
			bv = with_tiles(random_mask(all));
			if (compacted) {
				format = COMPACT | bv | with_tiles(random_mask(all));
				rfbm |= random_mask(BIT(62));	/* not in XCR0: does not count */
			}
			random_area(&area, format, bv);
		} else {
			rfbm = random_mask(all);
			random_area(&area, 0, 0);
			random_bytes(area.b + XS_MXCSR, 8);
			random_bytes(area.b + XS_HEADER, 64);
		}
		old = area;
		memset(&after, 0, sizeof(after));
		run[insn](&load, &area, rfbm, &after);
		rfbm &= all;
		if (insn == XRSTOR) {
			model_restore(rfbm, &area);
			want = old;
		} else if (!model_save(insn, rfbm, &old, &area, &want)) {
			complain(name, "XSTATE_BV", rfbm, &area);
			continue;
		}
		if (memcmp(&area, &want, sizeof(area))) {
			for (i = 0; area.b[i] == want.b[i]; i++)
				;
			complain(name, "memory", rfbm, &area);
			if (failed <= 5)
				ktap_note("  byte %u: %02x, not %02x", i, area.b[i], want.b[i]);
		}
		check_registers(name, rfbm, &area, &after);
	}
	ktap_result(!failed, "%s", name);
}

static void find_components(void)
{
	static struct area a;
	u32 eax, ebx, ecx, edx;
	int i;

	comp[FP].size = XS_XMM0;
	comp[SSE].offset = XS_XMM0;
	comp[SSE].size = 256;
	for (i = YMM; i < MAX_COMP; i++) {
		if (!(all & BIT(i)))
			continue;
		__cpuid_count(0xd, i, eax, ebx, ecx, edx);
		comp[i].size = eax;
		comp[i].offset = ebx;
		comp[i].align = ecx & 2;
	}
	put32(&initial, 0, 0x37f);
	put32(&initial, XS_MXCSR, MXCSR_INIT);
	asm volatile("fxsave64 %0" : "=m"(a));
	mxcsr_mask = get32(&a, XS_MXCSR + 4);
}

int main(int argc, char **argv)
{
	u64 seed = 20261121;

	if (argc == 3 && !strcmp(argv[1], "-s")) {
		seed = strtoull(argv[2], NULL, 0);
	} else if (argc != 1) {
		fprintf(stderr, "usage: xsave_model [-s seed]\n");
		return EXIT_FAIL;
	}
	if (!cpu_has_osxsave())
		return ktap_skip_all("the OS did not set CR4.OSXSAVE");
	all = xgetbv(0);
	if (all & BIT(TILEDATA) && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILEDATA))
		all &= ~TILES;
	find_components();

	ktap_plan(5);
	ktap_note("seed %llu, components %llx", (unsigned long long)seed, (unsigned long long)all);
	rng_seed(seed);
	test("XSAVE", XSAVE, false);
	if (cpu_bit(0xd, 1, 0, 0))
		test("XSAVEOPT", XSAVEOPT, false);
	else
		ktap_skip("XSAVEOPT", "the CPU has no XSAVEOPT");
	test("XRSTOR, standard format", XRSTOR, false);
	if (cpu_bit(0xd, 1, 0, 1)) {
		test("XSAVEC", XSAVEC, false);
		test("XRSTOR, compacted format", XRSTOR, true);
	} else {
		ktap_skip("XSAVEC", "the CPU has no XSAVEC");
		ktap_skip("XRSTOR, compacted format", "the CPU has no XSAVEC");
	}
	return ktap_exit();
}
