// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test that KVM and, for nested VMX, L1 learn which of R0-R31 an intercepted
 * instruction uses, i.e. exit qualifications and instruction information on
 * Intel, and what KVM does instead of using decode assists on AMD.
 *
 * CR3 and INVPCID exit only with kvm_intel.ept=0 or kvm_amd.npt=0, run the test
 * both ways.  What doesn't need R16-R31 also runs on CPUs without APX.
 */
#include <stdlib.h>
#include <string.h>

#include "kselftest_harness.h"
#include "apic.h"
#include "apx.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "vmx.h"

#ifndef __x86_64__
# error This test is 64-bit only
#endif

/* IA32_VMX_EPT_VPID_CAP: the instructions, and the types that are used here. */
#define VMX_EPT_VPID_CAP_INVEPT		BIT_ULL(20)
#define VMX_EPT_VPID_CAP_INVEPT_GLOBAL	BIT_ULL(26)
#define VMX_EPT_VPID_CAP_INVVPID	BIT_ULL(32)
#define VMX_EPT_VPID_CAP_INVVPID_SINGLE	BIT_ULL(41)

/* VMfailInvalid and VMfailValid. */
#define EFLAGS_FAIL		(X86_EFLAGS_CF | X86_EFLAGS_ZF)

/* Code that the guest writes for itself: one instruction and a RET. */
static u8 *code;

static u8 *emit(u8 *p, u8 prefix, u8 opcode, int reg, int index, int base)
{
	if (prefix)
		*p++ = prefix;
	*p++ = 0xd5;
	*p++ = 0x80 | ((reg & 16) << 2) | ((index & 16) << 1) | (base & 16) |
	       ((reg & 8) >> 1) | ((index & 8) >> 2) | ((base & 8) >> 3);
	*p++ = opcode;
	return p;
}

/* Map 1, register form. */
static void emit_reg(u8 prefix, u8 opcode, int reg, int rm)
{
	u8 *p = emit(code, prefix, opcode, reg, 0, rm);

	*p++ = 0xc0 | ((reg & 7) << 3) | (rm & 7);
	*p = 0xc3;
}

/* Map 1, memory form: disp(base, index, 1 << scale). */
static void emit_mem(u8 prefix, u8 opcode, int reg, int base, int index,
		     int scale, s8 disp)
{
	u8 *p = emit(code, prefix, opcode, reg, index, base);

	*p++ = 0x44 | ((reg & 7) << 3);
	*p++ = (scale << 6) | ((index & 7) << 3) | (base & 7);
	*p++ = disp;
	*p = 0xc3;
}

/*
 * EVEX map 4, F3 prefix, memory form.  Unlike with REX2, the bits of registers
 * are inverted, except for B4, and X4 is where other maps have U.
 */
static void emit_evex_mem(u8 opcode, int reg, int base, int index, int scale,
			  s8 disp)
{
	u8 *p = code;

	*p++ = 0x62;
	*p++ = ((~reg & 8) << 4) | ((~index & 8) << 3) | ((~base & 8) << 2) |
	       (~reg & 16) | ((base & 16) >> 1) | 4;
	*p++ = 0x78 | ((~index & 16) >> 2) | 2;
	*p++ = 0x08;
	*p++ = opcode;
	*p++ = 0x44 | ((reg & 7) << 3);
	*p++ = (scale << 6) | ((index & 7) << 3) | (base & 7);
	*p++ = disp;
	*p = 0xc3;
}

/* RDMSR and WRMSRNS with an immediate: EVEX map 7, F2 or F3 prefix. */
static void emit_msr_imm(bool write, int reg, u32 msr)
{
	u8 *p = code;

	*p++ = 0x62;
	*p++ = 0xd7 | ((~reg & 8) << 2) | ((reg & 16) >> 1);
	*p++ = 0x7c | (write ? 2 : 3);
	*p++ = 0x08;
	*p++ = 0xf6;
	*p++ = 0xc0 | (reg & 7);
	memcpy(p, &msr, sizeof(msr));
	p[sizeof(msr)] = 0xc3;
}

/*
 * Execute the code with R16-R31 from @egprs, and back.  There may be anything
 * in the other GPRs after an exit from L2 to L1, except for RSP.
 */
static u64 exec(struct egprs *egprs)
{
	u64 flags;

	load_egprs(egprs);
	asm volatile(ASM_KEEP_RBP("call *%%rax\n\t"
				  "pushfq\n\t"
				  "pop %%rax")
		     : "=a"(flags)
		     : "a"(code)
		     : "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10",
		       "r11", "r12", "r13", "r14", "r15", "cc", "memory");
	store_egprs(egprs);
	return flags;
}

/* Values that are neither canonical nor valid in any control register. */
static void fill(struct egprs *egprs, u64 seed)
{
	int i;

	fill_egprs(egprs, seed);
	for (i = 0; i < NR_EGPRS; i++)
		egprs->r[i] = (egprs->r[i] & ~GENMASK_ULL(63, 48)) |
			      0x7a00000000000000ull | ((u64)i << 48);
}

#define egpr(egprs, nr)	((egprs)->r[(nr) - 16])

static void check_same(const struct egprs *before, const struct egprs *after,
		       const char *what, int nr)
{
	int i;

	for (i = 16; i < 32; i++)
		__GUEST_ASSERT(egpr(before, i) == egpr(after, i),
			       "%s, R%d: wanted R%d = 0x%lx, got 0x%lx", what,
			       nr, i, egpr(before, i), egpr(after, i));
}

static void exec_and_check_same(struct egprs *egprs, const char *what, int nr)
{
	struct egprs before = *egprs;

	exec(egprs);
	check_same(&before, egprs, what, nr);
}

/* Write @val via R16-R31[@nr]. */
static void write_reg(const char *what, u8 opcode, int reg, int nr, u64 val)
{
	struct egprs egprs;

	fill(&egprs, nr);
	egpr(&egprs, nr) = val;
	emit_reg(0, opcode, reg, nr);
	exec_and_check_same(&egprs, what, nr);
}

/* Read to R16-R31[@nr], the only one that changes. */
static u64 read_reg(const char *what, u8 opcode, int reg, int nr)
{
	struct egprs before, egprs;
	u64 val;

	fill(&egprs, nr + 1);
	before = egprs;
	emit_reg(0, opcode, reg, nr);
	exec(&egprs);
	val = egpr(&egprs, nr);
	egpr(&egprs, nr) = egpr(&before, nr);
	check_same(&before, &egprs, what, nr);
	return val;
}

#define GRP6		0x00
#define GRP7		0x01
#define MOV_FROM_CR	0x20
#define MOV_FROM_DR	0x21
#define MOV_TO_CR	0x22
#define MOV_TO_DR	0x23
#define VMREAD		0x78
#define VMWRITE		0x79
#define GRP9		0xc7

static struct kvm_vm *create_vm(struct kvm_vcpu **vcpu, void *guest_code)
{
	struct kvm_vm *vm = vm_create_with_one_vcpu(vcpu, guest_code);

