// SPDX-License-Identifier: GPL-2.0
/*
 * The addresses of TILELOADD, TILELOADDT1 and TILESTORED: base, index times scale
 * as the distance between rows, displacement, with 67H 32 bits of all that.  Without
 * an index the distance is zero, and without a SIB byte they are #UD.  With VEX, and
 * where there is APX with EVEX and R16-R31.
 *
 * Usage: tile_insn [-s seed]
 * Exit status: 0 pass, 1 fail, 4 skipped: the CPU has no AMX, or the OS no use for it.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "apx_test.h"

#define TILECFG		17
#define TILEDATA	18
#define TILES		(1ull << TILECFG | 1ull << TILEDATA)

#ifndef ARCH_REQ_XCOMP_PERM
#define ARCH_REQ_XCOMP_PERM	0x1023
#endif

#define SEED		20261121
#define TRIALS		1000
#define NO_INDEX	4
#define ROWS		16
#define ROW		64
#define MEM_SIZE	0x8000
#define MIDDLE		(MEM_SIZE / 2)

enum insn { LOAD, LOADT1, STORE };

static const char * const names[] = {
	[LOAD] = "tileloadd", [LOADT1] = "tileloaddt1", [STORE] = "tilestored",
};
static const u8 pps[] = { [LOAD] = 3, [LOADT1] = 1, [STORE] = 2 };

/* 67H reaches it: a static program is in the lower 4 GiB. */
static u8 mem[MEM_SIZE];
static u8 want[MEM_SIZE], tile[ROWS * ROW], wanted[ROWS * ROW];
static u8 *code;
static bool apx;
static sigjmp_buf trap;
static volatile bool may_trap;

static void on_signal(int sig)
{
	if (may_trap)
		siglongjmp(trap, sig);
	signal(sig, SIG_DFL);
}

/* RSP is none: as an index, its number says that there is none. */
static int any_reg(int but)
{
	int r;

	do
		r = rng_below(apx ? 32 : 16);
	while (r == NO_INDEX || r == but);
	return r;
}

/* R16-R31 are nobody's. */
static u8 *put_push(u8 *p, int reg)
{
	if (reg >= 16)
		return p;
	if (reg >= 8)
		*p++ = 0x41;
	*p++ = 0x50 | (reg & 7);
	return p;
}

static u8 *put_pop(u8 *p, int reg)
{
	if (reg >= 16)
		return p;
	if (reg >= 8)
		*p++ = 0x41;
	*p++ = 0x58 | (reg & 7);
	return p;
}

static u8 *put_mov(u8 *p, int reg, u64 v)
{
	if (reg >= 16) {
		*p++ = 0xd5;
		*p++ = 0x18 | (reg >> 3 & 1);
	} else {
		*p++ = 0x48 | reg >> 3;
	}
	*p++ = 0xb8 | (reg & 7);
	memcpy(p, &v, 8);
	return p + 8;
}

/* What comes before ModRM. */
static u8 *put_opcode(u8 *p, enum insn insn, int base, int index, bool evex)
{
	if (evex) {
		*p++ = 0x62;
		*p++ = 0x90 | (~index & 8) << 3 | (~base & 8) << 2 | (base & 16) >> 1 | 2;
		*p++ = 0x78 | (~index & 16) >> 2 | pps[insn];
		*p++ = 0x08;
	} else {
		*p++ = 0xc4;
		*p++ = 0x80 | (~index & 8) << 3 | (~base & 8) << 2 | 2;
		*p++ = 0x78 | pps[insn];
	}
	*p++ = 0x4b;
	return p;
}

/* Tile @t; SIB with any base and any index but RSP, or with none, and disp32. */
static u8 *put_insn(u8 *p, enum insn insn, int t, int base, int index, int scale, int disp, bool as32)
{
	if (as32)
		*p++ = 0x67;
	p = put_opcode(p, insn, base, index, base >= 16 || index >= 16 || (apx && rng_below(4) == 0));
	*p++ = 0x80 | t << 3 | 4;
	*p++ = scale << 6 | (index & 7) << 3 | (base & 7);
	memcpy(p, &disp, 4);
	return p + 4;
}

/* Run what ends at @p with these registers. */
static void run_insn(enum insn insn, int t, int base, u64 base_value, int index, u64 index_value,
		     int scale, int disp, bool as32)
{
	u8 *p = put_push(code, base);

	if (index != NO_INDEX)
		p = put_push(p, index);
	p = put_mov(p, base, base_value);
	if (index != NO_INDEX)
		p = put_mov(p, index, index_value);
	p = put_insn(p, insn, t, base, index, scale, disp, as32);
	if (index != NO_INDEX)
		p = put_pop(p, index);
	p = put_pop(p, base);
	*p = 0xc3;
	((void (*)(void))code)();
}

