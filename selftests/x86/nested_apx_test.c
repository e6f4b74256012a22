// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test APX with nested virtualization: R16-R31 and XCR0 aren't part of VMCS or
 * VMCB, i.e. L1 and L2 share them, and it's on L1 to switch them.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "kselftest_harness.h"
#include "apx.h"
#include "kvm_util.h"
#include "processor.h"
#include "svm_util.h"
#include "test_util.h"
#include "vmx.h"

#ifndef __x86_64__
# error This test is 64-bit only
#endif

#define NR_ROUNDS	10

#define L2_STACK_SIZE	512
static u64 l2_stack[L2_STACK_SIZE] __aligned(16);

/* Passed to L1, a struct vmx_pages or svm_test_data. */
static void *nested_data;
static bool l2_launched;

enum l2_exit {
	L2_CALL,
	L2_XSETBV,
	L2_FAILED_ENTRY,
};

static void l1_prepare_l2(void *l2_code)
{
	/* As if called, with respect to alignment. */
	void *rsp = &l2_stack[L2_STACK_SIZE - 1];

	if (host_cpu_is_intel) {
		GUEST_ASSERT(prepare_for_vmx_operation(nested_data));
		GUEST_ASSERT(load_vmcs(nested_data));
		prepare_vmcs(nested_data, l2_code, rsp);
		vmwrite(CPU_BASED_VM_EXEC_CONTROL,
			vmreadz(CPU_BASED_VM_EXEC_CONTROL) |
			CPU_BASED_USE_MSR_BITMAPS);
	} else {
		generic_svm_setup(nested_data, l2_code, rsp);
	}
}

static enum l2_exit l1_run_vmx_l2(void)
{
	u64 reason;

	GUEST_ASSERT(!(l2_launched ? vmresume() : vmlaunch()));

	reason = vmreadz(VM_EXIT_REASON);
	switch (reason) {
	case EXIT_REASON_VMCALL:
	case EXIT_REASON_XSETBV:
		l2_launched = true;
		vmwrite(GUEST_RIP, vmreadz(GUEST_RIP) +
				   vmreadz(VM_EXIT_INSTRUCTION_LEN));
		return reason == EXIT_REASON_VMCALL ? L2_CALL : L2_XSETBV;
	case EXIT_REASON_INVALID_STATE | VMX_EXIT_REASONS_FAILED_VMENTRY:
		return L2_FAILED_ENTRY;
	default:
		GUEST_FAIL("Unexpected exit 0x%lx", reason);
		return L2_FAILED_ENTRY;
	}
}

static enum l2_exit l1_run_svm_l2(void)
{
	struct svm_test_data *svm = nested_data;

	run_guest(svm->vmcb, svm->vmcb_gpa);

	switch (svm->vmcb->control.exit_code) {
	case SVM_EXIT_VMMCALL:
	case SVM_EXIT_XSETBV:
		/* VMMCALL and XSETBV have the same length. */
		svm->vmcb->save.rip += 3;
		return svm->vmcb->control.exit_code == SVM_EXIT_VMMCALL ?
		       L2_CALL : L2_XSETBV;
	case SVM_EXIT_ERR:
		return L2_FAILED_ENTRY;
	default:
		GUEST_FAIL("Unexpected exit 0x%lx", (u64)svm->vmcb->control.exit_code);
		return L2_FAILED_ENTRY;
	}
}

static void l1_run_l2(enum l2_exit wanted)
{
	GUEST_ASSERT_EQ(host_cpu_is_intel ? l1_run_vmx_l2() : l1_run_svm_l2(), wanted);
}

static void l2_call_l1(void)
{
	if (host_cpu_is_intel)
		vmcall();
	else
		vmmcall();
}

/* If XSETBV exits to L1, there may be anything in all GPRs but RSP afterwards. */
static void l2_xsetbv(u64 xcr0)
{
	u64 a = (u32)xcr0, c = 0, d = xcr0 >> 32;

	asm volatile(ASM_KEEP_RBP("xsetbv")
		     : "+a"(a), "+c"(c), "+d"(d)
		     :
		     : "rbx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
		       "r13", "r14", "r15", "memory");
}

/* Exits that L0 handles, i.e. of which L1 never knows. */
static u64 l2_pages[NR_ROUNDS * PAGE_SIZE / sizeof(u64)] __aligned(PAGE_SIZE);

static void l2_exits_to_l0(u64 seed)
{
	u64 *mmio = (void *)MMIO_GVA;

	guest_load_egprs(seed);
	GUEST_SYNC(seed);
	guest_check_egprs(seed);

	READ_ONCE(*mmio);
	guest_check_egprs(seed);
	WRITE_ONCE(*mmio, seed);
	guest_check_egprs(seed);

	rdmsr(MSR_IA32_UCODE_REV);
	guest_check_egprs(seed);

	WRITE_ONCE(l2_pages[seed * PAGE_SIZE / sizeof(u64)], seed);
	guest_check_egprs(seed);
}