	code = (void *)vm_alloc_page(vm);
	sync_global_to_guest(vm, code);
	return vm;
}

#define REQUIRE_APX()							\
	do {								\
		if (!kvm_cpu_has(X86_FEATURE_APX))			\
			SKIP(return, "no APX");				\
	} while (0)

#define REQUIRE_NESTED_VMX()						\
	do {								\
		if (!kvm_cpu_has(X86_FEATURE_VMX))			\
			SKIP(return, "no nested VMX");			\
	} while (0)

/* For the first time, there are exits because of memory that isn't there yet. */
static void guest_twice(void (*body)(void))
{
	body();
	GUEST_SYNC(1);
	body();
	GUEST_DONE();
}

static struct kvm_vm *create_vm_twice(struct kvm_vcpu **vcpu, void (*body)(void))
{
	struct kvm_vm *vm = create_vm(vcpu, guest_twice);

	vcpu_args_set(*vcpu, 1, body);
	return vm;
}

/* Exits from the guest's sync to its end, which is one itself. */
static u64 count_exits(struct kvm_vcpu *vcpu)
{
	u64 nr;

	run_vcpu(vcpu, 1);
	nr = vcpu_get_stat(vcpu, exits);
	run_vcpu_to_the_end(vcpu);
	return vcpu_get_stat(vcpu, exits) - nr - 1;
}

static void guest_cr(void)
{
	u64 val;
	int nr;

	for (nr = 16; nr < 32; nr++) {
		/* ET is fixed to 1, but clear initially. */
		val = (get_cr0() ^ X86_CR0_AM) | X86_CR0_ET;
		write_reg("mov to cr0", MOV_TO_CR, 0, nr, val);
		GUEST_ASSERT_EQ(get_cr0(), val);
		GUEST_ASSERT_EQ(read_reg("mov from cr0", MOV_FROM_CR, 0, nr), val);

		val = get_cr3() ^ BIT(3 + (nr & 1));
		write_reg("mov to cr3", MOV_TO_CR, 3, nr, val);
		GUEST_ASSERT_EQ(get_cr3(), val);
		GUEST_ASSERT_EQ(read_reg("mov from cr3", MOV_FROM_CR, 3, nr), val);

		val = get_cr4() ^ X86_CR4_MCE;
		write_reg("mov to cr4", MOV_TO_CR, 4, nr, val);
		GUEST_ASSERT_EQ(get_cr4(), val);
		GUEST_ASSERT_EQ(read_reg("mov from cr4", MOV_FROM_CR, 4, nr), val);

		val = nr & 15;
		write_reg("mov to cr8", MOV_TO_CR, 8, nr, val);
		GUEST_ASSERT_EQ(get_cr8(), val);
		GUEST_ASSERT_EQ(read_reg("mov from cr8", MOV_FROM_CR, 8, nr), val);
		write_reg("mov to cr8", MOV_TO_CR, 8, nr, 0);
	}
}

TEST(mov_cr_uses_the_right_gpr)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u64 nr, nr_min;

	REQUIRE_APX();

	/*
	 * CR4 writes on both, CR0 writes on Intel, and four CR3 accesses per
	 * round without TDP.
	 */
	nr_min = 1 + host_cpu_is_intel + (kvm_is_tdp_enabled() ? 0 : 4);

	vm = create_vm_twice(&vcpu, guest_cr);
	nr = count_exits(vcpu);
	TEST_ASSERT(nr >= 16 * nr_min, "Only %lu exits, wanted %lu", nr, 16 * nr_min);
	kvm_vm_free(vm);
}

static void guest_dr(void)
{
	int nr, dr;
	u64 val;

	for (nr = 16; nr < 32; nr++) {
		for (dr = 0; dr < 4; dr++) {
			val = 0x7ff000000000ull + nr * 0x1000 + dr;
			write_reg("mov to dr", MOV_TO_DR, dr, nr, val);
			GUEST_ASSERT_EQ(read_reg("mov from dr", MOV_FROM_DR, dr,
						 47 - nr), val);
		}
		write_reg("mov to dr7", MOV_TO_DR, 7, nr, 0x400 | ((nr & 1) << 9));
		GUEST_ASSERT_EQ(read_reg("mov from dr7", MOV_FROM_DR, 7, nr),
				0x400 | ((nr & 1) << 9));
	}
}

/* The debugger's registers are in use, KVM has to emulate all accesses. */
TEST(mov_dr_uses_the_right_gpr)
{
	struct kvm_guest_debug debug = {
		.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP,
		.arch.debugreg[7] = 0x400,
	};
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u64 nr;

	REQUIRE_APX();

	vm = create_vm_twice(&vcpu, guest_dr);
	vcpu_guest_debug_set(vcpu, &debug);
	nr = count_exits(vcpu);
	TEST_ASSERT(nr >= 16 * 10, "Only %lu exits", nr);
	kvm_vm_free(vm);
}

/*
 * The same, without a debugger: the first access exits, the others don't, unless
 * an interrupt of the host comes in between.
 */
TEST(mov_dr_that_does_not_exit)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u64 nr;

	REQUIRE_APX();

	vm = create_vm_twice(&vcpu, guest_dr);
	nr = count_exits(vcpu);
	TEST_ASSERT(nr < 16 * 10 / 2, "%lu exits", nr);
	kvm_vm_free(vm);
}

/* INV{PCID,EPT,VPID} without APX. */
static u64 inv_r8_r15(u8 opcode, u64 type, const void *desc)
{
	u64 flags;

	/* 0x18(%r10, %r13, 4), %r15 and, with other values in them, all others. */
	asm volatile("mov %[type], %%r15\n\t"
		     "mov %[desc], %%r10\n\t"
		     "mov $-11, %%r13\n\t"
		     "add $(11 * 4 - 0x18), %%r10\n\t"
		     "mov $0x7a7a, %%r8\n\t"
		     "mov $0x7a7b, %%r9\n\t"
		     "mov $0x7a7c, %%r11\n\t"
		     "mov $0x7a7d, %%r12\n\t"
		     "mov $0x7a7e, %%r14\n\t"
		     "mov $0x7a7f, %%edi\n\t"
		     "cmp $0x80, %b[opcode]\n\t"
		     "je 1f\n\t"
		     "cmp $0x81, %b[opcode]\n\t"
		     "je 2f\n\t"
		     ".byte 0x66, 0x47, 0x0f, 0x38, 0x82, 0x7c, 0xaa, 0x18\n\t"
		     "jmp 3f\n\t"
		     "1: .byte 0x66, 0x47, 0x0f, 0x38, 0x80, 0x7c, 0xaa, 0x18\n\t"
		     "jmp 3f\n\t"
		     "2: .byte 0x66, 0x47, 0x0f, 0x38, 0x81, 0x7c, 0xaa, 0x18\n\t"
		     "3: lea -128(%%rsp), %%rsp\n\t"
		     "pushfq\n\t"
		     "pop %%rax\n\t"
		     "lea 128(%%rsp), %%rsp\n\t"
		     : "=a"(flags), [type]"+D"(type)
		     : [desc]"S"(desc), [opcode]"c"(opcode)
		     : "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
		       "cc", "memory");
	return flags;
}

