/* SPDX-License-Identifier: GPL-2.0 */
/*
 * From the BIOS to bare_main(), after switching on and after each reset alike,
 * the exceptions' way back, and the ways into random code.
 */
#include "bare.h"

	.section .start, "ax"
	.code16
	.globl	start
start:
	cli
	cld
	ljmp	$0, $1f
1:	xorw	%ax, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movw	$IMAGE, %sp

	/*
	 * Random code without paging may have written to the image: take the copy,
	 * or make it, the first time.
	 */
	movw	$(COPY >> 4), %bx
	movw	$(IMAGE >> 4), %cx
	movw	%bx, %ds
	cmpl	$MAGIC, COPY_SIZE
	movl	$MAGIC, COPY_SIZE
	je	2f
	xchgw	%bx, %cx
2:	movw	%bx, %ds
	movw	%cx, %es
	xorw	%si, %si
	xorw	%di, %di
	movw	$(COPY_SIZE / 4), %cx
	rep movsl
	movw	%ax, %ds

	/* The watchdog in real mode, should the BIOS have been called. */
	movw	$start, 4 * NMI
	movw	%ax, 4 * NMI + 2

	/* After a reset, the BIOS comes here without looking for devices. */
	movw	$start, WARM_VECTOR
	movw	$0, WARM_VECTOR + 2
	movb	$CMOS_SHUTDOWN, %al
	outb	%al, $0x70
	movb	$JUMP_TO_VECTOR, %al
	outb	%al, $0x71

	movb	$0xff, %al		/* no interrupt through the PICs */
	outb	%al, $0x21
	outb	%al, $0xa1
	inb	$0x92, %al
	orb	$2, %al			/* A20 */
	andb	$0xfe, %al
	outb	%al, $0x92

	lgdtl	boot_gdt_ptr
	movl	%cr0, %eax
	orb	$1, %al
	movl	%eax, %cr0
	ljmpl	$CS32_FLAT, $start32

	/* In reach of real mode. */
boot_gdt_ptr:
	.word	gdt_end - gdt - 1
	.long	gdt

	/* From SMI_HANDLER to bare_smm() in 64-bit mode; RSM brings back all but R16-R31. */
	.globl	smm16
smm16:
	lgdtl	boot_gdt_ptr
	movl	%cr0, %eax
	orb	$1, %al
	movl	%eax, %cr0
	ljmpl	$CS32_FLAT, $smm32

	.text
	.code32
smm32:
	movw	$DS32_FLAT, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movl	$SMM_TOP, %esp
	movl	$pml4, %eax
	movl	%eax, %cr3
	movl	$0x40620, %eax
	movl	%eax, %cr4
	movl	$0xc0000080, %ecx
	rdmsr
	orl	$0x900, %eax		/* NXE, LME */
	wrmsr
	movl	$0x80010023, %eax
	movl	%eax, %cr0
	ljmp	$CS64, $smm64

	.code64
smm64:
	movl	$DS64, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	cld
	call	bare_smm
	rsm

/* void read_egprs(u64 *to), void write_egprs(const u64 *from): MOV with REX2 */
	.globl	read_egprs, write_egprs
read_egprs:
	.set	i, 0
	.rept	16
	.byte	0xd5, 0x48 | ((i >> 3) << 2), 0x89, 0x47 | ((i & 7) << 3), i * 8
	.set	i, i + 1
	.endr
	ret
write_egprs:
	.set	i, 0
	.rept	16
	.byte	0xd5, 0x48 | ((i >> 3) << 2), 0x8b, 0x47 | ((i & 7) << 3), i * 8
	.set	i, i + 1
	.endr
	ret

	.code32
