// SPDX-License-Identifier: GPL-2.0
/*
 * R16-R31 as XSAVE state component 19, and as registers that belong to a
 * process: XSAVE, XSAVEOPT, XSAVEC and XRSTOR in both formats, XGETBV(1),
 * signals, fork, exec, threads, context switches.
 *
 * No REX2 here.  The compiler and the C library leave R16-R31 alone, so what
 * XRSTOR loads stays until somebody changes it who should not.
 *
 * Usage: apx_state [-s seed]
 * Exit status: 0 pass, 1 fail, 4 skipped: the CPU or the OS has no APX.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include "apx_test.h"

#define AREA_SIZE	0x4000
#define NR_EGPR		16
#define EGPR_SIZE	(NR_EGPR * 8)
#define COMPACT		(1ull << 63)

struct area {
	u8 b[AREA_SIZE];
} __attribute__((aligned(64)));

struct egprs {
	u64 r[NR_EGPR];
};

static u32 egpr_offset;
static u64 xcr0;
static u32 failed;

/* Complain, and count. */
#define CHECK(cond, ...) do {				\
	if (!(cond) && failed++ < 5)			\
		ktap_note(__VA_ARGS__);			\
} while (0)

static void result(const char *name)
{
	ktap_result(!failed, "%s", name);
	failed = 0;
}

/* These may load any vector register. */
#define VECTORS	"xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", \
		"xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

#define XSAVE_FN(insn)								\
static void __attribute__((noinline)) do_##insn(struct area *a, u64 mask)	\
{										\
	asm volatile(#insn "64 (%0)" : : "r"(a), "a"((u32)mask),		\
		     "d"((u32)(mask >> 32)) : "memory", VECTORS);		\
}

XSAVE_FN(xsave)
XSAVE_FN(xsaveopt)
XSAVE_FN(xsavec)
XSAVE_FN(xrstor)

#define XSTATE_BV	XS_HEADER
#define XCOMP_BV	(XS_HEADER + 8)

static void egprs_set(const struct egprs *e)
{
	struct area a;

	memset(a.b + XS_HEADER, 0, 64);
	put64(&a, XSTATE_BV, XBIT_APX);
	memcpy(a.b + egpr_offset, e, EGPR_SIZE);
	do_xrstor(&a, XBIT_APX);
}

static void egprs_get(struct egprs *e)
{
	struct area a;

	memset(a.b + XS_HEADER, 0, 64);
	do_xsave(&a, XBIT_APX);
	if (get64(&a, XSTATE_BV) & XBIT_APX)
		memcpy(e, a.b + egpr_offset, EGPR_SIZE);
	else
		memset(e, 0, EGPR_SIZE);
}

static void egprs_random(struct egprs *e)
{
	int i;

	for (i = 0; i < NR_EGPR; i++)
		e->r[i] = rng();
}

static bool egprs_are(const struct egprs *want)
{
	struct egprs got;

	egprs_get(&got);
	return !memcmp(&got, want, sizeof(got));
}

static void check_egprs(const struct egprs *want, const char *when)
{
	struct egprs got;
	int i;

	egprs_get(&got);
	for (i = 0; i < NR_EGPR; i++)
		CHECK(got.r[i] == want->r[i], "%s: R%d expected %llx, got %llx", when, 16 + i,
		      (unsigned long long)want->r[i], (unsigned long long)got.r[i]);
}

static const struct egprs zero;

/* Size and alignment of a component, from CPUID. */
static u32 comp_size(int i, u32 *offset, bool *align)
{
	u32 eax, ebx, ecx, edx;

	__cpuid_count(0xd, i, eax, ebx, ecx, edx);
	*offset = ebx;
	*align = ecx & 2;
	return eax;
}

/* Where component 19 is in a compacted area of these components. */
static u32 compact_end(u64 comps, u64 upto)
{
	u32 at = XS_EXTENDED, size, offset;
	bool align;
	int i;

	for (i = 2; i < 63; i++) {
		if (!(comps >> i & 1))
			continue;
		size = comp_size(i, &offset, &align);
		if (align)
			at = (at + 63) & ~63u;
		if (1ull << i == upto)
			return at;
		at += size;
	}
	return at;
}