/* R16-R31[@nr] as base, another one as index. */
static void fill_address(struct egprs *egprs, int base, int index, int scale,
			 s8 disp, void *addr)
{
	fill(egprs, base);
	egpr(egprs, index) = 0x123 + index;
	egpr(egprs, base) = (u64)addr - disp - (egpr(egprs, index) << scale);
}

static int next(int nr, int n)
{
	return 16 + ((nr + n) & 15);
}

/* The same with R16-R31, which takes EVEX: REX2 can't encode map 2. */
#define EVEX_INVEPT	0xf0
#define EVEX_INVVPID	0xf1
#define EVEX_INVPCID	0xf2

static u64 inv_egprs(u8 opcode, int nr, u64 type, void *desc)
{
	int index = next(nr, 5), reg = next(nr, 9), scale = nr & 3;
	struct egprs before, egprs;
	u64 flags;

	fill_address(&egprs, nr, index, scale, 0x18, desc);
	egpr(&egprs, reg) = type;
	before = egprs;
	emit_evex_mem(opcode, reg, nr, index, scale, 0x18);
	flags = exec(&egprs);
	check_same(&before, &egprs, "inv{ept,vpid,pcid}", nr);
	return flags;
}

static void guest_invpcid(void)
{
	u64 desc[2] __aligned(16) = {};

	inv_r8_r15(0x82, 2, desc);
	inv_r8_r15(0x82, 3, desc);
}

TEST(invpcid_with_r8_r15)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u64 nr;

	if (!kvm_cpu_has(X86_FEATURE_INVPCID))
		SKIP(return, "no INVPCID");
	if (kvm_is_tdp_enabled())
		SKIP(return, "INVPCID doesn't exit with TDP");

	vm = create_vm_twice(&vcpu, guest_invpcid);
	nr = count_exits(vcpu);
	TEST_ASSERT(nr >= 2, "Only %lu exits", nr);
	kvm_vm_free(vm);
}

static void guest_invpcid_egprs(void)
{
	u64 desc[2] __aligned(16) = {};
	int nr;

	for (nr = 16; nr < 32; nr++) {
		inv_egprs(EVEX_INVPCID, nr, 2, desc);
		inv_egprs(EVEX_INVPCID, nr, 3, desc);
	}
}

TEST(invpcid_with_r16_r31)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u64 nr;

	REQUIRE_APX();
	if (!kvm_cpu_has(X86_FEATURE_INVPCID))
		SKIP(return, "no INVPCID");
	if (kvm_is_tdp_enabled())
		SKIP(return, "INVPCID doesn't exit with TDP");

	vm = create_vm_twice(&vcpu, guest_invpcid_egprs);
	nr = count_exits(vcpu);
	TEST_ASSERT(nr >= 16 * 2, "Only %lu exits", nr);
	kvm_vm_free(vm);
}

/* One that KVM handles in its fast path, and one that it doesn't. */
static void guest_msr_imm(void)
{
	struct egprs before, egprs;
	u64 deadline;
	int nr;

	/* In no other mode are writes to the deadline seen. */
	x2apic_enable();
	x2apic_write_reg(APIC_LVTT, APIC_LVT_TIMER_TSCDEADLINE | APIC_LVT_MASKED | 0xf0);
	asm volatile("mfence" : : : "memory");

	for (nr = 16; nr < 32; nr++) {
		/* One that doesn't expire, it would read as 0. */
		deadline = rdtsc() + (1ull << 40) + nr;
		fill(&egprs, nr);
		egpr(&egprs, nr) = deadline;
		emit_msr_imm(true, nr, MSR_IA32_TSC_DEADLINE);
		exec_and_check_same(&egprs, "wrmsrns tsc_deadline", nr);
		GUEST_ASSERT_EQ(rdmsr(MSR_IA32_TSC_DEADLINE), deadline);
		wrmsr(MSR_IA32_TSC_DEADLINE, 0);

		fill(&egprs, nr);
		egpr(&egprs, nr) = 0x123400 + nr;
		emit_msr_imm(true, nr, MSR_IA32_TSC_ADJUST);
		exec_and_check_same(&egprs, "wrmsrns tsc_adjust", nr);
		GUEST_ASSERT_EQ(rdmsr(MSR_IA32_TSC_ADJUST), 0x123400 + nr);

		fill(&egprs, nr + 3);
		before = egprs;
		emit_msr_imm(false, nr, MSR_IA32_TSC_ADJUST);
		exec(&egprs);
		GUEST_ASSERT_EQ(egpr(&egprs, nr), 0x123400 + nr);
		egpr(&egprs, nr) = egpr(&before, nr);
		check_same(&before, &egprs, "rdmsr tsc_adjust", nr);
	}
}

TEST(msr_immediate_uses_the_right_gpr)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u64 nr;

	REQUIRE_APX();
	if (!kvm_cpu_has(X86_FEATURE_MSR_IMM))
		SKIP(return, "no RDMSR with an immediate");

	vm = create_vm_twice(&vcpu, guest_msr_imm);
	nr = count_exits(vcpu);
	/* Three with an immediate, three without. */
	TEST_ASSERT(nr >= 16 * 6, "Only %lu exits", nr);
	kvm_vm_free(vm);
}

/* An MSR that KVM doesn't know, but that userspace is asked for. */
#define MSR_USERSPACE	0x474f4f00

static u64 msr_value(int nr)
{
	return 0x5a00123456789a00ull + nr;
}

static void guest_msr_imm_userspace(void)
{
	struct egprs before, egprs;
	int nr;

	for (nr = 16; nr < 32; nr++) {
		fill(&egprs, nr);
		before = egprs;
		emit_msr_imm(false, nr, MSR_USERSPACE);
		exec(&egprs);
		GUEST_ASSERT_EQ(egpr(&egprs, nr), msr_value(nr));
		egpr(&egprs, nr) = egpr(&before, nr);
		check_same(&before, &egprs, "rdmsr in userspace", nr);

		fill(&egprs, nr + 5);
		egpr(&egprs, nr) = msr_value(nr + 100);
		emit_msr_imm(true, nr, MSR_USERSPACE);
		exec_and_check_same(&egprs, "wrmsrns in userspace", nr);
	}
	GUEST_DONE();
}

static void run_to_msr_exit(struct kvm_vcpu *vcpu, u32 reason)
{
	run_vcpu_once(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, reason);
	TEST_ASSERT_EQ(vcpu->run->msr.index, MSR_USERSPACE);
	vcpu->run->msr.error = 0;
}

