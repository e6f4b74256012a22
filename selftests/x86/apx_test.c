// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test KVM's support for Intel's APX, i.e. for R16-R31.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

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

/* A page in low memory that the library doesn't use. */
#define SIPI_GPA	0x1000

/* Any port that nobody listens to. */
#define PIO_PORT	0x2000

static void guest_check_zero(void)
{
	struct egprs actual;
	int i;

	store_egprs(&actual);

	for (i = 0; i < NR_EGPRS; i++)
		__GUEST_ASSERT(!actual.r[i], "Wanted R%d = 0, got 0x%lx",
			       i + 16, actual.r[i]);
}

static int set_xcr0(struct kvm_vcpu *vcpu, u64 xcr0)
{
	struct kvm_xcrs xcrs = {
		.nr_xcrs = 1,
		.xcrs[0].xcr = 0,
		.xcrs[0].value = xcr0,
	};

	return __vcpu_ioctl(vcpu, KVM_SET_XCRS, &xcrs);
}

KVM_ONE_VCPU_TEST_SUITE(apx);

static void guest_first_enable(void)
{
	GUEST_ASSERT(!(xgetbv(0) & XFEATURE_MASK_APX));
	guest_enable_apx();
	guest_check_zero();
	GUEST_DONE();
}

KVM_ONE_VCPU_TEST(apx, zero_on_first_enable, guest_first_enable)
{
	TEST_ASSERT(!set_xcr0(vcpu, XFEATURE_MASK_FP), "KVM_SET_XCRS failed");
	run_vcpu_to_the_end(vcpu);
}

static void rep_movsb(u8 *dst, const u8 *src, u64 len)
{
	asm volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(len) : : "memory");
}

static void rep_outsb(u16 port, const u8 *src, u64 len)
{
	asm volatile("rep outsb" : "+S"(src), "+c"(len) : "d"(port) : "memory");
}

/*
 * Cause exits that KVM handles in its fast path, in the kernel, by emulating
 * the instruction, and in userspace.
 */
static void guest_exits(void)
{
	u64 *mmio = (void *)MMIO_GVA;
	u32 eax, ebx, ecx, edx;
	u64 seed, xcr0;
	u8 buf[32];

	x2apic_enable();

	for (seed = 0; seed < NR_ROUNDS; seed++) {
		guest_load_egprs(seed);

		__cpuid(0, 0, &eax, &ebx, &ecx, &edx);
		guest_check_egprs(seed);

		rdmsr(MSR_IA32_UCODE_REV);
		guest_check_egprs(seed);

		wrmsr(MSR_IA32_TSC_DEADLINE, 0);
		guest_check_egprs(seed);

		xcr0 = xgetbv(0);
		xsetbv(0, xcr0);
		guest_check_egprs(seed);

		kvm_hypercall(KVM_HC_VAPIC_POLL_IRQ, 0, 0, 0, 0);
		guest_check_egprs(seed);

		READ_ONCE(*mmio);
		guest_check_egprs(seed);

		WRITE_ONCE(*mmio, seed);
		guest_check_egprs(seed);

		rep_movsb((u8 *)mmio, buf, sizeof(buf));
		guest_check_egprs(seed);

		rep_movsb(buf, (u8 *)mmio, sizeof(buf));
		guest_check_egprs(seed);

		rep_outsb(PIO_PORT, buf, sizeof(buf));
		guest_check_egprs(seed);

		x2apic_write_reg(APIC_TASKPRI, x2apic_read_reg(APIC_TASKPRI));
		guest_check_egprs(seed);

		/* A fast path, unless the CPU virtualizes IPIs. */
		x2apic_write_reg(APIC_ICR, (2ull << 32) | APIC_INT_ASSERT);
		guest_check_egprs(seed);

		GUEST_SYNC(seed);
		guest_check_egprs(seed);
	}

	GUEST_DONE();
}

KVM_ONE_VCPU_TEST(apx, values_survive_exits, guest_exits)
{
	int i;

	virt_map(vcpu->vm, MMIO_GVA, MMIO_GPA, 1);

	for (i = 0; i < NR_ROUNDS; i++)
		run_vcpu(vcpu, i);

	run_vcpu_to_the_end(vcpu);
}

static u64 guest_pages[NR_ROUNDS * PAGE_SIZE / sizeof(u64)] __aligned(PAGE_SIZE);

static void guest_page_faults(void)
{
	u64 seed;

	/* Code and stack are there from now on. */
	guest_load_egprs(0);
	guest_check_egprs(0);
	GUEST_SYNC(1);

	for (seed = 0; seed < NR_ROUNDS; seed++) {
		guest_load_egprs(seed);
		WRITE_ONCE(guest_pages[seed * PAGE_SIZE / sizeof(u64)], seed);
		guest_check_egprs(seed);
	}

	GUEST_DONE();
}

KVM_ONE_VCPU_TEST(apx, values_survive_page_faults, guest_page_faults)
{
	void *hva = addr_gva2hva(vcpu->vm, (gva_t)guest_pages);
	u64 nr;

	/* Make KVM fault in, i.e. handle an exit for, each of the pages. */
	TEST_ASSERT(!madvise(hva, sizeof(guest_pages), MADV_DONTNEED),
		    "madvise() failed, errno %d", errno);

	run_vcpu(vcpu, 1);
	nr = vcpu_get_stat(vcpu, pf_fixed);
	run_vcpu_to_the_end(vcpu);
	nr = vcpu_get_stat(vcpu, pf_fixed) - nr;
	TEST_ASSERT(nr >= NR_ROUNDS, "Only %lu page faults", nr);
}