/* ------------------------------------------------------------------------ */

static void test_cpuid(void)
{
	u32 eax, ebx, ecx, edx, offset, size, std = XS_EXTENDED, max = XS_EXTENDED, compact;
	u32 highest, b, c, d, last[4], above[4];
	u64 supported;
	bool align;
	int i;

	__cpuid_count(0xd, 0, eax, ebx, ecx, edx);
	supported = eax | (u64)edx << 32;
	for (i = 2; i < 63; i++) {
		if (!(supported >> i & 1))
			continue;
		size = comp_size(i, &offset, &align);
		if (offset + size > max)
			max = offset + size;
		if (xcr0 >> i & 1 && offset + size > std)
			std = offset + size;
	}
	/* Intel's CPUs repeat the highest leaf above it, AMD's have zeroes there. */
	__cpuid(0, highest, b, c, d);
	__cpuid_count(highest, 0, last[0], last[1], last[2], last[3]);
	__cpuid_count(highest + 1, 0, above[0], above[1], above[2], above[3]);
	CHECK(!(above[0] | above[1] | above[2] | above[3]) || !memcmp(above, last, sizeof(last)),
	      "CPUID.%xH:EAX is %x, the highest leaf is %x", highest + 1, above[0], highest);
	CHECK(supported & XBIT_APX, "CPUID.0DH.0:EAX[19] is 0");
	CHECK(!(supported & 0x18), "MPX and APX at once: %llx", (unsigned long long)supported);
	CHECK(ebx == std, "CPUID.0DH.0:EBX is %u, expected %u for XCR0 %llx", ebx, std,
	      (unsigned long long)xcr0);
	CHECK(ecx == max, "CPUID.0DH.0:ECX is %u, expected %u", ecx, max);

	__cpuid_count(0xd, 1, eax, ebx, ecx, edx);
	compact = compact_end(xcr0, 0);
	ktap_note("XCR0 %llx, standard size %u, compacted size %u, supervisor states %x",
		  (unsigned long long)xcr0, std, ebx, ecx);
	if (eax & 2) {
		/* with supervisor states IA32_XSS counts, which only the OS can read */
		CHECK(ecx ? ebx >= compact : ebx == compact,
		      "CPUID.0DH.1:EBX is %u, expected %u", ebx, compact);
	}
	size = comp_size(XFEATURE_APX, &offset, &align);
	CHECK(size == 128 && offset == 960 && !align, "component 19: size %u, offset %u, align %d",
	      size, offset, align);
	result("CPUID: sizes, offsets");
}

typedef void (*save_fn)(struct area *a, u64 mask);

/* Only component 19 is asked for: nothing else may change. */
static void save_alone(const char *name, save_fn save, const struct egprs *e)
{
	static struct area a, want;
	u64 bv;

	memset(a.b, 0x5a, AREA_SIZE);
	memset(a.b + XS_HEADER, 0, 64);
	put64(&a, XSTATE_BV, XBIT_SSE);
	want = a;
	egprs_set(e);
	save(&a, XBIT_APX);
	bv = get64(&a, XSTATE_BV);
	if (memcmp(e, &zero, EGPR_SIZE))
		CHECK(bv & XBIT_APX, "%s: XSTATE_BV %llx lacks bit 19", name,
		      (unsigned long long)bv);
	CHECK((bv & ~XBIT_APX) == XBIT_SSE, "%s: XSTATE_BV is %llx", name,
	      (unsigned long long)bv);
	if (bv & XBIT_APX || save == do_xsave)
		memcpy(want.b + egpr_offset, e, EGPR_SIZE);
	put64(&want, XSTATE_BV, bv);
	CHECK(!memcmp(&a, &want, AREA_SIZE), "%s: wrong data, or data elsewhere", name);
}

