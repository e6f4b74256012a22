// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test that SMI and RSM leave R16-R31 alone.  SMRAM has no place for them, i.e.
 * an SMI handler finds what was interrupted, and what it changes is there to
 * stay.
 */
#include <string.h>

#include "kselftest_harness.h"
#include "apic.h"
#include "apx.h"
#include "kvm_util.h"
#include "processor.h"
#include "smm.h"
#include "svm_util.h"
#include "test_util.h"
#include "vmx.h"

#ifndef __x86_64__
# error This test is 64-bit only
#endif

#define NR_ROUNDS	4

#define SMRAM_GPA	0x1000000

/*
 * In SMM, there's no memory but SMRAM, i.e. the 64-bit handler needs page tables
 * and a GDT of its own.
 */
#define SMRAM_PML4	(SMRAM_GPA + 0x1000)
#define SMRAM_PDPT	(SMRAM_GPA + 0x2000)
#define SMRAM_PD	(SMRAM_GPA + 0x3000)
#define SMRAM_GDT	(SMRAM_GPA + 0x4000)
#define SMRAM_GDTR	(SMRAM_GPA + 0x4800)
#define SMRAM_CS	0x8

/* Where smi_handler_64 is when it gets to 64-bit mode. */
#define SMI_HANDLER_64_BIT	0x42

/* The port that the SMI handlers read to exit to userspace. */
#define SMI_PORT	0xe

/* What the 64-bit handler adds to R16, in two steps. */
#define SMI_STEP	3

/* In real mode, R16-R31 are out of reach. */
static const u8 smi_handler_16[] = {
	0xe4, SMI_PORT,				/* in $SMI_PORT, %al */
	0x0f, 0xaa,				/* rsm */
};

/* Gets to 64-bit mode first.  The addresses are those of the tables above. */
static const u8 smi_handler_64[] = {
	0x66, 0xbb, 0x00, 0x48, 0x00, 0x01,	/* mov $SMRAM_GDTR, %ebx */
	0x67, 0x66, 0x0f, 0x01, 0x13,		/* lgdtl (%ebx) */
	0x66, 0xb8, 0x00, 0x10, 0x00, 0x01,	/* mov $SMRAM_PML4, %eax */
	0x0f, 0x22, 0xd8,			/* mov %eax, %cr3 */
	/* PAE, OSFXSR, and OSXSAVE. */
	0x66, 0xb8, 0x20, 0x02, 0x04, 0x00,	/* mov $0x40220, %eax */
	0x0f, 0x22, 0xe0,			/* mov %eax, %cr4 */
	/* EFER.LME. */
	0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0,	/* mov $MSR_EFER, %ecx */
	0x66, 0xb8, 0x00, 0x01, 0x00, 0x00,	/* mov $0x100, %eax */
	0x66, 0x31, 0xd2,			/* xor %edx, %edx */
	0x0f, 0x30,				/* wrmsr */
	/* PG and PE. */
	0x0f, 0x20, 0xc0,			/* mov %cr0, %eax */
	0x66, 0x0d, 0x01, 0x00, 0x00, 0x80,	/* or $0x80000001, %eax */
	0x0f, 0x22, 0xc0,			/* mov %eax, %cr0 */
	/* To the next instruction, which is the first one in 64-bit mode. */
	0x66, 0xea, SMI_HANDLER_64_BIT, 0x80,	/* ljmpl $SMRAM_CS, $0x1008042 */
	0x00, 0x01, SMRAM_CS, 0x00,

	0xd5, 0x18, 0x83, 0xc0, SMI_STEP,	/* add $SMI_STEP, %r16 */
	0xe4, SMI_PORT,				/* in $SMI_PORT, %al */
	0xd5, 0x18, 0x83, 0xc0, SMI_STEP,	/* add $SMI_STEP, %r16 */
	0x0f, 0xaa,				/* rsm */
};

/* Set by the host. */
static void *nested_data;
static u64 smi_step;

static void guest_check_after_smi(u64 seed)
{
	struct egprs egprs;

	store_egprs(&egprs);
	egprs.r[0] -= 2 * smi_step;
	load_egprs(&egprs);
	guest_check_egprs(seed);
}

static void guest_code(void)
{
	u64 seed;

	x2apic_enable();

	for (seed = 0; seed < NR_ROUNDS; seed++) {
		guest_load_egprs(seed);
		x2apic_write_reg(APIC_ICR, APIC_DEST_SELF | APIC_INT_ASSERT |
					   APIC_DM_SMI);
		guest_check_after_smi(seed);
	}
	GUEST_DONE();
}

/* The host sends an SMI when it gets a sync from L2. */
static void l2_guest_code(void)
{
	u64 seed;

	for (seed = 0; seed < NR_ROUNDS; seed++) {
		guest_load_egprs(seed);
		GUEST_SYNC(seed);
		guest_check_after_smi(seed);
	}
	guest_load_egprs(1000);

	if (host_cpu_is_intel)
		vmcall();
	else
		vmmcall();
}

#define L2_STACK_SIZE	512
static u64 l2_stack[L2_STACK_SIZE] __aligned(16);