static void guest_get_xsave(void)
{
	u64 seed;

	for (seed = 0; seed < NR_ROUNDS; seed++) {
		guest_load_egprs(seed);
		GUEST_SYNC(seed);
	}

	load_egprs(&(struct egprs){});
	GUEST_SYNC(seed);

	/* XSTATE_BV[APX] is about any of the registers, R31 is as good as R16. */
	load_egprs(&(struct egprs){ .r[NR_EGPRS - 1] = 1 });
	GUEST_SYNC(seed + 1);

	GUEST_DONE();
}

KVM_ONE_VCPU_TEST(apx, get_xsave_shows_values, guest_get_xsave)
{
	struct egprs expected;
	int i;

	for (i = 0; i < NR_ROUNDS; i++) {
		run_vcpu(vcpu, i);
		fill_egprs(&expected, i);
		check_xsave(vcpu, &expected);
	}

	run_vcpu(vcpu, i);
	check_xsave(vcpu, &(struct egprs){});

	run_vcpu(vcpu, i + 1);
	check_xsave(vcpu, &(struct egprs){ .r[NR_EGPRS - 1] = 1 });

	run_vcpu_to_the_end(vcpu);
}

static void guest_set_xsave(void)
{
	u64 seed;

	for (seed = 0; seed < NR_ROUNDS; seed++) {
		guest_load_egprs(seed + 1000);
		GUEST_SYNC(seed);
		guest_check_egprs(seed);
	}

	GUEST_SYNC(seed);
	guest_check_zero();
	GUEST_DONE();
}

KVM_ONE_VCPU_TEST(apx, set_xsave_loads_values, guest_set_xsave)
{
	struct egprs egprs;
	struct kvm_xsave *xsave;
	int i;

	for (i = 0; i < NR_ROUNDS; i++) {
		run_vcpu(vcpu, i);

		fill_egprs(&egprs, i);
		set_xsave_egprs(vcpu, &egprs);
		check_xsave(vcpu, &egprs);
	}

	/* A clear bit stands for the initial state, the bytes don't matter. */
	run_vcpu(vcpu, i);
	xsave = get_xsave(vcpu);
	xsave_header(xsave)->xstate_bv &= ~XFEATURE_MASK_APX;
	vcpu_xsave_set(vcpu, xsave);
	free(xsave);
	check_xsave(vcpu, &(struct egprs){});

	run_vcpu_to_the_end(vcpu);
}

static void guest_one_seed(void)
{
	guest_load_egprs(1);
	GUEST_SYNC(1);
	guest_check_egprs(1);
	GUEST_DONE();
}

KVM_ONE_VCPU_TEST(apx, failed_set_xsave_changes_nothing, guest_one_seed)
{
	struct kvm_xsave *before, *after, *bad;
	size_t size = xsave_size(vcpu);
	int i, r;

	run_vcpu(vcpu, 1);

	before = get_xsave(vcpu);

	for (i = 0; i < 9; i++) {
		bad = get_xsave(vcpu);
		memset(xsave_egprs(bad), 0xee, sizeof(struct egprs));

		switch (i) {
		case 0:
			xsave_header(bad)->xstate_bv |= BIT_ULL(62);
			break;
		case 1:
			xsave_header(bad)->xcomp_bv = BIT_ULL(63) | XFEATURE_MASK_APX;
			break;
		case 2:
			xsave_header(bad)->reserved[0] = 1;
			break;
		case 3:
			/* As above, but with R16-R31 in their initial state. */
			xsave_header(bad)->xstate_bv &= ~XFEATURE_MASK_APX;
			xsave_header(bad)->reserved[0] = 1;
			break;
		case 4:
			/* A reserved bit in MXCSR. */
			xsave_header(bad)->xstate_bv |= XFEATURE_MASK_SSE;
			bad->region[24 / 4] |= BIT(31);
			break;
		case 5:
			/* MPX, which occupies the same bytes. */
			xsave_header(bad)->xstate_bv |= XFEATURE_MASK_BNDREGS;
			break;
		case 6:
			xsave_header(bad)->xstate_bv |= BIT_ULL(63);
			break;
		case 7:
			xsave_header(bad)->xcomp_bv = XFEATURE_MASK_APX;
			break;
		case 8:
			xsave_header(bad)->reserved[5] = 1;
			break;
		}

		r = __vcpu_ioctl(vcpu, KVM_SET_XSAVE, bad);
		TEST_ASSERT(r && errno == EINVAL,
			    "Case %d: wanted EINVAL, got %d (errno %d)", i, r, errno);

		after = get_xsave(vcpu);
		TEST_ASSERT(!memcmp(before, after, size),
			    "Case %d: KVM_SET_XSAVE failed, but changed state", i);
		free(after);
		free(bad);
	}

	free(before);
	run_vcpu_to_the_end(vcpu);
}

/*
 * R16-R31 aren't part of struct kvm_regs, be it by ioctl or in kvm_run, and
 * nothing in struct kvm_regs is where R16-R31 are, in particular not RIP, which
 * once was KVM's register number 16.
 */
