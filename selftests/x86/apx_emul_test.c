// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test KVM's emulation of instructions that have a REX2 prefix, and of others
 * beside them.
 *
 * The CPU is the model: instructions are generated from a table of opcodes with
 * random operands, run natively, and again with KVM's forced emulation prefix or
 * with MMIO as the memory operand, from the same state.  The outcome, i.e. all
 * registers, RFLAGS, memory, stack and the exception, must be the same.
 *
 * The random instructions depend on a seed, use -s to get others, or to repeat
 * one that failed, and -n to choose their number.
 */
#include <stdlib.h>
#include <string.h>

#include "kvm_test_harness.h"
#include "test_util.h"
#include "kvm_util.h"
#include "processor.h"
#include "apx.h"

#ifndef __x86_64__
# error This test is 64-bit only
#endif

/* Any port that nobody listens to, and what is written to and read from it. */
#define PIO_PORT	0x2000
#define PIO_DATA	0x5a

#define MEM_SIZE	2048
#define STACK_SIZE	256
#define NR_TRIALS	24
#define MAX_REPORTS	12

#define FLAGS_MASK	(X86_EFLAGS_CF | X86_EFLAGS_PF | X86_EFLAGS_AF | X86_EFLAGS_ZF | \
			 X86_EFLAGS_SF | X86_EFLAGS_DF | X86_EFLAGS_OF)

struct state {
	u64 gpr[32];
	u64 rflags;
	u8 xmm[16][16] __aligned(16);
	u8 mem[MEM_SIZE];
	u8 stack[STACK_SIZE];
	u64 vector;		/* ~0: no exception */
	u64 error_code;
	u64 via_pad;
};

/* Accessed by the assembly code below. */
static struct {
	u64 gpr[32];
	u8 xmm[16][16];
	u64 rflags;
	u64 entry;
	u64 host_rsp;
	u64 via_pad;
	u64 no_egprs;		/* For legacy instructions without APX. */
} run __aligned(16) __used;

extern char run_insn[], run_exit[], run_exit_pad[];

#define __RUN_GPRS(op)								\
	op(rax, 0) op(rcx, 1) op(rdx, 2) op(rbx, 3) op(rbp, 5) op(rsi, 6)	\
	op(rdi, 7) op(r8, 8) op(r9, 9) op(r10, 10) op(r11, 11) op(r12, 12)	\
	op(r13, 13) op(r14, 14) op(r15, 15)
#define RUN_LOAD(reg, nr)	"mov run+8*" #nr "(%rip), %" #reg "\n\t"
#define RUN_STORE(reg, nr)	"mov %" #reg ", run+8*" #nr "(%rip)\n\t"
#define RUN_XMMS(insn)								\
	".irp nr, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n\t"	\
	insn "\n\t.endr\n\t"

asm(".pushsection .text\n"
	"run_insn:\n\t"
	"push %rbx\n\tpush %rbp\n\tpush %r12\n\tpush %r13\n\tpush %r14\n\tpush %r15\n\t"
	"mov %rsp, run+528(%rip)\n\t"
	"cmpl $0, run+544(%rip)\n\t"
	"jne 1f\n\t"
	"lea run+128(%rip), %rax\n\t"
	__MOV_EGPRS(0x8b)
	"1:\n\t"
	RUN_XMMS("movdqu run+256+16*\\nr(%rip), %xmm\\nr")
	"pushq run+512(%rip)\n\t"
	"popfq\n\t"
	__RUN_GPRS(RUN_LOAD)
	"mov run+8*4(%rip), %rsp\n\t"
	"jmp *run+520(%rip)\n"
	"run_exit_pad:\n\t"
	"movl $1, run+536(%rip)\n"
	"run_exit:\n\t"
	__RUN_GPRS(RUN_STORE)
	"mov %rsp, run+8*4(%rip)\n\t"
	"mov run+528(%rip), %rsp\n\t"
	"pushfq\n\t"
	"popq run+512(%rip)\n\t"
	"cld\n\t"
	"cmpl $0, run+544(%rip)\n\t"
	"jne 1f\n\t"
	"lea run+128(%rip), %rax\n\t"
	__MOV_EGPRS(0x89)
	"1:\n\t"
	RUN_XMMS("movdqu %xmm\\nr, run+256+16*\\nr(%rip)")
	"pop %r15\n\tpop %r14\n\tpop %r13\n\tpop %r12\n\tpop %rbp\n\tpop %rbx\n\t"
	"ret\n"
	".popsection");

static_assert(offsetof(typeof(run), rflags) == 512, "layout is known to assembly code");
static_assert(offsetof(typeof(run), via_pad) == 536, "layout is known to assembly code");
static_assert(offsetof(typeof(run), no_egprs) == 544, "layout is known to assembly code");

static u8 code[64] __aligned(64);
static u8 mem[MEM_SIZE] __aligned(4096);
static u8 mmio[MEM_SIZE] __aligned(4096);	/* What userspace backs MMIO with. */
static u8 stack[8192] __aligned(4096);		/* Exception handlers need some, too. */
#define STACK_AREA	(stack + sizeof(stack) - STACK_SIZE)
#define STACK_TOP	((u64)STACK_AREA + STACK_SIZE / 2)
#define INSN		((u64)code + 8)

static u64 ex_vector, ex_error_code, ex_rip;
static struct state in, native, other;
static u64 nr_run, nr_mmio, nr_legacy, nr_faults, nr_failed;

static void guest_exception_handler(struct ex_regs *regs)
{
	ex_vector = regs->vector;
	ex_error_code = regs->error_code;
	ex_rip = regs->rip;
	regs->rip = (u64)run_exit;
}

/* The host's choice for random instructions, while tables use fixed values. */
static u32 seed;
static u32 nr_random = 2000;
static bool is_random;

static u64 rng_state = 0x9e3779b97f4a7c15ull;

static void rng_seed(u32 val)
{
	rng_state = (val + 1ull) * 0x9e3779b97f4a7c15ull;
}

static u64 rng(void)
{
	rng_state ^= rng_state << 13;
	rng_state ^= rng_state >> 7;
	rng_state ^= rng_state << 17;
	return rng_state * 0x2545f4914f6cdd1dull;
}

static u64 rng_below(u64 n)
{
	return (rng() >> 16) % n;
}

/* Values of all magnitudes, and zero every now and then. */
static u64 rng_value(void)
{
	u64 val = rng();

	switch (rng_below(8)) {
	case 0: return 0;
	case 1: return val & 0xff;
	case 2: return (s64)(s32)val;
	case 3: return -(val & 0xff);
	default: return val;
	}
}

/* Guests' memcpy() goes byte by byte. */
static void copy(void *dst, const void *src, size_t len)
{
	asm volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(len) : : "memory");
}

/* @len is a multiple of eight. */
static void rng_fill(void *buf, size_t len)
{
	u64 *p = buf;

	for (; len; len -= sizeof(*p))
		*p++ = rng();
}

static bool is_same(const void *a, const void *b, size_t len)
{
	const u64 *p = a, *q = b;

	for (; len; len -= sizeof(*p)) {
		if (*p++ != *q++)
			return false;
	}
	return true;
}

struct insn {
	u8 bytes[24];
	int len;
	int base;		/* Base register of a memory operand, or -1. */
};

static void emit(struct insn *insn, u64 val, int size)
{
	GUEST_ASSERT(insn->len + size <= sizeof(insn->bytes));
	while (size--) {
		insn->bytes[insn->len++] = val;
		val >>= 8;
	}
}

/* Where a relative branch lands, behind the jump that follows it. */
#define JUMP_SIZE	14

static u8 *put_jump(u8 *p, const char *target)
{
	memcpy(p, "\xff\x25\x00\x00\x00\x00", 6);
	*(u64 *)(p + 6) = (u64)target;
	return p + JUMP_SIZE;
}

static void run_state(const struct state *in, struct state *out,
		      const struct insn *insn, bool fep, u8 *data)
{
	static const u8 fep_bytes[5] = { 0x0f, 0x0b, 'k', 'v', 'm' };
	u8 *p = (u8 *)INSN;

	/* The instruction is at the same address with and without the prefix. */
	memcpy(p - 5, fep_bytes, 5);
	memcpy(p, insn->bytes, insn->len);
	p += insn->len;
	p = put_jump(p, run_exit);
	put_jump(p, run_exit_pad);

	copy(run.gpr, in->gpr, sizeof(run.gpr));
	copy(run.xmm, in->xmm, sizeof(run.xmm));
	copy(data, in->mem, MEM_SIZE);
	copy(STACK_AREA, in->stack, STACK_SIZE);
	run.rflags = in->rflags;
	run.entry = fep ? INSN - 5 : INSN;
	run.via_pad = 0;
	ex_vector = ~0ull;
	ex_error_code = 0;
	ex_rip = INSN;

	asm volatile("call run_insn"
		     : : : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10",
			   "r11", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4",
			   "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
			   "xmm11", "xmm12", "xmm13", "xmm14", "xmm15",
			   "memory", "cc");

	copy(out->gpr, run.gpr, sizeof(run.gpr));
	copy(out->xmm, run.xmm, sizeof(run.xmm));
	copy(out->mem, data, MEM_SIZE);
	copy(out->stack, STACK_AREA, STACK_SIZE);
	out->rflags = run.rflags & (FLAGS_MASK | X86_EFLAGS_IF);
	out->via_pad = run.via_pad;
	out->vector = ex_vector;
	out->error_code = ex_error_code;
	/* Exceptions are pushed on the very same stack. */
	if (ex_vector != ~0ull)
		memset(out->stack, 0, STACK_SIZE);
	__GUEST_ASSERT(ex_rip == INSN,
		       "Exception %lu at 0x%lx, instruction is at 0x%lx",
		       ex_vector, ex_rip, INSN);
}

static bool report(const struct insn *insn, const char *what, const char *how,
		   u64 want, u64 got)
{
	u64 lo, hi;

	if (nr_failed++ < MAX_REPORTS) {
		memcpy(&lo, insn->bytes, 8);
		memcpy(&hi, insn->bytes + 8, 8);
		GUEST_PRINTF("# %s, bytes (%d) %016lx %016lx: %s: wanted 0x%lx, got 0x%lx\n",
			     how, insn->len, __builtin_bswap64(lo),
			     __builtin_bswap64(hi), what, want, got);
		if (is_random)
			GUEST_PRINTF("# To repeat it: -s 0x%x -n 1\n", seed);
	}
	return false;
}

