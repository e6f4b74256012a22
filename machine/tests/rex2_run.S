/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Enter and leave the instruction under test.
 *
 * R16-R31 are loaded and stored by XRSTOR and XSAVE only: what is tested here
 * is REX2, and it must not be its own witness.  struct run_block of
 * rex2_run.h has this layout.  Each test includes this file in its own .S.
 */
#define RB_GPR(n)	(run_block + 8 * (n))
#define RB_RFLAGS	(run_block + 128)
#define RB_ENTRY	(run_block + 136)
#define RB_HOST_RSP	(run_block + 144)
#define RB_MASK		(run_block + 152)
#define RB_XIN		(run_block + 160)
#define RB_XOUT		(run_block + 168)
#define RB_VIA_PAD	(run_block + 176)
#define RB_RUNNING	(run_block + 184)
#define RB_CS		(run_block + 192)

	.text

/* void run_enter(void) */
	.globl	run_enter
	.type	run_enter, @function
run_enter:
	push	%rbx
	push	%rbp
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	pushfq
	mov	%rsp, RB_HOST_RSP(%rip)

	mov	RB_XIN(%rip), %rdi
	mov	RB_MASK(%rip), %eax
	xor	%edx, %edx
	xrstor64 (%rdi)

	/* IRET loads RIP, RSP and RFLAGS in one go: TF hits the first insn. */
	mov	%ss, %eax
	push	%rax
	push	RB_GPR(4)(%rip)
	push	RB_RFLAGS(%rip)
	push	RB_CS(%rip)
	push	RB_ENTRY(%rip)
	movl	$0, RB_VIA_PAD(%rip)
	movl	$1, RB_RUNNING(%rip)
	mov	RB_GPR(0)(%rip), %rax
	mov	RB_GPR(1)(%rip), %rcx
	mov	RB_GPR(2)(%rip), %rdx
	mov	RB_GPR(3)(%rip), %rbx
	mov	RB_GPR(5)(%rip), %rbp
	mov	RB_GPR(6)(%rip), %rsi
	mov	RB_GPR(7)(%rip), %rdi
	mov	RB_GPR(8)(%rip), %r8
	mov	RB_GPR(9)(%rip), %r9
	mov	RB_GPR(10)(%rip), %r10
	mov	RB_GPR(11)(%rip), %r11
	mov	RB_GPR(12)(%rip), %r12
	mov	RB_GPR(13)(%rip), %r13
	mov	RB_GPR(14)(%rip), %r14
	mov	RB_GPR(15)(%rip), %r15
	iretq

/* The insn under test jumped to the landing pad. */
	.globl	run_exit_pad
run_exit_pad:
	movl	$1, RB_VIA_PAD(%rip)
/* The insn under test is done: no stack and no flag may be touched yet. */
	.globl	run_exit
run_exit:
	mov	%rax, RB_GPR(0)(%rip)
	mov	%rcx, RB_GPR(1)(%rip)
	mov	%rdx, RB_GPR(2)(%rip)
	mov	%rbx, RB_GPR(3)(%rip)
	mov	%rsp, RB_GPR(4)(%rip)
	mov	%rbp, RB_GPR(5)(%rip)
	mov	%rsi, RB_GPR(6)(%rip)
	mov	%rdi, RB_GPR(7)(%rip)
	mov	%r8, RB_GPR(8)(%rip)
	mov	%r9, RB_GPR(9)(%rip)
	mov	%r10, RB_GPR(10)(%rip)
	mov	%r11, RB_GPR(11)(%rip)
	mov	%r12, RB_GPR(12)(%rip)
	mov	%r13, RB_GPR(13)(%rip)
	mov	%r14, RB_GPR(14)(%rip)
	mov	%r15, RB_GPR(15)(%rip)
	mov	RB_HOST_RSP(%rip), %rsp
	pushfq
	pop	RB_RFLAGS(%rip)
	cld

	mov	RB_XOUT(%rip), %rdi
	mov	RB_MASK(%rip), %eax
	xor	%edx, %edx
	xsave64	(%rdi)
/* The signal handler comes here with RSP restored. */
	.globl	run_recover
run_recover:
	movl	$0, RB_RUNNING(%rip)
	fninit
	ldmxcsr	default_mxcsr(%rip)
	popfq
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbp
	pop	%rbx
	ret
	.size	run_enter, . - run_enter

	.section .rodata
default_mxcsr:
	.long	0x1f80

	.section .note.GNU-stack, "", @progbits
