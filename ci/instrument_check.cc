// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What ci/machine-debugger has in place of three of Bochs's empty hooks for
// instrumentation: an instruction that has been executed is the one that was to be.
// The first that is not is named; how many there were, and how many that leave the
// flags alone, which run by way of a copy, is said at the end.

#include "cpu/cpu.h"

static const bxInstruction_c *check_before;
static Bit64u check_nf, check_wrong;

void bx_instr_before_execution(unsigned cpu, bxInstruction_c *i)
{
  check_before = i;
}

void bx_instr_after_execution(unsigned cpu, bxInstruction_c *i)
{
  const char *name = i->getIaOpcodeNameShort();

  if (strstr(name, "_NF"))
    check_nf++;
  if (i == check_before)
    return;
  if (check_wrong++ == 0)
    fprintf(stderr, "instrumentation: %s after another instruction\n", name);
}

void bx_instr_exit_env(void)
{
  fprintf(stderr, "instrumentation: %llu with NF, %llu wrong\n", (unsigned long long) check_nf,
          (unsigned long long) check_wrong);
}
