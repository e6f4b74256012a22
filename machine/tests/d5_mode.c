// SPDX-License-Identifier: GPL-2.0
/*
 * What D5H means depends on the mode, with and without APX:
 *   32-bit code          AAD, always
 *   64-bit, no APX       #UD
 *   64-bit, APX enabled  REX2
 * The same bytes in memory can be all of these; a CPU that caches decoded
 * instructions must not mix them up.
 *
 * Usage: d5_mode [-s seed]
 * Exit status: 0 pass, 1 fail.  Runs on every x86-64 CPU, is never skipped.
 */
#define _GNU_SOURCE
#include "rex2_run.h"

#define MAX_REPORTS 5

static u8 mem_in[MEM_SIZE];

static bool even_parity(u8 v)
{
	return !(__builtin_popcount(v) & 1);
}

/* ljmp $USER64_CS, $run_exit */
static void put_jump_from_32(u8 *at)
{
	u32 to = (u32)(u64)run_exit;
	u16 cs = USER64_CS;

	at[0] = 0xea;
	memcpy(at + 1, &to, 4);
	memcpy(at + 5, &cs, 2);
}

/* Registers of 32-bit code, plus those it cannot name. */
static bool same_regs_32(const struct cpu *a, const struct cpu *b)
{
	int i;

	for (i = 0; i < 8; i++)
		if ((u32)a->gpr[i] != (u32)b->gpr[i])
			return false;
	return !memcmp(&a->gpr[16], &b->gpr[16], 16 * 8);
}

static bool check_32(const char *what, const struct cpu *in, const struct cpu *want, u32 fl_mask,
		     const struct cpu *got, u32 *failed)
{
	if (want->trap == got->trap && same_regs_32(want, got) &&
	    !((want->rflags ^ got->rflags) & fl_mask))
		return true;
	if ((*failed)++ < MAX_REPORTS)
		print_diff(what, in, want, got);
	return false;
}

/* AAD imm8: AL := AL + AH * imm8, AH := 0.  OF, AF and CF are undefined. */
static void expect_aad(struct cpu *c, u8 imm)
{
	u8 al = c->gpr[0] + (c->gpr[0] >> 8 & 0xff) * imm;

	c->gpr[0] = (c->gpr[0] & ~0xffffull) | al;
	c->rflags &= ~0xc4ull;
	c->rflags |= (al & 0x80) | (al ? 0 : 0x40) | (even_parity(al) ? 4 : 0);
}

static void run_32(u64 start, u64 end, const struct cpu *in, struct cpu *got)
{
	run_block.cs = USER32_CS;
	put_jump_from_32((u8 *)end);
	run_at(start, end, in, false, got);
	run_block.cs = USER64_CS;
}

/* AAD with each immediate: among them all that would be REX2 payloads. */
static void test_aad(void)
{
	struct cpu in, want, got;
	u32 imm, t, failed = 0, cases = 0;
	u64 start;

	for (imm = 0; imm < 0x100; imm++) {
		for (t = 0; t < 4; t++) {
			random_state(&in, mem_in);
			start = t == 3 ? CODE_BASE + 0x3fff : CODE_BASE + 0x3000 + rng_below(0xf00);
			memcpy((u8 *)start, (u8[]){ 0xd5, imm }, 2);
			run_32(start, start + 2, &in, &got);
			want = in;
			want.trap = TRAP_NONE;
			want.err = want.cr2 = 0;
			want.rip = start + 2;
			expect_aad(&want, imm);
			check_32("aad", &in, &want, 0xc4, &got, &failed);
			cases++;
		}
	}
	ktap_result(!failed, "AAD in 32-bit code: %u cases, %u failed", cases, failed);
}