static void configure(void)
{
	static u8 config[64] __attribute__((aligned(64)));
	int t;

	config[0] = 1;
	for (t = 0; t < 8; t++) {
		config[16 + 2 * t] = ROW;
		config[48 + t] = ROWS;
	}
	/* ldtilecfg (%rax) */
	asm volatile(".byte 0xc4, 0xe2, 0x78, 0x49, 0x00" : : "a"(config) : "memory");
}

static void random_bytes(u8 *p, u32 size)
{
	u64 v;
	u32 i;

	for (i = 0; i < size; i += 8) {
		v = rng();
		memcpy(p + i, &v, 8);
	}
}

static u32 failed;

static void one(enum insn insn, bool has_index, bool as32)
{
	int t = rng_below(8), base = any_reg(-1), index = NO_INDEX, scale = rng_below(4), r;
	int disp = (int)rng();
	s64 stride = 0;
	u64 high = as32 ? rng() << 32 : 0;

	if (has_index) {
		index = any_reg(base);
		stride = (s64)rng_below(0x100) - 0x80;
	}
	random_bytes(mem, sizeof(mem));
	random_bytes(tile, sizeof(tile));
	memcpy(want, mem, sizeof(want));
	memcpy(wanted, tile, sizeof(wanted));
	/* Whoever sets or reads the tile does it by a plain index, RCX. */
	run_insn(LOAD, t, 0, (u64)tile, 1, ROW, 0, 0, false);
	for (r = 0; r < ROWS; r++) {
		u8 *row = want + MIDDLE + r * (stride * (1 << scale));

		if (insn == STORE)
			memcpy(row, tile + r * ROW, ROW);
		else
			memcpy(wanted + r * ROW, row, ROW);
	}
	/* An address that is wrong may be none. */
	may_trap = true;
	if (sigsetjmp(trap, 1) == 0)
		run_insn(insn, t, base, ((u64)(mem + MIDDLE) - disp) ^ high, index, stride ^ high, scale, disp, as32);
	else
		configure();
	may_trap = false;
	memset(tile, 0, sizeof(tile));
	run_insn(STORE, t, 0, (u64)tile, 1, ROW, 0, 0, false);
	if (!memcmp(mem, want, sizeof(mem)) && !memcmp(tile, wanted, sizeof(tile)))
		return;
	if (failed++ < 5)
		ktap_note("%s%s: base %d, index %d times %d, stride %lld", as32 ? "67H, " : "", names[insn], base,
			  index, 1 << scale, (long long)stride);
}

static void test(enum insn insn, bool has_index, bool as32)
{
	int i;

	failed = 0;
	configure();
	for (i = 0; i < TRIALS; i++)
		one(insn, has_index, as32);
	ktap_result(!failed, "%s %s index%s: %u cases, %u failed", names[insn], has_index ? "with" : "without",
		    as32 ? ", 67H" : "", TRIALS, failed);
}

static bool is_ud(void)
{
	/* A signal's handler begins without, and siglongjmp() leaves it like that. */
	configure();
	may_trap = true;
	if (sigsetjmp(trap, 1) == 0) {
		((void (*)(void))code)();
		may_trap = false;
		return false;
	}
	may_trap = false;
	return true;
}

/* (%reg) and disp32(%reg) with ModRM only, and disp32(%rip). */
static void test_no_sib(enum insn insn)
{
	u32 ran = 0, cases = 0;
	int reg, mod, evex;
	u8 *p;

	for (evex = 0; evex <= apx; evex++) {
		for (mod = 0; mod < 3; mod += 2) {
			for (reg = 0; reg < 8; reg++) {
				if (reg == 4)
					continue;
				cases++;
				p = put_push(code, reg);
				p = put_mov(p, reg, (u64)(mem + MIDDLE));
				p = put_opcode(p, insn, reg, NO_INDEX, evex);
				*p++ = mod << 6 | reg;
				memset(p, 0, 4);
				if (mod == 2 || reg == 5)
					p += 4;
				p = put_pop(p, reg);
				*p = 0xc3;
				ran += !is_ud();
			}
		}
	}
	ktap_result(!ran, "%s without SIB byte is #UD: %u cases, %u ran", names[insn], cases, ran);
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_signal };
	u64 seed = SEED;
	int i;

	if (argc == 3 && !strcmp(argv[1], "-s"))
		seed = strtoull(argv[2], NULL, 0);
	if (!cpu_has_osxsave() || !cpu_bit(7, 0, 3, 24))
		return ktap_skip_all("the CPU has no AMX");
	if ((xgetbv(0) & TILES) != TILES || syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILEDATA))
		return ktap_skip_all("the OS does not let a process use AMX");
	code = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	sigaction(SIGILL, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);

	ktap_plan(12);
	apx = !apx_missing();
	ktap_note("seed %llu%s", (unsigned long long)seed, apx ? ", with APX" : "");
	rng_seed(seed);
	for (i = LOAD; i <= STORE; i++) {
		test(i, true, false);
		test(i, false, false);
		test(i, true, true);
		test_no_sib(i);
	}
	return ktap_exit();
}
