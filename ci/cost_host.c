// SPDX-License-Identifier: GPL-2.0-only
/*
 * What it costs the CPU that this runs on to move registers to memory and back
 * with XSAVE and XRSTOR, compared with MOVs.  There is no CPU with APX at hand:
 * AVX's component stands in for APX's, and eight general purpose registers, twice,
 * for R16-R31.
 *
 * Output: the ratio of the cycles (of the TSC), the least of many tries each.
 * Exit status: 0, or 4 if the CPU has no AVX.
 */
#include <cpuid.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <x86intrin.h>

#define TRIES	20000
#define MOVES	100

static uint8_t area[1088] __attribute__((aligned(64)));
static uint64_t regs[16];

#define EIGHT(op)							\
	op("rbx", "0") op("rcx", "8") op("rsi", "16") op("r8", "24")	\
	op("r9", "32") op("r10", "40") op("r11", "48") op("r12", "56")

#define STORE(reg, offset)	"mov %%" reg ", " offset "(%0)\n\t"
#define LOAD(reg, offset)	"mov " offset "(%0), %%" reg "\n\t"
#define CLEAR(reg, offset)	"xor %%" reg ", %%" reg "\n\t"

static void with_mov(void)
{
	uint64_t *p = regs;

	asm volatile(EIGHT(STORE) EIGHT(CLEAR) EIGHT(LOAD)
		     "add $64, %0\n\t"
		     EIGHT(STORE) EIGHT(CLEAR) EIGHT(LOAD)
		     : "+r"(p) : : "rbx", "rcx", "rsi", "r8", "r9", "r10",
		     "r11", "r12", "cc", "memory");
}

static void with_xsave(void)
{
	asm volatile("xsave64 (%0)\n\txrstor64 (%0)"
		     : : "r"(area), "a"(1u << 2), "d"(0) : "memory");
}

static uint64_t least(void (*move)(void))
{
	uint64_t t, min = UINT64_MAX;
	unsigned int aux;
	int i, j;

	for (i = 0; i < TRIES; i++) {
		_mm_lfence();
		t = __rdtsc();
		for (j = 0; j < MOVES; j++)
			move();
		t = __rdtscp(&aux) - t;
		if (t < min)
			min = t;
	}
	return min;
}

int main(void)
{
	uint32_t eax, ebx, ecx, edx, xcr0, xcr0_high;

	if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_OSXSAVE))
		return 4;
	asm("xgetbv" : "=a"(xcr0), "=d"(xcr0_high) : "c"(0));
	if (!(xcr0 & 4))
		return 4;

	/* State in use is what takes time to save. */
	asm volatile("vpcmpeqd %%xmm0, %%xmm0, %%xmm0\n\t"
		     "vinsertf128 $1, %%xmm0, %%ymm0, %%ymm0" : : : "xmm0");
	printf("%.1f\n", (double)least(with_xsave) / least(with_mov));
	return 0;
}
