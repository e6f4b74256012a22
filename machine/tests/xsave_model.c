// SPDX-License-Identifier: GPL-2.0
/*
 * The XSAVE family against the model of xsave_model.h: all components that the OS
 * lets a process have.  It is checked on the CPU of the build host as well, see
 * docs/testing.md.  XSAVES and XRSTORS are not for processes: machine/bare runs
 * them.
 *
 * Usage: xsave_model [-s seed]
 * Exit status: 0 pass, 1 fail, 4 skipped: the CPU or the OS has no XSAVE.
 */
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <unistd.h>

#define SAVE		"xsave64"
#define LOAD		"xrstor64"
#define LOAD_COMPACTED	false
#define NARROW		""
#define WIDEN		""
#define NARROWED(all)	(all)
#include "xsave_model.h"

/* What ci/machine-check chooses: where random numbers begin, cases of a form. */
#ifndef SEED
#define SEED		20261121
#endif
#ifndef TRIALS
#define TRIALS		1000
#endif

#ifndef ARCH_REQ_XCOMP_PERM
#define ARCH_REQ_XCOMP_PERM	0x1023
#endif

static void model_note(const char *name, const char *what, u32 nr, const u64 *values)
{
	u32 i;

	ktap_note("%s: %s %u", name, what, nr);
	for (i = 0; i < ARRAY_SIZE(value_names); i++)
		ktap_note("  %s %llx", value_names[i], (unsigned long long)values[i]);
}

static void model_result(bool pass, const char *name)
{
	ktap_result(pass, "%s: %u cases", name, TRIALS);
}

int main(int argc, char **argv)
{
	u64 seed = SEED;

	if (argc == 3 && !strcmp(argv[1], "-s")) {
		seed = strtoull(argv[2], NULL, 0);
	} else if (argc != 1) {
		fprintf(stderr, "usage: xsave_model [-s seed]\n");
		return EXIT_FAIL;
	}
	if (!cpu_has_osxsave())
		return ktap_skip_all("the OS did not set CR4.OSXSAVE");
	all = xgetbv(0);
	if (all & BIT(TILEDATA) && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILEDATA))
		all &= ~TILES;
	find_components();

	ktap_plan(5 + !!(all & TILES));
	ktap_note("seed %llu, components %llx", (unsigned long long)seed, (unsigned long long)all);
	rng_seed(seed);
	test_model("XSAVE", XSAVE, false, TRIALS);
	if (cpu_bit(0xd, 1, 0, 0))
		test_model("XSAVEOPT", XSAVEOPT, false, TRIALS);
	else
		ktap_skip("XSAVEOPT", "the CPU has no XSAVEOPT");
	test_model("XRSTOR, standard format", XRSTOR, false, TRIALS);
	if (cpu_bit(0xd, 1, 0, 1)) {
		test_model("XSAVEC", XSAVEC, false, TRIALS);
		test_model("XRSTOR, compacted format", XRSTOR, true, TRIALS);
	} else {
		ktap_skip("XSAVEC", "the CPU has no XSAVEC");
		ktap_skip("XRSTOR, compacted format", "the CPU has no XSAVEC");
	}
	/* What each CPU with AMX says; the model believes anything. */
	if (all & TILES)
		ktap_result(comp[TILECFG].align && comp[TILEDATA].align,
			    "CPUID has the compacted format align AMX's components");
	return ktap_exit();
}
