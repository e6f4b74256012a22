/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Access to APX's extended GPRs, R16-R31.
 *
 * All instructions are encoded by hand, as the oldest supported assembler knows
 * neither the registers nor the REX2 prefix:
 *
 *   D5 [M0 R4 X4 B4 W R3 X3 B3] opcode ModRM
 *
 * Compilers don't use R16-R31 unless told to (-mapxf), i.e. whatever is loaded
 * stays put, even across function calls, until the guest loads something else.
 */
#ifndef SELFTEST_KVM_APX_H
#define SELFTEST_KVM_APX_H

#include <errno.h>
#include <linux/stringify.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"

/* KVM and this header would disagree with the compiler about who owns R16-R31. */
#ifdef __APX_F__
# error Tests of APX must not be compiled to use R16-R31
#endif

#define NR_EGPRS	16

/* A page that isn't memory, for accesses that KVM has to emulate. */
#define MMIO_GPA	0xd0000000ull
#define MMIO_GVA	0xd0000000ull

struct egprs {
	u64 r[NR_EGPRS];
};

/* MOV between R16-R31 and 8 * 16 bytes at RAX, with an 8-bit displacement. */
#define __MOV_EGPRS(opcode)							\
	".irp nr, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n\t"	\
	".byte 0xd5, 0x48 | ((\\nr & 8) >> 1), " __stringify(opcode) "\n\t"	\
	".byte 0x40 | ((\\nr & 7) << 3), \\nr * 8\n\t"				\
	".endr\n\t"

static __always_inline void load_egprs(const struct egprs *egprs)
{
	asm volatile(__MOV_EGPRS(0x8b) : : "a"(egprs), "m"(*egprs));
}

static __always_inline void store_egprs(struct egprs *egprs)
{
	asm volatile(__MOV_EGPRS(0x89) : "=m"(*egprs) : "a"(egprs));
}

#define __STORE_R31_SAFE(asm_safe, addr)					\
({										\
	u64 error_code, *val = addr;						\
	u8 vector;								\
										\
	asm volatile(asm_safe(".byte 0xd5, 0x4c, 0x89, 0x38")			\
		     : KVM_ASM_SAFE_OUTPUTS(vector, error_code), "+m"(*val)	\
		     : "a"(val)							\
		     : KVM_ASM_SAFE_CLOBBERS);					\
	vector;									\
})

/*
 * Store R31, natively and, if that's possible, by KVM's emulator.  Return the
 * exception vector, or 0 if there's no exception.
 */
static inline u8 store_r31_safe(u64 *dst)
{
	u8 native = __STORE_R31_SAFE(KVM_ASM_SAFE, dst);

	if (is_forced_emulation_enabled)
		GUEST_ASSERT_EQ(__STORE_R31_SAFE(KVM_ASM_SAFE_FEP, dst), native);

	return native;
}

/* Sixteen distinct values, of which all bytes depend on @seed. */
static inline void fill_egprs(struct egprs *egprs, u64 seed)
{
	u64 val = (seed + 1) * 0x9e3779b97f4a7c15ull;
	int i;

	for (i = 0; i < NR_EGPRS; i++) {
		egprs->r[i] = val ^ (0x0101010101010101ull * (i + 16));
		val = (val << 7) | (val >> 57);
	}
}

/*
 * What the guest expects is generated from a seed rather than passed by the
 * host, i.e. doesn't depend on KVM getting anything right.
 */
static inline void guest_load_egprs(u64 seed)
{
	struct egprs egprs;

	fill_egprs(&egprs, seed);
	load_egprs(&egprs);
}

static inline void guest_check_egprs(u64 seed)
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

static inline void guest_enable_apx(void)
{
	xsetbv(0, xgetbv(0) | XFEATURE_MASK_APX);
}

static inline void guest_disable_apx(void)
{
	xsetbv(0, xgetbv(0) & ~XFEATURE_MASK_APX);
}

/*
 * For inline assembly: L1 may have left anything in all GPRs but RSP after
 * @insns, also in RBP, which can't be clobbered.  Mind the red zone.
 */
#define ASM_KEEP_RBP(insns)		\
	"lea -128(%%rsp), %%rsp\n\t"	\
	"push %%rbp\n\t"		\
	insns "\n\t"			\
	"pop %%rbp\n\t"			\
	"lea 128(%%rsp), %%rsp\n\t"

/*
 * KVM_RUN with @before in R16-R31, @after is what they are then.  ioctl() would
 * be free to use them if the C library was built for APX.
 */
static inline int run_with_egprs(struct kvm_vcpu *vcpu, const struct egprs *before,
				 struct egprs *after)
{
	const void *regs = before;
	long r;

