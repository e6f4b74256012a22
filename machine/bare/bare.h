/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Physical memory of the bare program, identity mapped.  The BIOS loads the
 * image, which is read-only with paging; what changes is from 1 MiB on, and
 * outlives a reset.
 */
#ifndef BARE_H
#define BARE_H

#define IMAGE		0x7c00
#define DATA		0x8000		/* the image's variables, one page */
#define TEXT		0x9000
#define SMI_HANDLER	0x38000		/* of the SMBASE that RESET leaves */
#define LOW		0x60000		/* 64 KiB for real mode */
#define REAL_CODE	0x68000
#define STATE		0x100000	/* struct state */
#define STATE_RSP	(STATE + 0)
#define STATE_CR4	(STATE + 8)
#define STATE_BUSY	(STATE + 16)	/* not in random code: exceptions reset, NMIs are ignored */
#define STATE_APX	(STATE + 17)
#define REGS		0x100800	/* what random code begins with: 16 or 32 GPRs */
#define IDT		0x101000
#define GDT		0x102000
#define TSS		0x103000
#define STACK_TOP	0x108000	/* of the program */
#define IST_TOP		0x10c000	/* of its exceptions */
#define NMI_TOP		0x10e000
#define SMM_TOP		0x110000
#define VMXON_REGION	0x110000
#define VMCS		0x111000
#define VMCB		0x112000
#define HSAVE		0x113000
#define BITMAPS		0x114000	/* 16 KiB of ones */
#define EPT		0x118000	/* 8 KiB */
#define CODE		0x120000	/* 16 KiB */
#define SCRATCH		0x130000	/* 64 KiB */
#define MODEL_AT	0x140000	/* struct model */

#define SMRAM		0xa0000		/* the memory of the VGA, outside SMM */

#define COPY		0x80000		/* of the image */
#define COPY_SIZE	0xfc00		/* what real mode reaches in one piece, MAGIC behind it */
#define MAGIC		0xba7ef00d

#define APIC		0xfee00000

#define CS64		0x08
#define DS64		0x10
#define CS32		0x18
#define DS32		0x20
#define CS16		0x28
#define TR		0x30
#define CS32_FLAT	0x40
#define DS32_FLAT	0x48
#define CS16_CODE	0x50

#define NMI		2
#define VM_EXIT		-1
#define NO_ENTRY	-2
#define VECTOR_SIZE	16

/* The BIOS jumps there after a reset if the CMOS says so. */
#define WARM_VECTOR	0x467
#define CMOS_SHUTDOWN	0x0f
#define JUMP_TO_VECTOR	0x0a

#endif /* BARE_H */