static void guest_regs(void)
{
	u64 seed;

	for (seed = 0; seed < NR_ROUNDS; seed++) {
		guest_load_egprs(seed);
		GUEST_SYNC(seed);
		guest_check_egprs(seed);
	}
	GUEST_DONE();
}

static_assert(sizeof(struct kvm_regs) == 18 * sizeof(u64), "R16-R31 in kvm_regs");

TEST_F(apx, regs_do_not_alias_r16_r31)
{
	struct kvm_vcpu *vcpu = self->vcpu;
	struct kvm_sync_regs *sync = &vcpu->run->s.regs;
	struct kvm_regs regs;
	u64 seed;

	if (!kvm_has_cap(KVM_CAP_SYNC_REGS))
		SKIP(return, "no KVM_CAP_SYNC_REGS");

	vcpu_arch_set_entry_point(vcpu, guest_regs);

	for (seed = 0; seed < NR_ROUNDS; seed++) {
		vcpu->run->kvm_valid_regs = KVM_SYNC_X86_VALID_FIELDS;
		run_vcpu(vcpu, seed);
		vcpu->run->kvm_valid_regs = 0;

		vcpu_regs_get(vcpu, &regs);
		TEST_ASSERT(!memcmp(&regs, &sync->regs, sizeof(regs)),
			    "KVM_GET_REGS and kvm_run disagree");

		if (seed & 1) {
			vcpu_regs_set(vcpu, &regs);
		} else {
			sync->regs = regs;
			vcpu_sregs_get(vcpu, &sync->sregs);
			vcpu_events_get(vcpu, &sync->events);
			vcpu->run->kvm_dirty_regs = KVM_SYNC_X86_VALID_FIELDS;
		}
		check_xsave_seed(vcpu, seed);
	}

	run_vcpu_to_the_end(vcpu);
}

/*
 * Entries that fail: a code segment can't be 64-bit and 32-bit at the same time,
 * neither for VMX nor for SVM.
 */
static void guest_failed_entry(void)
{
	u64 seed;

	for (seed = 0; seed < NR_ROUNDS; seed++) {
		guest_load_egprs(seed);
		GUEST_SYNC(seed);
		guest_check_egprs(seed & 1 ? seed : seed + 1000);
	}
	GUEST_DONE();
}

KVM_ONE_VCPU_TEST(apx, values_survive_failed_entry, guest_failed_entry)
{
	struct kvm_sregs good, bad;
	struct kvm_regs regs;
	struct egprs egprs;
	u64 seed;
	int i;

	for (seed = 0; seed < NR_ROUNDS; seed++) {
		run_vcpu(vcpu, seed);

		vcpu_regs_get(vcpu, &regs);
		vcpu_sregs_get(vcpu, &good);
		bad = good;
		bad.cs.db = 1;

		for (i = 0; i < 2; i++) {
			vcpu_sregs_set(vcpu, &bad);
			run_vcpu_once(vcpu);
			TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_FAIL_ENTRY);

			/* Rely on nothing but R16-R31 to be as before. */
			vcpu_sregs_set(vcpu, &good);
			vcpu_regs_set(vcpu, &regs);
			check_xsave_seed(vcpu, i ? seed + 1000 : seed);

			/* The second time with values that only userspace knows. */
			if (seed & 1)
				break;
			fill_egprs(&egprs, seed + 1000);
			set_xsave_egprs(vcpu, &egprs);
		}
	}

	run_vcpu_to_the_end(vcpu);
}

/*
 * What the guest itself saves and restores: all components but the tiles of AMX,
 * in any format.
 */
static u8 guest_xsave_area[4096] __aligned(64);

enum xsave_insn {
	XSAVE,
	XSAVEOPT,
	XSAVEC,
	XSAVES,
};

#define __XSAVE_INSN(insn, rfbm)					\
({									\
	asm volatile(insn " (%0)"					\
		     : : "r"(guest_xsave_area),				\
		       "a"((u32)(rfbm)), "d"(0) : "memory");		\
})

#define XSAVE_INSN(insn) __XSAVE_INSN(insn, XFEATURE_MASK_APX)

/* Component 19 only, i.e. it is the first one in the compacted format. */
static struct egprs *guest_xsave(enum xsave_insn insn)
{
	struct xstate *xstate = (void *)guest_xsave_area;
	u64 offset;

	switch (insn) {
	case XSAVE:
		XSAVE_INSN("xsave64");
		break;
	case XSAVEOPT:
		XSAVE_INSN("xsaveopt64");
		break;
	case XSAVEC:
		XSAVE_INSN("xsavec64");
		break;
	default:
		XSAVE_INSN("xsaves64");
		break;
	}

	GUEST_ASSERT_EQ(xstate->header.xcomp_bv,
			insn < XSAVEC ? 0 : BIT_ULL(63) | XFEATURE_MASK_APX);
	offset = insn < XSAVEC ? this_cpu_property(X86_PROPERTY_XSTATE_APX_OFFSET) :
				 sizeof(*xstate);
	GUEST_ASSERT(offset + sizeof(struct egprs) <= sizeof(guest_xsave_area));
	return (void *)guest_xsave_area + offset;
}

