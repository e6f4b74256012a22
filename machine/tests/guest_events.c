// SPDX-License-Identifier: GPL-2.0
/*
 * Events around a guest that no KVM selftest looks at: CR2 as userspace sets it,
 * a guest with IF=0 that doesn't let go of the CPU by itself, be it running or
 * halted, interrupts whose delivery exits, as the guest's stack isn't mapped yet,
 * those that wait for the guest while the host has others, or for the end of STI's
 * shadow, and what ends HLT.
 *
 * The guest runs in real mode.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <sys/sysinfo.h>
#include <sys/time.h>

#include "small_guest.h"

#define MEM_SIZE	0xa0000
#define CODE		0x8000
#define HANDLER		0x9000
#define SOFT_HANDLER	0x9800
#define FAULT_HANDLER	0x9c00
#define NR_FAULTS	0x9d00	/* how often that ran */
#define VECTOR		0x40
#define SOFT_VECTOR	0x41
#define PORT		0x80
#define HANDLER_PORT	0x81
#define SOFT_PORT	0x82

#define STACK		0x1000
#define NEW_HANDLERS	0xa000
#define STACKS		0x10000
#define NR_STACKS	32
#define NR_ROUNDS	8
#define NR_SHADOWS	64
#define SOON		50000	/* cycles, i.e. instructions: half a millisecond */

#define APIC_IRR	0x200
#define APIC_SPIV	0xf0
#define APIC_SPIV_ON	0x1ff
#define MSI_ADDRESS	0xfee00000u	/* of the CPU whose APIC has number 0 */

#define RFLAGS		2
#define RFLAGS_IF	(1 << 9)

static const u8 code_cr2[] = {
	0x0f, 0x20, 0xd0,	/*    mov %cr2, %eax */
	0xe6, PORT,		/*    out %al, $PORT */
};

static const u8 code_spin[] = {
	0xeb, 0xfe,		/* 1: jmp 1b */
};

static const u8 code_halt[] = {
	0xf4,			/* 1: hlt */
	0xeb, 0xfd,		/*    jmp 1b */
};

static const u8 code_halt_once[] = {
	0xf4,			/*    hlt */
	0xe6, PORT,		/*    out %al, $PORT */
};

/* The cycles from STI to the handler. */
static const u8 code_wait[] = {
	0x0f, 0x31,		/*    rdtsc */
	0x66, 0x89, 0xc6,	/*    mov %eax, %esi */
	0xfb, 0xf4,		/*    sti; hlt */
};

/* The interrupt may come behind the first NOP, and no sooner. */
static const u8 code_shadow[] = {
	0xfb, 0x90, 0x90,	/*    sti; nop; nop */
	0xe6, PORT,		/*    out %al, $PORT */
};

static const u8 code_fault[] = {
	0x31, 0xc9,		/*    xor %cx, %cx */
	0xf7, 0xf1,		/*    div %cx */
};

static const u8 code_fault_handler[] = {
	0xff, 0x06, NR_FAULTS & 0xff, NR_FAULTS >> 8,	/* incw NR_FAULTS */
	0xcf,						/* iret */
};

static const u8 code_wait_handler[] = {
	0x0f, 0x31,		/*    rdtsc */
	0x66, 0x29, 0xf0,	/*    sub %esi, %eax */
	0xe6, PORT,		/*    out %al, $PORT */
};

/* An exit for OUT that was left behind ends with the next entry, at its RIP. */
static const u8 code_out[] = {
	0x90,			/*    nop */
	0xe6, PORT,		/*    out %al, $PORT */
};

static const u8 code_int[] = {
	0xcd, SOFT_VECTOR,	/*    int $SOFT_VECTOR */
	0xe6, PORT,		/*    out %al, $PORT */
};

static const u8 code_handler[] = {
	0xe6, HANDLER_PORT,	/*    out %al, $HANDLER_PORT */
	0xcf,			/*    iret */
};

static const u8 code_soft_handler[] = {
	0xe6, SOFT_PORT,	/*    out %al, $SOFT_PORT */
	0xcf,			/*    iret */
};

/* Some ticks of the host's clock: they come at least every 10 ms. */
static const u8 code_masked[] = {
	0x66, 0xb9, 0, 0, 0x20, 0,	/*    mov $0x200000, %ecx */
	0x67, 0xe2, 0xfd,		/* 1: addr32 loop 1b */
	0xe6, PORT,			/*    out %al, $PORT */
	0xfb, 0x90,			/*    sti; nop */
	0xe6, PORT,			/*    out %al, $PORT */
};

