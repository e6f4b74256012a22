// SPDX-License-Identifier: GPL-2.0
/*
 * CPUID says of the TSC what holds: leaves 15H and 16H agree with what the kernel
 * was told of "ips" (tsc_early_khz=), which is what a second has of instructions.
 */
#include "apx_test.h"

#define MHZ	1000000ull

int main(void)
{
	u32 eax, ebx, ecx, edx, max;
	char line[4096], *p;
	u64 khz = 0;
	FILE *f;

	f = fopen("/proc/cmdline", "r");
	if (f && fgets(line, sizeof(line), f)) {
		p = strstr(line, "tsc_early_khz=");
		khz = p ? strtoull(p + strlen("tsc_early_khz="), NULL, 10) : 0;
	}
	ktap_plan(2);
	if (!khz) {
		ktap_note("no tsc_early_khz= in /proc/cmdline");
		return EXIT_FAIL;
	}

	__cpuid(0, max, ebx, ecx, edx);
	if (max < 0x16) {
		ktap_note("the highest leaf is %x", max);
		return EXIT_FAIL;
	}
	__cpuid(0x15, eax, ebx, ecx, edx);
	if (eax)
		ktap_note("leaf 15H: %u Hz * %u / %u", ecx, ebx, eax);
	ktap_result(eax && (u64)ecx * ebx / eax == khz * 1000,
		    "CPUID.15H has the frequency of the TSC");
	__cpuid(0x16, eax, ebx, ecx, edx);
	ktap_note("leaf 16H: %u MHz", eax & 0xffff);
	ktap_result((eax & 0xffff) * MHZ == khz * 1000,
		    "CPUID.16H has the frequency of the CPU");
	return ktap_exit();
}