static void guest_check_xsave(enum xsave_insn insn, u64 seed)
{
	struct xstate *xstate = (void *)guest_xsave_area;
	struct egprs expected, *egprs;
	u64 inuse;
	int i;

	egprs = guest_xsave(insn);
	fill_egprs(&expected, seed);

	__GUEST_ASSERT(xstate->header.xstate_bv & XFEATURE_MASK_APX,
		       "XSTATE_BV = 0x%lx, insn %d, seed %lu",
		       (u64)xstate->header.xstate_bv, insn, seed);
	for (i = 0; i < NR_EGPRS; i++)
		__GUEST_ASSERT(egprs->r[i] == expected.r[i],
			       "Wanted R%d = 0x%lx, got 0x%lx, insn %d, seed %lu",
			       i + 16, expected.r[i], egprs->r[i], insn, seed);

	GUEST_ASSERT_EQ(!xgetbv_safe(1, &inuse), this_cpu_has(X86_FEATURE_XGETBV1));
	if (this_cpu_has(X86_FEATURE_XGETBV1))
		GUEST_ASSERT(inuse & XFEATURE_MASK_APX);
}

static void guest_xrstor(enum xsave_insn insn)
{
	if (insn == XSAVES)
		XSAVE_INSN("xrstors64");
	else
		XSAVE_INSN("xrstor64");
}

/* What the guest saves with, which the host has found that it can. */
static enum xsave_insn xsave_insn;

static void guest_xsave_and_xrstor(void)
{
	struct xstate *xstate = (void *)guest_xsave_area;

	/* The guest's own values, which have been out of the CPU. */
	guest_load_egprs(0);
	GUEST_SYNC(1);
	guest_check_xsave(xsave_insn, 0);

	/* Back from memory, out of the CPU, and back. */
	load_egprs(&(struct egprs){});
	guest_xrstor(xsave_insn);
	GUEST_SYNC(2);
	guest_check_egprs(0);

	/*
	 * Values that userspace changes, for an image of which the CPU believes
	 * to know what's in it.
	 */
	guest_xrstor(xsave_insn);
	GUEST_SYNC(3);
	guest_check_xsave(xsave_insn, 1000);

	/* The initial state, of which the CPU has no values. */
	xstate->header.xstate_bv = 0;
	guest_xrstor(xsave_insn);
	GUEST_SYNC(4);
	guest_check_zero();
	guest_load_egprs(1);
	guest_xrstor(xsave_insn);
	guest_check_zero();
	GUEST_DONE();
}

static void test_xsave_and_xrstor(struct kvm_vcpu *vcpu, enum xsave_insn insn)
{
	struct egprs egprs;

	xsave_insn = insn;
	sync_global_to_guest(vcpu->vm, xsave_insn);
	vcpu_arch_set_entry_point(vcpu, guest_xsave_and_xrstor);

	run_vcpu(vcpu, 1);
	check_xsave_seed(vcpu, 0);
	run_vcpu(vcpu, 2);
	check_xsave_seed(vcpu, 0);
	run_vcpu(vcpu, 3);
	fill_egprs(&egprs, 1000);
	set_xsave_egprs(vcpu, &egprs);
	run_vcpu(vcpu, 4);
	check_xsave(vcpu, &(struct egprs){});
	run_vcpu_to_the_end(vcpu);
}

TEST_F(apx, guest_xsave_sees_values)
{
	test_xsave_and_xrstor(self->vcpu, XSAVE);
}

TEST_F(apx, guest_xsaveopt_sees_values)
{
	if (!kvm_cpu_has(X86_FEATURE_XSAVEOPT))
		SKIP(return, "no XSAVEOPT");

	test_xsave_and_xrstor(self->vcpu, XSAVEOPT);
}

TEST_F(apx, guest_xsavec_sees_values)
{
	if (!kvm_cpu_has(X86_FEATURE_XSAVEC))
		SKIP(return, "no XSAVEC");

	test_xsave_and_xrstor(self->vcpu, XSAVEC);
}

TEST_F(apx, guest_xsaves_sees_values)
{
	if (!kvm_cpu_has(X86_FEATURE_XSAVES))
		SKIP(return, "no XSAVES");

	test_xsave_and_xrstor(self->vcpu, XSAVES);
}

/* What CPUID says of components 2 to 18: the guest's, which follows XCR0. */
static u64 guest_compacted_offset(u64 xcomp_bv)
{
	u64 offset = sizeof(struct xstate);
	u32 eax, ebx, ecx, edx;
	int i;

	for (i = 2; i < 19; i++) {
		if (!(xcomp_bv & BIT_ULL(i)))
			continue;

		__cpuid(0xd, i, &eax, &ebx, &ecx, &edx);
		if (ecx & BIT(1))
			offset = (offset + 63) & ~63ull;
		offset += eax;
	}
	return offset;
}

