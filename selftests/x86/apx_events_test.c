// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test that R16-R31 survive what the guest doesn't ask for, or not then and
 * there: interrupts, timers, signals, and preemption.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <unistd.h>

#include "kvm_test_harness.h"
#include "apic.h"
#include "apx.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"

#ifndef __x86_64__
# error This test is 64-bit only
#endif

#define NR_ROUNDS	10

#define TIMER_VECTOR	0xf0
#define IPI_VECTOR	0xf1

/* In TSC cycles, and long enough to get out of, and back into the guest. */
#define TIMER_CYCLES	200000

KVM_ONE_VCPU_TEST_SUITE(apx_events);

/* The guest's; the handler checks that it, too, sees what was interrupted. */
static u64 nr_irqs;
static u64 irq_seed;

static void guest_irq_handler(struct ex_regs *regs)
{
	guest_check_egprs(irq_seed);
	nr_irqs++;
	x2apic_write_reg(APIC_EOI, 0);
	guest_check_egprs(irq_seed);
}

static void guest_init_irqs(void)
{
	cli();
	x2apic_enable();
	x2apic_write_reg(APIC_LVTT, APIC_LVT_TIMER_TSCDEADLINE | TIMER_VECTOR);
	/* The deadline isn't to be written before the mode. */
	asm volatile("mfence" : : : "memory");
}

static void guest_set_timer(void)
{
	wrmsr(MSR_IA32_TSC_DEADLINE, rdtsc() + TIMER_CYCLES);
}

static void install_irq_handlers(struct kvm_vm *vm)
{
	vm_install_exception_handler(vm, TIMER_VECTOR, guest_irq_handler);
	vm_install_exception_handler(vm, IPI_VECTOR, guest_irq_handler);
}

static void guest_hlt(void)
{
	guest_init_irqs();

	for (irq_seed = 0; irq_seed < NR_ROUNDS; irq_seed++) {
		guest_load_egprs(irq_seed);
		guest_set_timer();
		safe_halt();
		cli();
		guest_check_egprs(irq_seed);
		GUEST_ASSERT_EQ(nr_irqs, irq_seed + 1);
	}
	GUEST_DONE();
}

KVM_ONE_VCPU_TEST(apx_events, values_survive_hlt, guest_hlt)
{
	u64 nr;

	install_irq_handlers(vcpu->vm);
	nr = vcpu_get_stat(vcpu, halt_exits);
	run_vcpu_to_the_end(vcpu);
	nr = vcpu_get_stat(vcpu, halt_exits) - nr;
	TEST_ASSERT(nr >= NR_ROUNDS, "Only %lu HLT exits", nr);
}

/* A timer that expires while the guest runs, be it a timer of the CPU or KVM's. */
static void guest_timer(void)
{
	guest_init_irqs();

	for (irq_seed = 0; irq_seed < NR_ROUNDS; irq_seed++) {
		guest_load_egprs(irq_seed);
		guest_set_timer();
		sti();
		while (READ_ONCE(nr_irqs) == irq_seed)
			cpu_relax();
		cli();
		guest_check_egprs(irq_seed);
	}
	GUEST_DONE();
}

KVM_ONE_VCPU_TEST(apx_events, values_survive_timer_irqs, guest_timer)
{
	install_irq_handlers(vcpu->vm);
	run_vcpu_to_the_end(vcpu);
}

/* An interrupt that has to wait for the guest to enable interrupts. */
static void guest_irq_window(void)
{
	guest_init_irqs();

	for (irq_seed = 0; irq_seed < NR_ROUNDS; irq_seed++) {
		guest_load_egprs(irq_seed);
		x2apic_write_reg(APIC_ICR, APIC_DEST_SELF | APIC_INT_ASSERT |
					   IPI_VECTOR);
		GUEST_SYNC(irq_seed);
		GUEST_ASSERT_EQ(nr_irqs, irq_seed);
		guest_check_egprs(irq_seed);
		sti_nop_cli();
		GUEST_ASSERT_EQ(nr_irqs, irq_seed + 1);
		guest_check_egprs(irq_seed);
	}
	GUEST_DONE();
}

/* The CPU evaluates virtual interrupts by itself, i.e. KVM needs no windows. */
static bool kvm_has_virtual_irqs(void)
{
	return host_cpu_is_intel ? get_kvm_intel_param_bool("enable_apicv") :
				   get_kvm_amd_param_bool("avic");
}

KVM_ONE_VCPU_TEST(apx_events, values_survive_irq_windows, guest_irq_window)
{
	u64 nr;
	int i;

	install_irq_handlers(vcpu->vm);
	for (i = 0; i < NR_ROUNDS; i++) {
		run_vcpu(vcpu, i);
		check_xsave_seed(vcpu, i);
	}
	run_vcpu_to_the_end(vcpu);

	nr = vcpu_get_stat(vcpu, irq_window_exits);
	TEST_ASSERT(nr >= NR_ROUNDS || kvm_has_virtual_irqs(),
		    "Only %lu exits for an interrupt window", nr);
}

/* Written by the host. */
static bool guest_may_stop;