static void test_save(void)
{
	struct egprs e;
	bool has_opt = cpu_bit(0xd, 1, 0, 0);
	int i;

	for (i = 0; i < 100; i++) {
		egprs_random(&e);
		if (i % 10 == 0)
			e = zero;
		save_alone("XSAVE", do_xsave, &e);
		if (has_opt)
			save_alone("XSAVEOPT", do_xsaveopt, &e);
		check_egprs(&e, "after saving");
	}
	result("XSAVE, XSAVEOPT: data, XSTATE_BV, nothing else written");

	/* one bit anywhere makes the component in use */
	for (i = 0; i < NR_EGPR * 64; i++) {
		e = zero;
		e.r[i / 64] = 1ull << i % 64;
		save_alone("XSAVE, one bit", do_xsave, &e);
		if (has_opt)
			save_alone("XSAVEOPT, one bit", do_xsaveopt, &e);
	}
	result("XSTATE_BV: each single bit counts as in use");
}

static void test_restore(void)
{
	static struct area a;
	struct egprs e, f;
	int i;

	for (i = 0; i < 100; i++) {
		egprs_random(&e);
		egprs_random(&f);
		memset(a.b, 0x5a, AREA_SIZE);
		memset(a.b + XS_HEADER, 0, 64);
		memcpy(a.b + egpr_offset, &f, EGPR_SIZE);

		egprs_set(&e);
		put64(&a, XSTATE_BV, XBIT_APX);
		do_xrstor(&a, 0);
		check_egprs(&e, "XRSTOR, RFBM 0");
		do_xrstor(&a, XBIT_APX);
		check_egprs(&f, "XRSTOR");
		put64(&a, XSTATE_BV, 0);
		do_xrstor(&a, 0);
		check_egprs(&f, "XRSTOR, RFBM 0, XSTATE_BV 0");
		do_xrstor(&a, XBIT_APX);
		check_egprs(&zero, "XRSTOR, XSTATE_BV 0");

		/* other components come and go without touching this one */
		egprs_set(&e);
		do_xsave(&a, xcr0 & ~XBIT_APX);
		do_xrstor(&a, xcr0 & ~XBIT_APX);
		check_egprs(&e, "XRSTOR of all others");
	}
	result("XRSTOR: RFBM and XSTATE_BV");
}

/* All subsets of XCR0 that have component 19, saved and restored compacted. */
static void test_compact(void)
{
	static struct area a, b;
	struct egprs e, f;
	u64 others = xcr0 & ~XBIT_APX, sub = 0;
	u32 at, subsets = 0;

	if (!cpu_bit(0xd, 1, 0, 1)) {
		ktap_skip("XSAVEC: compacted format", "the CPU has no XSAVEC");
		return;
	}
	do {
		u64 comps = sub | XBIT_APX;

		at = compact_end(comps, XBIT_APX);
		egprs_random(&e);
		egprs_random(&f);
		egprs_set(&e);
		memset(a.b, 0x5a, AREA_SIZE);
		memset(a.b + XS_HEADER, 0, 64);
		do_xsavec(&a, comps);
		CHECK(get64(&a, XCOMP_BV) == (COMPACT | comps), "XSAVEC %llx: XCOMP_BV %llx",
		      (unsigned long long)comps, (unsigned long long)get64(&a, XCOMP_BV));
		CHECK((get64(&a, XSTATE_BV) & ~comps) == 0 && get64(&a, XSTATE_BV) & XBIT_APX,
		      "XSAVEC %llx: XSTATE_BV %llx", (unsigned long long)comps,
		      (unsigned long long)get64(&a, XSTATE_BV));
		CHECK(!memcmp(a.b + at, &e, EGPR_SIZE), "XSAVEC %llx: not at offset %x",
		      (unsigned long long)comps, at);
		CHECK(a.b[compact_end(comps, 0)] == 0x5a, "XSAVEC %llx: writes beyond its end",
		      (unsigned long long)comps);

		egprs_set(&f);
		b = a;
		do_xrstor(&b, sub);
		check_egprs(&f, "compacted XRSTOR without bit 19");
		do_xrstor(&b, XBIT_APX);	/* must skip the others */
		check_egprs(&e, "compacted XRSTOR of component 19 alone");
		egprs_set(&f);
		do_xrstor(&b, comps);
		check_egprs(&e, "compacted XRSTOR of all");
		egprs_set(&f);
		do_xrstor(&b, xcr0);		/* what is not in XCOMP_BV becomes init */
		check_egprs(&e, "compacted XRSTOR of XCR0");
		do_xrstor(&a, comps);
		put64(&b, XSTATE_BV, get64(&b, XSTATE_BV) & ~XBIT_APX);
		do_xrstor(&b, XBIT_APX);
		check_egprs(&zero, "compacted XRSTOR, XSTATE_BV without bit 19");
		egprs_set(&f);
		put64(&b, XCOMP_BV, COMPACT | sub);
		do_xrstor(&b, XBIT_APX);
		check_egprs(&zero, "compacted XRSTOR, XCOMP_BV without bit 19");

		/* init: the bit may be set or not, but zero it must be */
		egprs_set(&zero);
		memset(a.b, 0x5a, AREA_SIZE);
		do_xsavec(&a, comps);
		if (get64(&a, XSTATE_BV) & XBIT_APX)
			CHECK(!memcmp(a.b + at, &zero, EGPR_SIZE), "XSAVEC %llx: not zero",
			      (unsigned long long)comps);
		subsets++;
		sub = (sub - others) & others;
	} while (sub);
	ktap_note("%u sets of components", subsets);
	result("XSAVEC, XRSTOR: compacted format with all sets of components");
}