static void guest_xsavec_all(void)
{
	u64 rfbm = xgetbv(0) & ~XFEATURE_MASK_XTILE_DATA;
	u64 offset = guest_compacted_offset(rfbm);
	struct xstate *xstate = (void *)guest_xsave_area;
	struct egprs expected;
	u64 seed;

	GUEST_ASSERT(offset + sizeof(expected) <= sizeof(guest_xsave_area));

	for (seed = 0; seed < NR_ROUNDS; seed++) {
		memset(guest_xsave_area, 0xcc, sizeof(guest_xsave_area));
		memset(&xstate->header, 0, sizeof(xstate->header));

		/* Load, save, and restore, each of them after an exit. */
		guest_load_egprs(seed);
		GUEST_SYNC(2 * seed);
		__XSAVE_INSN("xsavec64", rfbm);
		GUEST_ASSERT_EQ(xstate->header.xcomp_bv, BIT_ULL(63) | rfbm);
		GUEST_ASSERT(xstate->header.xstate_bv & XFEATURE_MASK_APX);
		fill_egprs(&expected, seed);
		GUEST_ASSERT(!memcmp(guest_xsave_area + offset, &expected,
				     sizeof(expected)));

		guest_load_egprs(seed + 1000);
		GUEST_SYNC(2 * seed + 1);
		XSAVE_INSN("xrstor64");
		guest_check_egprs(seed);
	}
	GUEST_DONE();
}

TEST_F(apx, guest_xsave_of_all_components_sees_values)
{
	int i;

	if (!kvm_cpu_has(X86_FEATURE_XSAVEC))
		SKIP(return, "no XSAVEC");

	vcpu_arch_set_entry_point(self->vcpu, guest_xsavec_all);
	for (i = 0; i < NR_ROUNDS; i++) {
		run_vcpu(self->vcpu, 2 * i);
		check_xsave_seed(self->vcpu, i);
		run_vcpu(self->vcpu, 2 * i + 1);
		check_xsave_seed(self->vcpu, i + 1000);
	}
	run_vcpu_to_the_end(self->vcpu);
}

/* The size of the standard format, which is what the last byte needs. */
static u64 guest_standard_size(u64 xcr0)
{
	u64 size = sizeof(struct xstate);
	u32 eax, ebx, ecx, edx;
	int i;

	for (i = 2; i < 63; i++) {
		if (!(xcr0 & BIT_ULL(i)))
			continue;

		__cpuid(0xd, i, &eax, &ebx, &ecx, &edx);
		if (size < eax + ebx)
			size = eax + ebx;
	}
	return size;
}

static void guest_xsetbv(void)
{
	u64 xcr0 = xgetbv(0);
	u64 val = 0;

	guest_load_egprs(1);

	/* APX needs x87, which can't be disabled, and nothing else. */
	GUEST_ASSERT_EQ(xsetbv_safe(0, XFEATURE_MASK_APX), GP_VECTOR);
	GUEST_ASSERT_EQ(xsetbv_safe(0, XFEATURE_MASK_APX | XFEATURE_MASK_SSE), GP_VECTOR);
	GUEST_ASSERT_EQ(xgetbv(0), xcr0);
	guest_check_egprs(1);

	xsetbv(0, XFEATURE_MASK_FP | XFEATURE_MASK_APX);
	GUEST_SYNC(1);
	GUEST_ASSERT_EQ(xgetbv(0), XFEATURE_MASK_FP | XFEATURE_MASK_APX);
	GUEST_ASSERT_EQ(this_cpu_property(X86_PROPERTY_XSTATE_MAX_SIZE_XCR0),
			this_cpu_property(X86_PROPERTY_XSTATE_APX_OFFSET) +
			sizeof(struct egprs));
	GUEST_ASSERT_EQ(store_r31_safe(&val), 0);
	guest_check_egprs(1);

	/*
	 * MPX, together or one by one.  No CPU has MPX and APX, i.e. this raises
	 * #GP already because MPX isn't supported.
	 */
	xcr0 = XFEATURE_MASK_FP | XFEATURE_MASK_SSE | XFEATURE_MASK_APX;
	GUEST_ASSERT_EQ(xsetbv_safe(0, xcr0 | XFEATURE_MASK_BNDREGS |
				       XFEATURE_MASK_BNDCSR), GP_VECTOR);
	GUEST_ASSERT_EQ(xsetbv_safe(0, xcr0 | XFEATURE_MASK_BNDREGS), GP_VECTOR);
	GUEST_ASSERT_EQ(xsetbv_safe(0, xcr0 | XFEATURE_MASK_BNDCSR), GP_VECTOR);

	/* Everything but APX is not enough. */
	xcr0 = this_cpu_supported_xcr0() & ~XFEATURE_MASK_APX;
	xsetbv(0, xcr0);
	GUEST_SYNC(2);
	GUEST_ASSERT_EQ(this_cpu_property(X86_PROPERTY_XSTATE_MAX_SIZE_XCR0),
			guest_standard_size(xcr0));
	GUEST_ASSERT_EQ(store_r31_safe(&val), UD_VECTOR);

	xcr0 |= XFEATURE_MASK_APX;
	xsetbv(0, xcr0);
	GUEST_ASSERT_EQ(this_cpu_property(X86_PROPERTY_XSTATE_MAX_SIZE_XCR0),
			guest_standard_size(xcr0));
	guest_check_egprs(1);
	GUEST_DONE();
}