/* Behind a prefix, and longer bytes that would be one REX2 instruction. */
static void test_aad_sequences(void)
{
	/* all of these are AAD and something that changes no register */
	static const u8 seqs[][8] = {
		/* length, immediate, bytes */
		{ 4, 0x18, 0xd5, 0x18, 0x89, 0xc0 },		/* mov %eax,%eax */
		{ 4, 0x5c, 0xd5, 0x5c, 0x89, 0xff },		/* mov %edi,%edi */
		{ 3, 0x00, 0xd5, 0x00, 0x90 },			/* nop */
		{ 4, 0x48, 0xd5, 0x48, 0xeb, 0x00 },		/* jmp .+2 */
		{ 4, 0x0a, 0xd5, 0x0a, 0x70, 0x00 },		/* jo .+2 */
		{ 3, 0x19, 0x66, 0xd5, 0x19 },
		{ 3, 0x19, 0x67, 0xd5, 0x19 },
		{ 3, 0x19, 0xf3, 0xd5, 0x19 },
		{ 5, 0x80, 0xd5, 0x80, 0x0f, 0x1f, 0xc0 },	/* nop %eax */
		{ 5, 0x08, 0xd5, 0x08, 0x8d, 0x76, 0x00 },	/* lea 0(%esi),%esi */
	};
	struct cpu in, want, got;
	u32 i, failed = 0, cases = 0;
	u64 start = CODE_BASE + 0x2100;

	for (i = 0; i < ARRAY_SIZE(seqs); i++) {
		int len = seqs[i][0];

		memcpy((u8 *)start, seqs[i] + 2, len);
		random_state(&in, mem_in);
		run_32(start, start + len, &in, &got);
		want = in;
		want.trap = TRAP_NONE;
		want.err = want.cr2 = 0;
		want.rip = start + len;
		expect_aad(&want, seqs[i][1]);
		check_32("aad and more", &in, &want, 0xc4, &got, &failed);
		cases++;
	}
	ktap_result(!failed, "AAD with prefixes and successors: %u cases, %u failed", cases, failed);
}

/* Without APX: each payload with each opcode. */
static void test_ud(void)
{
	u8 insn[MAX_INSN] = { 0xd5 };
	struct cpu in, got;
	u32 p, op, failed = 0, cases = 0;
	u64 end = CODE_BASE + 0x2200;

	random_state(&in, mem_in);
	for (p = 0; p < 0x100; p++) {
		for (op = 0; op < 0x100; op++) {
			insn[1] = p;
			insn[2] = op;
			put_insn(end, insn, 11);
			run_at(end - 11, end, &in, false, &got);
			cases++;
			if (got.trap == TRAP_UD && got.rip == end - 11 && same_regs(&in, &got))
				continue;
			if (failed++ < MAX_REPORTS)
				ktap_note("%sshould be #UD, is exception %d", hex(insn, 4),
					  got.trap);
		}
	}
	ktap_result(!failed, "#UD in 64-bit code without APX: %u cases, %u failed", cases, failed);
}

/* d5 18 89 c0: 64-bit mov %rax,%r16 or #UD; 32-bit aad $0x18; mov %eax,%eax */
static bool check_64(u64 start, const struct cpu *in, u32 *failed)
{
	struct cpu want = *in, got;

	want.trap = TRAP_NONE;
	want.err = want.cr2 = 0;
	want.rip = start + 4;
	if (egpr_offset) {
		want.gpr[16] = in->gpr[0];
	} else {
		want.trap = TRAP_UD;
		want.rip = start;
	}
	put_jump((u8 *)start + 4, run_exit);
	run_at(start, start + 4, in, false, &got);
	if (same_regs(&want, &got) && want.trap == got.trap && want.rip == got.rip)
		return true;
	if ((*failed)++ < MAX_REPORTS)
		print_diff("64-bit", in, &want, &got);
	return false;
}

static void test_alternate(void)
{
	static const u8 bytes[4] = { 0xd5, 0x18, 0x89, 0xc0 };
	u64 start = CODE_BASE + 0x2300, start2 = CODE_BASE + 0x5ffe;
	struct cpu in, want, got;
	u32 i, failed = 0;
	u64 at;

	/* The way out differs: it is written anew each time, right behind. */
	memcpy((u8 *)start, bytes, 4);
	memcpy((u8 *)start2, bytes, 4);
	for (i = 0; i < 2000; i++) {
		at = i & 2 ? start2 : start;
		random_state(&in, mem_in);
		if (i % 3) {
			check_64(at, &in, &failed);
			continue;
		}
		run_32(at, at + 4, &in, &got);
		want = in;
		want.trap = TRAP_NONE;
		want.err = want.cr2 = 0;
		want.rip = at + 4;
		expect_aad(&want, 0x18);
		check_32("32-bit", &in, &want, 0xc4, &got, &failed);
	}
	ktap_result(!failed, "the same bytes in 32-bit and 64-bit mode in turn: %u runs, %u failed",
		    i, failed);
}