static bool set(const u8 *code, size_t size, u64 rflags, u64 cr2, u16 ss)
{
	struct kvm_regs regs = { .rip = CODE, .rflags = rflags, .rsp = STACK };
	struct kvm_sregs sregs;

	memcpy(mem + CODE, code, size);
	if (ioctl(vcpu, KVM_GET_SREGS, &sregs))
		return false;
	sregs.cs.base = sregs.cs.selector = 0;
	sregs.ss.selector = ss;
	sregs.ss.base = (u64)ss << 4;
	sregs.cr2 = cr2;
	return !ioctl(vcpu, KVM_SET_SREGS, &sregs) &&
	       !ioctl(vcpu, KVM_SET_REGS, &regs);
}

static bool create(bool irqchip, u64 disabled_exits)
{
	u16 vectors[4] = { HANDLER, 0, SOFT_HANDLER, 0 };

	if (!create_vcpu(MEM_SIZE, irqchip, disabled_exits))
		return false;
	memcpy(mem + 4 * VECTOR, vectors, sizeof(vectors));
	memcpy(mem + HANDLER, code_handler, sizeof(code_handler));
	memcpy(mem + SOFT_HANDLER, code_soft_handler, sizeof(code_soft_handler));
	return true;
}

static bool cr2(void)
{
	struct kvm_regs regs;
	u64 val = 0x12345678;

	if (!set(code_cr2, sizeof(code_cr2), RFLAGS, val, 0) ||
	    !run_to_out("CR2", PORT) || ioctl(vcpu, KVM_GET_REGS, &regs))
		return false;
	if (regs.rax != val)
		ktap_note("CR2 is %llx instead of %llx", regs.rax,
			  (unsigned long long)val);
	return regs.rax == val;
}

static void on_alarm(int sig)
{
}

/* Without @code the guest goes on. */
static bool signal_stops(const u8 *code, size_t size)
{
	/* More than once: the first signal may come before KVM_RUN. */
	struct itimerval timer = {
		.it_value.tv_usec = 50000,
		.it_interval.tv_usec = 50000,
	};
	struct sigaction action = { .sa_handler = on_alarm };
	bool stopped;

	sigaction(SIGALRM, &action, NULL);
	if ((code && !set(code, size, RFLAGS, 0, 0)) ||
	    setitimer(ITIMER_REAL, &timer, NULL))
		return false;
	stopped = ioctl(vcpu, KVM_RUN, 0) == -1 && errno == EINTR;
	timer = (struct itimerval){};
	setitimer(ITIMER_REAL, &timer, NULL);
	return stopped;
}

static bool spin(void)
{
	return signal_stops(code_spin, sizeof(code_spin));
}

static bool halt(void)
{
	return create(false, KVM_X86_DISABLE_EXITS_HLT) &&
	       signal_stops(code_halt, sizeof(code_halt));
}

/* Whether the guest is behind its HLT, and no further. */
static bool is_halted(void)
{
	struct kvm_regs regs;

	if (ioctl(vcpu, KVM_GET_REGS, &regs))
		return false;
	if (regs.rip != CODE + 1)
		ktap_note("RIP is %llx, HLT is at %x", regs.rip, CODE);
	return regs.rip == CODE + 1;
}

static bool halt_goes_on(void)
{
	return create(false, KVM_X86_DISABLE_EXITS_HLT) &&
	       signal_stops(code_halt_once, sizeof(code_halt_once)) && is_halted() &&
	       signal_stops(NULL, 0) && is_halted();
}

/* The SS of a stack in a page that the guest has to fault in. */
static bool untouched(int nr, u16 *ss)
{
	u64 gpa = STACKS + 0x1000 * nr;
	unsigned char present;

	*ss = gpa >> 4;
	if (mincore(mem + gpa, 0x1000, &present) || (present & 1)) {
		ktap_note("the page of stack %d is there already", nr);
		return false;
	}
	return true;
}

static bool delivery_exits(void)
{
	struct kvm_interrupt irq = { .irq = VECTOR };
	u16 ss;
	int i;

	for (i = 0; i < NR_STACKS; i++) {
		if (!untouched(i, &ss) ||
		    !set(code_out, sizeof(code_out), RFLAGS | RFLAGS_IF, 0, ss) ||
		    ioctl(vcpu, KVM_INTERRUPT, &irq))
			return false;
		/* The handler first, then where the interrupt came in between. */
		if (!run_to_out("interrupt", HANDLER_PORT) ||
		    !run_to_out("behind the interrupt", PORT))
			return false;
	}
	return true;
}

