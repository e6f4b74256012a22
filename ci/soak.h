/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Shared by the programs of ci/soak: where random numbers come from, rounds, the
 * VMM's own R16-R31 around KVM_RUN, and what KVM_GET_XSAVE has to say.
 *
 * Seed and rounds are in the environment, as the kernel's command line passes
 * them to init.  A round depends on them only, not on the rounds before it, and
 * the random numbers of its steps not on other steps: some can be left out.
 * SOAK_KEEP has those that are not, by default all, and SOAK_MINIMISE leaves out
 * what a round that fails doesn't need to.
 */
#ifndef SOAK_H
#define SOAK_H

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "apx.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"

/*
 * Where a value comes from is in its top bits, i.e. a value in the wrong place
 * says whose it is.
 */
#define TAG_GUEST	0x6000ull	/* and the vCPU's number */
#define TAG_VMM		0x5ec2ull	/* loaded around KVM_RUN */
#define TAG_THREAD	0x7eadull	/* a thread that isn't a vCPU */

static const char *soak_part;
static u64 soak_seed, soak_from, soak_rounds, soak_round;
static bool soak_passed;

static inline u64 soak_random(u64 *state)
{
	u64 z = *state += 0x9e3779b97f4a7c15ull;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

/* True once in @n times. */
static inline bool soak_once_in(u64 *state, u64 n)
{
	return !(soak_random(state) % n);
}

static inline void soak_fill(struct egprs *egprs, u64 *state, u64 tag)
{
	int i;

	for (i = 0; i < NR_EGPRS; i++)
		egprs->r[i] = (soak_random(state) >> 16) | tag << 48;
}

static inline u64 soak_env(const char *name, u64 otherwise)
{
	const char *val = getenv(name);

	return val ? strtoull(val, NULL, 0) : otherwise;
}

/* Steps that aren't left out.  Guests have a copy. */
#define SOAK_MAX_STEPS	4096
static u8 soak_left_out[SOAK_MAX_STEPS];
static u64 soak_last_kept;

/* Where the random numbers of a step begin. */
static inline u64 soak_step_state(u64 round_state, u64 step)
{
	round_state += step << 32;
	return soak_random(&round_state);
}

static inline void soak_keep(const char *steps)
{
	char *end;
	u64 step;

	memset(soak_left_out, 1, sizeof(soak_left_out));
	do {
		step = strtoull(steps, &end, 10);
		TEST_ASSERT(end != steps && step < SOAK_MAX_STEPS, "No step '%s'", steps);
		soak_left_out[step] = 0;
		soak_last_kept = max(soak_last_kept, step);
		steps = end + 1;
	} while (*end == ',');
}

/* How many steps a round has, @otherwise if the environment doesn't say. */
static inline u64 soak_nr_steps(u64 otherwise)
{
	u64 steps = soak_env("SOAK_STEPS", otherwise);

	TEST_ASSERT(steps <= SOAK_MAX_STEPS, "At most %u steps", SOAK_MAX_STEPS);
	TEST_ASSERT(soak_last_kept < steps, "No step %lu, a round has %lu", soak_last_kept, steps);
	return steps;
}

/* The round in a process of its own: whether it fails. */
static inline bool soak_round_fails(void (*run)(void), bool silent)
{
	int status;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	TEST_ASSERT(pid >= 0, "fork() failed");
	if (!pid) {
		if (silent) {
			TEST_ASSERT(freopen("/dev/null", "w", stdout) &&
				    freopen("/dev/null", "w", stderr), "No /dev/null");
		}
		alarm(60);
		run();
		soak_passed = true;
		exit(0);
	}
	TEST_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	return status;
}

/*
 * Leave out half of the steps, a quarter, and so on down to single ones, for as
 * long as the round fails without them.
 */
static inline void soak_minimise(void (*run)(void), u64 steps)
{
	u64 n, i, j, nr_kept = 0, nr_tries = 0;
	u8 before[SOAK_MAX_STEPS];
	const char *comma = "";

	soak_round = soak_from;
	TEST_ASSERT(soak_round_fails(run, true), "Round %lu doesn't fail", soak_round);
	for (n = steps / 2; n; n /= 2) {
		for (i = 0; i < steps; i += n) {
			memcpy(before, soak_left_out, sizeof(before));
			for (j = i; j < i + n && j < steps; j++)
				soak_left_out[j] = 1;
			if (!memcmp(before, soak_left_out, sizeof(before)))
				continue;
			nr_tries++;
			if (!soak_round_fails(run, true))
				memcpy(soak_left_out, before, sizeof(before));
		}
	}

	soak_round_fails(run, false);
	printf("minimal: ");
	for (i = 0; i < steps; i++) {
		if (soak_left_out[i])
			continue;
		printf("%s%lu", comma, i);
		comma = ",";
		nr_kept++;
	}
	printf("\nminimised: %lu of %lu steps, %lu tries\n", nr_kept, steps, nr_tries);
	soak_passed = true;
}

static void soak_at_exit(void)
{
	if (!soak_passed)
		printf("failed: %s, seed %lu, round %lu\n", soak_part, soak_seed, soak_round);
	fflush(stdout);
}

static inline void soak_begin(const char *part)
{
	soak_part = part;
	soak_seed = soak_env("SOAK_SEED", 1);
	soak_from = soak_env("SOAK_FROM", 0);
	soak_rounds = soak_env("SOAK_ROUNDS", 1);
	if (getenv("SOAK_KEEP"))
		soak_keep(getenv("SOAK_KEEP"));
	setvbuf(stdout, NULL, _IOLBF, 0);
	atexit(soak_at_exit);
}

#define for_each_round()							\
	for (soak_round = soak_from; soak_round < soak_from + soak_rounds; soak_round++)

/* Where the random numbers of this round begin. */
static inline u64 soak_round_state(void)
{
	u64 state = soak_seed;

	state = soak_random(&state) + soak_round;
	return soak_random(&state);
}

/* VMs that are still there, of which debugfs has a folder each. */
static inline int soak_vms(void)
{
	DIR *dir = opendir("/sys/kernel/debug/kvm");
	struct dirent *entry;
	int nr = 0;

	TEST_ASSERT(dir, "No /sys/kernel/debug/kvm");
	while ((entry = readdir(dir))) {
		if (entry->d_type == DT_DIR && entry->d_name[0] != '.')
			nr++;
	}
	closedir(dir);
	return nr;
}

static inline void soak_end(void)
{
	TEST_ASSERT(!soak_vms(), "%d VMs are left", soak_vms());
	soak_passed = true;
}

/* Run the vCPU, with values in R16-R31 that are nobody else's. */
static inline int soak_run(struct kvm_vcpu *vcpu, u64 *state)
{
	struct egprs before, after;
	int i, r, err;

	soak_fill(&before, state, TAG_VMM);
	r = run_with_egprs(vcpu, &before, &after);
	err = errno;
	for (i = 0; i < NR_EGPRS; i++)
		TEST_ASSERT(before.r[i] == after.r[i],
			    "vCPU %u: the VMM had 0x%lx in R%d before KVM_RUN, and 0x%lx after",
			    vcpu->id, before.r[i], i + 16, after.r[i]);
	errno = err;
	return r;
}

/* The library's, which guests can use, go byte by byte. */
static inline void soak_clear(void *dst, size_t size)
{
	asm volatile("rep stosb" : "+D"(dst), "+c"(size) : "a"(0) : "memory");
}

static inline void soak_copy(void *dst, const void *src, size_t size)
{
	asm volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(size) : : "memory");
}

