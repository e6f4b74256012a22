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

#define MMIO_GPA	0xd0000000ull
#define MMIO_GVA	0xd0000000ull

static bool is_zero(const struct egprs *egprs)
{
	int i;

	for (i = 0; i < NR_EGPRS; i++) {
		if (egprs->r[i])
			return false;
	}
	return true;
}

/*
 * What the guest expects is generated from a seed rather than passed by the
 * host, i.e. doesn't depend on KVM getting anything right.
 */
static void guest_load(u64 seed)
{
	struct egprs egprs;

	fill_egprs(&egprs, seed);
	load_egprs(&egprs);
}

static void guest_check(u64 seed)
{
	struct egprs expected, actual;
	int i;

	store_egprs(&actual);
	fill_egprs(&expected, seed);

	for (i = 0; i < NR_EGPRS; i++)
		__GUEST_ASSERT(actual.r[i] == expected.r[i],
			       "Wanted R%d = 0x%lx, got 0x%lx (seed %lu)",
			       i + 16, expected.r[i], actual.r[i], seed);
}

static void guest_check_zero(void)
{
	struct egprs actual;
	int i;

	store_egprs(&actual);

	for (i = 0; i < NR_EGPRS; i++)
		__GUEST_ASSERT(!actual.r[i], "Wanted R%d = 0, got 0x%lx",
			       i + 16, actual.r[i]);
}

static void guest_enable_apx(void)
{
	xsetbv(0, xgetbv(0) | XFEATURE_MASK_APX);
}

static void guest_disable_apx(void)
{
	xsetbv(0, xgetbv(0) & ~XFEATURE_MASK_APX);
}

/*
 * Run the vCPU once, with values in userspace's R16-R31 that the guest must not
 * see, and that must not change.
 */
static void run_vcpu_once(struct kvm_vcpu *vcpu)
{
	struct egprs before, after;

	fill_egprs(&before, 0x5ec2e7);
	load_egprs(&before);
	vcpu_run(vcpu);
	store_egprs(&after);

	TEST_ASSERT(!memcmp(&before, &after, sizeof(before)),
		    "KVM_RUN changed userspace's R16-R31");
}

/* Run the vCPU until it syncs stage @stage, or is done if @stage is negative. */
static void run_vcpu(struct kvm_vcpu *vcpu, int stage)
{
	struct ucall uc;

	for (;;) {
		run_vcpu_once(vcpu);

		if (vcpu->run->exit_reason == KVM_EXIT_MMIO)
			continue;

		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);

		switch (get_ucall(vcpu, &uc)) {
		case UCALL_SYNC:
			TEST_ASSERT_EQ(uc.args[1], stage);
			return;
		case UCALL_DONE:
			TEST_ASSERT(stage < 0, "Guest is done, wanted stage %d", stage);
			return;
		case UCALL_ABORT:
			REPORT_GUEST_ASSERT(uc);
			break;
		default:
			TEST_FAIL("Unexpected ucall %lu", uc.cmd);
		}
	}
}