/* @skip is the register that legitimately differs, or -1. */
static bool compare(const struct insn *insn, const char *how,
		    const struct state *a, const struct state *b, int skip)
{
	static const char * const names[] = {
		"RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI",
		"R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15",
		"R16", "R17", "R18", "R19", "R20", "R21", "R22", "R23",
		"R24", "R25", "R26", "R27", "R28", "R29", "R30", "R31",
	};
	int i, j;

	if (a->vector != b->vector)
		return report(insn, "vector", how, a->vector, b->vector);
	if (a->error_code != b->error_code)
		return report(insn, "error code", how, a->error_code, b->error_code);
	for (i = 0; i < 32; i++) {
		if (i != skip && a->gpr[i] != b->gpr[i])
			return report(insn, names[i], how, a->gpr[i], b->gpr[i]);
	}
	if (a->rflags != b->rflags)
		return report(insn, "flags", how, a->rflags, b->rflags);
	if (a->via_pad != b->via_pad)
		return report(insn, "branch taken", how, a->via_pad, b->via_pad);
	if (is_same(a->xmm, b->xmm, sizeof(a->xmm)) &&
	    is_same(a->mem, b->mem, MEM_SIZE) && is_same(a->stack, b->stack, STACK_SIZE))
		return true;

	for (i = 0; i < 16; i++) {
		for (j = 0; j < 16; j++) {
			if (a->xmm[i][j] != b->xmm[i][j])
				return report(insn, "a byte of XMM", how,
					      a->xmm[i][j], b->xmm[i][j]);
		}
	}
	for (i = 0; i < MEM_SIZE; i++) {
		if (a->mem[i] != b->mem[i])
			return report(insn, "memory", how, a->mem[i], b->mem[i]);
	}
	for (i = 0; i < STACK_SIZE; i++) {
		if (a->stack[i] != b->stack[i])
			return report(insn, "stack", how, a->stack[i], b->stack[i]);
	}
	return true;
}

static void random_state(void)
{
	int i;

	for (i = 0; i < 32; i++)
		in.gpr[i] = rng_value();
	in.gpr[4] = STACK_TOP;
	in.rflags = X86_EFLAGS_FIXED | (rng() & (FLAGS_MASK & ~X86_EFLAGS_DF));
	rng_fill(in.xmm, sizeof(in.xmm));
	rng_fill(in.mem, MEM_SIZE);
	rng_fill(in.stack, STACK_SIZE);
}

static void run_and_compare(const struct insn *insn)
{
	run_state(&in, &native, insn, false, mem);
	run_state(&in, &other, insn, true, mem);
	compare(insn, "forced emulation", &native, &other, -1);
	nr_run++;
	if (native.vector != ~0ull)
		nr_faults++;
}

static void run_mmio(const struct insn *insn)
{
	u64 base = in.gpr[insn->base];

	run_state(&in, &native, insn, false, mem);
	if (native.vector != ~0ull)
		return;

	in.gpr[insn->base] = base - (u64)mem + MMIO_GVA;
	run_state(&in, &other, insn, false, mmio);
	if (compare(insn, "MMIO", &native, &other, insn->base) &&
	    other.gpr[insn->base] != in.gpr[insn->base])
		report(insn, "base", "MMIO", in.gpr[insn->base], other.gpr[insn->base]);
	in.gpr[insn->base] = base;
	nr_mmio++;
}

/* Operands of an opcode. */
#define OP_R		BIT(0)		/* ModRM, register form */
#define OP_M		BIT(1)		/* ModRM, memory form */
#define OP_RM		(OP_R | OP_M)
#define OP_O		BIT(2)		/* register in the opcode */
#define OP_N		BIT(3)		/* none, or implicit */
#define OP_I8		BIT(4)		/* immediates */
#define OP_IZ		BIT(5)
#define OP_IV		BIT(6)
#define OP_LK		BIT(7)		/* LOCK is fine with memory forms */
#define OP_BITS		BIT(8)		/* ModRM.reg is a bit offset */
#define OP_P66		BIT(9)		/* mandatory prefix: none or 66 */
#define OP_P66F3	BIT(10)		/* mandatory prefix: 66 or F3 */
#define OP_ONLY66	BIT(11)		/* mandatory prefix: 66 */
#define OP_NO66		BIT(12)		/* no 66 */
#define OP_NOMMIO	BIT(13)		/* not with MMIO */
#define OP_SREG		BIT(14)		/* ModRM.reg is a segment register */
#define OP_IMPL		BIT(16)		/* implicit RAX and RDX */
#define OP_NOREX2	BIT(17)		/* not with REX2 */
#define OP_J8		BIT(18)		/* relative branches */
#define OP_J32		BIT(19)
#define OP_STRING	BIT(20)		/* RSI and RDI are addresses */
#define OP_MOFFS	BIT(21)		/* address in the instruction */

struct op {
	u8 map, first, last;
	s8 digit_first, digit_last;	/* -1: ModRM.reg is a register */
	u32 f;
};

static const struct op ops[] = {
	{ 0, 0x00, 0x01, -1, -1, OP_RM | OP_LK }, { 0, 0x02, 0x03, -1, -1, OP_RM },
	{ 0, 0x08, 0x09, -1, -1, OP_RM | OP_LK }, { 0, 0x0a, 0x0b, -1, -1, OP_RM },
	{ 0, 0x10, 0x11, -1, -1, OP_RM | OP_LK }, { 0, 0x12, 0x13, -1, -1, OP_RM },
	{ 0, 0x18, 0x19, -1, -1, OP_RM | OP_LK }, { 0, 0x1a, 0x1b, -1, -1, OP_RM },
	{ 0, 0x20, 0x21, -1, -1, OP_RM | OP_LK }, { 0, 0x22, 0x23, -1, -1, OP_RM },
	{ 0, 0x28, 0x29, -1, -1, OP_RM | OP_LK }, { 0, 0x2a, 0x2b, -1, -1, OP_RM },
	{ 0, 0x30, 0x31, -1, -1, OP_RM | OP_LK }, { 0, 0x32, 0x33, -1, -1, OP_RM },
	{ 0, 0x38, 0x3b, -1, -1, OP_RM },
	{ 0, 0x04, 0x04, -1, -1, OP_N | OP_I8 }, { 0, 0x05, 0x05, -1, -1, OP_N | OP_IZ },
	{ 0, 0x0c, 0x0c, -1, -1, OP_N | OP_I8 }, { 0, 0x0d, 0x0d, -1, -1, OP_N | OP_IZ },
	{ 0, 0x14, 0x14, -1, -1, OP_N | OP_I8 }, { 0, 0x15, 0x15, -1, -1, OP_N | OP_IZ },
	{ 0, 0x1c, 0x1c, -1, -1, OP_N | OP_I8 }, { 0, 0x1d, 0x1d, -1, -1, OP_N | OP_IZ },
	{ 0, 0x24, 0x24, -1, -1, OP_N | OP_I8 }, { 0, 0x25, 0x25, -1, -1, OP_N | OP_IZ },
	{ 0, 0x2c, 0x2c, -1, -1, OP_N | OP_I8 }, { 0, 0x2d, 0x2d, -1, -1, OP_N | OP_IZ },
	{ 0, 0x34, 0x34, -1, -1, OP_N | OP_I8 }, { 0, 0x35, 0x35, -1, -1, OP_N | OP_IZ },
	{ 0, 0x3c, 0x3c, -1, -1, OP_N | OP_I8 }, { 0, 0x3d, 0x3d, -1, -1, OP_N | OP_IZ },
	{ 0, 0x50, 0x5f, -1, -1, OP_O },
	{ 0, 0x63, 0x63, -1, -1, OP_RM | OP_NO66 },
	{ 0, 0x68, 0x68, -1, -1, OP_N | OP_IZ }, { 0, 0x6a, 0x6a, -1, -1, OP_N | OP_I8 },
	{ 0, 0x69, 0x69, -1, -1, OP_RM | OP_IZ }, { 0, 0x6b, 0x6b, -1, -1, OP_RM | OP_I8 },
	{ 0, 0x80, 0x80, 0, 6, OP_RM | OP_I8 | OP_LK }, { 0, 0x80, 0x80, 7, 7, OP_RM | OP_I8 },
	{ 0, 0x81, 0x81, 0, 6, OP_RM | OP_IZ | OP_LK }, { 0, 0x81, 0x81, 7, 7, OP_RM | OP_IZ },
	{ 0, 0x83, 0x83, 0, 6, OP_RM | OP_I8 | OP_LK }, { 0, 0x83, 0x83, 7, 7, OP_RM | OP_I8 },
	{ 0, 0x84, 0x85, -1, -1, OP_RM }, { 0, 0x86, 0x87, -1, -1, OP_RM | OP_LK },
	{ 0, 0x88, 0x8b, -1, -1, OP_RM },
	{ 0, 0x8c, 0x8c, -1, -1, OP_RM | OP_SREG | OP_NOMMIO },
	{ 0, 0x8d, 0x8d, -1, -1, OP_M | OP_NOMMIO },
	{ 0, 0x8f, 0x8f, 0, 0, OP_RM | OP_NOMMIO },
	{ 0, 0x90, 0x97, -1, -1, OP_O },
	{ 0, 0x98, 0x99, -1, -1, OP_N }, { 0, 0x9e, 0x9f, -1, -1, OP_N },
	{ 0, 0xb0, 0xb7, -1, -1, OP_O | OP_I8 }, { 0, 0xb8, 0xbf, -1, -1, OP_O | OP_IV },
	{ 0, 0xc0, 0xc1, 0, 7, OP_RM | OP_I8 }, { 0, 0xd0, 0xd3, 0, 7, OP_RM },
	{ 0, 0xc6, 0xc6, 0, 0, OP_RM | OP_I8 }, { 0, 0xc7, 0xc7, 0, 0, OP_RM | OP_IZ },
	{ 0, 0xf5, 0xf5, -1, -1, OP_N }, { 0, 0xf8, 0xf9, -1, -1, OP_N },
	{ 0, 0xfc, 0xfd, -1, -1, OP_N },
	{ 0, 0xf6, 0xf6, 0, 1, OP_RM | OP_I8 }, { 0, 0xf7, 0xf7, 0, 1, OP_RM | OP_IZ },
	{ 0, 0xf6, 0xf7, 2, 3, OP_RM | OP_LK }, { 0, 0xf6, 0xf7, 4, 7, OP_RM | OP_IMPL },
	{ 0, 0xfe, 0xff, 0, 1, OP_RM | OP_LK }, { 0, 0xff, 0xff, 6, 6, OP_RM | OP_NOMMIO },
	{ 1, 0x10, 0x11, -1, -1, OP_M | OP_P66 }, { 1, 0x28, 0x29, -1, -1, OP_M | OP_P66 },
	{ 1, 0x6f, 0x6f, -1, -1, OP_RM | OP_P66F3 }, { 1, 0x7f, 0x7f, -1, -1, OP_RM | OP_P66F3 },
	{ 1, 0xe7, 0xe7, -1, -1, OP_M | OP_ONLY66 }, { 1, 0x2b, 0x2b, -1, -1, OP_M | OP_P66 },
	{ 1, 0x0d, 0x0d, 0, 7, OP_M | OP_NOMMIO }, { 1, 0x18, 0x18, 0, 7, OP_M | OP_NOMMIO },
	{ 1, 0x1f, 0x1f, 0, 0, OP_RM | OP_NOMMIO },
	{ 1, 0x40, 0x4f, -1, -1, OP_RM }, { 1, 0x90, 0x9f, 0, 0, OP_RM },
	{ 1, 0xa3, 0xa3, -1, -1, OP_RM | OP_BITS },
	{ 1, 0xab, 0xab, -1, -1, OP_RM | OP_BITS | OP_LK },
	{ 1, 0xb3, 0xb3, -1, -1, OP_RM | OP_BITS | OP_LK },
	{ 1, 0xbb, 0xbb, -1, -1, OP_RM | OP_BITS | OP_LK },
	{ 1, 0xa4, 0xa4, -1, -1, OP_RM | OP_I8 }, { 1, 0xa5, 0xa5, -1, -1, OP_RM },
	{ 1, 0xac, 0xac, -1, -1, OP_RM | OP_I8 }, { 1, 0xad, 0xad, -1, -1, OP_RM },
	{ 1, 0xaf, 0xaf, -1, -1, OP_RM }, { 1, 0xb0, 0xb1, -1, -1, OP_RM | OP_LK | OP_IMPL },
	{ 1, 0xb6, 0xb7, -1, -1, OP_RM }, { 1, 0xbe, 0xbf, -1, -1, OP_RM },
	{ 1, 0xba, 0xba, 4, 7, OP_RM | OP_I8 }, { 1, 0xbc, 0xbd, -1, -1, OP_RM },
	{ 1, 0xc0, 0xc1, -1, -1, OP_RM | OP_LK }, { 1, 0xc3, 0xc3, -1, -1, OP_M | OP_NO66 },
	{ 1, 0xc7, 0xc7, 1, 1, OP_M | OP_LK | OP_NO66 | OP_NOMMIO },
	{ 1, 0xc8, 0xcf, -1, -1, OP_O | OP_NO66 },
	/* What REX2 doesn't go with. */
	{ 0, 0x70, 0x7f, -1, -1, OP_N | OP_J8 | OP_NO66 | OP_NOREX2 },
	{ 0, 0xa0, 0xa3, -1, -1, OP_N | OP_MOFFS | OP_NOREX2 },
	{ 0, 0xa4, 0xa7, -1, -1, OP_N | OP_STRING | OP_NOREX2 },
	{ 0, 0xa8, 0xa8, -1, -1, OP_N | OP_I8 | OP_NOREX2 },
	{ 0, 0xa9, 0xa9, -1, -1, OP_N | OP_IZ | OP_NOREX2 },
	{ 0, 0xaa, 0xaf, -1, -1, OP_N | OP_STRING | OP_NOREX2 },
	{ 0, 0xe0, 0xe3, -1, -1, OP_N | OP_J8 | OP_NO66 | OP_NOREX2 },
	{ 0, 0xe8, 0xe9, -1, -1, OP_N | OP_J32 | OP_NO66 | OP_NOREX2 },
	{ 0, 0xeb, 0xeb, -1, -1, OP_N | OP_J8 | OP_NO66 | OP_NOREX2 },
	{ 1, 0x80, 0x8f, -1, -1, OP_N | OP_J32 | OP_NO66 | OP_NOREX2 },
};