TEST(msr_immediate_in_userspace_uses_the_right_gpr)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	int nr;

	REQUIRE_APX();
	if (!kvm_cpu_has(X86_FEATURE_MSR_IMM))
		SKIP(return, "no RDMSR with an immediate");
	/* Then KVM handles all MSRs. */
	if (kvm_is_ignore_msrs())
		SKIP(return, "kvm.ignore_msrs=1");

	vm = create_vm(&vcpu, guest_msr_imm_userspace);
	vm_enable_cap(vm, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_UNKNOWN);

	for (nr = 16; nr < 32; nr++) {
		run_to_msr_exit(vcpu, KVM_EXIT_X86_RDMSR);
		vcpu->run->msr.data = msr_value(nr);
		run_to_msr_exit(vcpu, KVM_EXIT_X86_WRMSR);
		TEST_ASSERT_EQ(vcpu->run->msr.data, msr_value(nr + 100));
	}
	run_vcpu_to_the_end(vcpu);
	kvm_vm_free(vm);
}

static void exec_mem(const char *what, u8 prefix, u8 opcode, int reg, int nr,
		     void *addr)
{
	int index = next(nr, 5), scale = nr & 3;
	struct egprs before, egprs;
	u64 flags;

	fill_address(&egprs, nr, index, scale, -8 * (nr & 3), addr);
	before = egprs;
	emit_mem(prefix, opcode, reg, nr, index, scale, -8 * (nr & 3));
	flags = exec(&egprs);
	__GUEST_ASSERT(!(flags & EFLAGS_FAIL), "%s with R%d failed", what, nr);
	check_same(&before, &egprs, what, nr);
}

static void l1_instructions(struct vmx_pages *vmx)
{
	struct egprs before, egprs;
	int nr, field, scale;
	u64 mem, flags;

	GUEST_ASSERT(prepare_for_vmx_operation(vmx));
	asm volatile("vmxoff");

	for (nr = 16; nr < 32; nr++) {
		if (nr != 16)
			asm volatile("vmxoff");
		mem = vmx->vmxon_gpa;
		exec_mem("vmxon", 0xf3, GRP9, 6, nr, &mem);
	}

	GUEST_ASSERT(load_vmcs(vmx));

	for (nr = 16; nr < 32; nr++) {
		mem = vmx->vmcs_gpa;
		exec_mem("vmclear", 0x66, GRP9, 6, nr, &mem);
		GUEST_ASSERT(vmptrstz() == -1ull);

		exec_mem("vmptrld", 0, GRP9, 6, nr, &mem);
		GUEST_ASSERT_EQ(vmptrstz(), vmx->vmcs_gpa);

		mem = 0;
		exec_mem("vmptrst", 0, GRP9, 7, nr, &mem);
		GUEST_ASSERT_EQ(mem, vmx->vmcs_gpa);
	}

	for (nr = 16; nr < 32; nr++) {
		for (field = 16; field < 32; field++) {
			if (nr == field)
				continue;

			/* Register forms, of a field that isn't shadowed. */
			fill(&egprs, nr);
			egpr(&egprs, field) = GUEST_SYSENTER_ESP;
			egpr(&egprs, nr) = 0x7f0000000000 + nr * 256 + field;
			emit_reg(0, VMWRITE, field, nr);
			before = egprs;
			flags = exec(&egprs);
			GUEST_ASSERT(!(flags & EFLAGS_FAIL));
			check_same(&before, &egprs, "vmwrite", nr);
			GUEST_ASSERT_EQ(vmreadz(GUEST_SYSENTER_ESP), egpr(&before, nr));

			fill(&egprs, nr);
			egpr(&egprs, field) = GUEST_SYSENTER_ESP;
			emit_reg(0, VMREAD, field, nr);
			egpr(&before, field) = GUEST_SYSENTER_ESP;
			flags = exec(&egprs);
			GUEST_ASSERT(!(flags & EFLAGS_FAIL));
			check_same(&before, &egprs, "vmread", nr);
		}

		/* Memory forms. */
		field = next(nr, 3);
		scale = nr & 3;
		mem = 0x7f1000000000 + nr;
		fill_address(&egprs, nr, next(nr, 9), scale, 0x40, &mem);
		egpr(&egprs, field) = GUEST_SYSENTER_EIP;
		emit_mem(0, VMWRITE, field, nr, next(nr, 9), scale, 0x40);
		before = egprs;
		flags = exec(&egprs);
		GUEST_ASSERT(!(flags & EFLAGS_FAIL));
		GUEST_ASSERT_EQ(vmreadz(GUEST_SYSENTER_EIP), mem);

		mem = 0;
		emit_mem(0, VMREAD, field, nr, next(nr, 9), scale, 0x40);
		flags = exec(&egprs);
		GUEST_ASSERT(!(flags & EFLAGS_FAIL));
		GUEST_ASSERT_EQ(vmreadz(GUEST_SYSENTER_EIP), mem);
		check_same(&before, &egprs, "vmread/vmwrite to/from memory", nr);
	}
	GUEST_DONE();
}

static struct kvm_vm *create_nested_vm(struct kvm_vcpu **vcpu, void *l1_code)
{
	struct kvm_vm *vm = create_vm(vcpu, l1_code);
	gva_t vmx_gva;

	vcpu_alloc_vmx(vm, &vmx_gva);
	vcpu_args_set(*vcpu, 1, vmx_gva);
	return vm;
}

TEST(l1_vmx_instructions_use_the_right_gprs)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;

	REQUIRE_NESTED_VMX();
	REQUIRE_APX();

	vm = create_nested_vm(&vcpu, l1_instructions);
	run_vcpu_to_the_end(vcpu);
	kvm_vm_free(vm);
}

static void l1_invept_invvpid(struct vmx_pages *vmx)
{
	u64 cap, desc[2] __aligned(16) = {};
	int nr;

	GUEST_ASSERT(prepare_for_vmx_operation(vmx));
	GUEST_ASSERT(load_vmcs(vmx));

	cap = rdmsr(MSR_IA32_VMX_EPT_VPID_CAP);
	if (cap & VMX_EPT_VPID_CAP_INVEPT_GLOBAL) {
		GUEST_ASSERT(!(inv_r8_r15(0x80, 2, desc) & EFLAGS_FAIL));
		GUEST_ASSERT(inv_r8_r15(0x80, 7, desc) & X86_EFLAGS_ZF);
	}
	if (cap & VMX_EPT_VPID_CAP_INVVPID_SINGLE) {
		desc[0] = 1;
		GUEST_ASSERT(!(inv_r8_r15(0x81, 1, desc) & EFLAGS_FAIL));
		desc[0] = BIT(16);
		GUEST_ASSERT(inv_r8_r15(0x81, 1, desc) & X86_EFLAGS_ZF);
	}

	for (nr = 16; nr < 32 && this_cpu_has(X86_FEATURE_APX); nr++) {
		if (cap & VMX_EPT_VPID_CAP_INVEPT_GLOBAL) {
			desc[0] = 0;
			GUEST_ASSERT(!(inv_egprs(EVEX_INVEPT, nr, 2, desc) & EFLAGS_FAIL));
			GUEST_ASSERT(inv_egprs(EVEX_INVEPT, nr, 7, desc) & X86_EFLAGS_ZF);
		}
		if (cap & VMX_EPT_VPID_CAP_INVVPID_SINGLE) {
			desc[0] = 1;
			GUEST_ASSERT(!(inv_egprs(EVEX_INVVPID, nr, 1, desc) & EFLAGS_FAIL));
			desc[0] = BIT(16);
			GUEST_ASSERT(inv_egprs(EVEX_INVVPID, nr, 1, desc) & X86_EFLAGS_ZF);
		}
	}
	GUEST_DONE();
}

