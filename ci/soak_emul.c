// SPDX-License-Identifier: GPL-2.0-only
/*
 * Random instructions, run natively, and again by KVM's emulator: forced, and for
 * the sake of memory that isn't there.  All of it is x86/apx_emul_test's, which
 * says how to repeat a single instruction that differs.
 *
 * With SOAK_INSN a round is the one instruction that has this seed.
 *
 * Without rounds, on KVM without the series: what differs there as well.
 */
#define main apx_emul_main
#include "x86/apx_emul_test.c"
#undef main

#include "soak.h"

#define NR_INSNS	"4000"	/* for each of the two */

/*
 * Legacy instructions whose emulation isn't what the CPU does, i.e. which the
 * random ones have to avoid, with REX2 and without.  Registers that a row doesn't
 * name are zero, but for RSP, a stack, and RSI, which points to memory; memory,
 * stack and RFLAGS are zero.
 */
#define NO_FAULT	(~0ull)
#define STATE(member)	offsetof(struct state, member)
#define NR_SETS		3

struct difference {
	const char *name;
	const char *bytes;
	u8 len;
	struct {
		u8 reg;
		u64 val;
	} set[NR_SETS];
	const char *what;
	u32 where;
	u64 cpu, kvm;
};

#define INSN_BYTES(bytes) bytes, sizeof(bytes) - 1

static const struct difference differences[] = {
	{
		"CMPXCHG EDX, ECX; not equal", INSN_BYTES("\x0f\xb1\xca"),
		{ { 0, 1 }, { 2, 0x1122334455667788 } },
		"RDX", STATE(gpr[2]), 0x1122334455667788, 0x55667788,
	},
	{
		"CMPXCHG16B [RSI]", INSN_BYTES("\x48\x0f\xc7\x0e"), {},
		"vector", STATE(vector), NO_FAULT, UD_VECTOR,
	},
	{
		"FXSAVE [RSI]", INSN_BYTES("\x0f\xae\x06"), {},
		"vector", STATE(vector), NO_FAULT, UD_VECTOR,
	},
	{
		"FXRSTOR [RSI]", INSN_BYTES("\x0f\xae\x0e"), {},
		"vector", STATE(vector), NO_FAULT, UD_VECTOR,
	},
	{
		"IRETQ to a null selector", INSN_BYTES("\x48\xcf"), {},
		"vector", STATE(vector), GP_VECTOR, UD_VECTOR,
	},
	{
		"INT3", INSN_BYTES("\xcc"), {},
		"vector", STATE(vector), BP_VECTOR, UD_VECTOR,
	},
	{
		"INT 20H", INSN_BYTES("\xcd\x20"), {},
		"vector", STATE(vector), 0x20, UD_VECTOR,
	},
	{
		"INT1", INSN_BYTES("\xf1"), {},
		"vector", STATE(vector), DB_VECTOR, UD_VECTOR,
	},
	{
		"MONITOR", INSN_BYTES("\x0f\x01\xc8"),
		{ { 0, (u64)mem + 512 } },
		"vector", STATE(vector), NO_FAULT, UD_VECTOR,
	},
	{
		"MWAIT", INSN_BYTES("\x0f\x01\xc9"), {},
		"vector", STATE(vector), NO_FAULT, UD_VECTOR,
	},
	{
		"VMRUN without EFER.SVME, address not aligned", INSN_BYTES("\x0f\x01\xd8"),
		{ { 0, 1 } },
		"vector", STATE(vector), UD_VECTOR, GP_VECTOR,
	},
	{
		"RDTSCP", INSN_BYTES("\x0f\x01\xf9"), {},
		"vector", STATE(vector), NO_FAULT, UD_VECTOR,
	},
	{
		"reserved NOP", INSN_BYTES("\x0f\x19\x06"), {},
		"vector", STATE(vector), NO_FAULT, UD_VECTOR,
	},
	{
		"reserved NOP", INSN_BYTES("\x0f\x1c\x06"), {},
		"vector", STATE(vector), NO_FAULT, UD_VECTOR,
	},
	{
		"reserved NOP", INSN_BYTES("\x0f\x1d\x06"), {},
		"vector", STATE(vector), NO_FAULT, UD_VECTOR,
	},
	{
		"reserved NOP", INSN_BYTES("\x0f\x1e\x06"), {},
		"vector", STATE(vector), NO_FAULT, UD_VECTOR,
	},
	{
		"16 bytes", INSN_BYTES("\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x90"), {},
		"vector", STATE(vector), GP_VECTOR, UD_VECTOR,
	},
};

/* The address that these push is that of the next instruction. */
static void guest_trap_handler(struct ex_regs *regs)
{
	guest_exception_handler(regs);
	ex_rip = INSN;
}