static void run_vcpu_to_the_end(struct kvm_vcpu *vcpu)
{
	run_vcpu(vcpu, -1);
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

static struct kvm_xsave *get_xsave(struct kvm_vcpu *vcpu)
{
	struct kvm_xsave *xsave = calloc(1, kvm_check_cap(KVM_CAP_XSAVE2));

	TEST_ASSERT(xsave, "-ENOMEM when allocating kvm_xsave");
	vcpu_xsave2_get(vcpu, xsave);
	return xsave;
}

static void set_xsave_egprs(struct kvm_vcpu *vcpu, const struct egprs *egprs)
{
	struct kvm_xsave *xsave = get_xsave(vcpu);

	memcpy(xsave_egprs(xsave), egprs, sizeof(*egprs));
	xsave_header(xsave)->xstate_bv |= XFEATURE_MASK_APX;
	vcpu_xsave_set(vcpu, xsave);
	free(xsave);
}

static void check_xsave(struct kvm_vcpu *vcpu, const struct egprs *expected)
{
	struct kvm_xsave *xsave = get_xsave(vcpu);
	struct kvm_xsave legacy;
	bool is_set = xsave_header(xsave)->xstate_bv & XFEATURE_MASK_APX;
	int i;

	TEST_ASSERT(is_set == !is_zero(expected),
		    "XSTATE_BV[APX] should be %s", is_set ? "clear" : "set");

	for (i = 0; i < NR_EGPRS; i++)
		TEST_ASSERT(xsave_egprs(xsave)[i] == expected->r[i],
			    "Wanted R%d = 0x%lx, KVM_GET_XSAVE2 says 0x%lx",
			    i + 16, expected->r[i], xsave_egprs(xsave)[i]);

	vcpu_xsave_get(vcpu, &legacy);
	TEST_ASSERT(!memcmp(xsave, &legacy, sizeof(legacy)),
		    "KVM_GET_XSAVE and KVM_GET_XSAVE2 disagree");

	free(xsave);
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

/*
 * Cause exits that KVM handles in its fast path, in the kernel, by emulating
 * the instruction, and in userspace.
 */
static void guest_exits(void)
{
	volatile u64 *mmio = (void *)MMIO_GVA;
	u32 eax, ebx, ecx, edx;
	u64 seed, xcr0;

	for (seed = 0; seed < NR_ROUNDS; seed++) {
		guest_load(seed);

		__cpuid(0, 0, &eax, &ebx, &ecx, &edx);
		guest_check(seed);

		rdmsr(MSR_IA32_UCODE_REV);
		guest_check(seed);

		wrmsr(MSR_IA32_TSC_DEADLINE, 0);
		guest_check(seed);

		xcr0 = xgetbv(0);
		xsetbv(0, xcr0);
		guest_check(seed);

		kvm_hypercall(KVM_HC_VAPIC_POLL_IRQ, 0, 0, 0, 0);
		guest_check(seed);

		READ_ONCE(*mmio);
		guest_check(seed);

		WRITE_ONCE(*mmio, seed);
		guest_check(seed);

		GUEST_SYNC(seed);
		guest_check(seed);
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

static void guest_ept_violations(void)
{
	u64 seed;

	for (seed = 0; seed < NR_ROUNDS; seed++) {
		guest_load(seed);
		WRITE_ONCE(guest_pages[seed * PAGE_SIZE / sizeof(u64)], seed);
		guest_check(seed);
	}

	GUEST_DONE();
}

KVM_ONE_VCPU_TEST(apx, values_survive_page_faults, guest_ept_violations)
{
	void *hva = addr_gva2hva(vcpu->vm, (gva_t)guest_pages);

	/* Make KVM fault in, i.e. handle an exit for, each of the pages. */
	TEST_ASSERT(!madvise(hva, sizeof(guest_pages), MADV_DONTNEED),
		    "madvise() failed, errno %d", errno);

	run_vcpu_to_the_end(vcpu);
}

static void guest_get_xsave(void)
{
	u64 seed;

	for (seed = 0; seed < NR_ROUNDS; seed++) {
		guest_load(seed);
		GUEST_SYNC(seed);
	}

	load_egprs(&(struct egprs){});
	GUEST_SYNC(seed);

	/* XSTATE_BV[APX] is about any of the registers, R31 is as good as R16. */
	load_egprs(&(struct egprs){ .r[NR_EGPRS - 1] = 1 });
	GUEST_SYNC(seed + 1);

	GUEST_DONE();
}

KVM_ONE_VCPU_TEST(apx, get_xsave, guest_get_xsave)
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
		guest_load(seed + 1000);
		GUEST_SYNC(seed);
		guest_check(seed);
	}

	GUEST_SYNC(seed);
	guest_check_zero();
	GUEST_DONE();
}

KVM_ONE_VCPU_TEST(apx, set_xsave, guest_set_xsave)
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
	guest_load(1);
	GUEST_SYNC(1);
	guest_check(1);
	GUEST_DONE();
}

KVM_ONE_VCPU_TEST(apx, failed_set_xsave_changes_nothing, guest_one_seed)
{
	struct kvm_xsave *before, *after, *bad;
	size_t size = kvm_check_cap(KVM_CAP_XSAVE2);
	int i, r;

	run_vcpu(vcpu, 1);

	before = get_xsave(vcpu);

	for (i = 0; i < 5; i++) {
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

static void guest_toggle_xcr0(void)
{
	u64 seed;

	for (seed = 0; seed < NR_ROUNDS; seed++) {
		guest_enable_apx();
		guest_load(seed);
		GUEST_SYNC(3 * seed);

		/* Off, with an exit: the values are out of reach, but not lost. */
		guest_disable_apx();
		GUEST_SYNC(3 * seed + 1);
		guest_enable_apx();
		guest_check(seed);

		/* Off, and the host changes the values. */
		guest_disable_apx();
		GUEST_SYNC(3 * seed + 2);
		guest_enable_apx();
		guest_check(seed + 1000);
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

	guest_load(1);
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

	guest_check(1);
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

KVM_ONE_VCPU_TEST(apx, vcpu_without_apx, guest_no_apx)
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
	guest_load(1);
	GUEST_SYNC(1);
	guest_check(1);

	/* The values have to be transferred even if they are out of reach. */
	guest_disable_apx();
	GUEST_SYNC(2);
	guest_enable_apx();
	guest_check(1);
	GUEST_DONE();
}

TEST(values_survive_save_and_restore)
{
	struct kvm_x86_state *state;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	int i;

	vm = vm_create_with_one_vcpu(&vcpu, guest_save_restore);

	for (i = 1; i <= 2; i++) {
		run_vcpu(vcpu, i);

		state = vcpu_save_state(vcpu);
		kvm_vm_release(vm);
		vcpu = vm_recreate_with_one_vcpu(vm);
		vcpu_load_state(vcpu, state);
		kvm_x86_state_cleanup(state);
	}

	run_vcpu_to_the_end(vcpu);
	kvm_vm_free(vm);
}

static void guest_isolation(u64 id)
{
	u64 i;

	for (i = 0; i < NR_ROUNDS; i++) {
		guest_load(id + i);
		GUEST_SYNC(i);
		guest_check(id + i);
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

static void guest_send_init(void)
{
	x2apic_enable();
	x2apic_write_reg(APIC_ICR, (1ull << 32) | APIC_DEST_PHYSICAL |
				   APIC_INT_ASSERT | APIC_DM_INIT);
	GUEST_DONE();
}

TEST(values_survive_init)
{
	struct kvm_mp_state mp_state;
	struct kvm_vcpu *vcpus[2];
	struct kvm_regs regs;
	struct kvm_xcrs xcrs;
	struct egprs egprs;
	struct kvm_vm *vm;

	vm = vm_create_with_vcpus(ARRAY_SIZE(vcpus), guest_one_seed, vcpus);
	vcpu_arch_set_entry_point(vcpus[0], guest_send_init);

	run_vcpu(vcpus[1], 1);
	run_vcpu_to_the_end(vcpus[0]);

	/* Getting the state makes KVM process the INIT. */
	vcpu_mp_state_get(vcpus[1], &mp_state);
	TEST_ASSERT_EQ(mp_state.mp_state, KVM_MP_STATE_INIT_RECEIVED);
	vcpu_regs_get(vcpus[1], &regs);
	TEST_ASSERT_EQ(regs.rsp, 0);

	vcpu_xcrs_get(vcpus[1], &xcrs);
	TEST_ASSERT(xcrs.xcrs[0].value & XFEATURE_MASK_APX, "INIT cleared XCR0.APX");
	fill_egprs(&egprs, 1);
	check_xsave(vcpus[1], &egprs);

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

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_XSAVE));

	TEST_ASSERT(kvm_cpu_has(X86_FEATURE_APX) ||
		    !(kvm_cpu_supported_xcr0() & XFEATURE_MASK_APX),
		    "APX in CPUID.0xD, but not in CPUID.7.1");
	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_APX));

	return test_harness_run(argc, argv);
}
