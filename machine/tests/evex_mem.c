// SPDX-License-Identifier: GPL-2.0
/*
 * Memory operands of EVEX instructions: what a compressed displacement counts, which
 * elements VPCOMPRESS and VPEXPAND write and read, and whether conversions of FP16
 * truncate.
 *
 * An instruction with an 8-bit displacement is compared with itself with a 32-bit
 * one; VPCOMPRESS and VPEXPAND are modelled in C, in front of a page that is not
 * there.
 *
 * Usage: evex_mem [-s seed]
 * Exit status: 0 pass, 1 fail, 4 skipped: the CPU lacks some of these instructions.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include "apx_test.h"

#define SEED		20261121
#define TRIALS		64
#define VECTOR		64
#define MEM_SIZE	0x8000
#define MIDDLE		(MEM_SIZE / 2)
#define MAX_REPORTS	5

#define B		0x10	/* EVEX.b */
#define Z		0x80	/* EVEX.z */
#define K1		1
#define LL(l)		((l) << 5)

static u8 *code, *mem;		/* the page behind mem is not there */
static u8 mem_in[MEM_SIZE], mem_want[MEM_SIZE];
static struct {
	u8 src[VECTOR], dst[VECTOR];
} in;
static u8 out[VECTOR];
static sigjmp_buf trap;
static u32 failed, cases;

static void on_signal(int sig)
{
	siglongjmp(trap, sig);
}

struct insn {
	const char *name;
	u8 map, pp, w, op;
	bool has_imm;
};

/* ModRM with RDI as base, or with register @rm if @mod is 3. */
static u8 *put_insn(u8 *p, const struct insn *i, int p2, int v, int reg, int mod, int rm, int disp)
{
	*p++ = 0x62;
	*p++ = 0xf0 | i->map;
	*p++ = i->w << 7 | (~v & 15) << 3 | 4 | i->pp;
	*p++ = 8 | p2;
	*p++ = i->op;
	*p++ = mod << 6 | reg << 3 | (mod == 3 ? rm : 7);
	if (mod == 1 || mod == 2) {
		memcpy(p, &disp, mod == 1 ? 1 : 4);
		p += mod == 1 ? 1 : 4;
	}
	if (i->has_imm)
		*p++ = 5;
	return p;
}

/*
 * Run it with @base in RDI, @mask in K1, in.src in ZMM1, and in.dst in ZMM0, which
 * then is in out.  Returns the signal that it raised.
 */
static int run(const struct insn *i, int p2, int v, int reg, int mod, int rm, int disp, u8 *base, u64 mask)
{
	static const u8 before[] = {
		0xc4, 0xe1, 0xfb, 0x92, 0xc9,			/* kmovq %rcx, %k1 */
		0x62, 0xf1, 0xfe, 0x48, 0x6f, 0x0e,		/* vmovdqu64 (%rsi), %zmm1 */
		0x62, 0xf1, 0xfe, 0x48, 0x6f, 0x46, 0x01,	/* vmovdqu64 64(%rsi), %zmm0 */
	};
	static const u8 after[] = {
		0x62, 0xf1, 0xfe, 0x48, 0x7f, 0x02,		/* vmovdqu64 %zmm0, (%rdx) */
		0xc5, 0xf8, 0x77,				/* vzeroupper */
		0xc3,						/* ret */
	};
	u8 *p = code;
	int sig;

	memcpy(p, before, sizeof(before));
	p = put_insn(p + sizeof(before), i, p2, v, reg, mod, rm, disp);
	memcpy(p, after, sizeof(after));
	sig = sigsetjmp(trap, 1);
	if (sig)
		return sig;
	((void (*)(void *, const void *, void *, u64))code)(base, &in, out, mask);
	return 0;
}

static void random_bytes(void *p, u32 size)
{
	u64 v;
	u32 i;

	for (i = 0; i < size; i += 8) {
		v = rng();
		memcpy((u8 *)p + i, &v, 8);
	}
}

