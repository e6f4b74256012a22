// SPDX-License-Identifier: GPL-2.0
/* The kernel's own decoder for ci/decode_check.cc, from tools/arch/x86/lib of the base. */
#include <string.h>
#include "inat.c"
#include "insn.c"

/* What the table says of an opcode, but insn_decode() leaves to its callers. */
static int is_bad(struct insn *insn)
{
	insn_attr_t attr = insn->attr;

	if (!insn_is_rex2(insn))
		return 0;
	return attr & (INAT_NO_REX2 | INAT_INV64) ||
	       (attr & INAT_PFX_MASK && !inat_is_xop_prefix(attr)) ||
	       inat_is_escape(attr) || inat_must_vex(attr);
}

/* 0 if it is no instruction; known: the table has more than nothing about it. */
int insn_length(const unsigned char *bytes, int len, int *known)
{
	struct insn insn;

	if (insn_decode(&insn, bytes, len, INSN_MODE_64) < 0 || is_bad(&insn))
		return 0;
	*known = insn.attr != 0;
	return insn.length;
}