static void l2_shared_values(void)
{
	u64 seed;

	for (seed = 0; seed < NR_ROUNDS; seed++) {
		guest_check_egprs(seed + 1000);
		l2_exits_to_l0(seed);
		guest_load_egprs(seed + 2000);
		l2_call_l1();
	}
}

static void l1_shared_values(void)
{
	u64 seed;

	l1_prepare_l2(l2_shared_values);

	for (seed = 0; seed < NR_ROUNDS; seed++) {
		guest_load_egprs(seed + 1000);
		l1_run_l2(L2_CALL);
		guest_check_egprs(seed + 2000);
	}
	GUEST_DONE();
}

static void l2_toggled_xcr0(void)
{
	u64 seed, val = 0;

	for (seed = 0; seed < NR_ROUNDS; seed++) {
		guest_check_egprs(seed);
		guest_load_egprs(seed + 1000);
		l2_call_l1();

		/* Disabled by L1.  The values are still there, though. */
		GUEST_ASSERT_EQ(store_r31_safe(&val), UD_VECTOR);
		GUEST_SYNC(seed);
		GUEST_ASSERT_EQ(store_r31_safe(&val), UD_VECTOR);
		l2_call_l1();
	}
}

static void l1_enables_and_disables(void)
{
	u64 seed, val = 0;

	l1_prepare_l2(l2_toggled_xcr0);

	for (seed = 0; seed < NR_ROUNDS; seed++) {
		guest_load_egprs(seed);
		l1_run_l2(L2_CALL);
		guest_check_egprs(seed + 1000);

		guest_load_egprs(seed + 2000);
		guest_disable_apx();
		l1_run_l2(L2_CALL);
		GUEST_ASSERT_EQ(store_r31_safe(&val), UD_VECTOR);
		guest_enable_apx();
		guest_check_egprs(seed + 2000);
	}
	GUEST_DONE();
}

/* XSETBV exits to L1 on VMX, and on SVM if L1 wants it to. */
static void l2_sets_xcr0(void)
{
	u64 xcr0 = xgetbv(0);
	u64 seed, val = 0;

	for (seed = 0; seed < NR_ROUNDS; seed++) {
		guest_load_egprs(seed);
		l2_xsetbv(xcr0 & ~XFEATURE_MASK_APX);
		GUEST_ASSERT_EQ(xgetbv(0), xcr0 & ~XFEATURE_MASK_APX);
		GUEST_ASSERT_EQ(store_r31_safe(&val), UD_VECTOR);
		l2_xsetbv(xcr0);
		GUEST_ASSERT_EQ(xgetbv(0), xcr0);
		guest_check_egprs(seed);
	}
	l2_call_l1();
}

static void l1_intercepts_xsetbv(void)
{
	struct svm_test_data *svm = nested_data;
	u64 seed;

	l1_prepare_l2(l2_sets_xcr0);
	if (!host_cpu_is_intel)
		svm->vmcb->control.intercept |= BIT_ULL(INTERCEPT_XSETBV);

	for (seed = 0; seed < NR_ROUNDS; seed++) {
		l1_run_l2(L2_XSETBV);
		guest_check_egprs(seed);
		guest_disable_apx();
		l1_run_l2(L2_XSETBV);
		guest_enable_apx();
		guest_check_egprs(seed);
	}
	l1_run_l2(L2_CALL);
	GUEST_DONE();
}

static void l1_ignores_xsetbv(void)
{
	l1_prepare_l2(l2_sets_xcr0);
	l1_run_l2(L2_CALL);
	guest_check_egprs(NR_ROUNDS - 1);
	GUEST_DONE();
}

static void l2_save_restore(void)
{
	guest_check_egprs(1);
	guest_load_egprs(2);
	GUEST_SYNC(1);
	guest_check_egprs(2);
	l2_call_l1();

	/* L1 has disabled APX. */
	GUEST_SYNC(3);
	l2_call_l1();
}

static void l1_save_restore(void)
{
	l1_prepare_l2(l2_save_restore);
	guest_load_egprs(1);
	l1_run_l2(L2_CALL);
	guest_check_egprs(2);
	GUEST_SYNC(2);
	guest_check_egprs(2);

	guest_load_egprs(3);
	guest_disable_apx();
	l1_run_l2(L2_CALL);
	guest_enable_apx();
	guest_check_egprs(3);
	GUEST_DONE();
}