TEST(l1_invept_and_invvpid_use_the_right_gprs)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u64 cap;

	REQUIRE_NESTED_VMX();

	cap = kvm_get_feature_msr(MSR_IA32_VMX_EPT_VPID_CAP);
	if (kvm_is_tdp_enabled())
		TEST_ASSERT(cap & VMX_EPT_VPID_CAP_INVEPT_GLOBAL, "No INVEPT");
	if (get_kvm_intel_param_bool("vpid"))
		TEST_ASSERT(cap & VMX_EPT_VPID_CAP_INVVPID_SINGLE, "No INVVPID");
	if (!(cap & (VMX_EPT_VPID_CAP_INVEPT_GLOBAL | VMX_EPT_VPID_CAP_INVVPID_SINGLE)))
		SKIP(return, "neither INVEPT nor INVVPID");

	vm = create_nested_vm(&vcpu, l1_invept_invvpid);
	run_vcpu_to_the_end(vcpu);
	kvm_vm_free(vm);
}

/* What L1 has to see when L2 exits, next. */
static struct {
	u64 reason;
	u64 qual, qual_mask;
	u64 info, info_mask;
	u64 ext, ext_mask;
} want;

static int nr_l2_exits;

static void l1_run_l2(bool apx)
{
	u64 reason, ext, info, qual;
	bool launched = false;

	for (;;) {
		GUEST_ASSERT(!(launched ? vmresume() : vmlaunch()));
		launched = true;

		reason = vmreadz(VM_EXIT_REASON);
		if (reason == EXIT_REASON_VMCALL)
			return;

		__GUEST_ASSERT(reason == want.reason, "Wanted exit %lu, got %lu",
			       want.reason, reason);
		nr_l2_exits++;

		qual = vmreadz(EXIT_QUALIFICATION);
		__GUEST_ASSERT((qual & want.qual_mask) == want.qual,
			       "Exit %lu: wanted qualification 0x%lx, got 0x%lx",
			       reason, want.qual, qual);

		if (apx) {
			GUEST_ASSERT(!vmread(EXTENDED_INSTRUCTION_INFO, &ext));
			__GUEST_ASSERT((ext & want.ext_mask) == want.ext,
				       "Exit %lu: wanted extended information 0x%lx, got 0x%lx",
				       reason, want.ext, ext);
			GUEST_ASSERT_EQ(vmreadz(EXTENDED_INSTRUCTION_INFO + 1),
					ext >> 32);
		} else {
			/* L1 with APX has no need for it, and mayn't find it there. */
			info = vmreadz(VMX_INSTRUCTION_INFO);
			__GUEST_ASSERT((info & want.info_mask) == want.info,
				       "Exit %lu: wanted information 0x%lx, got 0x%lx",
				       reason, want.info, info);

			GUEST_ASSERT(vmread(EXTENDED_INSTRUCTION_INFO, &ext));
			GUEST_ASSERT_EQ(vmreadz(VM_INSTRUCTION_ERROR),
					VMXERR_UNSUPPORTED_VMCS_COMPONENT);
			GUEST_ASSERT(vmread(EXTENDED_INSTRUCTION_INFO + 1, &ext));
		}
		memset(&want, 0, sizeof(want));
		vmwrite(GUEST_RIP, vmreadz(GUEST_RIP) +
				   vmreadz(VM_EXIT_INSTRUCTION_LEN));
	}
}

static void want_reg(int reason, int reg1, int reg2)
{
	want.reason = reason;
	want.ext_mask = BIT(4) | GENMASK_ULL(20, 16) | GENMASK_ULL(44, 40);
	want.ext = BIT(4) | (reg1 << 16) | ((u64)reg2 << 40);
	want.info_mask = BIT(10) | GENMASK_ULL(6, 3) | GENMASK_ULL(31, 28);
	want.info = BIT(10) | ((reg1 & 15) << 3) | ((u64)(reg2 & 15) << 28);
}

/* R20 and the like are as R12, not as RSP, but that isn't for KVM to decide. */
static u64 segment_mask(int base, u64 mask)
{
	return base >= 16 && (base & 6) == 4 ? 0 : mask;
}

static void want_mem(int reason, int base, int index, int scale, int disp)
{
	want.reason = reason;
	want.qual_mask = -1ull;
	want.qual = disp;
	want.ext_mask = GENMASK_ULL(4, 0) | GENMASK_ULL(11, 10) |
			GENMASK_ULL(28, 24) | GENMASK_ULL(36, 32) |
			segment_mask(base, GENMASK_ULL(9, 7));
	want.ext = scale | (2 << 2) | ((u64)index << 24) | ((u64)base << 32) |
		   segment_mask(base, 3 << 7);
	want.info_mask = GENMASK_ULL(1, 0) | GENMASK_ULL(10, 7) |
			 GENMASK_ULL(27, 18) | segment_mask(base, GENMASK_ULL(17, 15));
	want.info = scale | (2 << 7) | ((index & 15) << 18) |
		    ((u64)(base & 15) << 23) | segment_mask(base, 3 << 15);
}

/* INVEPT, INVVPID, and INVPCID, with a register beside the memory operand. */
static void want_inv(int reason, int reg, int base, int index, int scale, int disp)
{
	want_mem(reason, base, index, scale, disp);
	want.ext_mask |= GENMASK_ULL(44, 40);
	want.ext |= (u64)reg << 40;
}

/* Of LLDT and so on, RDRAND and RDSEED; with operands of 32 bits. */
static void want_one_reg(int reason, int reg, bool has_size)
{
	want.reason = reason;
	want.qual_mask = -1ull;
	want.ext_mask = GENMASK_ULL(20, 16);
	want.ext = reg << 16;
	want.info_mask = GENMASK_ULL(6, 3);
	want.info = (reg & 15) << 3;
	if (has_size) {
		want.info_mask |= GENMASK_ULL(12, 11);
		want.info |= BIT(11);
	} else {
		want.ext_mask |= BIT(4);
		want.ext |= BIT(4);
		want.info_mask |= BIT(10);
		want.info |= BIT(10);
	}
}

/* Which of the instructions that share an exit it is; not known to be in @ext. */
static void want_identity(int identity)
{
	want.info_mask |= GENMASK_ULL(29, 28);
	want.info |= identity << 28;
}

static void want_msr_imm(int reason, int reg, u32 msr)
{
	want.reason = reason;
	want.qual_mask = -1ull;
	want.qual = msr;
	want.ext_mask = GENMASK_ULL(20, 16);
	want.ext = reg << 16;
}

static void want_dr(int dr, bool from, int reg)
{
	want.reason = EXIT_REASON_DR_ACCESS;
	want.qual_mask = 0x1f17;
	want.qual = dr | (from << 4) | (reg << 8);
}