enum form {
	REX2,
	REX,
	NO_REX,
};

static int reg_id(u8 payload, int shift, int low)
{
	return low | ((payload >> shift) & 1) << 3 | ((payload >> (shift + 4)) & 1) << 4;
}

/* Without a REX prefix, AH, CH, DH and BH are what bytes in registers 4-7 are. */
static bool is_byte_op(u8 map, u8 opcode, bool is_rm)
{
	if (map)
		return opcode == 0xb0 || opcode == 0xc0 ||
		       (is_rm && (opcode >> 4 == 9 || opcode == 0xb6 || opcode == 0xbe));
	if (opcode < 0x40 || opcode >> 4 == 0xd)
		return !(opcode & 1);

	switch (opcode) {
	case 0x80: case 0x84: case 0x86: case 0x88: case 0x8a:
	case 0xb0 ... 0xb7:
	case 0xc0: case 0xc6: case 0xf6: case 0xfe:
		return true;
	default:
		return false;
	}
}

/* Returns false if the random choices are of no use. */
static bool generate(struct insn *insn, const struct op *op, u8 opcode, int digit,
		     bool is_mem, enum form form)
{
	u8 payload = (rng() & 0x7f) | (op->map << 7);
	int reg = -1, rm = -1, index = -1, prefix = 0, disp_size = 0, mod, scale = 0;
	bool is_sse = op->f & (OP_P66 | OP_P66F3 | OP_ONLY66);
	bool rip_relative = false, no_base = false, addr32 = false;
	bool has_ah = form == NO_REX && is_byte_op(op->map, opcode, false);
	bool rm_has_ah = form == NO_REX && is_byte_op(op->map, opcode, true);
	bool lock, is_locked;
	u8 modrm = 0, sib = 0;
	s64 disp = 0;
	u64 addr;

	memset(insn, 0, sizeof(*insn));
	insn->base = -1;
	random_state();

	if (form == REX)
		payload &= 0x8f;
	else if (form == NO_REX)
		payload &= 0x80;

	if (op->f & OP_P66)
		prefix = rng_below(2) ? 0x66 : 0;
	else if (op->f & OP_P66F3)
		prefix = rng_below(2) ? 0x66 : 0xf3;
	else if (op->f & OP_ONLY66)
		prefix = 0x66;
	else if (!(op->f & OP_NO66))
		prefix = rng_below(4) ? 0 : 0x66;

	/* A locked access that crosses a cache line may be fatal on real hosts. */
	lock = is_mem && (op->f & OP_LK) && rng_below(4) == 0;
	is_locked = lock || (op->map == 0 && (opcode == 0x86 || opcode == 0x87));

	/* CMPXCHG16B isn't emulated. */
	if (op->map == 1 && opcode == 0xc7)
		payload &= ~8;

	/*
	 * Emulator and CPU disagree about bits 63:32 of a 32-bit destination of
	 * CMPXCHG if the comparison fails, with REX2 or without.
	 */
	if (op->map == 1 && opcode == 0xb1 && !is_mem && !(payload & 8) && prefix != 0x66)
		return false;

	if ((op->f & OP_O) && reg_id(payload, 0, opcode & 7) == 4 && !rm_has_ah)
		return false;
	if (op->f & OP_STRING) {
		in.gpr[6] = (u64)mem + 512 + rng_below(512);
		in.gpr[7] = (u64)mem + 512 + rng_below(512);
		if (!prefix && rng_below(2)) {
			prefix = rng_below(2) ? 0xf2 : 0xf3;
			in.gpr[1] = rng_below(16);
		}
	}
	if ((op->f & OP_J8) && rng_below(2))
		in.gpr[1] = rng_below(3);

	if (op->f & OP_RM) {
		reg = digit < 0 ? reg_id(payload, 2, rng_below(8)) : digit;
		modrm = (reg & 7) << 3;
		if (digit >= 0 || (op->f & OP_SREG) || is_sse)
			reg = -1;
		else if (reg == 4 && !has_ah)
			return false;
	}

	if ((op->f & OP_RM) && !is_mem) {
		rm = reg_id(payload, 0, rng_below(8));
		if (rm == 4 && !rm_has_ah)
			return false;
		modrm |= 0xc0 | (rm & 7);
	} else if (op->f & OP_RM) {
		addr = (u64)mem + 512 + rng_below(256) * (is_sse && rng_below(4) ? 16 : 1) % 512;
		if (is_locked)
			addr &= ~7ull;
		mod = rng_below(3);
		modrm |= mod << 6;
		rm = reg_id(payload, 0, rng_below(8));
		modrm |= rm & 7;
		if ((rm & 7) == 4) {
			index = reg_id(payload, 1, rng_below(8));
			rm = reg_id(payload, 0, rng_below(8));
			scale = rng_below(4);
			sib = scale << 6 | (index & 7) << 3 | (rm & 7);
			if (index == 4)
				index = -1;
			no_base = mod == 0 && (rm & 7) == 5;
		} else {
			rip_relative = mod == 0 && (rm & 7) == 5;
		}
		if (no_base || rip_relative)
			rm = -1;
		/* A part of another register, of which an address is the whole. */
		if (has_ah && reg >= 4)
			reg &= 3;
		if (rm == 4 || (reg >= 0 && (reg == rm || reg == index)) ||
		    (index >= 0 && index == rm))
			return false;
		if (index >= 0)
			in.gpr[index] = rng_below(32) & (is_locked ? ~7ull : ~0ull);
		if (reg >= 0 && (op->f & OP_BITS))
			in.gpr[reg] = (s64)rng_below(512) - 256;
		disp_size = no_base || rip_relative || mod == 2 ? 4 : mod == 1 ? 1 : 0;
		disp = disp_size == 1 ? (s8)rng() : disp_size ? (s64)rng_below(512) - 256 : 0;
		if (rm >= 0) {
			in.gpr[rm] = addr - disp;
			/* MMIO needs the base to be that and nothing else. */
			if (!(op->f & OP_IMPL) || (rm != 0 && rm != 2))
				insn->base = rm;
		} else {
			disp = addr;
		}
		addr32 = !rip_relative && rng_below(8) == 0;
	}

	if (lock)
		emit(insn, 0xf0, 1);
	if (addr32) {
		emit(insn, 0x67, 1);
		/* Bits 63:32 don't matter. */
		if (rm >= 0 && rng_below(2))
			in.gpr[rm] |= 0xdead00000000ull;
		if (rm >= 0 && rng_below(2))
			insn->base = -1;
	}
	if (prefix)
		emit(insn, prefix, 1);
	if (form == REX2) {
		emit(insn, 0xd5, 1);
		emit(insn, payload, 1);
	} else {
		if (form == REX)
			emit(insn, 0x40 | (payload & 0xf), 1);
		if (op->map)
			emit(insn, 0x0f, 1);
	}
	emit(insn, opcode, 1);
	if (op->f & OP_RM)
		emit(insn, modrm, 1);
	if ((op->f & OP_RM) && is_mem && (modrm & 7) == 4)
		emit(insn, sib, 1);
	if (disp_size) {
		if (rip_relative) {
			int imm = (op->f & OP_I8) ? 1 : !(op->f & OP_IZ) ? 0 :
				  prefix == 0x66 && !(payload & 8) ? 2 : 4;

			disp -= INSN + insn->len + 4 + imm;
		}
		emit(insn, disp, disp_size);
	}
	if (op->f & OP_I8)
		emit(insn, rng(), 1);
	if (op->f & OP_IZ)
		emit(insn, rng(), prefix == 0x66 && !(payload & 8) ? 2 : 4);
	if (op->f & OP_IV)
		emit(insn, rng(), payload & 8 ? 8 : prefix == 0x66 ? 2 : 4);
	if (op->f & OP_J8)
		emit(insn, JUMP_SIZE, 1);
	if (op->f & OP_J32)
		emit(insn, JUMP_SIZE, 4);
	if (op->f & OP_MOFFS)
		emit(insn, (u64)mem + 512 + rng_below(512), 8);
	return insn->len <= 15;
}