static bool soft_delivery_exits(void)
{
	u16 ss;
	int i;

	for (i = NR_STACKS; i < 2 * NR_STACKS; i++) {
		if (!untouched(i, &ss) ||
		    !set(code_int, sizeof(code_int), RFLAGS, 0, ss))
			return false;
		if (!run_to_out("INT", SOFT_PORT) ||
		    !run_to_out("behind INT", PORT))
			return false;
	}
	return true;
}

static bool create_with_apic(u64 disabled_exits, struct kvm_lapic_state *apic)
{
	u32 spiv = APIC_SPIV_ON;

	if (!create(true, disabled_exits) || ioctl(vcpu, KVM_GET_LAPIC, apic))
		return false;
	memcpy(apic->regs + APIC_SPIV, &spiv, sizeof(spiv));
	return true;
}

/* With IF=0, and an interrupt that is pending. */
static bool set_with_irq(struct kvm_lapic_state *apic, const u8 *code, size_t size)
{
	struct kvm_msi msi = { .address_lo = MSI_ADDRESS, .data = VECTOR };

	/* Nothing is in service any more: the handlers have no EOI. */
	return !ioctl(vcpu, KVM_SET_LAPIC, apic) && set(code, size, RFLAGS, 0, 0) &&
	       ioctl(vm, KVM_SIGNAL_MSI, &msi) == 1;
}

static bool masked_irq_waits(void)
{
	struct kvm_lapic_state apic;
	int i;

	if (!create_with_apic(0, &apic))
		return false;
	for (i = 0; i < NR_ROUNDS; i++) {
		if (!set_with_irq(&apic, code_masked, sizeof(code_masked)))
			return false;
		if (!run_to_out("IF=0", PORT) ||
		    !run_to_out("IF=1", HANDLER_PORT) ||
		    !run_to_out("behind the interrupt", PORT))
			return false;
	}
	return true;
}

/* Unless it is the host's tick that wakes the guest. */
static bool irq_ends_hlt(void)
{
	struct kvm_lapic_state apic;
	struct kvm_regs regs;
	int i, late = 0;

	if (!create_with_apic(KVM_X86_DISABLE_EXITS_HLT, &apic))
		return false;
	memcpy(mem + HANDLER, code_wait_handler, sizeof(code_wait_handler));
	for (i = 0; i < NR_ROUNDS; i++) {
		if (!set_with_irq(&apic, code_wait, sizeof(code_wait)) ||
		    !run_to_out("the handler", PORT) || ioctl(vcpu, KVM_GET_REGS, &regs))
			return false;
		if ((u32)regs.rax > SOON)
			late++;
	}
	if (late > NR_ROUNDS / 4)
		ktap_note("%d of %d came late, the last after %u cycles", late, NR_ROUNDS,
			  (u32)regs.rax);
	return late <= NR_ROUNDS / 4;
}

/* Returns NULL if all were sent. */
static void *send_irqs(void *unused)
{
	struct kvm_msi msi = { .address_lo = MSI_ADDRESS, .data = VECTOR };
	bool sent = run_on(1);
	int i;

	for (i = 0; i < 4; i++) {
		usleep(10000);
		sent &= ioctl(vm, KVM_SIGNAL_MSI, &msi) == 1;
	}
	return sent ? NULL : &vm;
}

/* Interrupts for a guest that halts with IF=0, by another CPU, i.e. posted. */
static bool masked_irq_leaves_hlt(void)
{
	struct kvm_lapic_state apic;
	sigset_t alarm, old;
	pthread_t sender;
	void *unsent;
	bool stopped;

	if (!run_on(0) || !create_with_apic(KVM_X86_DISABLE_EXITS_HLT, &apic) ||
	    ioctl(vcpu, KVM_SET_LAPIC, &apic))
		return false;
	sigemptyset(&alarm);
	sigaddset(&alarm, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &alarm, &old);
	if (pthread_create(&sender, NULL, send_irqs, NULL))
		return false;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	stopped = signal_stops(code_halt_once, sizeof(code_halt_once));
	pthread_join(sender, &unsent);
	if (unsent || ioctl(vcpu, KVM_GET_LAPIC, &apic) ||
	    !(apic.regs[APIC_IRR + VECTOR / 32 * 16 + VECTOR % 32 / 8] & 1 << VECTOR % 8)) {
		ktap_note("the interrupt isn't pending");
		return false;
	}
	return stopped && is_halted();
}