/*
 * Load, check, and load something else, over and over.  Disable APX for a part
 * of the time, then whatever happens to the registers mustn't matter.
 */
static void guest_spin(u64 seed)
{
	u64 i, end = seed + 1000000;

	for (; !READ_ONCE(guest_may_stop); seed++) {
		if (seed == end)
			seed -= 1000000;

		guest_load_egprs(seed);
		for (i = 0; i < 100; i++)
			cpu_relax();
		guest_check_egprs(seed);

		if (seed & 3)
			continue;

		guest_disable_apx();
		for (i = 0; i < 1000; i++)
			cpu_relax();
		guest_enable_apx();
		guest_check_egprs(seed);
	}
	GUEST_DONE();
}

static void set_guest_may_stop(struct kvm_vm *vm, bool val)
{
	guest_may_stop = val;
	sync_global_to_guest(vm, guest_may_stop);
}

static int nr_signals;

static void count_signal(int sig)
{
	nr_signals++;
}

static void set_itimer(int usec)
{
	struct itimerval timer = {
		.it_value.tv_usec = usec,
		.it_interval.tv_usec = usec,
	};

	TEST_ASSERT(!setitimer(ITIMER_REAL, &timer, NULL), "setitimer() failed");
}

KVM_ONE_VCPU_TEST(apx_events, values_survive_signals, guest_spin)
{
	struct sigaction old, action = { .sa_handler = count_signal };
	struct kvm_xsave *before, *after;
	int nr_eintr = 0;
	int i, r;

	vcpu_args_set(vcpu, 1, 0);
	set_guest_may_stop(vcpu->vm, false);

	sigaction(SIGALRM, &action, &old);
	set_itimer(2000);

	while (nr_eintr < 100) {
		r = __run_vcpu_once(vcpu);
		if (!r) {
			struct ucall uc;

			TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
			if (get_ucall(vcpu, &uc) == UCALL_ABORT)
				REPORT_GUEST_ASSERT(uc);
			TEST_FAIL("Unexpected ucall %lu", uc.cmd);
		}
		TEST_ASSERT(errno == EINTR, "Wanted EINTR, errno is %d", errno);
		nr_eintr++;

		/* Not in the guest at all, as often as one likes. */
		before = get_xsave(vcpu);
		vcpu->run->immediate_exit = 1;
		for (i = 0; i < 3; i++) {
			r = __run_vcpu_once(vcpu);
			TEST_ASSERT(r && errno == EINTR, "Wanted EINTR, got %d (%d)",
				    r, errno);
		}
		vcpu->run->immediate_exit = 0;
		after = get_xsave(vcpu);
		TEST_ASSERT(!memcmp(before, after, xsave_size(vcpu)),
			    "KVM_RUN with immediate_exit changed state");
		free(before);
		free(after);
	}
	TEST_ASSERT(nr_signals, "No signals");

	set_itimer(0);
	sigaction(SIGALRM, &old, NULL);

	set_guest_may_stop(vcpu->vm, true);
	run_vcpu_to_the_end(vcpu);
}

static void *vcpu_thread(void *arg)
{
	struct rusage usage;

	run_vcpu_to_the_end(arg);

	TEST_ASSERT(!getrusage(RUSAGE_THREAD, &usage), "getrusage() failed");
	return (void *)usage.ru_nivcsw;
}

/*
 * vCPUs on one CPU that preempt each other, at any instruction in the guest and
 * in KVM, and that move from CPU to CPU if there's more than one.
 */
TEST(values_survive_preemption)
{
	struct kvm_vcpu *vcpus[3];
	pthread_t threads[ARRAY_SIZE(vcpus)];
	cpu_set_t possible;
	struct kvm_vm *vm;
	void *nivcsw;
	int i, j, cpu = -1;

	TEST_ASSERT(!sched_getaffinity(0, sizeof(possible), &possible),
		    "sched_getaffinity() failed");

	vm = vm_create_with_vcpus(ARRAY_SIZE(vcpus), guest_spin, vcpus);
	set_guest_may_stop(vm, false);

	for (i = 0; i < ARRAY_SIZE(vcpus); i++) {
		vcpu_args_set(vcpus[i], 1, 10000000 * i);
		TEST_ASSERT(!pthread_create(&threads[i], NULL, vcpu_thread, vcpus[i]),
			    "pthread_create() failed");
	}

	for (i = 0; i < 100; i++) {
		do {
			cpu = (cpu + 1) % CPU_SETSIZE;
		} while (!CPU_ISSET(cpu, &possible));

		for (j = 0; j < ARRAY_SIZE(threads); j++)
			pin_task_to_cpu(threads[j], cpu);

		usleep(10 * 1000);
	}
	set_guest_may_stop(vm, true);

	for (i = 0; i < ARRAY_SIZE(vcpus); i++) {
		TEST_ASSERT(!pthread_join(threads[i], &nivcsw), "pthread_join() failed");
		TEST_ASSERT((long)nivcsw >= 5, "vCPU %d was preempted %ld times only",
			    i, (long)nivcsw);
	}
	kvm_vm_free(vm);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_APX));

	return test_harness_run(argc, argv);
}