/* One in four is a legacy instruction, with REX or without. */
static enum form random_form(const struct op *op)
{
	if (!(op->f & OP_NOREX2) && rng_below(4))
		return REX2;
	return rng_below(2) ? REX : NO_REX;
}

/* Run one instruction, false if there's none of that kind. */
static bool run_one(const struct op *op, int opcode, int digit, bool is_mem, bool is_mmio)
{
	u64 nr = nr_run + nr_mmio;
	enum form form = REX2;
	struct insn insn;
	int tries = 0;

	if (!(op->f & (is_mem ? OP_M : OP_R | OP_O | OP_N)))
		return false;
	if (is_mmio && (!is_mem || (op->f & OP_NOMMIO)))
		return false;

	do {
		GUEST_ASSERT(tries++ < 1000);
		if (is_random)
			form = random_form(op);
	} while (!generate(&insn, op, opcode, digit, is_mem, form) ||
		 (is_mmio && insn.base < 0));

	if (is_mmio)
		run_mmio(&insn);
	else
		run_and_compare(&insn);
	if (form != REX2)
		nr_legacy += nr_run + nr_mmio - nr;

	/* Both may raise #UD for the same reason, but no opcode of the table has one. */
	if (native.vector == UD_VECTOR && !(op->f & OP_SREG))
		report(&insn, "vector", "native execution", ~0ull, native.vector);
	return true;
}

/* All opcodes of the table that go with REX2, NR_TRIALS times in each of their forms. */
static void sweep(bool is_mmio)
{
	int i, opcode, digit, trial;
	u64 nr;

	for (i = 0; i < ARRAY_SIZE(ops); i++) {
		const struct op *op = &ops[i];

		if (op->f & OP_NOREX2)
			continue;

		nr = nr_run + nr_mmio - nr_faults;

		for (opcode = op->first; opcode <= op->last; opcode++) {
			for (digit = op->digit_first; digit <= op->digit_last; digit++) {
				for (trial = 0; trial < NR_TRIALS; trial++) {
					run_one(op, opcode, digit, false, is_mmio);
					run_one(op, opcode, digit, true, is_mmio);
				}
			}
		}

		/* They can't all fault. */
		__GUEST_ASSERT(nr_run + nr_mmio - nr_faults > nr ||
			       (is_mmio && (!(op->f & OP_M) || (op->f & OP_NOMMIO))),
			       "None of map %u, opcode 0x%x has run", op->map, op->first);
	}
}

static void run_random(bool is_mmio)
{
	const struct op *op;
	int opcode, digit;
	u64 nr;
	u32 i;

	is_random = true;
	/* Options are non-negative integers. */
	for (i = 0; i < nr_random; i++, seed = (seed + 1) & INT_MAX) {
		rng_seed(seed);
		do {
			op = &ops[rng_below(ARRAY_SIZE(ops))];
			opcode = op->first + rng_below(op->last - op->first + 1);
			digit = op->digit_first +
				rng_below(op->digit_last - op->digit_first + 1);
		} while (!run_one(op, opcode, digit, rng_below(2), is_mmio));
	}
	/* A few may be all of one kind. */
	nr = nr_run + nr_mmio;
	__GUEST_ASSERT(nr_random < 100 || (nr_legacy > nr / 8 && nr_legacy < nr / 2),
		       "%lu of %lu are legacy instructions", nr_legacy, nr);
}

static void guest_done(u64 nr_min)
{
	u64 nr = nr_run + nr_mmio;

	GUEST_PRINTF("# %lu forced, %lu with MMIO, %lu legacy, %lu fault, %lu differ\n",
		     nr_run, nr_mmio, nr_legacy, nr_faults, nr_failed);
	__GUEST_ASSERT(!nr_failed, "%lu instructions differ", nr_failed);
	__GUEST_ASSERT(nr >= nr_min, "Only %lu instructions, wanted %lu", nr, nr_min);
	GUEST_DONE();
}

static void guest_mmio(void)
{
	sweep(true);
	guest_done(3000);
}

static void guest_mmio_random(void)
{
	run_random(true);
	/* Those that fault aren't repeated with MMIO. */
	guest_done(nr_random * 3 / 4);
}

static void guest_forced(void)
{
	sweep(false);
	GUEST_ASSERT(nr_faults > 100);
	guest_done(10000);
}

static void guest_forced_random(void)
{
	run_random(false);
	guest_done(nr_random);
}

/* Both natively and under forced emulation, @vector (~0: none) has to result. */
static void expect(const char *name, u64 vector, const char *bytes, int len)
{
	struct insn insn = { .len = len };

	memcpy(insn.bytes, bytes, len);
	run_and_compare(&insn);
	if (native.vector != vector)
		report(&insn, name, "native", vector, native.vector);
	if (other.vector != vector)
		report(&insn, name, "forced emulation", vector, other.vector);
}

#define EXPECT(name, vector, bytes) expect(name, vector, bytes, sizeof(bytes) - 1)
#define NONE	(~0ull)

/* As above, but what results is for the CPU to decide, as long as it faults. */
static void expect_fault(const char *name, const char *bytes, int len)
{
	struct insn insn = { .len = len };

	memcpy(insn.bytes, bytes, len);
	run_and_compare(&insn);
	if (native.vector == NONE)
		report(&insn, name, "native", GP_VECTOR, native.vector);
}

#define EXPECT_FAULT(name, bytes) expect_fault(name, bytes, sizeof(bytes) - 1)

static const u8 payloads[] = { 0x00, 0x08, 0x10, 0x55, 0x7f };

static bool opcode_is_ud(int map, u8 op)
{
	u8 row = op >> 4;

	if (map)
		return row == 3 || row == 8;

	switch (op) {
	/* Prefixes, including those of other encodings, and the escape. */
	case 0x0f: case 0x26: case 0x2e: case 0x36: case 0x3e:
	case 0x62: case 0x64 ... 0x67: case 0xc4: case 0xc5: case 0xd5:
	case 0xf0: case 0xf2: case 0xf3:
	/* Aren't instructions in 64-bit mode. */
	case 0x06: case 0x27: case 0x60: case 0xea:
		return true;
	case 0xa1:
		return false;
	default:
		return row == 4 || row == 7 || row == 0xa || row == 0xe;
	}
}

static void guest_ud_opcodes(void)
{
	int map, op, p;
	char bytes[8];

	for (p = 0; p < ARRAY_SIZE(payloads); p++) {
		for (map = 0; map < 2; map++) {
			for (op = 0; op < 256; op++) {
				if (!opcode_is_ud(map, op))
					continue;

				random_state();
				in.gpr[0] = (u64)mem + 512;
				in.gpr[16] = (u64)mem + 512;
				in.gpr[5] = (u64)mem + 512;
				in.gpr[21] = (u64)mem + 512;
				in.gpr[1] = 0;
				memset(bytes, 0, sizeof(bytes));
				bytes[0] = 0xd5;
				bytes[1] = payloads[p] | (map << 7);
				bytes[2] = op;
				/* Would-be continuations that are fine on their own. */
				bytes[3] = op == 0x0f ? 0x1f : 0x90;
				expect("REX2 isn't allowed", UD_VECTOR, bytes, 8);
			}
		}
	}
	guest_done(500);
}

static void guest_ud_xsave(void)
{
	static const u8 xsave[][2] = {
		{ 0xae, 4 }, { 0xae, 5 }, { 0xae, 6 },
		{ 0xc7, 3 }, { 0xc7, 4 }, { 0xc7, 5 },
	};
	char bytes[4];
	int i, p;

	for (p = 0; p < ARRAY_SIZE(payloads); p++) {
		for (i = 0; i < ARRAY_SIZE(xsave); i++) {
			random_state();
			in.gpr[0] = (u64)mem + 512;
			bytes[0] = 0xd5;
			bytes[1] = (payloads[p] & ~0x11) | 0x80;
			bytes[2] = xsave[i][0];
			bytes[3] = xsave[i][1] << 3;
			expect("XSAVE family", UD_VECTOR, bytes, 4);
		}
	}
	guest_done(30);
}

