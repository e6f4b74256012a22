// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test KVM's emulation of instructions that move segment selectors: what they do
 * under the forced emulation prefix has to be what the CPU does natively.
 */
#include <string.h>

#include "kvm_test_harness.h"
#include "test_util.h"
#include "kvm_util.h"
#include "processor.h"

#ifndef __x86_64__
# error This test is 64-bit only
#endif

#define MEM_FILL	0xa5

#define MMIO_GVA	0xd0000000ul
#define MMIO_GPA	0xd0000000ul
#define NR_MMIO_STORES	5

struct outcome {
	u64 rax;
	u8 mem[16];
	u16 ds;
	u8 vector;
};

static u8 mem[16];

#define RUN(asm_safe, insn, rax_in, ds_in, out)			\
({									\
	u64 error_code, rax = rax_in;					\
									\
	memset(mem, MEM_FILL, sizeof(mem));				\
	asm volatile("mov %0, %%ds" : : "r"(ds_in));			\
	asm volatile(asm_safe(".byte " insn)				\
		     : KVM_ASM_SAFE_OUTPUTS((out)->vector, error_code),	\
		       "+a"(rax)					\
		     : : KVM_ASM_SAFE_CLOBBERS, "memory");		\
	(out)->rax = rax;						\
	memcpy((out)->mem, mem, sizeof(mem));				\
	asm volatile("mov %%ds, %0" : "=r"((out)->ds));			\
})

/* Natively and emulated, from the same DS; @want (0: none) is the exception. */
#define CHECK(name, insn, rax_in, ds_in, want)				\
({									\
	struct outcome native, emulated;				\
									\
	RUN(KVM_ASM_SAFE, insn, rax_in, ds_in, &native);		\
	RUN(KVM_ASM_SAFE_FEP, insn, rax_in, ds_in, &emulated);		\
	__GUEST_ASSERT(native.vector == (want),				\
		       name ": wanted vector %u, the CPU says %u",	\
		       want, native.vector);				\
	__GUEST_ASSERT(emulated.vector == native.vector,		\
		       name ": wanted vector %u, got %u",		\
		       native.vector, emulated.vector);			\
	__GUEST_ASSERT(emulated.rax == native.rax,			\
		       name ": wanted RAX = 0x%lx, got 0x%lx",		\
		       native.rax, emulated.rax);			\
	__GUEST_ASSERT(emulated.ds == native.ds,			\
		       name ": wanted DS = 0x%x, got 0x%x",		\
		       native.ds, emulated.ds);				\
	__GUEST_ASSERT(!memcmp(emulated.mem, native.mem, sizeof(mem)),	\
		       name ": wanted 0x%lx 0x%lx, stored 0x%lx 0x%lx",	\
		       *(u64 *)native.mem, *(u64 *)(native.mem + 8),	\
		       *(u64 *)emulated.mem, *(u64 *)(emulated.mem + 8));	\
})

static u16 guest_ds(void)
{
	u16 ds;

	asm volatile("mov %%ds, %0" : "=r"(ds));
	return ds;
}

/* ModRM.reg alone names a segment register. */
static void guest_rex_r(void)
{
	u16 ds = guest_ds(), null = 0;

	CHECK("MOV EAX, DS", "0x8c, 0xd8", -1ull, ds, 0);
	CHECK("MOV EAX, DS + REX.R", "0x44, 0x8c, 0xd8", -1ull, ds, 0);
	CHECK("MOV [RAX], DS + REX.R", "0x44, 0x8c, 0x18", (u64)mem, ds, 0);
	CHECK("MOV DS, EAX", "0x8e, 0xd8", (u64)null, ds, 0);
	GUEST_ASSERT_EQ(guest_ds(), null);
	CHECK("MOV DS, EAX + REX.R", "0x44, 0x8e, 0xd8", (u64)ds, null, 0);
	GUEST_ASSERT_EQ(guest_ds(), ds);

	CHECK("MOV CS, EAX", "0x8e, 0xc8", (u64)ds, ds, UD_VECTOR);
	CHECK("MOV CS, EAX + REX.R", "0x44, 0x8e, 0xc8", (u64)ds, ds, UD_VECTOR);
	CHECK("MOV EAX, segment register 6", "0x8c, 0xf0", -1ull, ds, UD_VECTOR);
	CHECK("MOV EAX, segment register 6 + REX.R", "0x44, 0x8c, 0xf0", -1ull, ds, UD_VECTOR);
	GUEST_DONE();
}