static void l1_guest_code(void)
{
	struct svm_test_data *svm = nested_data;
	struct vmx_pages *vmx = nested_data;
	void *rsp = &l2_stack[L2_STACK_SIZE - 1];

	if (host_cpu_is_intel) {
		GUEST_ASSERT(prepare_for_vmx_operation(vmx));
		GUEST_ASSERT(load_vmcs(vmx));
		prepare_vmcs(vmx, l2_guest_code, rsp);
		GUEST_ASSERT(!vmlaunch());
		GUEST_ASSERT_EQ(vmreadz(VM_EXIT_REASON), EXIT_REASON_VMCALL);
	} else {
		generic_svm_setup(svm, l2_guest_code, rsp);
		run_guest(svm->vmcb, svm->vmcb_gpa);
		GUEST_ASSERT_EQ(svm->vmcb->control.exit_code, SVM_EXIT_VMMCALL);
	}
	guest_check_egprs(1000);
	GUEST_DONE();
}

static void write_smram(struct kvm_vm *vm, u64 gpa, const void *data, size_t size)
{
	memcpy(addr_gpa2hva(vm, gpa), data, size);
}

static void setup_smram_tables(struct kvm_vm *vm)
{
	const u64 pml4e = SMRAM_PDPT | 0x3;
	const u64 pdpte = SMRAM_PD | 0x3;
	const u64 pde = SMRAM_GPA | 0x83;
	const u64 gdt[] = { 0, 0x00af9b000000ffffull };
	const struct desc_ptr gdtr = {
		.size = sizeof(gdt) - 1,
		.address = SMRAM_GDT,
	};

	/* Map the 2MiB that SMRAM is in. */
	write_smram(vm, SMRAM_PML4, &pml4e, sizeof(pml4e));
	write_smram(vm, SMRAM_PDPT, &pdpte, sizeof(pdpte));
	write_smram(vm, SMRAM_PD + (SMRAM_GPA >> 21) * 8, &pde, sizeof(pde));

	write_smram(vm, SMRAM_GDT, gdt, sizeof(gdt));
	write_smram(vm, SMRAM_GDTR, &gdtr, sizeof(gdtr));
}

static void test_smi(bool is_64bit, bool is_nested)
{
	const u8 *handler = is_64bit ? smi_handler_64 : smi_handler_16;
	size_t size = is_64bit ? sizeof(smi_handler_64) : sizeof(smi_handler_16);
	struct kvm_vcpu *vcpu;
	struct egprs egprs;
	struct kvm_vm *vm;
	struct ucall uc;
	int nr_smis = 0;
	gva_t gva;

	vm = vm_create_with_one_vcpu(&vcpu, is_nested ? l1_guest_code : guest_code);
	setup_smram(vm, vcpu, SMRAM_GPA, handler, size);
	setup_smram_tables(vm);

	if (is_nested) {
		if (host_cpu_is_intel)
			vcpu_alloc_vmx(vm, &gva);
		else
			vcpu_alloc_svm(vm, &gva);
		nested_data = (void *)gva;
		sync_global_to_guest(vm, nested_data);
	}
	smi_step = is_64bit ? SMI_STEP : 0;
	sync_global_to_guest(vm, smi_step);

	for (;;) {
		run_vcpu_once(vcpu);
		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);

		if (vcpu->run->io.port == SMI_PORT) {
			/* In the handler.  Migrate there every other time. */
			vcpu_run_complete_io(vcpu);
			fill_egprs(&egprs, nr_smis);
			egprs.r[0] += smi_step;
			check_xsave(vcpu, &egprs);
			if (nr_smis++ & 1)
				vcpu = migrate_vcpu(vcpu);
			check_xsave(vcpu, &egprs);
			continue;
		}

		switch (get_ucall(vcpu, &uc)) {
		case UCALL_SYNC:
			TEST_ASSERT_EQ(uc.args[1], nr_smis);
			inject_smi(vcpu);
			continue;
		case UCALL_DONE:
			TEST_ASSERT_EQ(nr_smis, NR_ROUNDS);
			kvm_vm_free(vm);
			return;
		case UCALL_ABORT:
			REPORT_GUEST_ASSERT(uc);
			break;
		default:
			TEST_FAIL("Unexpected ucall %lu", uc.cmd);
		}
	}
}

#define REQUIRE_NESTED()						\
	do {								\
		if (!kvm_cpu_has(X86_FEATURE_VMX) &&			\
		    !kvm_cpu_has(X86_FEATURE_SVM))			\
			SKIP(return, "no nested virtualization");	\
		if (!kvm_has_cap(KVM_CAP_NESTED_STATE))			\
			SKIP(return, "no KVM_CAP_NESTED_STATE");	\
	} while (0)

TEST(handler_in_real_mode)
{
	test_smi(false, false);
}

TEST(handler_in_64_bit_mode)
{
	test_smi(true, false);
}

TEST(handler_in_real_mode_interrupts_l2)
{
	REQUIRE_NESTED();
	test_smi(false, true);
}

TEST(handler_in_64_bit_mode_interrupts_l2)
{
	REQUIRE_NESTED();
	test_smi(true, true);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_APX));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_X86_SMM));

	/* The first instruction with REX2, to where the far jump has to lead. */
	TEST_ASSERT_EQ(smi_handler_64[SMI_HANDLER_64_BIT], 0xd5);

	return test_harness_run(argc, argv);
}