	asm volatile(__MOV_EGPRS(0x8b)
		     "mov %[ioctl], %%eax\n\t"
		     "syscall\n\t"
		     "mov %%rax, %[r]\n\t"
		     "mov %[after], %%rax\n\t"
		     __MOV_EGPRS(0x89)
		     : "+a"(regs), [r]"=&r"(r)
		     : [ioctl]"i"(__NR_ioctl), "D"((long)vcpu->fd), "S"((long)KVM_RUN),
		       "d"(0l), [after]"r"(after)
		     : "rcx", "r11", "cc", "memory");
	if (r >= 0)
		return r;

	errno = -r;
	return -1;
}

/*
 * Run the vCPU once, with values in userspace's R16-R31 that the guest must not
 * see, and that must not change.
 */
static inline int __run_vcpu_once(struct kvm_vcpu *vcpu)
{
	struct egprs before, after;
	int r;

	/* Some of the tests also run on CPUs without APX. */
	if (!kvm_cpu_has(X86_FEATURE_APX))
		return __vcpu_run(vcpu);

	fill_egprs(&before, 0x5ec2e7);
	r = run_with_egprs(vcpu, &before, &after);
	TEST_ASSERT(!memcmp(&before, &after, sizeof(before)),
		    "KVM_RUN changed userspace's R16-R31");
	return r;
}

static inline void run_vcpu_once(struct kvm_vcpu *vcpu)
{
	int r;

	do {
		r = __run_vcpu_once(vcpu);
	} while (r && errno == EINTR);

	TEST_ASSERT(!r, KVM_IOCTL_ERROR(KVM_RUN, r));
}

/* Run the vCPU until it syncs stage @stage, or is done if @stage is negative. */
static inline void run_vcpu(struct kvm_vcpu *vcpu, int stage)
{
	struct ucall uc;

	for (;;) {
		run_vcpu_once(vcpu);

		if (vcpu->run->exit_reason == KVM_EXIT_MMIO)
			continue;

		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);

		switch (get_ucall(vcpu, &uc)) {
		case UCALL_NONE:
			/* I/O that isn't a ucall. */
			continue;
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

static inline void run_vcpu_to_the_end(struct kvm_vcpu *vcpu)
{
	run_vcpu(vcpu, -1);
}

/* Save the vCPU's state, and restore it to a new vCPU in a new VM. */
static inline struct kvm_vcpu *migrate_vcpu(struct kvm_vcpu *vcpu)
{
	struct kvm_x86_state *state = vcpu_save_state(vcpu);
	struct kvm_vm *vm = vcpu->vm;

	kvm_vm_release(vm);
	vcpu = vm_recreate_with_one_vcpu(vm);
	vcpu_load_state(vcpu, state);
	kvm_x86_state_cleanup(state);
	return vcpu;
}

static inline u64 *xsave_egprs(void *xsave)
{
	return xsave + kvm_cpu_property(X86_PROPERTY_XSTATE_APX_OFFSET);
}

static inline struct xstate_header *xsave_header(void *xsave)
{
	return &((struct xstate *)xsave)->header;
}

static inline bool egprs_are_zero(const struct egprs *egprs)
{
	int i;

	for (i = 0; i < NR_EGPRS; i++) {
		if (egprs->r[i])
			return false;
	}
	return true;
}

static inline size_t xsave_size(struct kvm_vcpu *vcpu)
{
	return vm_check_cap(vcpu->vm, KVM_CAP_XSAVE2);
}

static inline struct kvm_xsave *get_xsave(struct kvm_vcpu *vcpu)
{
	struct kvm_xsave *xsave = calloc(1, xsave_size(vcpu));

	TEST_ASSERT(xsave, "-ENOMEM when allocating kvm_xsave");
	vcpu_xsave2_get(vcpu, xsave);
	return xsave;
}

static inline void set_xsave_egprs(struct kvm_vcpu *vcpu, const struct egprs *egprs)
{
	struct kvm_xsave *xsave = get_xsave(vcpu);

	memcpy(xsave_egprs(xsave), egprs, sizeof(*egprs));
	xsave_header(xsave)->xstate_bv |= XFEATURE_MASK_APX;
	vcpu_xsave_set(vcpu, xsave);
	free(xsave);
}

static inline void check_xsave(struct kvm_vcpu *vcpu, const struct egprs *expected)
{
	struct kvm_xsave *xsave = get_xsave(vcpu);
	struct kvm_xsave legacy;
	bool is_set = xsave_header(xsave)->xstate_bv & XFEATURE_MASK_APX;
	int i;

	TEST_ASSERT(is_set == !egprs_are_zero(expected),
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

static inline void check_xsave_seed(struct kvm_vcpu *vcpu, u64 seed)
{
	struct egprs egprs;

	fill_egprs(&egprs, seed);
	check_xsave(vcpu, &egprs);
}

#endif /* SELFTEST_KVM_APX_H */