static void random_input(void)
{
	random_bytes(mem_in, sizeof(mem_in));
	random_bytes(&in, sizeof(in));
	memcpy(mem, mem_in, MEM_SIZE);
	memset(out, 0, sizeof(out));
}

static void report(const char *what)
{
	ktap_result(!failed && cases, "%s: %u cases, %u failed", what, cases, failed);
	failed = cases = 0;
}

/* ------------------------------------------------------------------------
 * 1. Displacements
 */
#define STORE	0x01
#define NO_V	0x02
#define VECTORS	0x04		/* 128, 256 and 512 bits, and broadcasts of 4 bytes */

static const struct displacement {
	struct insn insn;
	int counts;		/* with VECTORS what a broadcast counts */
	u32 flags;
} displacements[] = {
	{ { "vpinsrb", 3, 1, 0, 0x20, true }, 1, 0 },
	{ { "vpinsrw", 1, 1, 0, 0xc4, true }, 2, 0 },
	{ { "vpextrb", 3, 1, 0, 0x14, true }, 1, STORE | NO_V },
	{ { "vpextrw", 3, 1, 0, 0x15, true }, 2, STORE | NO_V },
	{ { "vmovw load", 5, 1, 0, 0x6e, false }, 2, NO_V },
	{ { "vmovw store", 5, 1, 0, 0x7e, false }, 2, STORE | NO_V },
	{ { "vdpbf16ps", 2, 2, 0, 0x52, false }, 4, VECTORS },
	{ { "vfmulcsh", 6, 2, 0, 0xd7, false }, 4, 0 },
	{ { "vfcmulcsh", 6, 3, 0, 0xd7, false }, 4, 0 },
	{ { "vfmaddcsh", 6, 2, 0, 0x57, false }, 4, 0 },
	{ { "vfcmaddcsh", 6, 3, 0, 0x57, false }, 4, 0 },
	{ { "vfmulcph", 6, 2, 0, 0xd6, false }, 4, VECTORS },
	{ { "vfcmulcph", 6, 3, 0, 0xd6, false }, 4, VECTORS },
	{ { "vfmaddcph", 6, 2, 0, 0x56, false }, 4, VECTORS },
	{ { "vfcmaddcph", 6, 3, 0, 0x56, false }, 4, VECTORS },
};

static void one_displacement(const struct displacement *d, int p2, int counts)
{
	int reg = d->flags & STORE ? 1 : 0, v = d->flags & NO_V ? 0 : 1, disp8, sig, sig8;
	u8 want[VECTOR];

	do
		disp8 = (int8_t)rng();
	while (!disp8);
	random_input();
	sig = run(&d->insn, p2, v, reg, 2, 0, disp8 * counts, mem + MIDDLE, 0);
	memcpy(want, out, sizeof(want));
	memcpy(mem_want, mem, MEM_SIZE);
	memcpy(mem, mem_in, MEM_SIZE);
	memset(out, 0, sizeof(out));
	sig8 = run(&d->insn, p2, v, reg, 1, 0, disp8, mem + MIDDLE, 0);
	cases++;
	if (!sig && !sig8 && !memcmp(want, out, VECTOR) && !memcmp(mem, mem_want, MEM_SIZE))
		return;
	if (failed++ < MAX_REPORTS)
		ktap_note("%s, P2 %02x: displacement %d times %d differs, signals %d and %d", d->insn.name, p2,
			  disp8, counts, sig, sig8);
}

static void test_displacements(void)
{
	u32 i, t;
	int l;

	for (i = 0; i < ARRAY_SIZE(displacements); i++) {
		const struct displacement *d = &displacements[i];

		for (t = 0; t < TRIALS; t++) {
			if (!(d->flags & VECTORS)) {
				one_displacement(d, 0, d->counts);
				continue;
			}
			l = rng_below(3);
			one_displacement(d, LL(l), 16 << l);
			one_displacement(d, LL(l) | B, d->counts);
		}
	}
	report("compressed displacements");
}

