// SPDX-License-Identifier: GPL-2.0-only
/*
 * Count the instructions of VM-exit round trips: the guest does something that
 * exits in a loop and reads the TSC around it.  On the emulated machine, where
 * the TSC advances by one per instruction, the result is exact as long as no
 * interrupt arrives, i.e. the minimum is.
 *
 * Needs nothing from the series, the same program runs on every kernel.
 */
#include <stdio.h>
#include <stdlib.h>

#include "apic.h"
#include "kvm_util.h"
#include "processor.h"
#include "svm_util.h"
#include "test_util.h"
#include "vmx.h"

#define XFEATURE_APX	BIT_ULL(19)

#define NR_ROUNDS	101
#define NR_EXITS	10

#define WAKE_VECTOR	0x22
#define NO_APIC_ID	0x7f	/* no vCPU has it */
#define UNUSED_PORT	0x2000
#define MMIO_GPA	0xc0000000ull
#define MMIO_GVA	0xc0000000ull

static u64 rounds[NR_ROUNDS];

static void do_cpuid(void)
{
	u32 eax = 0, ebx, ecx = 0, edx;

	asm volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
}

/*
 * What a hypervisor that runs on KVM would pay twice per exit of its guest, if it
 * wrote XCR0 there to get at R16-R31.
 */
static void do_xsetbv(void)
{
	xsetbv(0, xgetbv(0));
}

/* An IPI for nobody: KVM handles this WRMSR with IRQs disabled. */
static void do_wrmsr(void)
{
	wrmsr(APIC_BASE_MSR + (APIC_ICR >> 4), (u64)NO_APIC_ID << 32 | WAKE_VECTOR);
}

static void wake_handler(struct ex_regs *regs)
{
	x2apic_write_reg(APIC_EOI, 0);
}

static void do_hlt(void)
{
	x2apic_write_reg(APIC_ICR, APIC_DEST_SELF | APIC_INT_ASSERT | APIC_DM_FIXED | WAKE_VECTOR);
	asm volatile("sti; hlt; cli" : : : "memory");
}

static void do_pio(void)
{
	asm volatile("outb %%al, %%dx" : : "a"(0), "d"(UNUSED_PORT));
}

static void do_mmio(void)
{
	asm volatile("movq %%rax, (%%rbx)" : : "a"(1), "b"(MMIO_GVA) : "memory");
}

/* movq %r16, (%rbx), for assemblers that don't know it. */
static void do_mmio_rex2(void)
{
	asm volatile(".byte 0xd5, 0x48, 0x89, 0x03" : : "b"(MMIO_GVA) : "memory");
}

#define L2_STACK_SIZE	64
static unsigned long l2_stack[L2_STACK_SIZE];

static void l2_guest_code_vmx(void)
{
	for (;;)
		asm volatile("vmcall");
}

static void l2_guest_code_svm(void)
{
	for (;;)
		asm volatile("vmmcall");
}

static void prepare_vmx(void *data)
{
	struct vmx_pages *vmx = data;

	GUEST_ASSERT(prepare_for_vmx_operation(vmx));
	GUEST_ASSERT(load_vmcs(vmx));
	prepare_vmcs(vmx, l2_guest_code_vmx, &l2_stack[L2_STACK_SIZE]);
	GUEST_ASSERT(!vmlaunch());
}

static void do_vmcall(void)
{
	vmwrite(GUEST_RIP, vmreadz(GUEST_RIP) + 3);
	GUEST_ASSERT(!vmresume());
}

static struct svm_test_data *svm;

static void prepare_svm(void *data)
{
	svm = data;
	generic_svm_setup(svm, l2_guest_code_svm, &l2_stack[L2_STACK_SIZE]);
	run_guest(svm->vmcb, svm->vmcb_gpa);
}

static void do_vmmcall(void)
{
	svm->vmcb->save.rip += 3;
	run_guest(svm->vmcb, svm->vmcb_gpa);
}

static struct {
	const char *name;
	void (*once)(void);
	void (*prepare)(void *data);
	bool needs_apx;
	bool needs_xsave;
} cases[] = {
	{ "cpuid", do_cpuid },
	{ "xsetbv", do_xsetbv, .needs_xsave = true },
	{ "wrmsr", do_wrmsr },
	{ "hlt", do_hlt },
	{ "pio", do_pio },
	{ "mmio", do_mmio },
	{ "mmio-rex2", do_mmio_rex2, .needs_apx = true },
	{ "l2-vmcall", do_vmcall, prepare_vmx },
	{ "l2-vmcall", do_vmmcall, prepare_svm },
};

static void guest_code(u64 c, u64 xcr0, void *data)
{
	int i, j;
	u64 tsc;

	if (xcr0)
		xsetbv(0, xcr0);
	x2apic_enable();
	if (cases[c].prepare)
		cases[c].prepare(data);

	for (i = 0; i < NR_ROUNDS; i++) {
		tsc = rdtsc();
		for (j = 0; j < NR_EXITS; j++)
			cases[c].once();
		rounds[i] = rdtsc() - tsc;
	}
	GUEST_DONE();
}

static int compare(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

static void measure(int c, const char *suffix, u64 xcr0)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct ucall uc;
	gva_t data = 0;

	if (cases[c].prepare == prepare_vmx && !kvm_cpu_has(X86_FEATURE_VMX))
		return;
	if (cases[c].prepare == prepare_svm && !kvm_cpu_has(X86_FEATURE_SVM))
		return;
	if (cases[c].needs_xsave && !xcr0)
		return;
	if (cases[c].needs_apx && !(xcr0 & XFEATURE_APX))
		return;

	vm = vm_create_with_one_vcpu(&vcpu, guest_code);
	vm_install_exception_handler(vm, WAKE_VECTOR, wake_handler);
	virt_map(vm, MMIO_GVA, MMIO_GPA, 1);
	if (cases[c].prepare == prepare_vmx)
		vcpu_alloc_vmx(vm, &data);
	if (cases[c].prepare == prepare_svm)
		vcpu_alloc_svm(vm, &data);
	vcpu_args_set(vcpu, 3, (u64)c, xcr0, data);

	do {
		vcpu_run(vcpu);
	} while (get_ucall(vcpu, &uc) == UCALL_NONE &&
		 (vcpu->run->exit_reason == KVM_EXIT_MMIO ||
		  (vcpu->run->exit_reason == KVM_EXIT_IO && vcpu->run->io.port == UNUSED_PORT)));
	if (uc.cmd == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);
	TEST_ASSERT(uc.cmd == UCALL_DONE, "The guest didn't finish %s, exit reason %u",
		    cases[c].name, vcpu->run->exit_reason);

	sync_global_from_guest(vm, rounds);
	kvm_vm_free(vm);

	/* The first rounds fill caches, i.e. sort them to the end. */
	qsort(rounds, NR_ROUNDS, sizeof(rounds[0]), compare);
	printf("cost %s%s %.2f %.2f\n", cases[c].name, suffix, (double)rounds[0] / NR_EXITS,
	       (double)rounds[NR_ROUNDS / 2] / NR_EXITS);
}

int main(void)
{
	u64 xcr0 = 0;
	int c;

	if (kvm_cpu_has(X86_FEATURE_XSAVE))
		xcr0 = kvm_cpu_supported_xcr0();

	for (c = 0; c < ARRAY_SIZE(cases); c++) {
		measure(c, "", xcr0 & ~XFEATURE_APX);
		if (xcr0 & XFEATURE_APX)
			measure(c, "-with-xcr0.apx", xcr0);
	}

	return 0;
}
