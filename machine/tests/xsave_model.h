/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the XSAVE family leaves in memory, byte by byte, and in registers: random
 * states of all components that there are, random masks, all formats.  It knows
 * of no component but by number, size and offset, and of some of them which values
 * they take.
 *
 * What the architecture leaves open, the model does, too: XSTATE_BV may say that
 * a component in its initial configuration is in use.
 *
 * Who includes it says how to load and save all of the registers (LOAD, SAVE and
 * LOAD_COMPACTED), what to do right before and after the instruction (NARROW and
 * WIDEN, assembly; NARROWED, what it does to the masks), and has model_note()
 * and model_result().
 */
#ifndef XSAVE_MODEL_H
#define XSAVE_MODEL_H

#include "apx_test.h"

#define AREA_SIZE	0x4000
#define COMPACT		(1ull << 63)
#define XSTATE_BV	XS_HEADER
#define XCOMP_BV	(XS_HEADER + 8)
#define MXCSR_INIT	0x1f80

#define FP		0
#define SSE		1
#define YMM		2
#define PKRU		9
#define CET_U		11
#define CET_S		12
#define UINTR		14
#define TILECFG		17
#define TILEDATA	18
#define TILES		(1ull << TILECFG | 1ull << TILEDATA)
#define MAX_COMP	20
#define BIT(i)		(1ull << (i))

/* In the state of UINTR. */
#define UINTR_MISC	16
#define UINTR_UINV	20
#define UINTR_UIRR	32

/* Supervisor components have no place in the standard format: this is the model's. */
#define SUPERVISOR_AT	0x3800

struct area {
	u8 b[AREA_SIZE];
} __attribute__((aligned(64)));

/* Components, MXCSR: what a state is.  The rest of an area does not belong to it. */
struct model {
	struct area state, initial, seen;
	struct area load, area, old, want, after, own;
};

#ifdef MODEL_AT
static struct model * const m = (void *)MODEL_AT;
#else
static struct model areas, * const m = &areas;
#endif

/* What there is, and what of it only XSAVES and XRSTORS know. */
static u64 all, supervisor;
static u32 used;		/* of an area in memory, and some bytes behind it */
static u32 mxcsr_mask;
static struct { u32 size, offset; bool align; } comp[MAX_COMP];

/* Of the instruction: all that it may see, and the operand. */
static struct { u64 all, supervisor, enabled, rfbm; } masks;

static void model_note(const char *name, const char *what, u32 nr, const u64 *values);
static void model_result(bool pass, const char *name);

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