/*
 * The same with nothing written in between: the way out is a jump through
 * memory at a disp32, which is relative to RIP in 64-bit mode and absolute in
 * 32-bit mode.  The CS override is for the null DS of a 64-bit process.
 */
static void test_alternate_untouched(void)
{
	static const u8 bytes[] = { 0xd5, 0x18, 0x89, 0xc0, 0x2e, 0xff, 0x25 };
	u64 start = CODE_BASE + 0x2400, stub32 = CODE_BASE + 0x2500, exit64 = (u64)run_exit;
	u64 slot64 = MEM_BASE + 0x800;
	u32 i, failed = 0, slot32 = slot64 - (start + sizeof(bytes) + 4);
	void *page32 = (void *)(u64)(slot32 & ~0xfffu);
	struct cpu in, want, got;

	if (mmap(page32, 0x2000, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != page32) {
		ktap_result(false, "the same bytes, never written: no memory at %x", slot32);
		return;
	}
	memcpy((u8 *)start, bytes, sizeof(bytes));
	memcpy((u8 *)start + sizeof(bytes), &slot32, 4);
	put_jump_from_32((u8 *)stub32);
	memcpy((u8 *)(u64)slot32, &stub32, 4);
	memcpy((u8 *)slot64, &exit64, 8);

	for (i = 0; i < 4000; i++) {
		random_state(&in, mem_in);
		want = in;
		want.trap = TRAP_NONE;
		want.err = want.cr2 = 0;
		if (rng() >> 63) {
			run_at(start, 0, &in, false, &got);
			if (egpr_offset)
				want.gpr[16] = in.gpr[0];
			else
				want.trap = TRAP_UD;
			if ((!same_regs(&want, &got) || want.trap != got.trap) &&
			    failed++ < MAX_REPORTS)
				print_diff("64-bit", &in, &want, &got);
		} else {
			run_block.cs = USER32_CS;
			run_at(start, 0, &in, false, &got);
			run_block.cs = USER64_CS;
			expect_aad(&want, 0x18);
			check_32("32-bit", &in, &want, 0xc4, &got, &failed);
		}
	}
	ktap_result(!failed, "the same bytes in both modes, never written: %u runs, %u failed", i,
		    failed);
}

/* CPUID and XCR0 must tell the same story. */
static void test_enumeration(bool have_apx)
{
	u32 eax, ebx, ecx, edx, failed = 0;
	bool feature = cpu_bit(7, 1, 3, 21) &&
		       __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && eax >= 1;
	bool xcomp = cpu_bit(0xd, 0, 0, XFEATURE_APX);

	ktap_note("CPUID.7.1:EDX[21] %d, CPUID.0DH.0:EAX[19] %d, XCR0[19] %d", feature, xcomp,
		  cpu_has_osxsave() && xgetbv(0) & XBIT_APX);
	if (feature != xcomp || feature != have_apx)
		failed++;
	if (xcomp) {
		__cpuid_count(0xd, XFEATURE_APX, eax, ebx, ecx, edx);
		ktap_note("CPUID.0DH.19: size %u, offset %u, ECX %x, EDX %x", eax, ebx, ecx, edx);
		if (eax != 128 || ebx != 960 || ecx || edx)
			failed++;
		/* MPX lives at the same offset */
		if (cpu_bit(0xd, 0, 0, 3) || cpu_bit(0xd, 0, 0, 4) || cpu_bit(7, 0, 1, 14))
			failed++;
	} else if (__get_cpuid_count(0xd, XFEATURE_APX, &eax, &ebx, &ecx, &edx)) {
		if (eax || ebx || ecx || edx)
			failed++;
	}
	ktap_result(!failed, "CPUID and XCR0 agree on APX");
}

int main(int argc, char **argv)
{
	const char *missing = apx_missing();
	u64 seed = 20261121;

	if (argc == 3 && !strcmp(argv[1], "-s")) {
		seed = strtoull(argv[2], NULL, 0);
	} else if (argc != 1) {
		fprintf(stderr, "usage: d5_mode [-s seed]\n");
		return EXIT_FAIL;
	}
	ktap_plan(missing ? 6 : 5);
	ktap_note("seed %llu", (unsigned long long)seed);
	if (missing)
		ktap_note("%s", missing);
	rng_seed(seed);
	run_init(!missing);

	test_enumeration(!missing);
	test_aad();
	test_aad_sequences();
	if (missing)
		test_ud();
	test_alternate();
	test_alternate_untouched();
	return ktap_exit();
}
