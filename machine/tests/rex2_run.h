/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Run one instruction with a given state of all registers and of a scratch
 * page, and collect what it did: registers, flags, XMM and x87 registers,
 * memory, exception.
 *
 * The instruction is followed by a jump to run_exit (rex2_run.S).  In step
 * mode it runs with RFLAGS.TF set, which reports where RIP went.  Registers
 * at an exception come from the signal frame.
 */
#ifndef REX2_RUN_H
#define REX2_RUN_H

#include <asm/prctl.h>
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "apx_test.h"

/*
 * Fixed addresses below 2G, so that absolute disp32 reaches them.  All but
 * the code have unmapped neighbours.
 */
#define MEM_BASE	0x30000000ull
#define MEM_SIZE	0x1000ull
#define STACK_TOP	(MEM_BASE + 0xe00)
#define CODE_BASE	0x31000000ull
#define CODE_SIZE	0x10000ull
#define PAD_ADDR	(CODE_BASE + CODE_SIZE - 0x80)	/* where branches go */
#define GS_BASE		0x10000ull
#define XAREA_SIZE	0x4000

/* What ci/machine-check chooses: where random numbers begin, cases of a form. */
#ifndef SEED
#define SEED		20261121
#endif
#ifndef TRIALS
#define TRIALS		4
#endif

/* Linux' code segments; run_block.cs chooses. */
#define USER32_CS	0x23
#define USER64_CS	0x33

/* Registers by their encoding: RAX RCX RDX RBX RSP RBP RSI RDI R8..R31. */
#define RSP		4
#define NR_GPR		32

#define FL_STATUS	0x8d5u		/* OF SF ZF AF PF CF */
#define FL_DF		0x400u
#define FL_TF		0x100u
#define FL_BASE		0x202u

#define TRAP_NONE	(-1)
#define TRAP_DE		0
#define TRAP_DB		1
#define TRAP_BP		3
#define TRAP_UD		6
#define TRAP_SS		12
#define TRAP_GP		13
#define TRAP_PF		14

struct cpu {
	u64 gpr[NR_GPR];
	u64 rflags;
	u64 rip;		/* out: only known in step mode and for traps */
	int trap;
	u64 err, cr2;
	u8 fx[416];		/* x87, MXCSR and XMM0-15 as in FXSAVE */
};

/* Shared with rex2_run.S. */
struct run_block {
	u64 gpr[16];
	u64 rflags;
	u64 entry;
	u64 host_rsp;
	u64 mask;
	void *xin;
	void *xout;
	u32 via_pad;
	u32 pad;
	volatile u64 running;
	u64 cs;
} run_block = { .cs = USER64_CS };

void run_enter(void);
void run_exit(void);
void run_exit_pad(void);
void run_recover(void);

static u8 xin[XAREA_SIZE] __attribute__((aligned(64)));
static u8 xout[XAREA_SIZE] __attribute__((aligned(64)));
static u32 egpr_offset;		/* 0: no APX here, only with --shim */
static struct cpu trapped;
static u64 run_count;

static u8 *const mem = (u8 *)MEM_BASE;
static u8 *const code = (u8 *)CODE_BASE;

static const int greg_of[16] = {
	REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
	REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
};

static const char *reg_name(int i)
{
	static const char * const low[16] = {
		"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
		"r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
	};
	static char buf[4][4];
	static int n;

	if (i < 16)
		return low[i];
	n = (n + 1) % 4;
	snprintf(buf[n], sizeof(buf[n]), "r%d", i & 31);
	return buf[n];
}

static void take_xstate(struct cpu *c, const u8 *xs)
{
	u64 bv;

	memcpy(c->fx, xs, sizeof(c->fx));
	if (!egpr_offset)
		return;
	memcpy(&bv, xs + XS_HEADER, sizeof(bv));
	if (bv & XBIT_APX)
		memcpy(&c->gpr[16], xs + egpr_offset, 16 * 8);
	else
		memset(&c->gpr[16], 0, 16 * 8);
}

static void on_trap(int sig, siginfo_t *si, void *ctx)
{
	ucontext_t *uc = ctx;
	greg_t *g = uc->uc_mcontext.gregs;
	int i;

	(void)si;
	if (!run_block.running) {
		printf("Bail out! signal %d outside of a test, RIP %llx\n", sig, g[REG_RIP]);
		fflush(stdout);
		_exit(EXIT_FAIL);
	}
	for (i = 0; i < 16; i++)
		trapped.gpr[i] = g[greg_of[i]];
	trapped.rflags = g[REG_EFL];
	trapped.rip = g[REG_RIP];
	trapped.trap = g[REG_TRAPNO];
	trapped.err = g[REG_ERR];
	trapped.cr2 = trapped.trap == TRAP_PF ? g[REG_CR2] : 0;
	take_xstate(&trapped, (const u8 *)uc->uc_mcontext.fpregs);

	g[REG_RIP] = (greg_t)run_recover;
	g[REG_RSP] = run_block.host_rsp;
	g[REG_EFL] = FL_BASE;
	g[REG_CSGSFS] = (g[REG_CSGSFS] & ~0xffffll) | USER64_CS;
}