static sigjmp_buf fault_env;
static volatile int fault_trap;

static void on_fault(int sig, siginfo_t *si, void *ctx)
{
	(void)sig;
	(void)si;
	fault_trap = ((ucontext_t *)ctx)->uc_mcontext.gregs[REG_TRAPNO];
	siglongjmp(fault_env, 1);
}

/* A handler starts with fresh registers: look at the frame for the old ones. */
static struct egprs fault_egprs;

static void on_fault_frame(int sig, siginfo_t *si, void *ctx)
{
	const u8 *xs = (const u8 *)((ucontext_t *)ctx)->uc_mcontext.fpregs;
	u64 bv;

	memcpy(&bv, xs + XS_HEADER, 8);
	if (bv & XBIT_APX)
		memcpy(&fault_egprs, xs + egpr_offset, EGPR_SIZE);
	else
		fault_egprs = zero;
	on_fault(sig, si, ctx);
}

static void expect_gp(struct area *a, u64 mask, const char *what)
{
	struct egprs e;

	egprs_random(&e);
	fault_trap = -1;
	if (!sigsetjmp(fault_env, 1)) {
		egprs_set(&e);
		do_xrstor(a, mask);
	}
	CHECK(fault_trap == 13, "%s: expected #GP, got exception %d", what, fault_trap);
	if (fault_trap == 13)
		CHECK(!memcmp(&fault_egprs, &e, EGPR_SIZE), "%s: R16-R31 changed", what);
}

static void test_gp(void)
{
	struct sigaction sa = { .sa_sigaction = on_fault_frame, .sa_flags = SA_SIGINFO };
	struct sigaction old_segv, old_bus;
	static struct area a, base;
	int i;

	sigaction(SIGSEGV, &sa, &old_segv);
	sigaction(SIGBUS, &sa, &old_bus);
	put64(&base, XSTATE_BV, XBIT_APX);
	memset(base.b + egpr_offset, 0x11, EGPR_SIZE);

	a = base;
	put64(&a, XSTATE_BV, XBIT_APX | 1ull << 3);
	expect_gp(&a, XBIT_APX, "XSTATE_BV with MPX");
	put64(&a, XSTATE_BV, XBIT_APX | 1ull << 62);
	expect_gp(&a, XBIT_APX, "XSTATE_BV[62]");
	a = base;
	put64(&a, XCOMP_BV, XBIT_APX);
	expect_gp(&a, XBIT_APX, "XCOMP_BV[63] clear and XCOMP_BV not 0");
	for (i = 16; i < 24; i += 8) {
		a = base;
		put64(&a, XS_HEADER + i, 1);
		expect_gp(&a, XBIT_APX, "reserved bytes of the header");
	}
	a = base;
	put64(&a, XCOMP_BV, COMPACT);
	expect_gp(&a, XBIT_APX, "XSTATE_BV[19] without XCOMP_BV[19]");
	put64(&a, XCOMP_BV, COMPACT | XBIT_APX | 1ull << 3);
	expect_gp(&a, XBIT_APX, "XCOMP_BV with MPX");
	expect_gp((struct area *)(base.b + 8), XBIT_APX, "area not aligned to 64 bytes");

	sigaction(SIGSEGV, &old_segv, NULL);
	sigaction(SIGBUS, &old_bus, NULL);
	result("XRSTOR: #GP for bad headers leaves R16-R31 alone");
}

