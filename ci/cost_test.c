// SPDX-License-Identifier: GPL-2.0-only
/*
 * Count the instructions of a VM-exit round trip: the guest executes CPUID in a
 * loop and reads the TSC around it.  On the emulated machine, where the TSC
 * advances by one per instruction, the result is exact as long as no interrupt
 * arrives, i.e. the minimum is.
 *
 * Needs nothing from the series, the same program runs on every kernel.
 */
#include <stdio.h>
#include <stdlib.h>

#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"

#define XFEATURE_APX	BIT_ULL(19)

#define NR_ROUNDS	101
#define NR_EXITS	100

static u64 rounds[NR_ROUNDS];

static void guest_code(u64 xcr0)
{
	u32 eax, ebx, ecx, edx;
	int i, j;
	u64 tsc;

	if (xcr0)
		xsetbv(0, xcr0);

	for (i = 0; i < NR_ROUNDS; i++) {
		tsc = rdtsc();
		for (j = 0; j < NR_EXITS; j++) {
			eax = 0;
			ecx = 0;
			asm volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
		}
		rounds[i] = rdtsc() - tsc;
	}
	GUEST_DONE();
}

static int compare(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

static void measure(const char *name, u64 xcr0)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct ucall uc;

	vm = vm_create_with_one_vcpu(&vcpu, guest_code);
	vcpu_args_set(vcpu, 1, xcr0);
	vcpu_run(vcpu);
	TEST_ASSERT(get_ucall(vcpu, &uc) == UCALL_DONE, "The guest didn't finish");

	sync_global_from_guest(vm, rounds);
	kvm_vm_free(vm);

	/* The first rounds fill caches, i.e. sort them to the end. */
	qsort(rounds, NR_ROUNDS, sizeof(rounds[0]), compare);
	printf("cost %s %.2f %.2f\n", name, (double)rounds[0] / NR_EXITS,
	       (double)rounds[NR_ROUNDS / 2] / NR_EXITS);
}

int main(void)
{
	u64 xcr0 = 0;

	if (kvm_cpu_has(X86_FEATURE_XSAVE))
		xcr0 = kvm_cpu_supported_xcr0();

	measure("cpuid", xcr0 & ~XFEATURE_APX);
	if (xcr0 & XFEATURE_APX)
		measure("cpuid-with-xcr0.apx", xcr0);

	return 0;
}