KVM_ONE_VCPU_TEST(apx, xcr0_apx_needs_x87_only, guest_xsetbv)
{
	u64 xcr0 = XFEATURE_MASK_FP | XFEATURE_MASK_SSE | XFEATURE_MASK_APX;
	int r;

	run_vcpu(vcpu, 1);

	r = set_xcr0(vcpu, XFEATURE_MASK_APX);
	TEST_ASSERT(r && errno == EINVAL, "APX without x87: got %d (errno %d)", r, errno);
	r = set_xcr0(vcpu, xcr0 | XFEATURE_MASK_BNDREGS | XFEATURE_MASK_BNDCSR);
	TEST_ASSERT(r && errno == EINVAL, "APX and MPX: got %d (errno %d)", r, errno);

	run_vcpu(vcpu, 2);
	run_vcpu_to_the_end(vcpu);
}

static void guest_toggle_xcr0(void)
{
	u64 seed;

	for (seed = 0; seed < NR_ROUNDS; seed++) {
		guest_enable_apx();
		guest_load_egprs(seed);
		GUEST_SYNC(3 * seed);

		/* Off, with an exit: the values are out of reach, but not lost. */
		guest_disable_apx();
		GUEST_SYNC(3 * seed + 1);
		guest_enable_apx();
		guest_check_egprs(seed);

		/* Off, and the host changes the values. */
		guest_disable_apx();
		GUEST_SYNC(3 * seed + 2);
		guest_enable_apx();
		guest_check_egprs(seed + 1000);
	}

	GUEST_DONE();
}

KVM_ONE_VCPU_TEST(apx, values_survive_xcr0_off_and_on, guest_toggle_xcr0)
{
	struct egprs egprs;
	int i;

	for (i = 0; i < NR_ROUNDS; i++) {
		fill_egprs(&egprs, i);
		run_vcpu(vcpu, 3 * i);
		check_xsave(vcpu, &egprs);
		run_vcpu(vcpu, 3 * i + 1);
		check_xsave(vcpu, &egprs);
		run_vcpu(vcpu, 3 * i + 2);
		check_xsave(vcpu, &egprs);

		fill_egprs(&egprs, i + 1000);
		set_xsave_egprs(vcpu, &egprs);
		check_xsave(vcpu, &egprs);
	}

	run_vcpu_to_the_end(vcpu);
}

static void guest_ud(void)
{
	u64 cr4 = get_cr4();
	u64 val = 0;

	guest_load_egprs(1);
	GUEST_ASSERT_EQ(store_r31_safe(&val), 0);
	GUEST_ASSERT(val);

	guest_disable_apx();
	GUEST_ASSERT_EQ(store_r31_safe(&val), UD_VECTOR);

	/* Again, with an exit between disabling APX and the #UD. */
	GUEST_SYNC(1);
	GUEST_ASSERT_EQ(store_r31_safe(&val), UD_VECTOR);
	guest_enable_apx();

	set_cr4(cr4 & ~X86_CR4_OSXSAVE);
	GUEST_ASSERT_EQ(store_r31_safe(&val), UD_VECTOR);

	/* XCR0.APX is set, i.e. R16-R31 are swapped, without OSXSAVE. */
	GUEST_SYNC(2);
	GUEST_ASSERT_EQ(store_r31_safe(&val), UD_VECTOR);
	set_cr4(cr4);

	guest_check_egprs(1);
	GUEST_DONE();
}

KVM_ONE_VCPU_TEST(apx, ud_if_disabled, guest_ud)
{
	run_vcpu(vcpu, 1);
	run_vcpu(vcpu, 2);
	run_vcpu_to_the_end(vcpu);
}

static void guest_no_apx(void)
{
	u64 xcr0 = xgetbv(0);
	u64 val = 0;

	GUEST_ASSERT(!this_cpu_has(X86_FEATURE_APX));
	GUEST_ASSERT(!(xcr0 & XFEATURE_MASK_APX));
	GUEST_ASSERT_EQ(xsetbv_safe(0, xcr0 | XFEATURE_MASK_APX), GP_VECTOR);
	GUEST_ASSERT_EQ(store_r31_safe(&val), UD_VECTOR);
	GUEST_SYNC(1);
	GUEST_ASSERT_EQ(xgetbv(0), xcr0);
	GUEST_ASSERT_EQ(store_r31_safe(&val), UD_VECTOR);
	GUEST_DONE();
}

KVM_ONE_VCPU_TEST(apx, vcpu_without_apx_cannot_enable_it, guest_no_apx)
{
	u64 xcr0 = kvm_cpu_supported_xcr0();
	struct egprs egprs;
	int r;

	fill_egprs(&egprs, 1);
	set_xsave_egprs(vcpu, &egprs);
	check_xsave(vcpu, &egprs);

	/*
	 * Leave CPUID.0xD as is, the feature flag alone has to suffice.  Leave
	 * XCR0 alone, too, the library has already set all supported bits.
	 */
	vcpu_clear_cpuid_feature(vcpu, X86_FEATURE_APX);
	check_xsave(vcpu, &(struct egprs){});

	r = set_xcr0(vcpu, xcr0);
	TEST_ASSERT(r && errno == EINVAL,
		    "KVM_SET_XCRS: wanted EINVAL, got %d (errno %d)", r, errno);

	/* KVM_SET_XSAVE doesn't care about CPUID, KVM_GET_XSAVE does. */
	set_xsave_egprs(vcpu, &egprs);
	check_xsave(vcpu, &(struct egprs){});

	run_vcpu(vcpu, 1);
	check_xsave(vcpu, &(struct egprs){});

	run_vcpu_to_the_end(vcpu);
}