static void guest_ud_others(void)
{
	random_state();
	EXPECT("REX before REX2", UD_VECTOR, "\x48\xd5\x18\x89\xc0");
	EXPECT("REX, 66, REX2", NONE, "\x48\x66\xd5\x10\x89\xc0");
	EXPECT("LOCK with a register", UD_VECTOR, "\xf0\xd5\x18\x01\xc0");
	EXPECT("MOV to CR0 + R4", UD_VECTOR, "\xd5\xd0\x22\xc0");
	EXPECT("MOV from CR3 + R4", UD_VECTOR, "\xd5\xc0\x20\xd8");
	EXPECT("MOV from DR7 + R4", UD_VECTOR, "\xd5\xd0\x21\xf8");
	EXPECT("MOV from DR7 + R3", UD_VECTOR, "\xd5\x94\x21\xf8");
	EXPECT("VEX map 4", UD_VECTOR, "\xc4\xe4\x78\x10\xc0");
	EXPECT("REX2 with VEX", UD_VECTOR, "\xd5\x00\xc5\xf8\x28\xc1");
	EXPECT("MOV from segment register 6", UD_VECTOR, "\xd5\x18\x8c\xf0");
	EXPECT("MOV to CS", UD_VECTOR, "\xd5\x18\x8e\xc8");
	guest_done(10);
}

static void guest_jmpabs(void)
{
	static const u8 prefixes[] = { 0x66, 0x67, 0xf0, 0xf2, 0xf3 };
	char bytes[12] = { 0x2e, 0xd5, 0x00, 0xa1 };
	u64 target = (u64)run_exit_pad;
	int i;

	random_state();
	memcpy(bytes + 4, &target, 8);
	expect("JMPABS", NONE, bytes + 1, 11);
	GUEST_ASSERT(native.via_pad && other.via_pad);
	expect("CS JMPABS", NONE, bytes, 12);
	GUEST_ASSERT(native.via_pad && other.via_pad);

	for (i = 0; i < ARRAY_SIZE(prefixes); i++) {
		bytes[0] = prefixes[i];
		expect("JMPABS with a prefix", UD_VECTOR, bytes, 12);
	}
	for (i = 0; i < 128; i++) {
		bytes[2] = i;
		expect("JMPABS payload", i & 8 ? UD_VECTOR : NONE, bytes + 1, 11);
	}
	bytes[2] = 0;
	target = 0x8000000000000000ull;
	memcpy(bytes + 4, &target, 8);
	expect("JMPABS non-canonical", GP_VECTOR, bytes + 1, 11);
	guest_done(100);
}

static void guest_branches_and_stack(void)
{
	u64 *top;
	u16 cs;

	random_state();
	in.gpr[16] = (u64)run_exit_pad;
	in.gpr[31] = (u64)run_exit_pad;
	in.gpr[28] = (u64)run_exit_pad;
	EXPECT("JMP R16", NONE, "\xd5\x10\xff\xe0");
	GUEST_ASSERT(other.via_pad);
	EXPECT("CALL R31", NONE, "\xd5\x11\xff\xd7");
	GUEST_ASSERT(other.via_pad);
	EXPECT("PUSHP RAX", NONE, "\xd5\x08\x50");
	EXPECT("PUSHP R16", NONE, "\xd5\x18\x50");
	EXPECT("POPP R24", NONE, "\xd5\x19\x58");
	EXPECT("POP R31W", NONE, "\x66\xd5\x11\x5f");
	EXPECT("PUSH R31W", NONE, "\x66\xd5\x11\x57");
	EXPECT("POP [RSP], REX2", NONE, "\xd5\x08\x8f\x04\x24");
	EXPECT("PUSH RSP", NONE, "\xd5\x00\x54");
	in.gpr[16] = (u64)mem + 512;
	EXPECT("CALL [R16]", GP_VECTOR, "\xd5\x10\xff\x10");

	random_state();
	in.gpr[5] = STACK_TOP + 16;
	EXPECT("LEAVE", NONE, "\xd5\x77\xc9");
	EXPECT("ENTER", NONE, "\xd5\x77\xc8\x10\x00\x00");
	top = (u64 *)(in.stack + STACK_SIZE / 2);
	top[0] = (u64)run_exit_pad;
	EXPECT("RET", NONE, "\xd5\x77\xc3");
	GUEST_ASSERT(other.via_pad);
	EXPECT("RET imm16", NONE, "\xd5\x77\xc2\x08\x00");
	GUEST_ASSERT(other.via_pad);

	/* Far branches, those from memory with the operand size that all CPUs know. */
	asm volatile("mov %%cs, %0" : "=r"(cs));
	top[1] = cs;
	EXPECT("RETF", NONE, "\xd5\x7f\xcb");
	GUEST_ASSERT(other.via_pad);
	EXPECT("RETF imm16", NONE, "\xd5\x7f\xca\x08\x00");
	GUEST_ASSERT(other.via_pad);

	in.gpr[16] = (u64)mem + 512;
	*(u32 *)(in.mem + 512) = (u64)run_exit_pad;
	*(u16 *)(in.mem + 516) = cs;
	EXPECT("JMPF [R16]", NONE, "\xd5\x10\xff\x28");
	GUEST_ASSERT(other.via_pad);
	EXPECT("CALLF [R16]", NONE, "\xd5\x10\xff\x18");
	GUEST_ASSERT(other.via_pad);

	/* The #UD of the forced emulation prefix sets RF: it isn't to be pushed. */
	in.rflags = X86_EFLAGS_FIXED | X86_EFLAGS_CF | X86_EFLAGS_SF;
	EXPECT("PUSHF", NONE, "\xd5\x77\x9c");
	EXPECT("PUSHFW", NONE, "\x66\xd5\x77\x9c");
	top[0] = X86_EFLAGS_FIXED | X86_EFLAGS_PF | X86_EFLAGS_OF;
	EXPECT("POPF", NONE, "\xd5\x7f\x9d");
	GUEST_ASSERT(other.rflags & X86_EFLAGS_OF);
	EXPECT("STI", NONE, "\xd5\x77\xfb");
	GUEST_ASSERT(other.rflags & X86_EFLAGS_IF);
	in.rflags |= X86_EFLAGS_IF;
	EXPECT("CLI", NONE, "\xd5\x77\xfa");
	GUEST_ASSERT(!(other.rflags & X86_EFLAGS_IF));
	cli();
	guest_done(10);
}

static void guest_modrm_and_sib(void)
{
	random_state();
	/* RSP as base, and as operand, which the sweep leaves out. */
	EXPECT("MOV R16, [RSP]", NONE, "\xd5\x48\x8b\x04\x24");
	EXPECT("MOV [RSP+8], R31", NONE, "\xd5\x4c\x89\x7c\x24\x08");
	EXPECT("MOV AL, SPL", NONE, "\xd5\x00\x88\xe0");
	EXPECT("MOV R20, RSP", NONE, "\xd5\x18\x89\xe4");
	/* Sixteen scaled indices: 20 and 28 aren't "none". */
	in.gpr[20] = 8;
	in.gpr[28] = 8;
	in.gpr[12] = 8;
	in.gpr[0] = (u64)mem + 512;
	EXPECT("index R20", NONE, "\xd5\x28\x8b\x4c\x60\x10");
	EXPECT("index R28", NONE, "\xd5\x2a\x8b\x4c\x60\x10");
	EXPECT("index R12", NONE, "\xd5\x0a\x8b\x4c\x60\x10");
	in.gpr[20] = (u64)mem + 512;
	in.gpr[21] = (u64)mem + 512;
	in.gpr[28] = (u64)mem + 512;
	in.gpr[29] = (u64)mem + 512;
	EXPECT("base R20", NONE, "\xd5\x18\x8b\x04\x24");
	EXPECT("base R28", NONE, "\xd5\x19\x8b\x04\x24");
	EXPECT("base R21", NONE, "\xd5\x18\x8b\x45\x00");
	EXPECT("base R29", NONE, "\xd5\x19\x8b\x45\x00");
	/* RSP and RBP have the stack segment: is it #GP or #SS with R20 and R21? */
	in.gpr[20] = NONCANONICAL;
	in.gpr[21] = NONCANONICAL;
	in.gpr[28] = NONCANONICAL;
	in.gpr[5] = NONCANONICAL;
	EXPECT_FAULT("non-canonical R20", "\xd5\x18\x8b\x04\x24");
	EXPECT_FAULT("non-canonical R28", "\xd5\x19\x8b\x04\x24");
	EXPECT_FAULT("non-canonical R21", "\xd5\x18\x8b\x45\x00");
	EXPECT("non-canonical RBP", SS_VECTOR, "\xd5\x08\x8b\x45\x00");
	/* 15 bytes is the limit.  KVM says #UD instead of #GP under forced emulation. */
	in.gpr[16] = (u64)mem + 512;
	EXPECT("15 bytes", NONE, "\x2e\x2e\x2e\xd5\x18\xc7\x80\x00\x00\x00\x00\x01\x02\x03\x04");
	guest_done(10);
}