static void l2_after_failed_entry(void)
{
	guest_check_egprs(3);
	guest_load_egprs(4);
	l2_call_l1();
}

static void l1_failed_entry(void)
{
	struct svm_test_data *svm = nested_data;

	l1_prepare_l2(l2_after_failed_entry);

	/* Invalid: bit 1 is clear, or a segment that's both 64-bit and 32-bit. */
	if (host_cpu_is_intel)
		vmwrite(GUEST_RFLAGS, 0);
	else
		svm->vmcb->save.cs.attrib |= SVM_SELECTOR_DB_MASK;
	guest_load_egprs(1);
	l1_run_l2(L2_FAILED_ENTRY);
	guest_check_egprs(1);
	guest_load_egprs(2);
	l1_run_l2(L2_FAILED_ENTRY);
	guest_check_egprs(2);

	if (host_cpu_is_intel)
		vmwrite(GUEST_RFLAGS, 2);
	else
		svm->vmcb->save.cs.attrib &= ~SVM_SELECTOR_DB_MASK;
	guest_load_egprs(3);
	l1_run_l2(L2_CALL);
	guest_check_egprs(4);
	GUEST_DONE();
}

static struct kvm_vcpu *create_nested_vm(void *l1_code)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = vm_create_with_one_vcpu(&vcpu, l1_code);
	gva_t gva;

	if (kvm_cpu_has(X86_FEATURE_VMX))
		vcpu_alloc_vmx(vm, &gva);
	else
		vcpu_alloc_svm(vm, &gva);

	nested_data = (void *)gva;
	sync_global_to_guest(vm, nested_data);
	virt_map(vm, MMIO_GVA, MMIO_GPA, 1);
	return vcpu;
}

TEST(values_are_shared)
{
	struct kvm_vcpu *vcpu = create_nested_vm(l1_shared_values);
	u64 nr = 0;
	int i;

	TEST_ASSERT(!madvise(addr_gva2hva(vcpu->vm, (gva_t)l2_pages),
			     sizeof(l2_pages), MADV_DONTNEED),
		    "madvise() failed, errno %d", errno);

	for (i = 0; i < NR_ROUNDS; i++) {
		run_vcpu(vcpu, i);
		check_xsave_seed(vcpu, i);

		/* From now on, all faults are of the pages. */
		if (i == 1)
			nr = vcpu_get_stat(vcpu, pf_fixed);
	}
	run_vcpu_to_the_end(vcpu);

	nr = vcpu_get_stat(vcpu, pf_fixed) - nr;
	TEST_ASSERT(nr >= NR_ROUNDS - 1, "Only %lu page faults in L2", nr);
	kvm_vm_free(vcpu->vm);
}

TEST(l1_toggles_xcr0)
{
	struct kvm_vcpu *vcpu = create_nested_vm(l1_enables_and_disables);
	int i;

	for (i = 0; i < NR_ROUNDS; i++) {
		run_vcpu(vcpu, i);
		check_xsave_seed(vcpu, i + 2000);
	}
	run_vcpu_to_the_end(vcpu);
	kvm_vm_free(vcpu->vm);
}

TEST(l1_emulates_xsetbv)
{
	struct kvm_vcpu *vcpu = create_nested_vm(l1_intercepts_xsetbv);

	run_vcpu_to_the_end(vcpu);
	kvm_vm_free(vcpu->vm);
}

TEST(l0_emulates_xsetbv)
{
	struct kvm_vcpu *vcpu;

	if (kvm_cpu_has(X86_FEATURE_VMX))
		SKIP(return, "XSETBV always exits to L1");

	vcpu = create_nested_vm(l1_ignores_xsetbv);
	run_vcpu_to_the_end(vcpu);
	kvm_vm_free(vcpu->vm);
}

TEST(values_survive_save_and_restore)
{
	struct kvm_vcpu *vcpu = create_nested_vm(l1_save_restore);
	struct kvm_vm *vm = vcpu->vm;
	int i;

	/* L2 is active, L1 is active, and L2 is active without APX. */
	for (i = 1; i <= 3; i++) {
		run_vcpu(vcpu, i);
		vcpu = migrate_vcpu(vcpu);
		check_xsave_seed(vcpu, max(i, 2));
	}
	run_vcpu_to_the_end(vcpu);
	kvm_vm_free(vm);
}

TEST(values_survive_failed_entry)
{
	struct kvm_vcpu *vcpu = create_nested_vm(l1_failed_entry);

	run_vcpu_to_the_end(vcpu);
	kvm_vm_free(vcpu->vm);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_APX));
	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_VMX) || kvm_cpu_has(X86_FEATURE_SVM));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_NESTED_STATE));

	return test_harness_run(argc, argv);
}