static bool set_fault(u16 handler)
{
	u16 divide_error[2] = { handler, 0 };

	memcpy(mem, divide_error, sizeof(divide_error));
	return set(code_fault, sizeof(code_fault), RFLAGS, 0, 0);
}

/* Handlers in pages that the guest has to fault in. */
static bool fault_handler_exits(void)
{
	struct kvm_regs regs;
	u16 ip, handler;

	for (handler = NEW_HANDLERS; handler; handler += 0x1000) {
		memcpy(mem + handler, code_handler, sizeof(code_handler));
		if (!set_fault(handler) || !run_to_out("the handler", HANDLER_PORT) ||
		    ioctl(vcpu, KVM_GET_REGS, &regs))
			return false;
		memcpy(&ip, mem + regs.rsp, sizeof(ip));
		if (regs.rsp != STACK - 6 || ip != CODE + 2) {
			ktap_note("SP is %llx instead of %x, and %x is there instead of %x",
				  regs.rsp, STACK - 6, ip, CODE + 2);
			return false;
		}
	}
	return true;
}

static void *run_faults(void *vcpu_fd)
{
	if (run_on(1))
		ioctl((int)(long)vcpu_fd, KVM_RUN, 0);
	return NULL;
}

/* A guest on the other CPU that does nothing else, until the end of the test. */
static volatile u16 *start_faults(void)
{
	pthread_t thread;

	if (!create(false, 0) || !set_fault(FAULT_HANDLER))
		return NULL;
	memcpy(mem + FAULT_HANDLER, code_fault_handler, sizeof(code_fault_handler));
	if (pthread_create(&thread, NULL, run_faults, (void *)(long)vcpu))
		return NULL;
	return (volatile u16 *)(mem + NR_FAULTS);
}

/* Whatever another CPU does meanwhile. */
static bool irq_waits_for_shadow(void)
{
	volatile u16 *nr_faults = NULL;
	struct kvm_lapic_state apic;
	struct kvm_regs regs;
	u16 ip, before = 0;
	int i;

	if (get_nprocs() > 1) {
		nr_faults = run_on(0) ? start_faults() : NULL;
		if (!nr_faults)
			return false;
		for (i = 0; i < 1000 && !*nr_faults; i++)
			usleep(1000);
		before = *nr_faults;
	}
	if (!create_with_apic(0, &apic))
		return false;
	for (i = 0; i < NR_SHADOWS; i++) {
		if (!set_with_irq(&apic, code_shadow, sizeof(code_shadow)) ||
		    !run_to_out("the handler", HANDLER_PORT) || ioctl(vcpu, KVM_GET_REGS, &regs))
			return false;
		memcpy(&ip, mem + regs.rsp, sizeof(ip));
		if (ip != CODE + 2) {
			ktap_note("number %d came before %x instead of %x", i, ip, CODE + 2);
			return false;
		}
		if (!run_to_out("behind the interrupt", PORT))
			return false;
	}
	if (nr_faults && *nr_faults == before) {
		ktap_note("the other guest doesn't run");
		return false;
	}
	return true;
}

int main(void)
{
	const char *masked = "an interrupt that is masked leaves HLT alone";

	ktap_plan(is_amd() ? 9 : 11);
	if (!create(false, 0)) {
		ktap_note("no guest, errno %d", errno);
		return EXIT_FAIL;
	}
	ktap_result(cr2(), "the guest has the CR2 that userspace set");
	ktap_result(delivery_exits(), "an interrupt isn't lost if its delivery exits");
	ktap_result(soft_delivery_exits(), "an INT isn't lost if its delivery exits");
	ktap_result(fault_handler_exits(), "an exception isn't taken twice if its handler exits");
	/* Of this VM the last: where it fails, nothing ends it. */
	ktap_result(spin(), "a signal stops a guest that spins with IF=0");
	ktap_result(masked_irq_waits(), "an interrupt waits while IF=0, whatever interrupts the host");
	ktap_result(irq_ends_hlt(), "an interrupt that is pending ends HLT at once");
	ktap_result(halt(), "a signal stops a guest that halts with IF=0, HLT not intercepted");
	/* A VMCB has no place for it. */
	if (!is_amd())
		ktap_result(halt_goes_on(), "that guest stays halted");
	if (!is_amd() && get_nprocs() > 1)
		ktap_result(masked_irq_leaves_hlt(), "%s", masked);
	else if (!is_amd())
		ktap_skip(masked, "one CPU");
	ktap_result(irq_waits_for_shadow(), "an interrupt waits for the instruction behind STI");
	return ktap_exit();
}