static void guest_system(void)
{
	struct desc_ptr dt;
	struct insn movq;
	u64 xcr0;
	u16 ss;

	random_state();
	EXPECT("MOV R16, CR3", NONE, "\xd5\x90\x20\xd8");
	EXPECT("MOV R24, CR4", NONE, "\xd5\x91\x20\xe0");
	EXPECT("MOV RAX, CR8", NONE, "\xd5\x84\x20\xc0");
	EXPECT("MOV R31, DR7", NONE, "\xd5\x91\x21\xff");
	in.gpr[16] = get_cr3();
	EXPECT("MOV CR3, R16", NONE, "\xd5\x90\x22\xd8");
	in.gpr[31] = 0x400;
	EXPECT("MOV DR7, R31", NONE, "\xd5\x91\x23\xff");
	asm volatile("mov %%ds, %0" : "=r"(in.gpr[16]));
	EXPECT("MOV DS, R16 + R3, R4", NONE, "\xd5\x54\x8e\xd8");
	EXPECT("MOV R16, DS + R3, R4", NONE, "\xd5\x54\x8c\xd8");
	in.gpr[16] = (u64)mem + 512;
	in.gpr[25] = (u64)mem + 512;
	EXPECT("MOV [R16], DS, REX2.W", NONE, "\xd5\x18\x8c\x18");
	in.gpr[3] = (u64)mem + 512;
	EXPECT("XLAT", NONE, "\xd5\x7f\xd7");
	in.gpr[0] = 0;
	in.gpr[1] = 0;
	EXPECT("CPUID", NONE, "\xd5\xf7\xa2");
	EXPECT("INVLPG [R16]", NONE, "\xd5\x90\x01\x38");
	EXPECT("CLFLUSH [R25]", NONE, "\xd5\x91\xae\x79\x00");
	EXPECT("SMSW R16", NONE, "\xd5\x98\x01\xe0");
	EXPECT("SMSW [R25]", NONE, "\xd5\x91\x01\x21");
	EXPECT("SGDT [R16]", NONE, "\xd5\x90\x01\x00");
	EXPECT("SIDT [R25]", NONE, "\xd5\x91\x01\x09");
	EXPECT("STR R16", NONE, "\xd5\x90\x00\xc8");
	EXPECT("SLDT R31", NONE, "\xd5\x99\x00\xc7");
	EXPECT("CLTS", NONE, "\xd5\xff\x06");
	EXPECT("FNSTCW [R16]", NONE, "\xd5\x10\xd9\x38");
	EXPECT("PUSH FS", NONE, "\xd5\x80\xa0");
	EXPECT("XCHG EAX, EAX is NOP", NONE, "\xd5\x66\x90");
	EXPECT("XCHG R16D, EAX", NONE, "\xd5\x10\x90");
	EXPECT("FNSTSW [R16]", NONE, "\xd5\x10\xdd\x38");
	EXPECT("FNINIT", NONE, "\xd5\x77\xdb\xe3");
	EXPECT("WBINVD", NONE, "\xd5\xf7\x09");
	EXPECT("INVD", NONE, "\xd5\xf7\x08");
	if (this_cpu_has(X86_FEATURE_CLFLUSHOPT))
		EXPECT("CLFLUSHOPT [R25]", NONE, "\x66\xd5\x91\xae\x79\x00");
	if (this_cpu_has(X86_FEATURE_RDPID))
		EXPECT("RDPID R16", NONE, "\xf3\xd5\x90\xc7\xf8");

	/* What is there already, i.e. everything goes on as before. */
	asm volatile("sgdt %0" : "=m"(dt));
	memcpy(in.mem + 512, &dt, sizeof(dt));
	EXPECT("LGDT [R16]", NONE, "\xd5\x90\x01\x10");
	asm volatile("sidt %0" : "=m"(dt));
	memcpy(in.mem + 512, &dt, sizeof(dt));
	EXPECT("LIDT [R25]", NONE, "\xd5\x91\x01\x19");
	*(u16 *)(in.mem + 512) = get_cr0();
	EXPECT("LMSW [R25]", NONE, "\xd5\x91\x01\x31");
	asm volatile("mov %%ss, %0" : "=r"(ss));
	*(u16 *)(in.mem + 516) = ss;
	EXPECT("LSS R16D, [R25]", NONE, "\xd5\xd1\xb2\x01");
	in.gpr[31] = get_cr0();
	EXPECT("LMSW R31", NONE, "\xd5\x99\x01\xf7");

	/* Null selectors, FS and GS aren't in use. */
	*(u16 *)(in.mem + 516) = 0;
	EXPECT("LFS R16D, [R25]", NONE, "\xd5\xd1\xb4\x01");
	EXPECT("LGS R30D, [R16]", NONE, "\xd5\xd4\xb5\x30");
	EXPECT("PUSH GS", NONE, "\xd5\x80\xa8");
	*(u64 *)(in.stack + STACK_SIZE / 2) = 0;
	EXPECT("POP FS", NONE, "\xd5\x80\xa1");
	EXPECT("POP GS", NONE, "\xd5\xff\xa9");
	in.gpr[16] = 0;
	EXPECT("LLDT R16", NONE, "\xd5\x90\x00\xd0");
	EXPECT("LTR R16", GP_VECTOR, "\xd5\x90\x00\xd8");

	xcr0 = xgetbv(0);
	in.gpr[0] = (u32)xcr0;
	in.gpr[1] = 0;
	in.gpr[2] = xcr0 >> 32;
	EXPECT("XSETBV", NONE, "\xd5\xf7\x01\xd1");
	in.gpr[1] = 1;
	EXPECT("XSETBV of XCR1", GP_VECTOR, "\xd5\x80\x01\xd1");

	/* MM0 is no part of the state: see what the emulator loads by storing it. */
	in.gpr[16] = (u64)mem + 512;
	EXPECT("MOVQ MM0, [R16]", NONE, "\xd5\x90\x6f\x00");
	*(u64 *)(in.mem + 512) = ~*(u64 *)(in.mem + 512);
	movq = (struct insn){ .bytes = { 0xd5, 0x90, 0x6f, 0x00 }, .len = 4 };
	run_state(&in, &other, &movq, true, mem);
	*(u64 *)(in.mem + 512) = ~*(u64 *)(in.mem + 512);
	EXPECT("MOVQ [R16], MM0", NONE, "\xd5\x90\x7f\x00");
	GUEST_ASSERT_EQ(*(u64 *)(other.mem + 512), ~*(u64 *)(in.mem + 512));

	/*
	 * EFER.SVME is clear.  KVM emulates none of them, but looks at RAX before
	 * EFER where it is an address.
	 */
	in.gpr[0] = 0;
	EXPECT("VMRUN", UD_VECTOR, "\xd5\x80\x01\xd8");
	EXPECT("VMLOAD", UD_VECTOR, "\xd5\x80\x01\xda");
	EXPECT("VMSAVE", UD_VECTOR, "\xd5\x80\x01\xdb");
	EXPECT("STGI", UD_VECTOR, "\xd5\x80\x01\xdc");
	EXPECT("CLGI", UD_VECTOR, "\xd5\x80\x01\xdd");
	EXPECT("SKINIT", UD_VECTOR, "\xd5\x80\x01\xde");
	EXPECT("INVLPGA", UD_VECTOR, "\xd5\x80\x01\xdf");
	EXPECT("RSM", UD_VECTOR, "\xd5\x80\xaa");

	/* Userspace checks and provides the data. */
	in.gpr[2] = PIO_PORT;
	in.gpr[6] = (u64)mem + 512;
	in.gpr[7] = (u64)mem + 520;
	memset(in.mem + 512, PIO_DATA, 4);
	EXPECT("OUTSB", NONE, "\xd5\x77\x6e");
	GUEST_ASSERT_EQ(other.gpr[6], in.gpr[6] + 1);
	EXPECT("INSB", NONE, "\xd5\x77\x6c");
	GUEST_ASSERT_EQ(other.mem[520], PIO_DATA);
	EXPECT("OUTSD", NONE, "\xd5\x77\x6f");
	EXPECT("INSW", NONE, "\x66\xd5\x77\x6d");
	GUEST_ASSERT_EQ(*(u16 *)(other.mem + 520), PIO_DATA * 0x0101);
	guest_done(50);
}

/* VEX has nothing to do with all this. */
static void guest_vex(void)
{
	random_state();
	in.gpr[15] = (u64)mem + 512;
	EXPECT("VMOVDQU XMM15, [R15]", NONE, "\xc4\x41\x7a\x6f\x3f");
	EXPECT("VMOVDQU [R15], XMM9", NONE, "\xc4\x41\x7a\x7f\x0f");
	EXPECT("REX2, VMOVDQU", UD_VECTOR, "\xd5\x00\xc4\x41\x7a\x6f\x3f");
	guest_done(3);
}

/*
 * Instructions of APX that KVM doesn't emulate, all of them with a memory
 * operand that RAX or R16 points to.
 */
#define EVEX_LEN	6

enum evex_feature {
	APX,
	NCI_NDD_NF,
	BMI1,
	BMI2,
	AVX512VL,
};

static const struct {
	u8 bytes[EVEX_LEN];
	enum evex_feature feature;
} evex[] = {
	{{ 0x62, 0xf4, 0xfc, 0x08, 0x01, 0x08 }},	/* {evex} add %rcx, (%rax) */
	{{ 0x62, 0xfc, 0xfc, 0x08, 0x01, 0x08 }},	/* add %rcx, (%r16) */
	{{ 0x62, 0xe4, 0xfc, 0x08, 0x03, 0x10 }},	/* add (%rax), %r18 */
	{{ 0x62, 0xf4, 0x7c, 0x08, 0x00, 0x08 }},	/* {evex} add %cl, (%rax) */
	{{ 0x62, 0xf4, 0xec, 0x18, 0x01, 0x08 }, NCI_NDD_NF},	/* add %rcx, (%rax), %rdx */
	{{ 0x62, 0xf4, 0xfc, 0x0c, 0xff, 0x00 }, NCI_NDD_NF},	/* {nf} inc (%rax) */
	{{ 0x62, 0xf4, 0xfc, 0x08, 0xf7, 0x18 }},	/* {evex} neg (%rax) */
	{{ 0x62, 0xfc, 0x7d, 0x08, 0xd1, 0x20 }},	/* shlw $1, (%r16) */
	{{ 0x62, 0xfa, 0xec, 0x08, 0xf2, 0x08 }, BMI1},		/* andn (%r16), %rdx, %rcx */
	{{ 0x62, 0xfa, 0xed, 0x08, 0xf7, 0x08 }, BMI2},		/* shlx %rdx, (%r16), %rcx */
	{{ 0x62, 0xf9, 0xfe, 0x08, 0x6f, 0x08 }, AVX512VL},	/* vmovdqu64 (%r16), %xmm1 */
	{{ 0x62, 0xf9, 0xfe, 0x08, 0x7f, 0x08 }, AVX512VL},	/* vmovdqu64 %xmm1, (%r16) */
};