start32:
	movw	$DS32_FLAT, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movl	$STACK_TOP, %esp

	/*
	 * Pin 2 of the I/O APIC, channel 0 of the PIT, is an NMI of CPU 0.  Stop
	 * what the BIOS counts there, until start_watchdog().
	 */
	movb	$0x34, %al
	outb	%al, $0x43
	movl	$0xfec00000, %ebx
	movl	$(0x10 + 2 * 2 + 1), (%ebx)
	movl	$0, 0x10(%ebx)
	movl	$(0x10 + 2 * 2), (%ebx)
	movl	$0x400, 0x10(%ebx)

	/* GDT and TSS are written to. */
	movl	$gdt, %esi
	movl	$GDT, %edi
	movl	$((gdt_end - gdt) / 4), %ecx
	rep movsl

	movl	$pml4, %eax
	movl	%eax, %cr3
	movl	$0x40620, %eax		/* OSXSAVE, OSXMMEXCPT, OSFXSR, PAE */
	movl	%eax, %cr4
	movl	$0xc0000080, %ecx
	rdmsr
	orl	$0x901, %eax		/* NXE, LME, SCE */
	wrmsr
	movl	$0x80010023, %eax	/* PG, WP, NE, MP, PE */
	movl	%eax, %cr0
	lgdt	gdt_ptr
	ljmp	$CS64, $start64

	.code64
start64:
	movl	$DS64, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	%eax, %fs
	movl	%eax, %gs
	movl	$STACK_TOP, %esp
	call	bare_main
	/* Shut down, i.e. reset: an exception without an IDT. */
	.globl	triple_fault
triple_fault:
	lidt	no_idt
	ud2

/*
 * int try(void *frame): load the registers of REGS and IRET to frame.  Returns
 * the vector of what ended that, VM_EXIT or NO_ENTRY.
 */
	.globl	try
try:
	pushq	%rbx
	pushq	%rbp
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	movq	%rsp, STATE_RSP
	movb	$0, STATE_BUSY
	movq	%rdi, %rsp
	movl	$REGS, %edi
	cmpb	$0, STATE_APX
	je	1f
	.set	i, 0
	.rept	16
	/* mov i * 8(%rdi), %r(16 + i) */
	.byte	0xd5, 0x48 | ((i >> 3) << 2), 0x8b, 0x47 | ((i & 7) << 3), i * 8
	.set	i, i + 1
	.endr
1:	movq	0(%rdi), %rax
	movq	8(%rdi), %rcx
	movq	16(%rdi), %rdx
	movq	24(%rdi), %rbx
	movq	40(%rdi), %rbp
	movq	48(%rdi), %rsi
	movq	64(%rdi), %r8
	movq	72(%rdi), %r9
	movq	80(%rdi), %r10
	movq	88(%rdi), %r11
	movq	96(%rdi), %r12
	movq	104(%rdi), %r13
	movq	112(%rdi), %r14
	movq	120(%rdi), %r15
	movq	56(%rdi), %rdi
	iretq

	.globl	do_vmlaunch, do_vmrun, vm_exit
do_vmlaunch:
	vmlaunch
	pushq	$NO_ENTRY
	jmp	ended
do_vmrun:
	movl	$VMCB, %eax
	vmrun
	stgi
vm_exit:
	movl	$IST_TOP, %esp
	pushq	$VM_EXIT
	jmp	ended

	.globl	vectors
	.balign	VECTOR_SIZE
vectors:
	.set	i, 0
	.rept	256
	.balign	VECTOR_SIZE
	pushq	$i
	jmp	ended
	.set	i, i + 1
	.endr

/*
 * What random code changed is not known.  Set what this program needs; if that
 * fails, reset.
 */
ended:
	cld
	cmpb	$0, STATE_BUSY
	je	1f
	cmpl	$NMI, (%rsp)
	jne	triple_fault
	addq	$8, %rsp
	iretq
1:	popq	%rbx
	movb	$1, STATE_BUSY
	movl	$pml4, %eax
	movq	%rax, %cr3
	movl	$0x80010023, %eax
	movq	%rax, %cr0
	movq	STATE_CR4, %rax
	movq	%rax, %cr4
	xorl	%eax, %eax
	movq	%rax, %dr7
	movl	$gdt, %esi
	movl	$GDT, %edi
	movl	$((gdt_end - gdt) / 4), %ecx
	rep movsl
	lgdt	gdt_ptr
	lidt	idt_ptr
	movl	$DS64, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %fs
	movl	%eax, %gs
	movl	$TR, %eax
	ltr	%ax
	/* IRET, as NMIs are blocked until then. */
	movq	STATE_RSP, %rcx
	pushq	$DS64
	pushq	%rcx
	pushq	$2
	pushq	$CS64
	pushq	$1f
	iretq