static inline bool soak_is_same(const void *a, const void *b, size_t size)
{
	bool same;

	asm volatile("cmp %%al, %%al; repe cmpsb; sete %3"
		     : "+D"(a), "+S"(b), "+c"(size), "=q"(same) : : "cc", "memory");
	return same;
}

/* The buffer is of the size that KVM_CAP_XSAVE2 tells, or larger. */
#define SOAK_XSAVE_SIZE	16384

static inline void soak_get_xsave(struct kvm_vcpu *vcpu, void *xsave)
{
	soak_clear(xsave, SOAK_XSAVE_SIZE);
	vcpu_xsave2_get(vcpu, (struct kvm_xsave *)xsave);
}

static inline void soak_set_xsave_egprs(struct kvm_vcpu *vcpu, const struct egprs *egprs)
{
	u8 xsave[SOAK_XSAVE_SIZE] __aligned(64);

	soak_get_xsave(vcpu, xsave);
	memcpy(xsave_egprs(xsave), egprs, sizeof(*egprs));
	xsave_header(xsave)->xstate_bv |= XFEATURE_MASK_APX;
	vcpu_xsave_set(vcpu, (struct kvm_xsave *)xsave);
}

static inline void soak_check_xsave(struct kvm_vcpu *vcpu, const struct egprs *expected,
				    const char *where)
{
	u8 xsave[SOAK_XSAVE_SIZE] __aligned(64);
	bool is_set;
	int i;

	soak_get_xsave(vcpu, xsave);
	is_set = xsave_header(xsave)->xstate_bv & XFEATURE_MASK_APX;
	for (i = 0; i < NR_EGPRS; i++)
		TEST_ASSERT(xsave_egprs(xsave)[i] == expected->r[i],
			    "vCPU %u, %s: wanted R%d = 0x%lx, KVM_GET_XSAVE2 says 0x%lx",
			    vcpu->id, where, i + 16, expected->r[i], xsave_egprs(xsave)[i]);
	TEST_ASSERT(is_set == !egprs_are_zero(expected),
		    "vCPU %u, %s: XSTATE_BV[APX] is %d", vcpu->id, where, is_set);
}

/* MSRs that depend on how many instructions KVM takes. */
static inline bool soak_is_time(u32 msr)
{
	return msr == MSR_IA32_TSC || msr == MSR_IA32_TSC_ADJUST || msr == MSR_IA32_APERF ||
	       msr == MSR_IA32_MPERF || msr == 0x40000020 /* HV_X64_MSR_TIME_REF_COUNT */ ||
	       msr == 0x40000010 /* HV_X64_MSR_VP_RUNTIME */;
}

#endif /* SOAK_H */