static bool this_cpu_has_evex(enum evex_feature feature)
{
	switch (feature) {
	case NCI_NDD_NF:
		return this_cpu_has(X86_FEATURE_APX_NCI_NDD_NF);
	case BMI1:
		return this_cpu_has(X86_FEATURE_BMI1);
	case BMI2:
		return this_cpu_has(X86_FEATURE_BMI2);
	case AVX512VL:
		return this_cpu_has(X86_FEATURE_AVX512VL) &&
		       (xgetbv(0) & XFEATURE_MASK_AVX512) == XFEATURE_MASK_AVX512;
	default:
		return true;
	}
}

/* Returns false if the CPU doesn't know the instruction. */
static bool evex_insn(struct insn *insn, int i)
{
	if (!this_cpu_has_evex(evex[i].feature))
		return false;

	random_state();
	in.gpr[0] = (u64)mem + 512;
	in.gpr[16] = (u64)mem + 512;
	memset(insn, 0, sizeof(*insn));
	memcpy(insn->bytes, evex[i].bytes, EVEX_LEN);
	insn->len = EVEX_LEN;
	return true;
}

/* What @other should be if nothing happened, but for an exception. */
static void untouched(struct state *state, u64 vector)
{
	*state = in;
	state->rflags &= FLAGS_MASK;
	state->vector = vector;
	state->error_code = 0;
	state->via_pad = 0;
	if (vector != NONE)
		memset(state->stack, 0, STACK_SIZE);
}

static void guest_forced_evex(void)
{
	struct insn insn;
	int i;

	for (i = 0; i < ARRAY_SIZE(evex); i++) {
		if (!evex_insn(&insn, i))
			continue;
		run_state(&in, &native, &insn, false, mem);
		if (native.vector != NONE)
			report(&insn, "vector", "native", NONE, native.vector);

		untouched(&native, UD_VECTOR);
		run_state(&in, &other, &insn, true, mem);
		compare(&insn, "forced emulation", &native, &other, -1);
		nr_run++;
	}
	random_state();
	EXPECT("EVEX map 4, z", UD_VECTOR, "\x62\xf4\xfc\x88\x01\xc3");
	EXPECT("EVEX map 4 NDD, z", UD_VECTOR, "\x62\xec\xec\x90\x01\xc1");
	guest_done(5);
}

/* The host sees the failure, and skips the instruction. */
static void guest_mmio_evex(void)
{
	struct insn insn;
	int i;

	for (i = 0; i < ARRAY_SIZE(evex); i++) {
		if (!evex_insn(&insn, i))
			continue;
		in.gpr[0] = MMIO_GVA + 512;
		in.gpr[16] = MMIO_GVA + 512;
		untouched(&native, NONE);
		run_state(&in, &other, &insn, false, mmio);
		compare(&insn, "failed emulation", &native, &other, -1);
		nr_mmio++;
	}
	guest_done(5);
}

/*
 * CLWB shares opcode and ModRM with XSAVEOPT, but for the prefix, and doesn't
 * share its #UD.  KVM doesn't emulate it, with or without REX2.
 */
static void guest_mmio_clwb(void)
{
	static const u8 bytes[EVEX_LEN] = {
		0x66, 0xd5, 0x90, 0xae, 0x30, 0x90,	/* clwb (%r16); nop */
	};
	struct insn insn = { .len = EVEX_LEN };

	memcpy(insn.bytes, bytes, EVEX_LEN);
	random_state();
	in.gpr[16] = MMIO_GVA + 512;
	untouched(&native, NONE);
	run_state(&in, &other, &insn, false, mmio);
	compare(&insn, "failed emulation", &native, &other, -1);
	nr_mmio++;
	guest_done(1);
}

/* TEST EAX, EAX with a useless REX2: changes nothing, R16-R31 may be disabled. */
#define REX2_INSN ".byte 0xd5, 0x00, 0x85, 0xc0"

static void guest_gate(void)
{
	u64 xcr0 = xgetbv(0), cr4 = get_cr4();

	GUEST_ASSERT_EQ(kvm_asm_safe(REX2_INSN), 0);
	GUEST_ASSERT_EQ(kvm_asm_safe_fep(REX2_INSN), 0);

	xsetbv(0, xcr0 & ~XFEATURE_MASK_APX);
	GUEST_ASSERT_EQ(kvm_asm_safe(REX2_INSN), UD_VECTOR);
	GUEST_ASSERT_EQ(kvm_asm_safe_fep(REX2_INSN), UD_VECTOR);
	xsetbv(0, xcr0);

	set_cr4(cr4 & ~X86_CR4_OSXSAVE);
	GUEST_ASSERT_EQ(kvm_asm_safe(REX2_INSN), UD_VECTOR);
	GUEST_ASSERT_EQ(kvm_asm_safe_fep(REX2_INSN), UD_VECTOR);
	set_cr4(cr4);

	GUEST_ASSERT_EQ(kvm_asm_safe_fep(REX2_INSN), 0);
	GUEST_DONE();
}

static u64 nr_mmio_exits, nr_failed_emulations;
static bool emulation_may_fail;

static void handle_mmio(struct kvm_run *run, u8 *backing)
{
	u64 offset = run->mmio.phys_addr - MMIO_GPA;

	TEST_ASSERT(offset + run->mmio.len <= MEM_SIZE, "Access to 0x%llx, %u bytes",
		    run->mmio.phys_addr, run->mmio.len);
	if (run->mmio.is_write)
		memcpy(backing + offset, run->mmio.data, run->mmio.len);
	else
		memcpy(run->mmio.data, backing + offset, run->mmio.len);
	nr_mmio_exits++;
}

static void handle_failed_emulation(struct kvm_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	struct kvm_regs regs;

	nr_failed_emulations++;
	TEST_ASSERT_EQ(run->emulation_failure.suberror, KVM_INTERNAL_ERROR_EMULATION);
	vcpu_regs_get(vcpu, &regs);
	TEST_ASSERT_EQ(regs.rip, INSN);
	regs.rip += EVEX_LEN;
	vcpu_regs_set(vcpu, &regs);
}

/* Returns false if it's a ucall. */
static bool handle_pio(struct kvm_run *run)
{
	u8 *data = (u8 *)run + run->io.data_offset;
	int i;

	if (run->exit_reason != KVM_EXIT_IO || run->io.port != PIO_PORT)
		return false;

	TEST_ASSERT_EQ(run->io.count, 1);
	for (i = 0; i < run->io.size; i++) {
		if (run->io.direction == KVM_EXIT_IO_OUT)
			TEST_ASSERT_EQ(data[i], PIO_DATA);
		else
			data[i] = PIO_DATA;
	}
	return true;
}

static void run_insns(struct kvm_vcpu *vcpu)
{
	static const int vectors[] = { DE_VECTOR, UD_VECTOR, NM_VECTOR, SS_VECTOR,
				       GP_VECTOR, PF_VECTOR, AC_VECTOR };
	struct kvm_vm *vm = vcpu->vm;
	struct ucall uc;
	int i;

	seed = guest_random_seed;
	sync_global_to_guest(vm, seed);
	sync_global_to_guest(vm, nr_random);
	virt_map(vm, MMIO_GVA, MMIO_GPA, 1);
	for (i = 0; i < ARRAY_SIZE(vectors); i++)
		vm_install_exception_handler(vm, vectors[i], guest_exception_handler);

	for (;;) {
		run_vcpu_once(vcpu);
		if (vcpu->run->exit_reason == KVM_EXIT_MMIO) {
			handle_mmio(vcpu->run, addr_gva2hva(vm, (gva_t)mmio));
			continue;
		}
		if (vcpu->run->exit_reason == KVM_EXIT_INTERNAL_ERROR &&
		    emulation_may_fail) {
			handle_failed_emulation(vcpu);
			continue;
		}
		if (handle_pio(vcpu->run))
			continue;
		switch (get_ucall(vcpu, &uc)) {
		case UCALL_PRINTF:
			pr_info("%s", uc.buffer);
			break;
		case UCALL_DONE:
			return;
		case UCALL_ABORT:
			REPORT_GUEST_ASSERT(uc);
			break;
		default:
			TEST_FAIL("Unexpected exit %u, instruction 0x%016lx",
				  vcpu->run->exit_reason,
				  __builtin_bswap64(*(u64 *)addr_gva2hva(vm, INSN)));
		}
	}
}

/* What real guests can run into, with any kvm.force_emulation_prefix. */
KVM_ONE_VCPU_TEST_SUITE(mmio);

KVM_ONE_VCPU_TEST(mmio, rex2_is_the_same_as_with_memory, guest_mmio)
{
	run_insns(vcpu);
	TEST_ASSERT(nr_mmio_exits > 3000, "Only %lu MMIO exits", nr_mmio_exits);
}

KVM_ONE_VCPU_TEST(mmio, random_accesses, guest_mmio_random)
{
	run_insns(vcpu);
	TEST_ASSERT(nr_mmio_exits >= nr_random * 3 / 4, "Only %lu MMIO exits", nr_mmio_exits);
}

KVM_ONE_VCPU_TEST(mmio, evex_fails_cleanly, guest_mmio_evex)
{
	vm_enable_cap(vcpu->vm, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1);
	emulation_may_fail = true;
	run_insns(vcpu);
	TEST_ASSERT(nr_failed_emulations >= 5, "Emulation failed %lu times only",
		    nr_failed_emulations);
	TEST_ASSERT_EQ(nr_mmio_exits, 0);
}

TEST_F(mmio, clwb_is_not_xsaveopt)
{
	if (!kvm_cpu_has(X86_FEATURE_CLWB))
		SKIP(return, "no CLWB");

	vm_enable_cap(self->vcpu->vm, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1);
	emulation_may_fail = true;
	vcpu_arch_set_entry_point(self->vcpu, guest_mmio_clwb);
	run_insns(self->vcpu);
	TEST_ASSERT_EQ(nr_failed_emulations, 1);
}

/*
 * Values that userspace sets while KVM waits for the data of a read from MMIO.
 * They are the guest's from then on, but for what the instruction writes.
 */