/* ------------------------------------------------------------------------
 * 2. VPCOMPRESS and VPEXPAND
 */
static const struct insn compress[] = {
	{ "vpcompressb", 2, 1, 0, 0x63, false }, { "vpcompressw", 2, 1, 1, 0x63, false },
	{ "vpcompressd", 2, 1, 0, 0x8b, false }, { "vpcompressq", 2, 1, 1, 0x8b, false },
};
static const struct insn expand[] = {
	{ "vpexpandb", 2, 1, 0, 0x62, false }, { "vpexpandw", 2, 1, 1, 0x62, false },
	{ "vpexpandd", 2, 1, 0, 0x89, false }, { "vpexpandq", 2, 1, 1, 0x89, false },
};

static u64 random_mask(void)
{
	switch (rng_below(4)) {
	case 0: return ~0ull;
	case 1: return 0;
	case 2: return 1ull << rng_below(64);
	default: return rng();
	}
}

/* Elements of 1 << @size bytes, the mask of which ends with the vector. */
static void one_of(bool expands, int size, int l, bool is_mem, bool zero)
{
	const struct insn *i = expands ? &expand[size] : &compress[size];
	int bytes = 1 << size, n = (16 << l) / bytes, count, k, at, sig, p2 = LL(l) | K1;
	u64 mask = random_mask(), cut = n == 64 ? mask : mask & ((1ull << n) - 1);
	u8 want[VECTOR], *base;

	random_input();
	count = __builtin_popcountll(cut);
	base = mem + MEM_SIZE - count * bytes;
	memcpy(mem_want, mem_in, MEM_SIZE);
	memcpy(want, in.dst, sizeof(want));
	if (expands || !is_mem)
		memset(want + n * bytes, 0, VECTOR - n * bytes);
	if (zero) {
		p2 |= Z;
		memset(want, 0, n * bytes);
	}
	for (k = at = 0; k < n; k++) {
		const u8 *from = is_mem ? mem_in + MEM_SIZE - count * bytes : in.src;

		if (!(cut >> k & 1))
			continue;
		if (expands)
			memcpy(want + k * bytes, from + at * bytes, bytes);
		else
			memcpy((is_mem ? mem_want + MEM_SIZE - count * bytes : want) + at * bytes,
			       in.src + k * bytes, bytes);
		at++;
	}
	/* Its register is ZMM0 as a destination, ZMM1 as a source, and so is that of ModRM.rm. */
	sig = run(i, p2, 0, !expands, is_mem ? 0 : 3, expands, 0, base, mask);
	cases++;
	if (!sig && !memcmp(want, out, VECTOR) && !memcmp(mem, mem_want, MEM_SIZE))
		return;
	if (failed++ < MAX_REPORTS)
		ktap_note("%s, %d bits, %s, mask %llx: signal %d", i->name, 128 << l,
			  is_mem ? "memory" : zero ? "zeroed register" : "register",
			  (unsigned long long)mask, sig);
}

static void test_mask(bool expands, bool is_mem, const char *what)
{
	int size, l, t;

	for (size = 0; size < 4; size++)
		for (l = 0; l < 3; l++)
			for (t = 0; t < TRIALS; t++)
				one_of(expands, size, l, is_mem, (expands || !is_mem) && rng_below(2));
	report(what);
}

/* ------------------------------------------------------------------------
 * 3. No broadcast
 */
static void test_no_broadcast(void)
{
	static const struct insn insns[] = {
		{ "vpmovsxbq", 2, 1, 0, 0x22, false }, { "vpmovzxbq", 2, 1, 0, 0x32, false },
		{ "vpmovusqb", 2, 2, 0, 0x12, false }, { "vpmovsqb", 2, 2, 0, 0x22, false },
		{ "vpmovqb", 2, 2, 0, 0x32, false },
	};
	u32 i;
	int mod;

	random_input();
	for (i = 0; i < ARRAY_SIZE(insns); i++) {
		for (mod = 0; mod < 3; mod++) {
			cases += 2;
			failed += run(&insns[i], LL(2), 0, 0, mod, 0, 1, mem + MIDDLE, 0) != 0;
			failed += run(&insns[i], LL(2) | B, 0, 0, mod, 0, 1, mem + MIDDLE, 0) != SIGILL;
		}
	}
	report("EVEX.b is #UD where there is no broadcast");
}