static void want_cr(int cr, int type, int reg)
{
	want.reason = EXIT_REASON_CR_ACCESS;
	want.qual_mask = 0x1f3f;
	want.qual = cr | (type << 4) | (reg << 8);
}

#define L2_NR_EXITS	(16 * (2 + 1 + 1 + 2))

static void l2_guest_code(void)
{
	struct egprs egprs;
	u64 cr0;
	int nr;

	for (nr = 16; nr < 32; nr++) {
		fill(&egprs, nr);
		emit_reg(0, VMREAD, next(nr, 3), nr);
		want_reg(EXIT_REASON_VMREAD, nr, next(nr, 3));
		/* In all bitmaps, i.e. exits. */
		egpr(&egprs, next(nr, 3)) = GUEST_SYSENTER_EIP;
		exec_and_check_same(&egprs, "l2 vmread", nr);

		fill(&egprs, nr);
		emit_reg(0, VMWRITE, next(nr, 3), nr);
		want_reg(EXIT_REASON_VMWRITE, nr, next(nr, 3));
		egpr(&egprs, next(nr, 3)) = GUEST_SYSENTER_EIP;
		exec_and_check_same(&egprs, "l2 vmwrite", nr);

		/* In neither bitmap, i.e. doesn't exit. */
		fill(&egprs, nr);
		egpr(&egprs, next(nr, 3)) = GUEST_SYSENTER_ESP;
		egpr(&egprs, nr) = 0x7f2000000000 + nr;
		emit_reg(0, VMWRITE, next(nr, 3), nr);
		GUEST_ASSERT(!(exec(&egprs) & EFLAGS_FAIL));
		fill(&egprs, nr);
		egpr(&egprs, next(nr, 3)) = GUEST_SYSENTER_ESP;
		emit_reg(0, VMREAD, next(nr, 3), nr);
		GUEST_ASSERT(!(exec(&egprs) & EFLAGS_FAIL));
		GUEST_ASSERT_EQ(egpr(&egprs, nr), 0x7f2000000000 + nr);

		fill(&egprs, nr);
		emit_mem(0, GRP9, 6, nr, next(nr, 7), nr & 3, -nr);
		want_mem(EXIT_REASON_VMPTRLD, nr, next(nr, 7), nr & 3, -nr);
		exec_and_check_same(&egprs, "l2 vmptrld", nr);

		/* L1 wants AM, and nothing else, of CR0. */
		cr0 = get_cr0();
		want_cr(0, 0, nr);
		write_reg("l2 mov to cr0", MOV_TO_CR, 0, nr, cr0 ^ X86_CR0_AM);
		GUEST_ASSERT_EQ(get_cr0(), cr0);
		write_reg("l2 mov to cr0", MOV_TO_CR, 0, nr, cr0 ^ X86_CR0_MP);
		GUEST_ASSERT_EQ(get_cr0(), cr0 ^ X86_CR0_MP);

		/* L1 wants reads from CR8, and L0 needs writes. */
		write_reg("l2 mov to cr8", MOV_TO_CR, 8, nr, nr & 15);
		want_cr(8, 1, nr);
		read_reg("l2 mov from cr8", MOV_FROM_CR, 8, nr);

		/* L1 wants writes to CR3. */
		want_cr(3, 0, nr);
		write_reg("l2 mov to cr3", MOV_TO_CR, 3, nr, 0x5a5a5a);

		GUEST_ASSERT_EQ(want.reason, 0);
	}
	vmcall();
}

#define L2_STACK_SIZE	512
static u64 l2_stack[L2_STACK_SIZE] __aligned(16);

static void l1_prepare_l2(struct vmx_pages *vmx, void *l2_code)
{
	GUEST_ASSERT(prepare_for_vmx_operation(vmx));
	GUEST_ASSERT(load_vmcs(vmx));
	/* As if called, with respect to alignment. */
	prepare_vmcs(vmx, l2_code, &l2_stack[L2_STACK_SIZE - 1]);
}

static void l1_l2_exits(struct vmx_pages *vmx)
{
	u64 val;

	l1_prepare_l2(vmx, l2_guest_code);

	/* Present, and read-only unless KVM lets L1 write to all fields. */
	GUEST_ASSERT(!vmread(EXTENDED_INSTRUCTION_INFO, &val));
	if (vmwrite(EXTENDED_INSTRUCTION_INFO, 0x1234))
		GUEST_ASSERT_EQ(vmreadz(VM_INSTRUCTION_ERROR),
				VMXERR_VMWRITE_READ_ONLY_VMCS_COMPONENT);
	else
		GUEST_ASSERT_EQ(vmreadz(EXTENDED_INSTRUCTION_INFO), 0x1234);

	vmwrite(CR0_GUEST_HOST_MASK, X86_CR0_AM);
	vmwrite(CPU_BASED_VM_EXEC_CONTROL,
		(vmreadz(CPU_BASED_VM_EXEC_CONTROL) | CPU_BASED_CR3_LOAD_EXITING |
		 CPU_BASED_CR8_STORE_EXITING) & ~CPU_BASED_TPR_SHADOW);
	vmwrite(SECONDARY_VM_EXEC_CONTROL,
		vmreadz(SECONDARY_VM_EXEC_CONTROL) | SECONDARY_EXEC_SHADOW_VMCS);
	vmwrite(VMCS_LINK_POINTER, vmx->shadow_vmcs_gpa);
	memset(vmx->vmread, 0xff, PAGE_SIZE);
	memset(vmx->vmwrite, 0xff, PAGE_SIZE);
	((u8 *)vmx->vmread)[GUEST_SYSENTER_ESP / 8] &= ~BIT(GUEST_SYSENTER_ESP % 8);
	((u8 *)vmx->vmwrite)[GUEST_SYSENTER_ESP / 8] &= ~BIT(GUEST_SYSENTER_ESP % 8);

	l1_run_l2(true);
	GUEST_ASSERT_EQ(nr_l2_exits, L2_NR_EXITS);
	/* Of the last CR8 write that L1 doesn't intercept. */
	GUEST_ASSERT_EQ(get_cr8(), 15);
	GUEST_DONE();
}

TEST(l1_sees_r16_r31_of_l2_exits)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;

	REQUIRE_NESTED_VMX();
	REQUIRE_APX();

	vm = create_nested_vm(&vcpu, l1_l2_exits);
	run_vcpu_to_the_end(vcpu);
	kvm_vm_free(vm);
}

/* L2 can't look for it, CPUID and RDMSR would exit. */
static bool l2_has_invept, l2_has_invvpid, l2_has_invpcid, l2_has_msr_imm;

#define L2_SECONDARY_EXITING	(SECONDARY_EXEC_DESC |			\
				 SECONDARY_EXEC_RDRAND_EXITING |	\
				 SECONDARY_EXEC_RDSEED_EXITING)
static u32 l2_secondary_exiting;

