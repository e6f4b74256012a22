// SPDX-License-Identifier: GPL-2.0
/*
 * Runs random bytes as code, many of them REX2 and EVEX encodings: as a process
 * in 64-bit and compatibility mode, in VMX root operation where KVM switches it
 * on, and as a KVM guest, in non-root operation, at CPL 0 in real, compatibility
 * and 64-bit mode.  Whatever they do, the machine has to go on; what they do is
 * not checked.  See ci/machine-fuzz.
 *
 * The processes that run them are nobody's, and are started again when they
 * break themselves.
 *
 * Usage: fuzz_insn       SEED and TRIALS of each mode are chosen when it is compiled
 * Output: a line for each mode: how many strings ran, how they ended.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "random_code.h"
#include "rex2_run.h"

#define BATCH	50		/* strings of a process */

/* What the workers tell, whatever becomes of them. */
static struct shared {
	u64 ran, faults, timeouts;
} *shared;

/* ------------------------------------------------------------------------
 * A process: code and scratch page are those of rex2_run.h
 */
static void user_worker(bool compat)
{
	struct itimerval on = { .it_value.tv_usec = 20000 }, off = { 0 };
	static struct sigaction sa = { .sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	static u8 m[MEM_SIZE];
	struct rlimit none = { 0, 0 }, few = { 8, 8 };
	struct cpu in, out;
	u64 start;
	int i, k;

	if (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534))
		_exit(EXIT_FAIL);
	setrlimit(RLIMIT_FSIZE, &none);
	setrlimit(RLIMIT_CORE, &none);
	setrlimit(RLIMIT_NPROC, &few);
	run_init(!apx_missing());
	sigaction(SIGVTALRM, &sa, NULL);
	sigaction(SIGSYS, &sa, NULL);
	run_block.cs = compat ? USER32_CS : USER64_CS;
	for (i = 0; i < BATCH; i++) {
		random_state(&in, m);
		copy_mem(mem, m);
		for (k = 0; k < NR_GPR; k++)
			if (rng_below(2))
				in.gpr[k] = MEM_BASE + rng_below(MEM_SIZE);
		if (rng_below(2))
			in.gpr[RSP] = STACK_TOP;
		start = CODE_BASE + 0x1000 * (1 + rng_below(8)) - rng_below(STRING);
		random_code((u8 *)start, !compat);
		memset((u8 *)start + STRING, 0xcc, 64);
		shared->ran++;
		setitimer(ITIMER_VIRTUAL, &on, NULL);
		run_at(start, start + STRING, &in, rng_below(8) == 0, &out);
		setitimer(ITIMER_VIRTUAL, &off, NULL);
		shared->faults += out.trap != TRAP_NONE;
	}
	_exit(EXIT_PASS);
}

/* ------------------------------------------------------------------------
 * A guest: 64 KiB, identity mapped, page tables at 8000H, code at 1000H
 */
#define GUEST_SIZE 0x10000

static void no_action(int sig)
{
	(void)sig;
}

static void long_mode(struct kvm_sregs *s, u8 *ram, bool compat)
{
	struct kvm_segment code = { .base = 0, .limit = ~0u, .selector = 8, .type = 11,
				    .present = 1, .s = 1, .l = !compat, .db = compat, .g = 1 };
	struct kvm_segment data = { .base = 0, .limit = ~0u, .selector = 16, .type = 3,
				    .present = 1, .s = 1, .db = 1, .g = 1 };
	u64 *pt = (u64 *)(ram + 0x8000);

	pt[0] = 0x9003;				/* PML4, PDPT, a large page */
	pt[0x1000 / 8] = 0xa003;
	pt[0x2000 / 8] = 0x83;
	s->cs = code;
	s->ds = s->es = s->fs = s->gs = s->ss = data;
	s->cr0 = 0x80000031;
	s->cr3 = 0x8000;
	s->cr4 = 0x40620;			/* PAE, OSFXSR, OSXMMEXCPT, OSXSAVE */
	s->efer = 0xd01;			/* SCE, LME, LMA, NXE */
}

enum { USER64, USER32, REAL, KERNEL32, KERNEL64, MODES };