/* The end of an area of this format. */
static u32 end_of(u64 xcomp_bv, u64 comps)
{
	u32 end = XS_EXTENDED;
	int i;

	for (i = YMM; i < MAX_COMP; i++)
		if (comps & BIT(i) && offset_of(xcomp_bv, i) + comp[i].size > end)
			end = offset_of(xcomp_bv, i) + comp[i].size;
	return end;
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
	u64 v;

	for (; size >= sizeof(v); p += sizeof(v), size -= sizeof(v)) {
		v = rng();
		memcpy(p, &v, sizeof(v));
	}
	v = rng();
	memcpy(p, &v, size);
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

static u64 random_address(u32 align)
{
	return rng() & 0x7fffffffffffull & ~(u64)(align - 1);
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
	case CET_U:				/* not both of suppress and wait for ENDBR */
		put64(p, 0, (random_address(0x1000) | (rng() & 0x43f)) ^ (rng_below(2) ? 0x400 : 0));
		put64(p, 8, random_address(4));
		break;
	case CET_S:
		for (k = 0; k < 3; k++)
			put64(p, 8 * k, random_address(4));
		break;
	case UINTR:
		put64(p, 0, random_address(1));
		put64(p, 8, random_address(1));
		memset(p + UINTR_UINV + 1, 0, 3);
		p[UINTR_UINV + 3] = rng_below(2) ? 0x80 : 0;	/* UIF */
		put64(p, 24, random_address(64));
		put64(p, 40, random_address(16) | rng_below(2));
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
	random_bytes(a->b + XS_EXTENDED, used - XS_EXTENDED);
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
enum operation { XSAVE, XSAVEOPT, XSAVEC, XSAVES, XRSTOR, XRSTORS };

#define RUN(name, insn)								\
static void __attribute__((noinline)) name(void)				\
{										\
	asm volatile("mov %[all], %%eax; mov 4+%[all], %%edx\n\t"		\
		     SAVE " (%[own])\n\t"					\
		     LOAD " (%[load])\n\t"					\
		     NARROW							\
		     "mov %[rfbm], %%eax; mov 4+%[rfbm], %%edx\n\t"		\
		     #insn "64 (%[area])\n\t"					\
		     WIDEN							\
		     "mov %[all], %%eax; mov 4+%[all], %%edx\n\t"		\
		     SAVE " (%[after])\n\t"					\
		     LOAD " (%[own])"						\
		     : : [own] "r"(&m->own), [load] "r"(&m->load), [area] "r"(&m->area),	\
		       [after] "r"(&m->after), [all] "m"(masks.all), [rfbm] "m"(masks.rfbm),	\
		       [enabled] "m"(masks.enabled), [supervisor] "m"(masks.supervisor)	\
		     : "eax", "ecx", "edx", "memory");				\
}

RUN(run_xsave, xsave)
RUN(run_xsaveopt, xsaveopt)
RUN(run_xsavec, xsavec)
RUN(run_xsaves, xsaves)
RUN(run_xrstor, xrstor)
RUN(run_xrstors, xrstors)

static void (* const run_insn[])(void) = {
	[XSAVE] = run_xsave, [XSAVEOPT] = run_xsaveopt, [XSAVEC] = run_xsavec,
	[XSAVES] = run_xsaves, [XRSTOR] = run_xrstor, [XRSTORS] = run_xrstors,
};

/* ------------------------------------------------------------------------
 * The model
 */
static u64 not_initial(void)
{
	u64 mask = 0;
	int i;

	for (i = 0; i < MAX_COMP; i++)
		if (all & BIT(i) && !same_comp(i, &m->state, &m->initial))
			mask |= BIT(i);
	return mask;
}

/*
 * What a save leaves in an area that was m->old.  XSTATE_BV is taken from m->area
 * within what the architecture leaves open; false if it is not.
 */
static bool model_save(enum operation insn, u64 rfbm)
{
	struct area *want = &m->want;
	u64 must = not_initial() & rfbm, bv = get64(&m->area, XSTATE_BV), format = 0;
	bool compacted = insn == XSAVEC || insn == XSAVES;
	int i;

	memcpy(want, &m->old, used);
	if (compacted) {
		format = COMPACT | rfbm;
		put64(want, XCOMP_BV, format);
		if (rfbm & BIT(SSE) && get32(&m->state, XS_MXCSR) != MXCSR_INIT)
			must |= BIT(SSE);
	} else if ((bv & ~rfbm) != (get64(&m->old, XSTATE_BV) & ~rfbm)) {
		return false;
	}
	if (must & ~bv || (compacted && bv & ~rfbm))
		return false;
	put64(want, XSTATE_BV, bv);
	if (compacted ? bv & BIT(SSE) : rfbm & (BIT(SSE) | BIT(YMM))) {
		put32(want, XS_MXCSR, get32(&m->state, XS_MXCSR));
		put32(want, XS_MXCSR + 4, mxcsr_mask);
	}
	for (i = 0; i < MAX_COMP; i++)
		if (rfbm & BIT(i) && (insn == XSAVE || bv & BIT(i)))
			copy_comp(i, want, format, &m->state, 0);
	/* Who saves the user-interrupt state ends its notifications. */
	if (rfbm & bv & BIT(UINTR))
		m->state.b[comp[UINTR].offset + UINTR_UINV] = 0;
	return true;
}

static void model_restore(struct area *to, u64 rfbm, const struct area *a)
{
	u64 bv = get64(a, XSTATE_BV), format = get64(a, XCOMP_BV);
	int i;

	for (i = 0; i < MAX_COMP; i++)
		if (rfbm & BIT(i) && bv & BIT(i))
			copy_comp(i, to, 0, a, format);
		else if (rfbm & BIT(i))
			copy_comp(i, to, 0, &m->initial, 0);
	if (!(format & COMPACT) ? rfbm & (BIT(SSE) | BIT(YMM)) : rfbm & bv & BIT(SSE))
		put32(to, XS_MXCSR, get32(a, XS_MXCSR));
	else if (format & COMPACT && rfbm & BIT(SSE))
		put32(to, XS_MXCSR, MXCSR_INIT);
}

/* ------------------------------------------------------------------------ */
static unsigned int failed;

static void complain(const char *name, const char *what, u32 nr, u64 rfbm)
{
	const u64 values[] = {
		rfbm, get64(&m->area, XSTATE_BV), get64(&m->area, XCOMP_BV), not_initial(),
		masks.enabled,
	};

	if (failed++ < 5)
		model_note(name, what, nr, values);
}

/* model_note()'s values. */
static const char * const value_names[] = {
	"RFBM", "XSTATE_BV", "XCOMP_BV", "in use", "enabled",
};

static void check_registers(const char *name, u64 rfbm)
{
	u64 bv = get64(&m->after, XSTATE_BV);
	u32 i;

	memcpy(&m->seen, &m->initial, sizeof(m->seen));
	model_restore(&m->seen, all, &m->after);
	for (i = 0; i < MAX_COMP; i++)
		if (all & BIT(i) && !same_comp(i, &m->seen, &m->state))
			complain(name, "component", i, rfbm);
	if (get32(&m->seen, XS_MXCSR) != get32(&m->state, XS_MXCSR))
		complain(name, "MXCSR", get32(&m->seen, XS_MXCSR), rfbm);
	if (not_initial() & ~bv)
		complain(name, "in use, and a save does not say so", 0, rfbm);
}

static void test_model(const char *name, enum operation insn, bool compacted, u32 trials)
{
	u64 rfbm, bv, visible, format, load_format = LOAD_COMPACTED ? COMPACT | all : 0;
	bool restore = insn == XRSTOR || insn == XRSTORS;
	u32 i, n;

	failed = 0;
	for (n = 0; n < trials; n++) {
		masks.enabled = NARROWED(all);
		visible = insn == XSAVES || insn == XRSTORS ? masks.enabled : masks.enabled & ~supervisor;

		bv = with_tiles(random_mask(all));
		random_area(&m->load, load_format, bv);
		/* XRSTORS wants it to be zero */
		if (insn == XRSTORS && bv & BIT(UINTR))
			m->load.b[offset_of(load_format, UINTR) + UINTR_UINV] = 0;
		memcpy(&m->state, &m->initial, sizeof(m->state));
		model_restore(&m->state, all, &m->load);

		rfbm = random_mask(all);
		format = 0;
		if (restore) {
			rfbm = with_tiles(rfbm);
			bv = with_tiles(random_mask(visible));
			if (compacted) {
				format = COMPACT | bv | with_tiles(random_mask(visible));
				rfbm |= random_mask(BIT(62));	/* not in XCR0: does not count */
			}
			random_area(&m->area, format, bv);
		} else {
			random_area(&m->area, 0, 0);
			random_bytes(m->area.b + XS_MXCSR, 8);
			random_bytes(m->area.b + XS_HEADER, 64);
		}
		memcpy(&m->old, &m->area, used);
		memset(&m->after, 0, used);
		masks.all = all;
		masks.supervisor = supervisor;
		masks.rfbm = rfbm;
		run_insn[insn]();
		rfbm &= visible;
		if (restore) {
			model_restore(&m->state, rfbm, &m->area);
			memcpy(&m->want, &m->old, used);
		} else if (!model_save(insn, rfbm)) {
			complain(name, "XSTATE_BV", 0, rfbm);
			continue;
		}
		if (memcmp(&m->area, &m->want, used)) {
			for (i = 0; m->area.b[i] == m->want.b[i]; i++)
				;
			complain(name, "memory at byte", i, rfbm);
		}
		check_registers(name, rfbm);
	}
	model_result(!failed, name);
}

static void find_components(void)
{
	u32 eax, ebx, ecx, edx, at = SUPERVISOR_AT;
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
		if (supervisor & BIT(i)) {
			comp[i].offset = at;
			at += eax;
		}
	}
	used = end_of(0, all & ~supervisor);
	if (end_of(COMPACT | all, all) > used)
		used = end_of(COMPACT | all, all);
	used = (used + 64 + 63) & ~63u;
	memset(m, 0, sizeof(*m));
	put32(&m->initial, 0, 0x37f);
	put32(&m->initial, XS_MXCSR, MXCSR_INIT);
	asm volatile("fxsave64 %0" : "=m"(m->area));
	mxcsr_mask = get32(&m->area, XS_MXCSR + 4);
}

#endif /* XSAVE_MODEL_H */