static void guest_save_restore(void)
{
	guest_load_egprs(1);
	GUEST_SYNC(1);
	guest_check_egprs(1);

	/* The values have to be transferred even if they are out of reach. */
	guest_disable_apx();
	GUEST_SYNC(2);
	guest_enable_apx();
	guest_check_egprs(1);
	GUEST_DONE();
}

TEST(values_survive_save_and_restore)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	int i;

	vm = vm_create_with_one_vcpu(&vcpu, guest_save_restore);

	for (i = 1; i <= 2; i++) {
		run_vcpu(vcpu, i);
		vcpu = migrate_vcpu(vcpu);
	}

	run_vcpu_to_the_end(vcpu);
	kvm_vm_free(vm);
}

static void restore(struct kvm_vcpu *vcpu, struct kvm_x86_state *state,
		    bool xcrs_first)
{
	/* As vcpu_load_state() does, which has XCRs first. */
	vcpu_sregs_set(vcpu, &state->sregs);
	vcpu_msrs_set(vcpu, &state->msrs);
	if (xcrs_first)
		vcpu_xcrs_set(vcpu, &state->xcrs);
	vcpu_xsave_set(vcpu, state->xsave);
	if (!xcrs_first)
		vcpu_xcrs_set(vcpu, &state->xcrs);
	vcpu_events_set(vcpu, &state->events);
	vcpu_mp_state_set(vcpu, &state->mp_state);
	vcpu_debugregs_set(vcpu, &state->debugregs);
	vcpu_regs_set(vcpu, &state->regs);
}

TEST(xcrs_and_xsave_in_any_order)
{
	struct kvm_x86_state *state;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	int i;

	vm = vm_create_with_one_vcpu(&vcpu, guest_save_restore);

	/* XCR0.APX is set on the first round, and clear on the second one. */
	for (i = 1; i <= 2; i++) {
		run_vcpu(vcpu, i);

		state = vcpu_save_state(vcpu);

		kvm_vm_release(vm);
		vcpu = vm_recreate_with_one_vcpu(vm);
		restore(vcpu, state, true);
		check_xsave_seed(vcpu, 1);

		kvm_vm_release(vm);
		vcpu = vm_recreate_with_one_vcpu(vm);
		restore(vcpu, state, false);
		check_xsave_seed(vcpu, 1);

		kvm_x86_state_cleanup(state);
	}

	run_vcpu_to_the_end(vcpu);
	kvm_vm_free(vm);
}

static void guest_isolation(u64 id)
{
	u64 i;

	for (i = 0; i < NR_ROUNDS; i++) {
		guest_load_egprs(id + i);
		GUEST_SYNC(i);
		guest_check_egprs(id + i);
	}
	GUEST_DONE();
}

TEST(vcpus_are_isolated)
{
	struct kvm_vcpu *vcpus[2];
	struct kvm_vm *vm;
	int i, j;

	vm = vm_create_with_vcpus(ARRAY_SIZE(vcpus), guest_isolation, vcpus);
	for (i = 0; i < ARRAY_SIZE(vcpus); i++)
		vcpu_args_set(vcpus[i], 1, 100 * i);

	/* Both vCPUs share a task, i.e. nothing but KVM separates them. */
	for (j = 0; j < NR_ROUNDS; j++) {
		for (i = 0; i < ARRAY_SIZE(vcpus); i++)
			run_vcpu(vcpus[i], j);
	}
	for (i = 0; i < ARRAY_SIZE(vcpus); i++)
		run_vcpu_to_the_end(vcpus[i]);

	kvm_vm_free(vm);
}

static void guest_send_init_sipi(void)
{
	x2apic_enable();
	x2apic_write_reg(APIC_ICR, (1ull << 32) | APIC_DEST_PHYSICAL |
				   APIC_INT_ASSERT | APIC_DM_INIT);
	GUEST_SYNC(2);
	x2apic_write_reg(APIC_ICR, (1ull << 32) | APIC_DEST_PHYSICAL |
				   APIC_INT_ASSERT | APIC_DM_STARTUP |
				   (SIPI_GPA >> 12));
	GUEST_DONE();
}

TEST(values_survive_init_and_sipi)
{
	static const u8 out[] = { 0xba, PIO_PORT & 0xff, PIO_PORT >> 8, 0xee };
	struct kvm_mp_state mp_state;
	struct kvm_vcpu *vcpus[2];
	struct kvm_sregs sregs;
	struct kvm_regs regs, init_regs;
	struct kvm_xcrs xcrs;
	struct kvm_vm *vm;

	vm = vm_create_with_vcpus(ARRAY_SIZE(vcpus), guest_one_seed, vcpus);
	vcpu_arch_set_entry_point(vcpus[0], guest_send_init_sipi);
	memcpy(addr_gpa2hva(vm, SIPI_GPA), out, sizeof(out));

	run_vcpu(vcpus[1], 1);
	vcpu_regs_get(vcpus[1], &regs);
	vcpu_sregs_get(vcpus[1], &sregs);
	run_vcpu(vcpus[0], 2);

	/* Getting the state makes KVM process the INIT. */
	vcpu_mp_state_get(vcpus[1], &mp_state);
	TEST_ASSERT_EQ(mp_state.mp_state, KVM_MP_STATE_INIT_RECEIVED);
	vcpu_regs_get(vcpus[1], &init_regs);
	TEST_ASSERT_EQ(init_regs.rsp, 0);

	vcpu_xcrs_get(vcpus[1], &xcrs);
	TEST_ASSERT(xcrs.xcrs[0].value & XFEATURE_MASK_APX, "INIT cleared XCR0.APX");
	check_xsave_seed(vcpus[1], 1);

	/* Run in real mode, where R16-R31 are out of reach, but swapped. */
	run_vcpu_to_the_end(vcpus[0]);
	run_vcpu_once(vcpus[1]);
	TEST_ASSERT_KVM_EXIT_REASON(vcpus[1], KVM_EXIT_IO);
	TEST_ASSERT_EQ(vcpus[1]->run->io.port, PIO_PORT);
	vcpu_run_complete_io(vcpus[1]);
	check_xsave_seed(vcpus[1], 1);

	/* Go on as if nothing had happened, the guest checks the values. */
	vcpu_sregs_set(vcpus[1], &sregs);
	vcpu_regs_set(vcpus[1], &regs);
	run_vcpu_to_the_end(vcpus[1]);

	kvm_vm_free(vm);
}