/* jmp *0(%rip) with the address behind it: clobbers nothing. */
static void put_jump(u8 *at, void (*to)(void))
{
	u64 addr = (u64)to;

	memcpy(at, "\xff\x25\0\0\0\0", 6);
	memcpy(at + 6, &addr, 8);
}
#define JUMP_LEN 14

static void put_insn(u64 end, const u8 *insn, int len)
{
	memcpy((u8 *)end - len, insn, len);
	put_jump((u8 *)end, run_exit);
}

/* Run what is at @start; the state of @in becomes that of @out. */
static void run_at(u64 start, u64 end, const struct cpu *in, bool step, struct cpu *out)
{
	u64 bv = XBIT_FP | XBIT_SSE | (egpr_offset ? XBIT_APX : 0);
	static const u8 no_hdr[64];

	run_count++;
	memcpy(xin, in->fx, sizeof(in->fx));
	memcpy(xin + XS_HEADER, no_hdr, sizeof(no_hdr));
	memcpy(xin + XS_HEADER, &bv, sizeof(bv));
	if (egpr_offset)
		memcpy(xin + egpr_offset, &in->gpr[16], 16 * 8);
	memcpy(run_block.gpr, in->gpr, sizeof(run_block.gpr));
	run_block.rflags = (in->rflags & (FL_STATUS | FL_DF)) | FL_BASE | (step ? FL_TF : 0);
	run_block.entry = start;
	run_block.mask = bv;
	run_block.xin = xin;
	run_block.xout = xout;

	memset(out, 0, sizeof(*out));
	trapped.trap = TRAP_NONE;
	run_enter();

	if (trapped.trap != TRAP_NONE) {
		*out = trapped;
		if (step && out->trap == TRAP_DB) {
			out->trap = TRAP_NONE;
			out->err = 0;
		}
	} else {
		memcpy(out->gpr, run_block.gpr, sizeof(run_block.gpr));
		out->rflags = run_block.rflags;
		out->rip = run_block.via_pad ? PAD_ADDR : end;
		out->trap = TRAP_NONE;
		take_xstate(out, xout);
	}
	out->rflags &= FL_STATUS | FL_DF;
	if (!egpr_offset)
		memcpy(&out->gpr[16], &in->gpr[16], 16 * 8);
}

/* The emulator counts REP MOVSB, which memcpy() would be, byte by byte. */
static inline void copy_mem(void *to, const void *from)
{
	u64 n = MEM_SIZE / 8;

	asm volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}

/* The insn ends at @end; its memory is what @mem_in says. */
static inline void run(u64 end, const u8 *insn, int len, const struct cpu *in,
		       const u8 *mem_in, bool step, struct cpu *out)
{
	put_insn(end, insn, len);
	copy_mem(mem, mem_in);
	run_at(end - len, end, in, step, out);
}

/*
 * x87 FOP, FIP and FDP are left out: FIP depends on the length of the
 * encoding and AMD keeps them only for pending exceptions.
 */
static bool same_fx(const struct cpu *a, const struct cpu *b)
{
	return !memcmp(a->fx, b->fx, 6) &&
	       !memcmp(a->fx + XS_MXCSR, b->fx + XS_MXCSR, 4) &&
	       !memcmp(a->fx + XS_ST0, b->fx + XS_ST0, sizeof(a->fx) - XS_ST0);
}

/* All registers, XMM registers and flags that a skipped or faulting insn must keep. */
static inline bool same_regs(const struct cpu *a, const struct cpu *b)
{
	return !memcmp(a->gpr, b->gpr, sizeof(a->gpr)) && same_fx(a, b) &&
	       !((a->rflags ^ b->rflags) & (FL_STATUS | FL_DF));
}

static inline const char *hex(const u8 *p, int n)
{
	static char buf[4][3 * MAX_INSN + 1];
	static int k;
	int i;

	k = (k + 1) % 4;
	buf[k][0] = 0;
	for (i = 0; i < n && i < MAX_INSN; i++)
		sprintf(buf[k] + 3 * i, "%02x ", p[i]);
	return buf[k];
}

static u64 rng_value(void)
{
	static const u64 corner[] = {
		0, 1, 2, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff,
		0x80000000, 0xffffffff, 0x7fffffffffffffff, 0x8000000000000000, ~0ull,
	};
	u32 how = rng_below(8);

	if (how == 0)
		return corner[rng_below(ARRAY_SIZE(corner))];
	if (how == 1)
		return rng() >> rng_below(64);
	return rng();
}

