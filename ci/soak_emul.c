// SPDX-License-Identifier: GPL-2.0-only
/*
 * Random instructions, run natively, and again by KVM's emulator: forced, and for
 * the sake of memory that isn't there.  All of it is x86/apx_emul_test's, which
 * says how to repeat a single instruction that differs.
 */
#define main apx_emul_main
#include "x86/apx_emul_test.c"
#undef main

#include "soak.h"

#define NR_INSNS	"4000"	/* for each of the two */

static u64 sum_forced, sum_mmio, sum_legacy, sum_faults;

static void run_round(void)
{
	char name[] = "apx_emul_test", number[] = NR_INSNS, from[16];
	char *argv[] = { name, "-s", from, "-n", number, "-t", "random_instructions",
			 "-t", "random_accesses", NULL };

	snprintf(from, sizeof(from), "%lu", soak_round_state() & INT_MAX);
	exit(apx_emul_main(ARRAY_SIZE(argv) - 1, argv));
}

int main(void)
{
	u64 forced, mmio, legacy, faults, forced_before, mmio_before;
	char line[512];
	int status;
	FILE *file;
	pid_t pid;

	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_APX));
	TEST_REQUIRE(is_forced_emulation_enabled);

	soak_begin("emul");
	for_each_round() {
		file = tmpfile();
		TEST_ASSERT(file, "No temporary file");
		fflush(stdout);
		pid = fork();
		TEST_ASSERT(pid >= 0, "fork() failed");
		if (!pid) {
			/* What the test says isn't what this one says. */
			soak_passed = true;
			TEST_ASSERT(dup2(fileno(file), STDOUT_FILENO) >= 0 &&
				    dup2(fileno(file), STDERR_FILENO) >= 0, "dup2() failed");
			run_round();
		}
		TEST_ASSERT_EQ(waitpid(pid, &status, 0), pid);

		forced_before = sum_forced;
		mmio_before = sum_mmio;
		rewind(file);
		while (fgets(line, sizeof(line), file)) {
			if (status)
				printf("  %s", line);
			if (sscanf(line, "# %lu forced, %lu with MMIO, %lu legacy, %lu fault",
				   &forced, &mmio, &legacy, &faults) == 4) {
				sum_forced += forced;
				sum_mmio += mmio;
				sum_legacy += legacy;
				sum_faults += faults;
			}
		}
		fclose(file);
		TEST_ASSERT(!status, "Native and emulated instructions differ");
		forced = sum_forced - forced_before;
		mmio = sum_mmio - mmio_before;
		TEST_ASSERT(forced == atoi(NR_INSNS), "%lu forced instructions", forced);
		TEST_ASSERT(mmio >= atoi(NR_INSNS) * 3 / 4, "Only %lu with MMIO", mmio);
		printf("round %lu: %lu forced, %lu with MMIO\n", soak_round, forced, mmio);
	}
	soak_end();
	printf("total rounds=%lu forced=%lu mmio=%lu legacy=%lu faults=%lu\n",
	       soak_rounds, sum_forced, sum_mmio, sum_legacy, sum_faults);
	return 0;
}