TEST(cpuid_is_consistent)
{
	const struct kvm_cpuid_entry2 *leaf;
	u32 eax, ebx, ecx, edx;

	TEST_ASSERT(kvm_cpu_supported_xcr0() & XFEATURE_MASK_APX,
		    "APX in CPUID.7.1, but not in CPUID.0xD");
	TEST_ASSERT_EQ(kvm_cpu_property(X86_PROPERTY_XSTATE_APX_SIZE),
		       sizeof(struct egprs));
	TEST_ASSERT_EQ(kvm_cpu_property(X86_PROPERTY_XSTATE_APX_OFFSET), 960);
	TEST_ASSERT_EQ(get_cpuid_entry(kvm_get_supported_cpuid(), 0xd, 19)->ecx, 0);
	TEST_ASSERT_EQ(kvm_check_cap(KVM_CAP_XSAVE2),
		       max_t(int, sizeof(struct kvm_xsave),
			     kvm_cpu_property(X86_PROPERTY_XSTATE_MAX_SIZE)));
	TEST_ASSERT(!kvm_cpu_has(X86_FEATURE_MPX), "MPX and APX at the same time");
	TEST_ASSERT(kvm_cpu_property(X86_PROPERTY_MAX_BASIC_LEAF) >= 0x29,
		    "APX without CPUID.0x29");

	leaf = get_cpuid_entry(kvm_get_supported_cpuid(), 0x29, 0);
	__cpuid(0x29, 0, &eax, &ebx, &ecx, &edx);
	TEST_ASSERT_EQ(leaf->flags, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
	TEST_ASSERT_EQ(leaf->eax, 0);
	TEST_ASSERT_EQ(leaf->ebx, ebx & BIT(0));
	TEST_ASSERT_EQ(leaf->ecx, 0);
	TEST_ASSERT_EQ(leaf->edx, 0);
}

static void guest_cpu_without_apx(void)
{
	u64 val = 0;

	GUEST_ASSERT_EQ(xsetbv_safe(0, xgetbv(0) | XFEATURE_MASK_APX), GP_VECTOR);
	GUEST_ASSERT_EQ(store_r31_safe(&val), UD_VECTOR);
	GUEST_DONE();
}

/* KVM without APX has to treat it as any other unknown feature. */
static void test_kvm_without_apx(void)
{
	struct kvm_xsave *xsave;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	int r;

	TEST_ASSERT(!(kvm_cpu_supported_xcr0() & XFEATURE_MASK_APX),
		    "APX in CPUID.0xD, but not in CPUID.7.1");
	TEST_ASSERT(!kvm_cpu_has(X86_FEATURE_APX_NCI_NDD_NF),
		    "CPUID.0x29, but no APX in CPUID.7.1");
	TEST_ASSERT_EQ(kvm_cpu_property(X86_PROPERTY_XSTATE_APX_SIZE), 0);
	TEST_ASSERT_EQ(kvm_cpu_property(X86_PROPERTY_XSTATE_APX_OFFSET), 0);

	vm = vm_create_with_one_vcpu(&vcpu, guest_cpu_without_apx);

	xsave = get_xsave(vcpu);
	TEST_ASSERT(!(xsave_header(xsave)->xstate_bv & XFEATURE_MASK_APX),
		    "XSTATE_BV[APX] is set");
	xsave_header(xsave)->xstate_bv |= XFEATURE_MASK_APX;
	r = __vcpu_ioctl(vcpu, KVM_SET_XSAVE, xsave);
	TEST_ASSERT(r && errno == EINVAL,
		    "KVM_SET_XSAVE: wanted EINVAL, got %d (errno %d)", r, errno);
	free(xsave);

	r = set_xcr0(vcpu, kvm_cpu_supported_xcr0() | XFEATURE_MASK_APX);
	TEST_ASSERT(r && errno == EINVAL,
		    "KVM_SET_XCRS: wanted EINVAL, got %d (errno %d)", r, errno);

	run_vcpu_to_the_end(vcpu);
	kvm_vm_free(vm);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_XSAVE));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_XSAVE2));

	if (!kvm_cpu_has(X86_FEATURE_APX))
		test_kvm_without_apx();
	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_APX));

	return test_harness_run(argc, argv);
}