/* Random memory, the same whatever the seed; it is its offset that varies. */
static void random_memory(u8 *m)
{
	static u64 pool[2 * MEM_SIZE / 8];
	u64 state = rng_state;
	u32 i;

	if (!pool[0]) {
		rng_seed(1);
		for (i = 0; i < ARRAY_SIZE(pool); i++)
			pool[i] = rng();
		rng_state = state;
	}
	copy_mem(m, pool + rng_below(MEM_SIZE / 8));
}

static void random_state(struct cpu *c, u8 *m)
{
	u32 mxcsr = 0x1f80, i;
	u64 v;

	memset(c, 0, sizeof(*c));
	for (i = 0; i < NR_GPR; i++)
		c->gpr[i] = rng_value();
	c->gpr[RSP] = STACK_TOP;
	c->rflags = rng() & FL_STATUS;
	c->fx[0] = 0x7f;		/* FCW 37f: all x87 exceptions masked */
	c->fx[1] = 3;
	c->fx[3] = rng_below(8) << 3;	/* TOP */
	c->fx[4] = 0xff;		/* all in use */
	memcpy(c->fx + XS_MXCSR, &mxcsr, 4);
	for (i = XS_XMM0; i < sizeof(c->fx); i += 8) {
		v = rng();
		memcpy(c->fx + i, &v, 8);
	}
	for (i = 0; i < 8; i++) {	/* 80-bit values and 6 zero bytes */
		v = rng();
		memcpy(c->fx + XS_ST0 + 16 * i, &v, 8);
		v = rng() & 0xffff;
		memcpy(c->fx + XS_ST0 + 16 * i + 8, &v, 8);
	}
	random_memory(m);
}

static inline void print_diff(const char *what, const struct cpu *in, const struct cpu *want,
		       const struct cpu *got)
{
	int i;

	for (i = 0; i < NR_GPR; i++)
		if (want->gpr[i] != got->gpr[i])
			ktap_note("  %s: %s before %llx, expected %llx, got %llx", what,
				  reg_name(i), (unsigned long long)in->gpr[i],
				  (unsigned long long)want->gpr[i],
				  (unsigned long long)got->gpr[i]);
	if ((want->rflags ^ got->rflags) & (FL_STATUS | FL_DF))
		ktap_note("  %s: flags before %llx, expected %llx, got %llx", what,
			  (unsigned long long)in->rflags, (unsigned long long)want->rflags,
			  (unsigned long long)got->rflags);
	if (want->trap != got->trap || want->err != got->err || want->cr2 != got->cr2)
		ktap_note("  %s: exception expected %d (%llx, %llx), got %d (%llx, %llx)", what,
			  want->trap, (unsigned long long)want->err, (unsigned long long)want->cr2,
			  got->trap, (unsigned long long)got->err, (unsigned long long)got->cr2);
	if (want->rip != got->rip)
		ktap_note("  %s: RIP expected %llx, got %llx", what,
			  (unsigned long long)want->rip, (unsigned long long)got->rip);
	if (!same_fx(want, got))
		ktap_note("  %s: x87, MXCSR or XMM registers differ", what);
}

/* All registers as they went in, in the form that reproduces a case. */
static inline void print_input(const struct cpu *in)
{
	char line[160];
	int i, n = 0;

	for (i = 0; i < NR_GPR; i++) {
		n += snprintf(line + n, sizeof(line) - n, "%s=%llx ", reg_name(i),
			      (unsigned long long)in->gpr[i]);
		if (i % 4 == 3) {
			ktap_note("  in: %s", line);
			n = 0;
		}
	}
}

static void *map_fixed(u64 addr, u64 size, int prot)
{
	void *p = mmap((void *)addr, size, prot,
		       MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

	if (p == MAP_FAILED) {
		printf("Bail out! cannot map %llx: %s\n", (unsigned long long)addr,
		       strerror(errno));
		exit(EXIT_FAIL);
	}
	return p;
}

static void run_init(bool have_apx)
{
	static u8 altstack[0x20000];
	static const int sigs[] = { SIGILL, SIGSEGV, SIGBUS, SIGTRAP, SIGFPE };
	stack_t ss = { .ss_sp = altstack, .ss_size = sizeof(altstack) };
	struct sigaction sa = { .sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	u32 i;

	egpr_offset = have_apx ? apx_offset() : 0;
	map_fixed(MEM_BASE, MEM_SIZE, PROT_READ | PROT_WRITE);
	map_fixed(CODE_BASE, CODE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC);
	memset(code, 0xcc, CODE_SIZE);
	put_jump((u8 *)PAD_ADDR, run_exit_pad);

	sigaltstack(&ss, NULL);
	for (i = 0; i < ARRAY_SIZE(sigs); i++)
		sigaction(sigs[i], &sa, NULL);
	if (syscall(SYS_arch_prctl, ARCH_SET_GS, GS_BASE)) {
		printf("Bail out! cannot set the GS base: %s\n", strerror(errno));
		exit(EXIT_FAIL);
	}
}

#endif /* REX2_RUN_H */
