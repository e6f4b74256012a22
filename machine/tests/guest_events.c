// SPDX-License-Identifier: GPL-2.0
/*
 * Events around a guest that no KVM selftest looks at: CR2 as userspace sets it,
 * a guest with IF=0 that doesn't let go of the CPU by itself, interrupts whose
 * delivery exits, as the guest's stack isn't mapped yet, and those that wait for
 * the guest while the host has others.
 *
 * The guest runs in real mode.
 */
#include <signal.h>
#include <sys/time.h>

#include "small_guest.h"

#define MEM_SIZE	0xa0000
#define CODE		0x8000
#define HANDLER		0x9000
#define SOFT_HANDLER	0x9800
#define VECTOR		0x40
#define SOFT_VECTOR	0x41
#define PORT		0x80
#define HANDLER_PORT	0x81
#define SOFT_PORT	0x82

#define STACKS		0x10000
#define NR_STACKS	32
#define NR_ROUNDS	8

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
	struct kvm_regs regs = { .rip = CODE, .rflags = rflags, .rsp = 0x1000 };
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

static bool create(bool irqchip)
{
	u16 vectors[4] = { HANDLER, 0, SOFT_HANDLER, 0 };

	if (!create_vcpu(MEM_SIZE, irqchip))
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

static bool spin(void)
{
	/* More than once: the first signal may come before KVM_RUN. */
	struct itimerval timer = {
		.it_value.tv_usec = 50000,
		.it_interval.tv_usec = 50000,
	};
	struct sigaction action = { .sa_handler = on_alarm };
	bool stopped;

	sigaction(SIGALRM, &action, NULL);
	if (!set(code_spin, sizeof(code_spin), RFLAGS, 0, 0) ||
	    setitimer(ITIMER_REAL, &timer, NULL))
		return false;
	stopped = ioctl(vcpu, KVM_RUN, 0) == -1 && errno == EINTR;
	timer = (struct itimerval){};
	setitimer(ITIMER_REAL, &timer, NULL);
	return stopped;
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

static bool masked_irq_waits(void)
{
	struct kvm_msi msi = { .address_lo = MSI_ADDRESS, .data = VECTOR };
	struct kvm_lapic_state apic;
	u32 spiv = APIC_SPIV_ON;
	int i;

	if (!create(true) || ioctl(vcpu, KVM_GET_LAPIC, &apic))
		return false;
	memcpy(apic.regs + APIC_SPIV, &spiv, sizeof(spiv));
	for (i = 0; i < NR_ROUNDS; i++) {
		/* Nothing is in service any more: the handler has no EOI. */
		if (ioctl(vcpu, KVM_SET_LAPIC, &apic) ||
		    !set(code_masked, sizeof(code_masked), RFLAGS, 0, 0) ||
		    ioctl(vm, KVM_SIGNAL_MSI, &msi) != 1)
			return false;
		if (!run_to_out("IF=0", PORT) ||
		    !run_to_out("IF=1", HANDLER_PORT) ||
		    !run_to_out("behind the interrupt", PORT))
			return false;
	}
	return true;
}

int main(void)
{
	ktap_plan(5);
	if (!create(false)) {
		ktap_note("no guest, errno %d", errno);
		return EXIT_FAIL;
	}
	ktap_result(cr2(), "the guest has the CR2 that userspace set");
	ktap_result(delivery_exits(), "an interrupt isn't lost if its delivery exits");
	ktap_result(soft_delivery_exits(), "an INT isn't lost if its delivery exits");
	/* Of this VM the last: where it fails, nothing ends it. */
	ktap_result(spin(), "a signal stops a guest that spins with IF=0");
	ktap_result(masked_irq_waits(), "an interrupt waits while IF=0, whatever interrupts the host");
	return ktap_exit();
}