static void guest_worker(int mode)
{
	static struct { struct kvm_cpuid2 c; struct kvm_cpuid_entry2 e[200]; } cpuid;
	struct itimerval on = { .it_value.tv_usec = 20000, .it_interval.tv_usec = 20000 };
	struct sigaction sa = { .sa_handler = no_action };
	int kvm = open("/dev/kvm", O_RDWR), vm, vcpu, i, k, exits;
	struct kvm_userspace_memory_region region = { .memory_size = GUEST_SIZE };
	struct kvm_run *run;
	struct kvm_sregs sregs;
	struct kvm_regs regs;
	struct kvm_xcrs xcrs = { .nr_xcrs = 1 };
	struct kvm_vcpu_events events = { 0 };
	struct kvm_mp_state runnable = { .mp_state = KVM_MP_STATE_RUNNABLE };
	bool compat = mode == KERNEL32, lm = compat || mode == KERNEL64;
	u8 *ram;

	ram = mmap(NULL, GUEST_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	region.userspace_addr = (u64)ram;
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (kvm < 0 || vm < 0 || ram == MAP_FAILED || ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000ul) ||
	    ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region))
		_exit(EXIT_FAIL);
	cpuid.c.nent = ARRAY_SIZE(cpuid.e);
	ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid);
	sigaction(SIGALRM, &sa, NULL);
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE,
		   MAP_SHARED, vcpu, 0);
	if (vcpu < 0 || run == MAP_FAILED || ioctl(vcpu, KVM_SET_CPUID2, &cpuid) ||
	    ioctl(vcpu, KVM_GET_SREGS, &sregs))
		_exit(EXIT_FAIL);
	sregs.cs.base = sregs.cs.selector = 0;
	if (lm)
		long_mode(&sregs, ram, compat);
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs))
		_exit(EXIT_FAIL);
	xcrs.xcrs[0].value = xgetbv(0);
	ioctl(vcpu, KVM_SET_XCRS, &xcrs);

	for (i = 0; i < BATCH; i++) {
		for (k = 0; k < 0x8000; k += 8)
			*(u64 *)(ram + k) = rng_below(4) ? 0x1000 : rng();
		for (k = 0; k < 4; k++)
			random_code(ram + 0x1000 + STRING * k, lm && !compat);
		memset(ram + 0x1000 + STRING * 4, 0xf4, 64);
		if (lm)
			long_mode(&sregs, ram, compat);
		memset(&regs, 0, sizeof(regs));
		for (k = 0; k < 16; k++)
			((u64 *)&regs)[k] = rng_below(2) ? rng_below(0x8000) : rng_value();
		regs.rsp = 0x7000;
		regs.rip = 0x1000;
		regs.rflags = 2;
		ioctl(vcpu, KVM_SET_SREGS, &sregs);
		if (ioctl(vcpu, KVM_SET_REGS, &regs))
			_exit(EXIT_FAIL);
		shared->ran++;
		setitimer(ITIMER_REAL, &on, NULL);
		for (exits = 0; exits < 100; exits++) {
			if (ioctl(vcpu, KVM_RUN, 0)) {
				shared->timeouts += errno == EINTR;
				break;
			}
			if (run->exit_reason != KVM_EXIT_IO && run->exit_reason != KVM_EXIT_MMIO)
				break;
		}
		shared->faults++;
		ioctl(vcpu, KVM_SET_VCPU_EVENTS, &events);
		ioctl(vcpu, KVM_SET_MP_STATE, &runnable);
	}
	_exit(EXIT_PASS);
}

/* ------------------------------------------------------------------------ */
int main(void)
{
	static const char * const names[MODES] = {
		"64-bit user", "32-bit user", "real mode guest", "32-bit guest", "64-bit guest",
	};
	int mode, status, starts, broken;
	pid_t pid;

	setvbuf(stdout, NULL, _IONBF, 0);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (mode = 0; mode < MODES; mode++) {
		memset(shared, 0, sizeof(*shared));
		broken = 0;
		for (starts = 0; shared->ran < TRIALS && starts < TRIALS; starts++) {
			pid = fork();
			if (!pid) {
				rng_seed(SEED * 1000003ull + mode * 100003ull + starts);
				alarm(10);
				fclose(stdout);
				if (mode <= USER32)
					user_worker(mode == USER32);
				else
					guest_worker(mode);
			}
			waitpid(pid, &status, 0);
			broken += status != 0;
		}
		printf("mode %s: %llu strings, %llu ended, %llu timeouts, %d processes, %d broken\n", names[mode],
		       (unsigned long long)shared->ran, (unsigned long long)shared->faults,
		       (unsigned long long)shared->timeouts, starts, broken);
		if (shared->ran < TRIALS)
			return EXIT_FAIL;
	}
	return EXIT_PASS;
}