static void l2_inv(int reason, u8 opcode, int nr)
{
	int index = next(nr, 5), reg = next(nr, 9), scale = nr & 3;
	struct egprs egprs;

	/* L1 gets to know before the operands are looked at. */
	fill(&egprs, nr);
	emit_evex_mem(opcode, reg, nr, index, scale, -nr);
	want_inv(reason, reg, nr, index, scale, -nr);
	exec_and_check_same(&egprs, "l2 inv{ept,vpid,pcid}", nr);
}

static void l2_msr_imm(int reason, bool write, int nr)
{
	struct egprs egprs;

	fill(&egprs, nr);
	emit_msr_imm(write, nr, MSR_IA32_TSC_ADJUST);
	want_msr_imm(reason, nr, MSR_IA32_TSC_ADJUST);
	exec_and_check_same(&egprs, "l2 {rd,wr}msr", nr);
}

static void l2_descriptor_tables(int nr)
{
	int op = nr & 3, index = next(nr, 5), scale = nr & 3;
	struct egprs egprs;

	/* SGDT, SIDT, LGDT, LIDT. */
	fill(&egprs, nr);
	emit_mem(0, GRP7, op, nr, index, scale, -nr);
	want_mem(EXIT_REASON_GDTR_IDTR, nr, index, scale, -nr);
	exec_and_check_same(&egprs, "l2 {s,l}{g,i}dt", nr);

	/* SLDT, STR, LLDT, LTR. */
	fill(&egprs, nr);
	emit_mem(0, GRP6, op, nr, index, scale, -nr);
	want_mem(EXIT_REASON_LDTR_TR, nr, index, scale, -nr);
	exec_and_check_same(&egprs, "l2 {sldt,str,lldt,ltr} with memory", nr);

	fill(&egprs, nr);
	emit_reg(0, GRP6, op, nr);
	want_one_reg(EXIT_REASON_LDTR_TR, nr, false);
	exec_and_check_same(&egprs, "l2 {sldt,str,lldt,ltr}", nr);
}

/* RDRAND and RDSEED. */
static void l2_random(int reason, int op, int nr)
{
	struct egprs egprs;

	fill(&egprs, nr);
	emit_reg(0, GRP9, op, nr);
	want_one_reg(reason, nr, true);
	exec_and_check_same(&egprs, "l2 rd{rand,seed}", nr);
}

static void l2_more_exits(void)
{
	struct egprs egprs;
	int nr;

	for (nr = 16; nr < 32; nr++) {
		fill(&egprs, nr);
		emit_reg(0, MOV_TO_DR, nr & 3, nr);
		want_dr(nr & 3, false, nr);
		exec_and_check_same(&egprs, "l2 mov to dr", nr);

		fill(&egprs, nr);
		emit_reg(0, MOV_FROM_DR, 7, nr);
		want_dr(7, true, nr);
		exec_and_check_same(&egprs, "l2 mov from dr", nr);

		if (l2_has_invept)
			l2_inv(EXIT_REASON_INVEPT, EVEX_INVEPT, nr);
		if (l2_has_invvpid)
			l2_inv(EXIT_REASON_INVVPID, EVEX_INVVPID, nr);
		if (l2_has_invpcid)
			l2_inv(EXIT_REASON_INVPCID, EVEX_INVPCID, nr);

		if (l2_has_msr_imm) {
			l2_msr_imm(EXIT_REASON_MSR_READ_IMM, false, nr);
			l2_msr_imm(EXIT_REASON_MSR_WRITE_IMM, true, nr);
		}

		if (l2_secondary_exiting & SECONDARY_EXEC_DESC)
			l2_descriptor_tables(nr);
		if (l2_secondary_exiting & SECONDARY_EXEC_RDRAND_EXITING)
			l2_random(EXIT_REASON_RDRAND, 6, nr);
		if (l2_secondary_exiting & SECONDARY_EXEC_RDSEED_EXITING)
			l2_random(EXIT_REASON_RDSEED, 7, nr);
		GUEST_ASSERT_EQ(want.reason, 0);
	}
	vmcall();
}

/* Those of the secondary controls that L1 has are set, and returned. */
static u32 l1_set_secondary(u32 controls)
{
	controls &= rdmsr(MSR_IA32_VMX_PROCBASED_CTLS2) >> 32;
	vmwrite(SECONDARY_VM_EXEC_CONTROL,
		vmreadz(SECONDARY_VM_EXEC_CONTROL) | controls);
	return controls;
}

static void l1_more_l2_exits(struct vmx_pages *vmx)
{
	u64 cap = rdmsr(MSR_IA32_VMX_EPT_VPID_CAP);
	int nr;

	l2_has_invept = cap & VMX_EPT_VPID_CAP_INVEPT;
	l2_has_invvpid = cap & VMX_EPT_VPID_CAP_INVVPID;
	l2_has_invpcid = this_cpu_has(X86_FEATURE_INVPCID);
	l2_has_msr_imm = this_cpu_has(X86_FEATURE_MSR_IMM);

	l1_prepare_l2(vmx, l2_more_exits);
	vmwrite(CPU_BASED_VM_EXEC_CONTROL,
		vmreadz(CPU_BASED_VM_EXEC_CONTROL) | CPU_BASED_MOV_DR_EXITING |
		(l2_has_invpcid ? CPU_BASED_INVLPG_EXITING : 0));
	l2_secondary_exiting = l1_set_secondary(L2_SECONDARY_EXITING |
		(l2_has_invpcid ? SECONDARY_EXEC_ENABLE_INVPCID : 0));

	l1_run_l2(true);
	nr = 2 + l2_has_invept + l2_has_invvpid + l2_has_invpcid +
	     2 * l2_has_msr_imm;
	nr += l2_secondary_exiting & SECONDARY_EXEC_DESC ? 3 : 0;
	nr += !!(l2_secondary_exiting & SECONDARY_EXEC_RDRAND_EXITING);
	nr += !!(l2_secondary_exiting & SECONDARY_EXEC_RDSEED_EXITING);
	GUEST_ASSERT_EQ(nr_l2_exits, 16 * nr);
	GUEST_DONE();
}

TEST(l1_sees_r16_r31_of_more_l2_exits)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;

	REQUIRE_NESTED_VMX();
	REQUIRE_APX();

	vm = create_nested_vm(&vcpu, l1_more_l2_exits);
	run_vcpu_to_the_end(vcpu);
	kvm_vm_free(vm);
}

static void l2_no_intercepts(void)
{
	int i, nr;

	for (i = 0; i < 2; i++) {
		for (nr = 16; nr < 32; nr++) {
			write_reg("l2 mov to cr8", MOV_TO_CR, 8, nr, nr & 15);
			GUEST_ASSERT_EQ(get_cr8(), nr & 15);
			GUEST_ASSERT_EQ(read_reg("l2 mov from cr8", MOV_FROM_CR, 8, nr),
					nr & 15);
			GUEST_ASSERT_EQ(read_reg("l2 mov from cr3", MOV_FROM_CR, 3, nr),
					get_cr3());
		}
		if (!i)
			GUEST_SYNC(1);
	}
	vmcall();
}

