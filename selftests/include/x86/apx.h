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

#include <linux/stringify.h>
#include <string.h>

#include "processor.h"

#define NR_EGPRS	16

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

/* Store R31, return the exception vector, or 0 if there's no exception. */
static inline u8 store_r31_safe(u64 *val)
{
	u64 error_code;
	u8 vector;

	asm volatile(KVM_ASM_SAFE(".byte 0xd5, 0x4c, 0x89, 0x38")
		     : KVM_ASM_SAFE_OUTPUTS(vector, error_code), "+m"(*val)
		     : "a"(val)
		     : KVM_ASM_SAFE_CLOBBERS);
	return vector;
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

static inline u64 *xsave_egprs(void *xsave)
{
	return xsave + kvm_cpu_property(X86_PROPERTY_XSTATE_APX_OFFSET);
}

static inline struct xstate_header *xsave_header(void *xsave)
{
	return &((struct xstate *)xsave)->header;
}

#endif /* SELFTEST_KVM_APX_H */