static void guest_set_xsave_during_mmio(void)
{
	struct egprs expected, actual;

	/* R31 is only read: CMP R31, [RAX]. */
	guest_load_egprs(0);
	asm volatile(".byte 0xd5, 0x4c, 0x3b, 0x38" : : "a"(MMIO_GVA) : "cc", "memory");
	guest_check_egprs(1);

	/* One byte of R31 is written: MOV R31B, [RAX]. */
	asm volatile(".byte 0xd5, 0x44, 0x8a, 0x38" : : "a"(MMIO_GVA) : "memory");
	store_egprs(&actual);
	fill_egprs(&expected, 2);
	expected.r[15] = (expected.r[15] & ~0xffull) | PIO_DATA;
	GUEST_ASSERT(!memcmp(&actual, &expected, sizeof(actual)));
	GUEST_DONE();
}

KVM_ONE_VCPU_TEST(mmio, set_xsave_before_it_completes, guest_set_xsave_during_mmio)
{
	struct egprs egprs;
	u64 seed;

	virt_map(vcpu->vm, MMIO_GVA, MMIO_GPA, 1);

	for (seed = 1; seed <= 2; seed++) {
		run_vcpu_once(vcpu);
		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
		TEST_ASSERT(!vcpu->run->mmio.is_write, "Wanted a read");
		memset(vcpu->run->mmio.data, PIO_DATA, sizeof(vcpu->run->mmio.data));
		fill_egprs(&egprs, seed);
		set_xsave_egprs(vcpu, &egprs);
	}
	run_vcpu_to_the_end(vcpu);
}

/*
 * KVM replaces the other vendor's hypercall instruction, which is one byte longer
 * with REX2 than what KVM has for it.
 */
extern u8 rex2_vmcall[4], rex2_vmmcall[4];

static void guest_hypercall(void)
{
	static const u8 vmcall[] = { 0xd5, 0x80, 0x01, 0xc1 };
	static const u8 vmmcall[] = { 0xd5, 0x80, 0x01, 0xd9 };
	u64 error_code, ret;
	u8 vector;

	asm volatile(KVM_ASM_SAFE("rex2_vmcall: .byte 0xd5, 0x80, 0x01, 0xc1")
		     : KVM_ASM_SAFE_OUTPUTS(vector, error_code), "=a"(ret)
		     : "a"((u64)KVM_HC_VAPIC_POLL_IRQ)
		     : KVM_ASM_SAFE_CLOBBERS, "memory");
	GUEST_ASSERT_EQ(vector, host_cpu_is_intel ? 0 : UD_VECTOR);
	GUEST_ASSERT(!host_cpu_is_intel || !ret);
	asm volatile(KVM_ASM_SAFE("rex2_vmmcall: .byte 0xd5, 0x80, 0x01, 0xd9")
		     : KVM_ASM_SAFE_OUTPUTS(vector, error_code), "=a"(ret)
		     : "a"((u64)KVM_HC_VAPIC_POLL_IRQ)
		     : KVM_ASM_SAFE_CLOBBERS, "memory");
	GUEST_ASSERT_EQ(vector, host_cpu_is_intel ? UD_VECTOR : 0);
	GUEST_ASSERT(host_cpu_is_intel || !ret);

	if (is_forced_emulation_enabled) {
		GUEST_ASSERT_EQ(kvm_asm_safe_fep(".byte 0xd5, 0x80, 0x01, 0xc1"), UD_VECTOR);
		GUEST_ASSERT_EQ(kvm_asm_safe_fep(".byte 0xd5, 0x80, 0x01, 0xd9"), UD_VECTOR);
	}

	GUEST_ASSERT(!memcmp(rex2_vmcall, vmcall, sizeof(vmcall)));
	GUEST_ASSERT(!memcmp(rex2_vmmcall, vmmcall, sizeof(vmmcall)));
	GUEST_DONE();
}

KVM_ONE_VCPU_TEST_SUITE(hypercall);

KVM_ONE_VCPU_TEST(hypercall, rex2_is_not_patched, guest_hypercall)
{
	run_vcpu_to_the_end(vcpu);
}

FIXTURE(forced) {
	struct kvm_vcpu *vcpu;
};

FIXTURE_SETUP(forced)
{
	if (!is_forced_emulation_enabled)
		SKIP(return, "no forced emulation");

	vm_create_with_one_vcpu(&self->vcpu, NULL);
}

FIXTURE_TEARDOWN(forced)
{
	kvm_vm_free(self->vcpu->vm);
}

/* The handlers of run_insns() would catch what guest_gate() expects. */
KVM_ONE_VCPU_TEST(forced, rex2_needs_xcr0_and_osxsave, guest_gate)
{
	run_vcpu_to_the_end(vcpu);
}

#define FORCED_TEST(test, guest_code)			\
KVM_ONE_VCPU_TEST(forced, test, guest_code)		\
{							\
	run_insns(vcpu);				\
}

FORCED_TEST(rex2_is_the_same_as_native, guest_forced)
FORCED_TEST(random_instructions, guest_forced_random)
FORCED_TEST(modrm_and_sib_corners, guest_modrm_and_sib)
FORCED_TEST(branches_and_stack, guest_branches_and_stack)
FORCED_TEST(system_instructions_are_the_same_as_native, guest_system)
FORCED_TEST(jmpabs_is_the_same_as_native, guest_jmpabs)
/* Of those that KVM doesn't emulate, as all of XSAVE's, #UD doesn't tell why. */
FORCED_TEST(opcodes_without_rex2_are_ud, guest_ud_opcodes)
FORCED_TEST(xsave_family_is_ud, guest_ud_xsave)
FORCED_TEST(prefixes_and_operands_that_are_ud, guest_ud_others)
FORCED_TEST(evex_is_ud, guest_forced_evex)

TEST_F(forced, vex_is_not_affected)
{
	if (!(kvm_cpu_supported_xcr0() & XFEATURE_MASK_YMM))
		SKIP(return, "no AVX");

	vcpu_arch_set_entry_point(self->vcpu, guest_vex);
	run_insns(self->vcpu);
}

#define AAD_PORT	0x42

/* AAD and OUT, AAD natively if @fep is false, in the mode that @sregs is of. */
static void check_aad(struct kvm_vcpu *vcpu, const struct kvm_sregs *sregs,
		      u8 *hva, u64 rip, bool fep)
{
	static const u8 insns[] = { 0x0f, 0x0b, 'k', 'v', 'm', 0xd5, 0x0a, 0xe6, AAD_PORT };
	struct kvm_regs regs;

	memcpy(hva, insns, sizeof(insns));
	vcpu_sregs_set(vcpu, (void *)sregs);
	vcpu_regs_get(vcpu, &regs);
	regs.rip = fep ? rip : rip + 5;
	regs.rax = 0x0305;
	regs.rflags = X86_EFLAGS_FIXED;
	vcpu_regs_set(vcpu, &regs);

	run_vcpu_once(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	TEST_ASSERT_EQ(vcpu->run->io.port, AAD_PORT);
	vcpu_regs_get(vcpu, &regs);
	TEST_ASSERT_EQ(regs.rax & 0xffff, 35);
}

static void flat_segment(struct kvm_segment *segment, u8 type, bool is_32bit)
{
	segment->base = 0;
	segment->selector = 0;
	segment->limit = is_32bit ? 0xffffffff : 0xffff;
	segment->type = type;
	segment->s = 1;
	segment->present = 1;
	segment->db = is_32bit;
	segment->g = is_32bit;
}

/* 0xD5 is AAD in all other modes, even if APX is enabled. */
static void test_aad(bool is_protected, bool is_32bit)
{
	struct kvm_xcrs xcrs = {
		.nr_xcrs = 1,
		.xcrs[0].value = XFEATURE_MASK_FP | XFEATURE_MASK_APX,
	};
	struct kvm_sregs sregs;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	int fep;

	vm = vm_create_barebones();
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, 0, 0, 4, 0);
	vcpu = __vm_vcpu_add(vm, 0);
	vcpu_init_cpuid(vcpu, kvm_get_supported_cpuid());

	vcpu_sregs_get(vcpu, &sregs);
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	sregs.cr4 |= X86_CR4_OSXSAVE;
	if (is_protected) {
		sregs.cr0 |= X86_CR0_PE;
		flat_segment(&sregs.cs, 0xb, is_32bit);
		flat_segment(&sregs.ds, 3, is_32bit);
		flat_segment(&sregs.ss, 3, is_32bit);
	}
	vcpu_sregs_set(vcpu, &sregs);
	vcpu_ioctl(vcpu, KVM_SET_XCRS, &xcrs);

	for (fep = 0; fep < 2; fep++)
		check_aad(vcpu, &sregs, addr_gpa2hva(vm, 0x1000), 0x1000, fep);

	kvm_vm_free(vm);
}

TEST_F(forced, d5_is_aad_in_real_mode)
{
	test_aad(false, false);
}

TEST_F(forced, d5_is_aad_in_protected_mode)
{
	test_aad(true, false);
	test_aad(true, true);
}

TEST_F(forced, d5_is_aad_in_compatibility_mode)
{
	struct kvm_vm *vm = self->vcpu->vm;
	gva_t gva = vm_alloc_page(vm);
	struct kvm_sregs sregs;
	int fep;

	vcpu_sregs_get(self->vcpu, &sregs);
	TEST_ASSERT(sregs.efer & EFER_LMA, "The vCPU isn't in long mode");
	sregs.cs.l = 0;
	for (fep = 0; fep < 2; fep++) {
		sregs.cs.db = fep;
		check_aad(self->vcpu, &sregs, addr_gva2hva(vm, gva), gva, false);
		check_aad(self->vcpu, &sregs, addr_gva2hva(vm, gva), gva, true);
	}
}

/* Take out this test's own options, the harness refuses what it doesn't know. */
static int parse_options(int argc, char *argv[])
{
	int i, nr = 1;

	if (argc > 1 && !strcmp(argv[1], "-h"))
		fprintf(stderr, "Usage: %s [-s seed] [-n number of random instructions] ...\n",
			argv[0]);

	for (i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "-s") && i + 1 < argc)
			guest_random_seed = atoi_non_negative("Random seed", argv[++i]);
		else if (!strcmp(argv[i], "-n") && i + 1 < argc)
			nr_random = atoi_positive("Number of instructions", argv[++i]);
		else
			argv[nr++] = argv[i];
	}
	argv[nr] = NULL;
	return nr;
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_APX));

	argc = parse_options(argc, argv);
	return test_harness_run(argc, argv);
}