1:	movl	%ebx, %eax
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbp
	popq	%rbx
	ret

/*
 * Where a frame of try() leads to on the way to legacy protected mode and to
 * real mode.  There is no IDT in either: what happens, resets.
 */
	.code32
	.globl	to_legacy, to_real
to_real:
	movl	$1, %ebp
	jmp	1f
to_legacy:
	xorl	%ebp, %ebp
1:	movl	$DS32_FLAT, %eax
	movl	%eax, %ds
	movl	%eax, %ss
	lidt	no_idt
	movl	%cr0, %eax
	andl	$0x7fffffff, %eax
	movl	%eax, %cr0
	movl	$0xc0000080, %ecx
	rdmsr
	andb	$0xfe, %ah		/* LME */
	wrmsr
	movl	REGS + 8, %ecx
	movl	REGS + 16, %edx
	movl	REGS + 24, %ebx
	movl	REGS + 48, %esi
	movl	REGS + 56, %edi
	movl	$DS32, %eax		/* 64 KiB, in real mode, too */
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	%eax, %fs
	movl	%eax, %gs
	movl	$0xf000, %esp
	testl	%ebp, %ebp
	jnz	2f
	ljmp	$CS32, $CODE
2:	ljmp	$CS16, $3f
	.code16
3:	movl	%cr0, %eax
	andb	$0xfe, %al
	movl	%eax, %cr0
	movw	$(LOW >> 4), %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movw	%ax, %fs
	movw	%ax, %gs
	ljmp	$(LOW >> 4), $(REAL_CODE - LOW)

	.section .rodata, "a"
	.balign	8
gdt:
	.quad	0
	.quad	0x00af9b000000ffff	/* CS64 */
	.quad	0x00cf93000000ffff	/* DS64 */
	.quad	0x00cf9b000000ffff	/* CS32 */
	/* DS32, DS16: 64 KiB at SCRATCH */
	.quad	0x000093000000ffff | (SCRATCH & 0xffffff) << 16 | 1 << 54
	.quad	0x00009b000000ffff	/* CS16 */
	.quad	0x0000890000000067 | (TSS & 0xffffff) << 16, 0
	.quad	0x00cf9b000000ffff	/* CS32_FLAT */
	.quad	0x00cf93000000ffff	/* DS32_FLAT */
	.quad	0x00009b000000ffff | (CODE & 0xffffff) << 16	/* CS16_CODE */
gdt_end:
	.balign	8
gdt_ptr:
	.word	gdt_end - gdt - 1
	.quad	GDT
	.balign	8
idt_ptr:
	.word	256 * 16 - 1
	.quad	IDT
	.balign	8
no_idt:
	.word	0
	.quad	0

	/*
	 * The first 2 MiB, devices and ROM left out; read-only what is below DATA, and
	 * the code.  The local APIC, by way of the same page directory.
	 */
	.section .tables, "a"
	.balign	4096
	.globl	pml4, pdpt, pd, pt
pml4:
	.quad	pdpt + 3
	.fill	511, 8, 0
pdpt:
	.quad	pd + 3, 0, 0, pd + 3
	.fill	508, 8, 0
pd:
	.quad	pt + 3
	.fill	(APIC >> 21 & 511) - 1, 8, 0
	.quad	APIC + 0x93		/* 2 MiB, uncached */
	.fill	511 - (APIC >> 21 & 511), 8, 0
pt:
	.set	i, 0
	.rept	512
	.if	i >= 0x100 || i == DATA >> 12 || i == SMI_HANDLER >> 12 || (i >= LOW >> 12 && i < (LOW >> 12) + 16)
	.quad	i * 4096 + 3
	.elseif	i < 0xa0
	.quad	i * 4096 + 1
	.else
	.quad	0
	.endif
	.set	i, i + 1
	.endr