static void test_xinuse(void)
{
	static struct area a;
	struct egprs e;
	u64 xinuse;
	int i;

	if (!cpu_bit(0xd, 1, 0, 2)) {
		ktap_skip("XGETBV(1)", "the CPU has no XGETBV(1)");
		return;
	}
	for (i = 0; i < 100; i++) {
		e = zero;
		if (i & 1)
			e.r[rng_below(NR_EGPR)] = 1ull << rng_below(64);
		egprs_set(&e);
		xinuse = xgetbv(1);
		memset(a.b + XS_HEADER, 0, 64);
		do_xsave(&a, XBIT_APX);
		CHECK(!(i & 1) || xinuse & XBIT_APX, "XGETBV(1)[19] is 0 with a register in use");
		CHECK((xinuse & XBIT_APX) == (get64(&a, XSTATE_BV) & XBIT_APX),
		      "XGETBV(1) and XSAVE do not agree: %llx, %llx", (unsigned long long)xinuse,
		      (unsigned long long)get64(&a, XSTATE_BV));
	}
	result("XGETBV(1): bit 19 is what XSAVE reports");
}

/* ------------------------------------------------------------------------
 * Linux: the registers belong to a thread
 */
static struct egprs sig_frame, sig_start, sig_change;
static bool sig_do_change, sig_bv;

static void on_usr1(int sig, siginfo_t *si, void *ctx)
{
	u8 *xs = (u8 *)((ucontext_t *)ctx)->uc_mcontext.fpregs;
	struct egprs noise;
	u64 bv;

	(void)sig;
	(void)si;
	egprs_get(&sig_start);
	memcpy(&bv, xs + XS_HEADER, 8);
	sig_bv = bv & XBIT_APX;
	memcpy(&sig_frame, xs + egpr_offset, EGPR_SIZE);
	if (sig_do_change)
		memcpy(xs + egpr_offset, &sig_change, EGPR_SIZE);
	egprs_random(&noise);
	egprs_set(&noise);
}

static void test_signals(void)
{
	struct sigaction sa = { .sa_sigaction = on_usr1, .sa_flags = SA_SIGINFO };
	struct egprs e;
	int i;

	sigaction(SIGUSR1, &sa, NULL);
	for (i = 0; i < 200; i++) {
		egprs_random(&e);
		egprs_random(&sig_change);
		sig_do_change = i & 1;
		egprs_set(&e);
		raise(SIGUSR1);
		check_egprs(sig_do_change ? &sig_change : &e, "after a signal");
		CHECK(sig_bv && !memcmp(&sig_frame, &e, EGPR_SIZE), "not in the signal frame");
		CHECK(!memcmp(&sig_start, &zero, EGPR_SIZE), "handler did not start with zeroes");
	}
	signal(SIGUSR1, SIG_DFL);
	result("signals: frame, handler's own registers, return");
}

static void *thread_fn(void *arg)
{
	struct egprs e;
	u64 x = (u64)arg + 1;
	int i, k;

	for (i = 0; i < NR_EGPR; i++)
		e.r[i] = x << 32 | i;
	egprs_set(&e);
	for (i = 0; i < 200; i++) {
		for (k = 0; k < 2000; k++)
			asm volatile("" : : : "memory");
		sched_yield();
		if (!egprs_are(&e))
			return (void *)1;
		if (i % 10 == 0) {
			e.r[i % NR_EGPR] += x << 48;
			egprs_set(&e);
		}
	}
	return NULL;
}