/* Without a TPR shadow in vmcs12, KVM intercepts CR8 and doesn't tell L1. */
static void l1_no_intercepts(struct vmx_pages *vmx)
{
	l1_prepare_l2(vmx, l2_no_intercepts);
	vmwrite(CPU_BASED_VM_EXEC_CONTROL, vmreadz(CPU_BASED_VM_EXEC_CONTROL) &
		~(CPU_BASED_TPR_SHADOW | CPU_BASED_CR8_LOAD_EXITING |
		  CPU_BASED_CR8_STORE_EXITING | CPU_BASED_CR3_LOAD_EXITING |
		  CPU_BASED_CR3_STORE_EXITING));
	l1_run_l2(true);
	GUEST_ASSERT_EQ(nr_l2_exits, 0);
	GUEST_ASSERT_EQ(get_cr8(), 15);
	GUEST_DONE();
}

TEST(l2_mov_cr_that_does_not_exit_to_l1)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u64 nr;

	REQUIRE_NESTED_VMX();
	REQUIRE_APX();

	vm = create_nested_vm(&vcpu, l1_no_intercepts);
	nr = count_exits(vcpu);
	TEST_ASSERT(nr >= 16 * 3, "Only %lu exits", nr);
	kvm_vm_free(vm);
}

static void l2_one_vmread(void)
{
	struct egprs egprs;

	fill(&egprs, 0);
	emit_reg(0, VMREAD, 29, 18);
	exec(&egprs);
	vmcall();
}

static void l1_save_restore(struct vmx_pages *vmx)
{
	u64 ext;

	l1_prepare_l2(vmx, l2_one_vmread);
	GUEST_ASSERT(!vmlaunch());
	GUEST_ASSERT_EQ(vmreadz(VM_EXIT_REASON), EXIT_REASON_VMREAD);
	ext = vmreadz(EXTENDED_INSTRUCTION_INFO);
	GUEST_ASSERT_EQ((ext >> 40) & 0x1f, 29);
	GUEST_SYNC(1);
	GUEST_ASSERT_EQ(vmreadz(EXTENDED_INSTRUCTION_INFO), ext);
	GUEST_DONE();
}

TEST(extended_info_survives_save_and_restore)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;

	REQUIRE_NESTED_VMX();
	REQUIRE_APX();

	vm = create_nested_vm(&vcpu, l1_save_restore);
	run_vcpu(vcpu, 1);

	vcpu = migrate_vcpu(vcpu);

	run_vcpu_to_the_end(vcpu);
	kvm_vm_free(vm);
}

#define L2_INSN(insn)							\
do {									\
	asm volatile(ASM_KEEP_RBP(insn)					\
		     : : : "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", \
			   "r9", "r10", "r11", "r12", "r13", "r14", "r15", \
			   "cc", "memory");				\
} while (0)

#define L2_DESCRIPTOR_TABLE(insn, reason, identity)			\
do {									\
	want_mem(reason, 3, 14, 2, 0x10);				\
	want_identity(identity);					\
	L2_INSN(insn " 0x10(%%rbx, %%r14, 4)");				\
} while (0)

static void l2_no_apx(void)
{
	want_reg(EXIT_REASON_VMREAD, 1, 2);
	L2_INSN("vmread %%rdx, %%rcx");
	want_mem(EXIT_REASON_VMPTRLD, 3, 14, 2, 0x10);
	L2_INSN("vmptrld 0x10(%%rbx, %%r14, 4)");

	if (l2_secondary_exiting & SECONDARY_EXEC_DESC) {
		L2_DESCRIPTOR_TABLE("sgdt", EXIT_REASON_GDTR_IDTR, 0);
		L2_DESCRIPTOR_TABLE("sidt", EXIT_REASON_GDTR_IDTR, 1);
		L2_DESCRIPTOR_TABLE("lgdt", EXIT_REASON_GDTR_IDTR, 2);
		L2_DESCRIPTOR_TABLE("lidt", EXIT_REASON_GDTR_IDTR, 3);
		L2_DESCRIPTOR_TABLE("sldt", EXIT_REASON_LDTR_TR, 0);
		L2_DESCRIPTOR_TABLE("str", EXIT_REASON_LDTR_TR, 1);
		L2_DESCRIPTOR_TABLE("lldt", EXIT_REASON_LDTR_TR, 2);
		L2_DESCRIPTOR_TABLE("ltr", EXIT_REASON_LDTR_TR, 3);
		want_one_reg(EXIT_REASON_LDTR_TR, 9, false);
		want_identity(2);
		L2_INSN("lldt %%r9w");
	}
	if (l2_secondary_exiting & SECONDARY_EXEC_RDRAND_EXITING) {
		want_one_reg(EXIT_REASON_RDRAND, 10, true);
		L2_INSN("rdrand %%r10d");
	}
	if (l2_secondary_exiting & SECONDARY_EXEC_RDSEED_EXITING) {
		want_one_reg(EXIT_REASON_RDSEED, 11, true);
		L2_INSN("rdseed %%r11d");
	}
	GUEST_ASSERT_EQ(want.reason, 0);
	vmcall();
}

/*
 * Where KVM's vmcs12 has the extended instruction information.  KVM's layout is
 * ABI, as userspace migrates it, see vmx_check_vmcs12_offsets().
 */
#define VMCS12_EXTENDED_INSTRUCTION_INFO	336

static void l1_no_apx(struct vmx_pages *vmx)
{
	u64 val;

	l1_prepare_l2(vmx, l2_no_apx);

	GUEST_ASSERT(vmwrite(EXTENDED_INSTRUCTION_INFO, 0));
	GUEST_ASSERT_EQ(vmreadz(VM_INSTRUCTION_ERROR),
			VMXERR_UNSUPPORTED_VMCS_COMPONENT);

	/* As on a CPU without APX: nothing in vmcs12's former padding. */
	l2_secondary_exiting = l1_set_secondary(L2_SECONDARY_EXITING);
	l1_run_l2(false);
	GUEST_ASSERT_EQ(nr_l2_exits, 2 +
			(l2_secondary_exiting & SECONDARY_EXEC_DESC ? 9 : 0) +
			!!(l2_secondary_exiting & SECONDARY_EXEC_RDRAND_EXITING) +
			!!(l2_secondary_exiting & SECONDARY_EXEC_RDSEED_EXITING));
	GUEST_ASSERT(!vmclear(vmx->vmcs_gpa));
	val = *(u64 *)(vmx->vmcs + VMCS12_EXTENDED_INSTRUCTION_INFO);
	GUEST_ASSERT_EQ(val, 0);
	GUEST_DONE();
}

TEST(l1_without_apx_has_no_extended_info)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;

	REQUIRE_NESTED_VMX();

	vm = create_nested_vm(&vcpu, l1_no_apx);
	if (kvm_cpu_has(X86_FEATURE_APX))
		vcpu_clear_cpuid_feature(vcpu, X86_FEATURE_APX);
	run_vcpu_to_the_end(vcpu);
	kvm_vm_free(vm);
}

int main(int argc, char *argv[])
{
	return test_harness_run(argc, argv);
}
