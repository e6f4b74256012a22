// SPDX-License-Identifier: GPL-2.0
/* With "clock: sync=none" the TSC is the number of instructions since RESET. */
#include <stdio.h>
#include <x86intrin.h>

int main(void)
{
	printf("tsc %llu\n", __rdtsc());
	return 0;
}