/* Memory gets two bytes, whatever the operand size. */
static void guest_rex_w(void)
{
	u16 ds = guest_ds();

	CHECK("MOV [RAX], DS, 16 bits", "0x66, 0x8c, 0x18", (u64)mem, ds, 0);
	CHECK("MOV [RAX], DS", "0x8c, 0x18", (u64)mem, ds, 0);
	CHECK("MOV [RAX], DS + REX.W", "0x48, 0x8c, 0x18", (u64)mem, ds, 0);
	CHECK("SLDT [RAX]", "0x0f, 0x00, 0x00", (u64)mem, ds, 0);
	CHECK("SLDT [RAX] + REX.W", "0x48, 0x0f, 0x00, 0x00", (u64)mem, ds, 0);
	CHECK("STR [RAX]", "0x0f, 0x00, 0x08", (u64)mem, ds, 0);
	CHECK("STR [RAX] + REX.W", "0x48, 0x0f, 0x00, 0x08", (u64)mem, ds, 0);
	CHECK("MOV RAX, DS + REX.W", "0x48, 0x8c, 0xd8", -1ull, ds, 0);
	GUEST_DONE();
}

/* The page that begins at @end isn't mapped. */
static void guest_end_of_page(u64 end)
{
	u16 ds = guest_ds();

	CHECK("MOV [RAX], EAX", "0x89, 0x00", end - 2, ds, PF_VECTOR);
	CHECK("MOV [RAX], DS", "0x8c, 0x18", end - 2, ds, 0);
	CHECK("MOV [RAX], DS + REX.W", "0x48, 0x8c, 0x18", end - 2, ds, 0);
	CHECK("SLDT [RAX]", "0x0f, 0x00, 0x00", end - 2, ds, 0);
	CHECK("SLDT [RAX] + REX.W", "0x48, 0x0f, 0x00, 0x00", end - 2, ds, 0);
	CHECK("STR [RAX]", "0x0f, 0x00, 0x08", end - 2, ds, 0);
	CHECK("STR [RAX] + REX.W", "0x48, 0x0f, 0x00, 0x08", end - 2, ds, 0);
	GUEST_DONE();
}

#define MMIO(insn) ({ asm volatile(".byte " insn : : "a"(MMIO_GVA) : "memory"); })

static void guest_mmio(void)
{
	MMIO("0x8c, 0x18");			/* mov %ds, (%rax) */
	MMIO("0x0f, 0x00, 0x00");		/* sldt (%rax) */
	MMIO("0x48, 0x0f, 0x00, 0x00");		/* rex.w sldt (%rax) */
	MMIO("0x0f, 0x00, 0x08");		/* str (%rax) */
	MMIO("0x48, 0x0f, 0x00, 0x08");		/* rex.w str (%rax) */
	GUEST_DONE();
}

static void run(struct kvm_vcpu *vcpu)
{
	struct ucall uc;

	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);

	switch (get_ucall(vcpu, &uc)) {
	case UCALL_DONE:
		return;
	case UCALL_ABORT:
		REPORT_GUEST_ASSERT(uc);
		break;
	default:
		TEST_FAIL("Unexpected ucall %lu", uc.cmd);
	}
}

KVM_ONE_VCPU_TEST_SUITE(sreg);

KVM_ONE_VCPU_TEST(sreg, rex_r_is_ignored, guest_rex_r)
{
	run(vcpu);
}

KVM_ONE_VCPU_TEST(sreg, stores_are_two_bytes, guest_rex_w)
{
	run(vcpu);
}

KVM_ONE_VCPU_TEST(sreg, stores_end_with_the_page, guest_end_of_page)
{
	vcpu_args_set(vcpu, 1, vm_alloc_page(vcpu->vm) + PAGE_SIZE);
	run(vcpu);
}

KVM_ONE_VCPU_TEST(sreg, stores_do_not_read, guest_mmio)
{
	int i;

	virt_map(vcpu->vm, MMIO_GVA, MMIO_GPA, 1);
	for (i = 0; i < NR_MMIO_STORES; i++) {
		vcpu_run(vcpu);
		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
		TEST_ASSERT(vcpu->run->mmio.is_write && vcpu->run->mmio.len == 2,
			    "Instruction %d: wanted a write of 2 bytes, got a %s of %u", i,
			    vcpu->run->mmio.is_write ? "write" : "read", vcpu->run->mmio.len);
	}
	run(vcpu);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(is_forced_emulation_enabled);

	return test_harness_run(argc, argv);
}