static void test_threads(void)
{
	struct egprs e;
	pthread_t t[4];
	void *ret;
	long i;

	egprs_random(&e);
	egprs_set(&e);
	for (i = 0; i < 4; i++) {
		if (pthread_create(&t[i], NULL, thread_fn, (void *)i)) {
			CHECK(false, "pthread_create: %s", strerror(errno));
			t[i] = 0;
		}
	}
	for (i = 0; i < 4; i++) {
		if (t[i]) {
			pthread_join(t[i], &ret);
			CHECK(!ret, "thread %ld lost its registers", i);
		}
	}
	check_egprs(&e, "parent of threads");
	result("threads: each has its own");
}

/* Processes that only compute: the timer has to switch them. */
static void test_preemption(void)
{
	struct timespec now, end;
	struct egprs e;
	pid_t pid[4];
	int i, status;

	egprs_random(&e);
	egprs_set(&e);
	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_nsec += 300000000;
	if (end.tv_nsec >= 1000000000) {
		end.tv_nsec -= 1000000000;
		end.tv_sec++;
	}
	for (i = 0; i < 4; i++) {
		pid[i] = fork();
		if (pid[i] == 0) {
			/* a child starts with what the parent had */
			if (!egprs_are(&e))
				_exit(2);
			rng_seed(i + 100);
			egprs_random(&e);
			egprs_set(&e);
			do {
				if (!egprs_are(&e))
					_exit(1);
				clock_gettime(CLOCK_MONOTONIC, &now);
			} while (now.tv_sec < end.tv_sec ||
				 (now.tv_sec == end.tv_sec && now.tv_nsec < end.tv_nsec));
			_exit(0);
		}
		CHECK(pid[i] > 0, "fork: %s", strerror(errno));
	}
	for (i = 0; i < 4; i++) {
		if (pid[i] <= 0)
			continue;
		waitpid(pid[i], &status, 0);
		CHECK(WIFEXITED(status) && WEXITSTATUS(status) != 2, "a child did not inherit");
		CHECK(WIFEXITED(status) && WEXITSTATUS(status) != 1,
		      "a process lost its registers");
		CHECK(WIFEXITED(status), "a process died of signal %d", WTERMSIG(status));
	}
	check_egprs(&e, "parent");
	result("processes: fork inherits, context switches keep");
}

static void test_exec(const char *self)
{
	struct egprs e;
	int status = -1;
	pid_t pid;

	egprs_random(&e);
	egprs_set(&e);
	pid = fork();
	if (pid == 0) {
		execl(self, self, "--expect-zero", NULL);
		_exit(99);
	}
	waitpid(pid, &status, 0);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0,
	      "after exec: status %x (100 is: not zero)", status);
	check_egprs(&e, "parent of exec");
	result("exec: starts with zeroes");
}

int main(int argc, char **argv)
{
	const char *missing = apx_missing();
	u64 seed = 20261121;

	if (!missing) {
		egpr_offset = apx_offset();
		xcr0 = xgetbv(0);
	}
	if (argc == 2 && !strcmp(argv[1], "--expect-zero"))
		return egprs_are(&zero) ? 0 : 100;
	if (argc == 3 && !strcmp(argv[1], "-s")) {
		seed = strtoull(argv[2], NULL, 0);
	} else if (argc != 1) {
		fprintf(stderr, "usage: apx_state [-s seed]\n");
		return EXIT_FAIL;
	}
	if (missing)
		return ktap_skip_all(missing);

	ktap_plan(11);
	ktap_note("seed %llu", (unsigned long long)seed);
	rng_seed(seed);
	test_cpuid();
	test_save();
	test_restore();
	test_compact();
	test_gp();
	test_xinuse();
	test_signals();
	test_threads();
	test_preemption();
	test_exec(argv[0]);
	return ktap_exit();
}