static void guest_differences(void)
{
	u64 cpu, kvm;
	int i, j;

	run.no_egprs = !this_cpu_has(X86_FEATURE_APX);
	for (i = 0; i < ARRAY_SIZE(differences); i++) {
		const struct difference *d = &differences[i];
		struct insn insn = { .len = d->len };

		memset(&in, 0, sizeof(in));
		in.gpr[4] = STACK_TOP;
		in.gpr[6] = (u64)mem + 512;
		in.rflags = X86_EFLAGS_FIXED;
		for (j = 0; j < NR_SETS && d->set[j].val; j++)
			in.gpr[d->set[j].reg] = d->set[j].val;

		memcpy(insn.bytes, d->bytes, d->len);
		run_state(&in, &native, &insn, false, mem);
		run_state(&in, &other, &insn, true, mem);
		cpu = *(u64 *)((u8 *)&native + d->where);
		kvm = *(u64 *)((u8 *)&other + d->where);
		if (cpu == d->cpu && kvm == d->kvm)
			continue;

		GUEST_PRINTF("%s: %s is 0x%lx on the CPU and 0x%lx with KVM, not 0x%lx and 0x%lx\n",
			     d->name, d->what, cpu, kvm, d->cpu, d->kvm);
		nr_failed++;
	}
	__GUEST_ASSERT(!nr_failed, "%lu differences aren't what they were", nr_failed);
	GUEST_DONE();
}

static void run_differences(void)
{
	static const int faults[] = { UD_VECTOR, GP_VECTOR, PF_VECTOR };
	static const int traps[] = { DB_VECTOR, BP_VECTOR, 0x20 };
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct ucall uc;
	int i;

	vm = vm_create_with_one_vcpu(&vcpu, guest_differences);
	for (i = 0; i < ARRAY_SIZE(faults); i++)
		vm_install_exception_handler(vm, faults[i], guest_exception_handler);
	for (i = 0; i < ARRAY_SIZE(traps); i++)
		vm_install_exception_handler(vm, traps[i], guest_trap_handler);

	for (;;) {
		vcpu_run(vcpu);
		/* KVM gives up after decoding, and queues #UD. */
		if (vcpu->run->exit_reason == KVM_EXIT_INTERNAL_ERROR &&
		    vcpu->run->emulation_failure.suberror == KVM_INTERNAL_ERROR_EMULATION)
			continue;
		switch (get_ucall(vcpu, &uc)) {
		case UCALL_PRINTF:
			printf("  %s", uc.buffer);
			break;
		case UCALL_DONE:
			kvm_vm_free(vm);
			return;
		case UCALL_ABORT:
			REPORT_GUEST_ASSERT(uc);
			break;
		default:
			TEST_FAIL("Unexpected exit %u", vcpu->run->exit_reason);
		}
	}
}

static u64 sum_forced, sum_mmio, sum_legacy, sum_faults;

static void run_round(void)
{
	char name[] = "apx_emul_test", number[] = NR_INSNS, from[16];
	const char *insn = getenv("SOAK_INSN");
	char *argv[] = { name, "-s", from, "-n", number, "-t", "random_instructions",
			 "-t", "random_accesses", NULL };

	if (insn)
		strcpy(number, "1");
	snprintf(from, sizeof(from), "%lu", insn ? soak_env("SOAK_INSN", 0) : soak_round_state() & INT_MAX);
	exit(apx_emul_main(ARRAY_SIZE(argv) - 1, argv));
}

int main(void)
{
	u64 forced, mmio, legacy, faults, forced_before, mmio_before;
	char line[512];
	int status;
	FILE *file;
	pid_t pid;

	TEST_REQUIRE(is_forced_emulation_enabled);

	soak_begin("emul");
	if (!soak_rounds) {
		run_differences();
		soak_end();
		printf("total differences=%lu\n", ARRAY_SIZE(differences));
		return 0;
	}

	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_APX));
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
		if (getenv("SOAK_INSN")) {
			TEST_ASSERT(forced == 1, "%lu forced instructions", forced);
		} else {
			TEST_ASSERT(forced == atoi(NR_INSNS), "%lu forced instructions", forced);
			TEST_ASSERT(mmio >= atoi(NR_INSNS) * 3 / 4, "Only %lu with MMIO", mmio);
		}
		printf("round %lu: %lu forced, %lu with MMIO\n", soak_round, forced, mmio);
	}
	soak_end();
	printf("total rounds=%lu forced=%lu mmio=%lu legacy=%lu faults=%lu\n",
	       soak_rounds, sum_forced, sum_mmio, sum_legacy, sum_faults);
	return 0;
}