/* ------------------------------------------------------------------------
 * 4. Conversions
 */
static void test_truncation(void)
{
	static const struct insn insns[] = {
		{ "vcvttph2dq", 5, 2, 0, 0x5b, false }, { "vcvttph2udq", 5, 0, 0, 0x78, false },
		{ "vcvttph2qq", 5, 1, 0, 0x7a, false }, { "vcvttph2uqq", 5, 1, 0, 0x78, false },
	};
	static const u16 halves[] = { 0x3d00, 0x3f00, 0x4180, 0x4380 };	/* 1.25 1.75 2.75 3.75 */
	static const s64 whole[] = { 1, 1, 2, 3 };
	u8 want[VECTOR];
	u32 i, t, k;

	for (i = 0; i < ARRAY_SIZE(insns); i++) {
		int bytes = i < 2 ? 4 : 8, n = VECTOR / bytes;
		bool has_sign = !(i & 1);

		for (t = 0; t < TRIALS; t++) {
			u64 mask = rng();
			bool masked = rng_below(2);
			int sig;

			random_input();
			memcpy(want, in.dst, VECTOR);
			for (k = 0; k < n; k++) {
				u32 which = rng_below(4);
				bool minus = has_sign && rng_below(2);
				s64 value = minus ? -whole[which] : whole[which];
				u16 half = halves[which] | minus << 15;

				memcpy(mem + k * 2, &half, 2);
				if (!masked || mask >> k & 1)
					memcpy(want + k * bytes, &value, bytes);
			}
			sig = run(&insns[i], LL(2) | (masked ? K1 : 0), 0, 0, 0, 0, 0, mem, mask);
			cases++;
			if (!sig && !memcmp(want, out, VECTOR))
				continue;
			if (failed++ < MAX_REPORTS)
				ktap_note("%s%s: signal %d", insns[i].name, masked ? " with a mask" : "", sig);
		}
	}
	report("VCVTTPH2 truncate");
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_signal };
	u64 seed = SEED;

	if (argc == 3 && !strcmp(argv[1], "-s"))
		seed = strtoull(argv[2], NULL, 0);
	/* BW, VL, VBMI2, FP16, BF16 */
	if (!cpu_bit(7, 0, 1, 30) || !cpu_bit(7, 0, 1, 31) || !cpu_bit(7, 0, 2, 6) || !cpu_bit(7, 0, 3, 23) ||
	    !cpu_bit(7, 1, 0, 5))
		return ktap_skip_all("the CPU lacks AVX512-VBMI2, FP16 or BF16");
	if (!cpu_has_osxsave() || (xgetbv(0) & 0xe6) != 0xe6)
		return ktap_skip_all("the OS did not enable AVX-512");
	code = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mem = mmap(NULL, MEM_SIZE + 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (code == MAP_FAILED || mem == MAP_FAILED || mprotect(mem + MEM_SIZE, 0x1000, PROT_NONE))
		return EXIT_FAIL;
	sigaction(SIGILL, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);

	ktap_plan(7);
	ktap_note("seed %llu", (unsigned long long)seed);
	rng_seed(seed);
	test_displacements();
	test_mask(false, true, "VPCOMPRESS to memory");
	test_mask(false, false, "VPCOMPRESS to registers");
	test_mask(true, true, "VPEXPAND from memory");
	test_mask(true, false, "VPEXPAND from registers");
	test_no_broadcast();
	test_truncation();
	return ktap_exit();
}
