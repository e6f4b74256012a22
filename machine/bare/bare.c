// SPDX-License-Identifier: GPL-2.0
/*
 * A program without an operating system, for what one would not survive or hide.
 *
 * 1. R16-R31 are zero after RESET, and what they were after INIT, be XCR0.APX set
 *    or clear.  INIT keeps XCR0 and IA32_XSS as well.
 * 2. XCR0.APX is toggled again and again in front of the same instruction, by the
 *    program and by an SMI's handler: it is REX2 or #UD, whatever the CPU
 *    remembers of it.
 * 3. SMI and RSM leave R16-R31 and XCR0 alone; what the handler does to them stays.
 * 4. Code in SMRAM runs in SMM alone; outside there is the memory of a device, #UD.
 * 5. On a CPU with SVM, VMRUN that fails leaves EVENTINJ and the guest's state in the
 *    VMCB, but for EVENTINJ.V.
 * 6. On a CPU with VMX, INVEPT, INVVPID and INVPCID look at all of their type, #GP
 *    comes before the exits of INVPCID and XSETBV, and UMWAIT, TPAUSE, and LGDT and
 *    the like in 32-bit code, exit with their instruction information.
 * 7. The XSAVE family, XSAVES and XRSTORS with it, against the model of
 *    machine/tests/xsave_model.h, for random values of XCR0.APX and IA32_XSS; not
 *    if there are TRIALS.
 * 8. A write to a read-only page while CR0.WP is clear sets its dirty flag, unless
 *    the CPU has CET.
 * 9. A fault at the first instruction of an NMI's handler has the handler's RIP.
 * 10. EVEX forms of instructions that the host's CPU or a process lacks, MOVDIRI,
 *    MOVDIR64B, RAO-INT, CMPccXADD, WRSS, WRUSS, opmasks and AMX's tile configuration,
 *    with R8-R31 do what the legacy and VEX forms do; not if there are TRIALS.
 * 11. TRIALS strings of random bytes run at CPL 0, in VMX root operation on a CPU
 *    with VMX: 64-bit code, 32-bit and 16-bit code in compatibility mode, legacy
 *    protected mode, real mode.  Before some of them VMLAUNCH or VMRUN enters a
 *    guest, the VMCS or VMCB of which is wrong in a random way.  The machine has
 *    to go on, whatever they do.
 *
 * With random code, an NMI ends what would not end, a reset what cannot be ended
 * otherwise; the program then goes on where it was.
 *
 * SEED and TRIALS are chosen when it is compiled.  Output: KTAP on COM2.
 */
#include "bare.h"
#include "../tests/evex_encode.h"
#include "../tests/random_code.h"

#define SAVE		"xsaves64"
#define LOAD		"xrstors64"
#define LOAD_COMPACTED	true
#define ENABLE(what)								\
	"mov %[" #what "], %%eax; and %[supervisor], %%eax; xor %%edx, %%edx\n\t"	\
	"mov $0xda0, %%ecx; wrmsr\n\t"						\
	"xor %[" #what "], %%eax; xor %%ecx, %%ecx; xsetbv\n\t"
#define NARROW		ENABLE(enabled)
#define WIDEN		ENABLE(all)
#define NARROWED(all)	((all) & ~(random_mask(XBIT_APX) | random_mask(supervisor)))
#include "../tests/xsave_model.h"

#define UD		6
#define BP		3
#define GP		13
#define PF		14

#define MSR_FEATURE_CONTROL	0x3a
#define MSR_VMX_BASIC		0x480
#define MSR_S_CET		0x6a2
#define MSR_EFER		0xc0000080
#define MSR_VM_HSAVE_PA		0xc0010117
#define MSR_XSS			0xda0

#define CR4_VMXE	(1u << 13)
#define CR4_CET		(1u << 23)
#define CR0_WP		(1u << 16)
#define USER		(1u << 2)
#define ACCESSED	(1u << 5)
#define DIRTY		(1u << 6)
#define ICR		(APIC + 0x300)
#define ICR_SMI		0x4200		/* to the CPU itself: both numbers are 0 */
#define ICR_NMI		0x4400
#define ICR_INIT	0x4500

enum mode { LONG, COMPAT32, COMPAT16, LEGACY, REAL, VMX, SVM, MODES };

/* What ended a boot, and what has to be looked at after it. */
enum stage { FIRST, AFTER_RESET, AFTER_PORT_92, AFTER_INIT, RANDOM };

/* Outlives a reset, and what begins it is known to entry.S. */
static struct state {
	u64 rsp, cr4;
	u8 busy, apx, vmx, svm;
	u32 magic, boots, stage, trial, nr, failed;
	u32 ran[MODES], nmis, exits;
	u64 xcr0, xss;			/* before INIT */
	struct {
		volatile u32 entered;
		u32 actions;
		u32 value;
		u64 xcr0, seen_xcr0;
		u64 seen[16], egprs[16];
	} smm;
} * const state = (void *)STATE;

static u64 * const regs = (void *)REGS;

struct frame {
	u64 rip, cs, rflags, rsp, ss;
};

int try(struct frame *frame);
void triple_fault(void) __attribute__((noreturn));
void do_vmlaunch(void);
void do_vmrun(void);
void vm_exit(void);
void smm16(void);
void read_egprs(u64 *to);
void write_egprs(const u64 *from);
void to_legacy(void);
void to_real(void);
extern const u8 vectors[256][VECTOR_SIZE];
extern u64 pml4[], pdpt[], pd[], pt[];

/* The machine counts what a repeated instruction repeats: eight bytes at a time. */
void *memset(void *p, int c, size_t n)
{
	size_t qwords = n / 8;
	void *at = p;

	asm volatile("rep stosq" : "+D"(at), "+c"(qwords) : "a"((u8)c * 0x0101010101010101ull) : "memory");
	n %= 8;
	asm volatile("rep stosb" : "+D"(at), "+c"(n) : "a"(c) : "memory");
	return p;
}

void *memcpy(void *to, const void *from, size_t n)
{
	size_t qwords = n / 8;
	void *at = to;

	asm volatile("rep movsq" : "+D"(at), "+S"(from), "+c"(qwords) : : "memory");
	n %= 8;
	asm volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(n) : : "memory");
	return to;
}

int memcmp(const void *a, const void *b, size_t n)
{
	typedef u64 __attribute__((may_alias)) qword;
	const u8 *p = a, *q = b;

	for (; n >= 8 && *(const qword *)p == *(const qword *)q; n -= 8, p += 8, q += 8)
		;
	for (; n && *p == *q; n--, p++, q++)
		;
	return n ? *p - *q : 0;
}

static void outb(u16 port, u8 v)
{
	asm volatile("outb %0, %1" : : "a"(v), "Nd"(port));
}

static void outl(u16 port, u32 v)
{
	asm volatile("outl %0, %1" : : "a"(v), "Nd"(port));
}

static u8 inb(u16 port)
{
	u8 v;

	asm volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}

static u64 rdmsr(u32 msr)
{
	u32 eax, edx;

	asm volatile("rdmsr" : "=a"(eax), "=d"(edx) : "c"(msr));
	return eax | (u64)edx << 32;
}

static void wrmsr(u32 msr, u64 v)
{
	asm volatile("wrmsr" : : "c"(msr), "a"((u32)v), "d"((u32)(v >> 32)));
}

static void xsetbv(u64 v)
{
	asm volatile("xsetbv" : : "c"(0), "a"((u32)v), "d"((u32)(v >> 32)));
}

static void send_ipi(u32 what)
{
	*(volatile u32 *)(ICR + 0x10) = 0;
	*(volatile u32 *)ICR = what;
}

static u64 read_cr0(void)
{
	u64 v;

	asm volatile("mov %%cr0, %0" : "=r"(v));
	return v;
}

/* ------------------------------------------------------------------------
 * Output
 */
#define COM2	0x2f8

static void set_com2(void)
{
	outb(COM2 + 3, 0x83);		/* 115200 baud, 8 bits */
	outb(COM2 + 0, 1);
	outb(COM2 + 1, 0);
	outb(COM2 + 3, 3);
}

static void put_char(char c)
{
	while (!(inb(COM2 + 5) & 0x40))
		;
	outb(COM2, c);
}

static void put(const char *s)
{
	while (*s)
		put_char(*s++);
}

static void put_nr(u32 n)
{
	if (n >= 10)
		put_nr(n / 10);
	put_char('0' + n % 10);
}

static void put_hex(u64 v)
{
	if (v >= 16)
		put_hex(v / 16);
	put_char("0123456789abcdef"[v % 16]);
}

static void result(bool pass, const char *what)
{
	state->failed += !pass;
	put(pass ? "ok " : "not ok ");
	put_nr(++state->nr);
	put_char(' ');
	put(what);
	put_char('\n');
}

/* ------------------------------------------------------------------------
 * What outlives the BIOS's tests of memory, should random code call them: bytes
 * of the CMOS that nobody uses.
 */
#define CMOS_TRIAL	0x60		/* 4 bytes, then CMOS_MAGIC */
#define CMOS_MAGIC	0x5a

static void save_trial(u32 trial)
{
	int i;

	for (i = 0; i < 5; i++) {
		outb(0x70, CMOS_TRIAL + i);
		outb(0x71, i < 4 ? trial >> 8 * i : CMOS_MAGIC);
	}
}

/* 0: there is none. */
static u32 saved_trial(void)
{
	u8 saved[5];
	u32 trial;
	int i;

	for (i = 0; i < 5; i++) {
		outb(0x70, CMOS_TRIAL + i);
		saved[i] = inb(0x71);
	}
	memcpy(&trial, saved, sizeof(trial));
	return saved[4] == CMOS_MAGIC && trial <= TRIALS ? trial : 0;
}

/* ------------------------------------------------------------------------
 * What the CPU has
 */
static u64 supported_xcr0(void)
{
	u32 eax, ebx, ecx, edx;

	__cpuid_count(0xd, 0, eax, ebx, ecx, edx);
	return eax | (u64)edx << 32;
}

static struct {
	u16 low, cs;
	u8 ist, type;
	u16 middle;
	u32 high, zero;
} * const idt = (void *)IDT;

static void set_gate(int i, u64 rip)
{
	idt[i].low = rip;
	idt[i].middle = rip >> 16;
}

static void set_idt(void)
{
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) ptr = { 256 * 16 - 1, IDT };
	int i;

	for (i = 0; i < 256; i++) {
		memset(&idt[i], 0, sizeof(idt[i]));
		set_gate(i, (u64)vectors[i]);
		idt[i].cs = CS64;
		idt[i].ist = i == NMI ? 2 : 1;
		idt[i].type = 0x8e;
	}
	memset((void *)TSS, 0, 0x68);
	put64((void *)TSS, 36, IST_TOP);
	put64((void *)TSS, 44, NMI_TOP);
	asm volatile("lidt %0" : : "m"(ptr));
	asm volatile("ltr %w0" : : "r"(TR));
}

static void set_cpu(void)
{
	u32 eax, ebx, ecx, edx;
	u64 control;
	u8 failed;

	state->cr4 = 0x40620;
	__cpuid(1, eax, ebx, ecx, edx);
	state->vmx = !!(ecx & 1 << 5);
	__cpuid(0x80000001, eax, ebx, ecx, edx);
	state->svm = !!(ecx & 1 << 2);
	state->apx = !!(supported_xcr0() & XBIT_APX);
	if (state->vmx) {
		state->cr4 |= CR4_VMXE;
		control = rdmsr(MSR_FEATURE_CONTROL);
		if (!(control & 1))
			wrmsr(MSR_FEATURE_CONTROL, 5);
		asm volatile("mov %0, %%cr4" : : "r"(state->cr4));
		*(u32 *)VMXON_REGION = rdmsr(MSR_VMX_BASIC);
		asm volatile("vmxon %1; setna %0" : "=r"(failed)
			     : "m"((u64){ VMXON_REGION }) : "cc", "memory");
		if (failed)
			result(false, "VMXON");
	}
	if (state->svm) {
		wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 1 << 12);
		wrmsr(MSR_VM_HSAVE_PA, HSAVE);
	}
	xsetbv(supported_xcr0());
}

static int run(u64 rip, u16 cs, u16 ss, u64 rsp, u64 rflags)
{
	struct frame *frame = (void *)(STACK_TOP - 0x2000);

	*frame = (struct frame){ rip, cs, rflags, rsp, ss };
	return try(frame);
}

/* ------------------------------------------------------------------------
 * RESET, and decoded code
 */
/* Returns what ended the code at CODE. */
static int run_code(void)
{
	return run(CODE, CS64, DS64, SCRATCH + 0x8000, 2);
}

static void fill_egprs(void)
{
	int i;

	memset(regs, 0x5a, 32 * sizeof(*regs));
	for (i = 16; i < 32; i++)
		regs[i - 16] = 0x1111111111111111ull * (i - 16) + 1;
	*(u8 *)CODE = 0xcc;
	run_code();
}

/* mov %r16 ... %r31, disp8(%rdi), without REX2 in the compiler. */
static void store_egprs(u64 *to)
{
	u8 *p = (void *)CODE;
	int i;

	for (i = 0; i < 16; i++) {
		*p++ = 0xd5;
		*p++ = 0x48 | (i >> 3) << 2;
		*p++ = 0x89;
		*p++ = 0x47 | (i & 7) << 3;
		*p++ = i * 8;
	}
	*p = 0xcc;
	state->apx = 0;			/* try() leaves them alone */
	regs[7] = (u64)to;
	run_code();
	state->apx = 1;
}

static void check_reset(u64 xcr0)
{
	u64 egprs[16];
	int i, zeroes = 0;

	memset(egprs, 0xff, sizeof(egprs));
	store_egprs(egprs);
	for (i = 0; i < 16; i++)
		zeroes += egprs[i] == 0;
	result(zeroes == 16, "RESET zeroes R16-R31");
	result(xcr0 == XBIT_FP, "RESET leaves x87 alone in XCR0");
}

static bool egprs_are_stored(void)
{
	u64 egprs[16];
	int i;

	memset(egprs, 0xff, sizeof(egprs));
	store_egprs(egprs);
	for (i = 0; i < 16; i++)
		if (egprs[i] != 0x1111111111111111ull * i + 1)
			return false;
	return true;
}

static void check_toggling(void)
{
	static const u8 xsetbv_insn[] = { 0x0f, 0x01, 0xd1 };
	static const struct {
		u8 len, bytes[16];
	} insns[] = {
		{ 5, { 0xd5, 0x19, 0xff, 0xc7, 0xcc } },		/* inc %r31 */
		{ 7, { 0x62, 0xfc, 0xfc, 0x08, 0xff, 0xc0, 0xcc } },	/* the same, %r16 in EVEX */
		{ 7, { 0x62, 0xf4, 0xfc, 0x08, 0xff, 0xc0, 0xcc } },	/* %rax in EVEX */
		{ 7, { 0x62, 0xf2, 0xfc, 0x08, 0xf2, 0xc0, 0xcc } },	/* andn %rax, %rax, %rax */
		{ 12, { 0xd5, 0, 0xa1, (CODE + 14) & 0xff, (CODE + 14) >> 8 & 0xff,
			(CODE + 14) >> 16 & 0xff, 0, 0, 0, 0, 0, 0xcc } }, /* jmpabs */
	};
	u64 all = supported_xcr0(), xcr0;
	int i, k, wrong = 0;

	memcpy((void *)CODE, xsetbv_insn, sizeof(xsetbv_insn));
	for (i = 0; i < 10000; i++) {
		/* Each for a while, so that it is decoded already. */
		k = i / 100 % ARRAY_SIZE(insns);
		if (i % 100 == 0)
			memcpy((void *)CODE + sizeof(xsetbv_insn), insns[k].bytes, insns[k].len);
		xcr0 = rng_below(2) ? all : all & ~XBIT_APX;
		xsetbv(all);		/* for try() */
		memset(regs, 0, 32 * sizeof(*regs));
		regs[0] = (u32)xcr0;
		regs[2] = xcr0 >> 32;
		wrong += run_code() != (xcr0 & XBIT_APX ? BP : UD);
	}
	xsetbv(all);
	result(!wrong, "code that was decoded sees XCR0.APX change");
}

/* ------------------------------------------------------------------------
 * INIT
 */
static u64 supported_xss(void)
{
	u32 eax, ebx, ecx, edx;

	__cpuid_count(0xd, 1, eax, ebx, ecx, edx);
	return ecx | (u64)edx << 32;
}

static void prepare_init(u64 xcr0, enum stage stage)
{
	fill_egprs();
	if (!egprs_are_stored())
		result(false, "R16-R31 hold values");
	if (state->vmx)
		asm volatile("vmxoff");		/* INIT has to wait for that */
	state->stage = stage;
	state->xcr0 = xcr0;
	state->xss = supported_xss();
	xsetbv(xcr0);
	wrmsr(MSR_XSS, state->xss);
}

static void init_by_port_92(void)
{
	prepare_init(XBIT_FP | XBIT_SSE | XBIT_APX, AFTER_PORT_92);
	outb(0x92, inb(0x92) | 1);
	for (;;)
		;
}

static void init_by_ipi(void)
{
	prepare_init(XBIT_FP | XBIT_SSE, AFTER_INIT);
	send_ipi(ICR_INIT);
	for (;;)
		;
}

static void check_init(u64 xcr0, const char *egprs, const char *xcr, const char *xss)
{
	result(egprs_are_stored(), egprs);
	result(xcr0 == state->xcr0, xcr);
	result(rdmsr(MSR_XSS) == state->xss, xss);
	wrmsr(MSR_XSS, 0);
}

/* ------------------------------------------------------------------------
 * SMM
 */
#define SMM_READ	1
#define SMM_WRITE	2
#define SMM_SET_XCR0	4
#define SMM_PUT_CODE	8
#define SMM_CALL_CODE	16

#define SMRAM_VALUE	0x5a3c

/* mov $SMRAM_VALUE, %eax; ret */
static const u8 smram_code[] = { 0xb8, SMRAM_VALUE & 0xff, SMRAM_VALUE >> 8, 0, 0, 0xc3 };

/* The handler of SMIs. */
void bare_smm(void)
{
	state->smm.entered++;
	state->smm.seen_xcr0 = xgetbv(0);
	if (state->smm.actions & (SMM_READ | SMM_WRITE)) {
		xsetbv(supported_xcr0());
		if (state->smm.actions & SMM_READ)
			read_egprs(state->smm.seen);
		if (state->smm.actions & SMM_WRITE)
			write_egprs(state->smm.egprs);
		xsetbv(state->smm.seen_xcr0);
	}
	if (state->smm.actions & SMM_SET_XCR0)
		xsetbv(state->smm.xcr0);
	if (state->smm.actions & SMM_PUT_CODE)
		memcpy((void *)SMRAM, smram_code, sizeof(smram_code));
	if (state->smm.actions & SMM_CALL_CODE)
		state->smm.value = ((u32 (*)(void))SMRAM)();
}

/* True if the handler ran, with this XCR0. */
static bool smi(u32 actions, u64 xcr0)
{
	u32 entered = state->smm.entered;
	int i;

	state->smm.actions = actions;
	xsetbv(xcr0);
	send_ipi(ICR_SMI);
	for (i = 0; i < 1000 && state->smm.entered == entered; i++)
		;
	return state->smm.entered == entered + 1 && state->smm.seen_xcr0 == xcr0;
}

static void random_egprs(u64 *egprs)
{
	int i;

	for (i = 0; i < 16; i++)
		egprs[i] = rng();
}

static bool same_egprs(const u64 *a, const u64 *b)
{
	int i;

	for (i = 0; i < 16; i++)
		if (a[i] != b[i])
			return false;
	return true;
}

static void check_smm(void)
{
	/* The handler comes behind the MOV, and changes XCR0. */
	static const u8 code[] = {
		0x0f, 0x01, 0xd1,			/* xsetbv */
		0xc7, 0x03, 0x00, 0x42, 0x00, 0x00,	/* movl $ICR_SMI, (%rbx) */
		0xd5, 0x19, 0xff, 0xc7,			/* inc %r31 */
		0xcc,
	};
	u64 all = supported_xcr0(), before[16], after[16], xcr0;
	int i, kept = 0, seen = 0, stay = 0, changed = 0;
	u8 *handler = (void *)SMI_HANDLER;
	u32 entered;

	handler[0] = 0xea;				/* ljmp $0, $smm16 */
	put64(handler, 1, (u64)smm16 & 0xffff);
	for (i = 0; i < 400; i++) {
		xcr0 = rng_below(2) ? all : XBIT_FP | XBIT_SSE;
		random_egprs(before);
		random_egprs(state->smm.egprs);
		write_egprs(before);
		if (smi(0, xcr0) && xgetbv(0) == xcr0) {
			xsetbv(all);
			read_egprs(after);
			kept += same_egprs(after, before);
		}
		xsetbv(all);
		if (smi(SMM_READ | SMM_WRITE, xcr0) && xgetbv(0) == xcr0) {
			xsetbv(all);
			read_egprs(after);
			seen += same_egprs(state->smm.seen, before);
			stay += same_egprs(after, state->smm.egprs);
		}
		xsetbv(all);
	}
	result(kept == i, "SMI and RSM leave R16-R31 and XCR0 alone");
	result(seen == i, "an SMI's handler sees R16-R31");
	result(stay == i, "R16-R31 are what an SMI's handler wrote");

	memcpy((void *)CODE, code, sizeof(code));
	state->smm.actions = SMM_SET_XCR0;
	for (i = 0; i < 1000; i++) {
		xcr0 = rng_below(2) ? all : all & ~XBIT_APX;
		state->smm.xcr0 = rng_below(2) ? all : all & ~XBIT_APX;
		xsetbv(all);		/* for try() */
		memset(regs, 0, 32 * sizeof(*regs));
		regs[0] = (u32)xcr0;
		regs[2] = xcr0 >> 32;
		regs[3] = ICR;
		entered = state->smm.entered;
		if (run_code() == (state->smm.xcr0 & XBIT_APX ? BP : UD) &&
		    state->smm.entered != entered && state->smm.seen_xcr0 == xcr0 &&
		    xgetbv(0) == state->smm.xcr0)
			changed++;
	}
	xsetbv(all);
	result(changed == i, "code that was decoded sees an SMI's handler change XCR0.APX");
}

static bool has_cet(void)
{
	u32 eax, ebx, ecx, edx;

	__cpuid_count(7, 0, eax, ebx, ecx, edx);
	return ecx >> 7 & 1 || edx >> 20 & 1;
}

/* The image, i.e. its page tables as well, is read-only with paging. */
static void set_entry(u64 *entry, u64 v)
{
	u64 cr0 = read_cr0();

	asm volatile("mov %0, %%cr0" : : "r"(cr0 & ~(u64)CR0_WP) : "memory");
	*entry = v;
	asm volatile("mov %0, %%cr0; mov %1, %%cr3" : : "r"(cr0), "r"(pml4) : "memory");
}

static void map_smram(bool on)
{
	set_entry(&pt[SMRAM >> 12], on ? SMRAM + 3 : 0);
}

/*
 * What the emulator remembers of the code in SMRAM, and what there is at its address
 * outside SMM, must not be taken for each other.
 */
static void check_smram(void)
{
	u64 all = supported_xcr0();
	int i, good = 0;

	/* i440FX, register SMRAM: with SMM only. */
	outl(0xcf8, 0x80000070);
	outb(0xcfe, 0x0a);
	map_smram(true);
	result(!(pt[(u64)pt >> 12] & DIRTY) == has_cet(),
	       "a write to a read-only page sets its dirty flag, but with CET");
	*(u8 *)CODE = 0xcc;
	put64((void *)SCRATCH, 0x8000, CODE);	/* where the RET would go */
	for (i = 0; i < 3; i++) {
		state->smm.value = 0;
		if (!smi(i ? SMM_CALL_CODE : SMM_PUT_CODE | SMM_CALL_CODE, all) ||
		    state->smm.value != SMRAM_VALUE)
			break;
		good += run(SMRAM, CS64, DS64, SCRATCH + 0x8000, 2) == UD;
	}
	map_smram(false);
	outl(0xcf8, 0x80000070);
	outb(0xcfe, 0x02);
	result(good == 3, "code in SMRAM runs in SMM, and is #UD outside");
}

/* ------------------------------------------------------------------------
 * NMIs
 */
static void check_nmi(void)
{
	static const u8 code[] = {
		0xc7, 0x03, 0x00, 0x44, 0x00, 0x00,	/* movl $ICR_NMI, (%rbx) */
		0xeb, 0xfe,				/* jmp to itself */
	};
	bool pass;

	/* SMRAM, which is not mapped. */
	set_gate(NMI, SMRAM);
	memcpy((void *)CODE, code, sizeof(code));
	memset(regs, 0, 32 * sizeof(*regs));
	regs[3] = ICR;
	*(volatile u32 *)(ICR + 0x10) = 0;
	pass = run(CODE, CS64, DS64, SCRATCH + 0x8000, 2) == PF;
	set_gate(NMI, (u64)vectors[NMI]);
	pass &= get64((void *)(IST_TOP - 40), 0) == SMRAM;	/* RIP of the exception */
	result(pass, "a fault at the first instruction of an NMI's handler is there");
}

/* ------------------------------------------------------------------------
 * VMRUN
 */
/* Offsets: APM Vol. 2, appendix B. */
#define EXITCODE	0x70
#define EVENTINJ	0xa8
#define GUEST_CR3	0x550

/* Without an intercept of VMRUN it is VMEXIT_INVALID. */
static void check_vmrun(void)
{
	u8 *vmcb = (void *)VMCB;
	bool pass = true;
	u32 eventinj;
	int i;

	for (i = 0; i < 2; i++) {
		eventinj = i ? 0xb0d : 0x30e;
		memset(vmcb, 0, 0x1000);
		put64(vmcb, EVENTINJ, eventinj | 1u << 31);
		put64(vmcb, GUEST_CR3, SCRATCH);
		if (run((u64)do_vmrun, CS64, DS64, SCRATCH + 0x8000, 2) != VM_EXIT || get64(vmcb, EXITCODE) != ~0ull ||
		    get64(vmcb, EVENTINJ) != eventinj || get64(vmcb, GUEST_CR3) != SCRATCH)
			pass = false;
	}
	result(pass, "VMRUN that fails leaves EVENTINJ and the guest's state in the VMCB");
}

/* ------------------------------------------------------------------------
 * The XSAVE family
 */
#define MODEL_TRIALS	300
#define MODEL_RESULTS	8

static void model_note(const char *name, const char *what, u32 nr, const u64 *values)
{
	u32 i;

	put("# ");
	put(name);
	put(": ");
	put(what);
	put_char(' ');
	put_nr(nr);
	for (i = 0; i < ARRAY_SIZE(value_names); i++) {
		put(", ");
		put(value_names[i]);
		put_char(' ');
		put_hex(values[i]);
	}
	put_char('\n');
}

static void model_result(bool pass, const char *name)
{
	result(pass, name);
}

/* XRSTORS of component @i alone, which is all 0 but for @at. */
static int xrstors(int i, u32 at, u64 value)
{
	static const u8 code[] = {
		0x48, 0x0f, 0xc7, 0x1e,		/* xrstors64 (%rsi) */
		0xcc,
	};
	u8 *area = (void *)SCRATCH;

	memset(area, 0, XS_HEADER + 64 + comp[i].size);
	put64(area, XSTATE_BV, BIT(i));
	put64(area, XCOMP_BV, COMPACT | BIT(i));
	put64(area, XS_HEADER + 64 + at, value);
	memcpy((void *)CODE, code, sizeof(code));
	memset(regs, 0, 32 * sizeof(*regs));
	regs[0] = BIT(i);
	regs[6] = (u64)area;
	return run_code();
}

/* Bit 62 is reserved, or not canonical, all over CET's and UINTR's MSRs, but for UIRR. */
static void check_xrstors_faults(void)
{
	u32 at, faults = 0, wanted = 0;
	int i;

	for (i = CET_U; i <= UINTR; i++) {
		if (!(supervisor & BIT(i)) || (i != CET_U && i != CET_S && i != UINTR))
			continue;
		for (at = 0; at < comp[i].size; at += 8) {
			if (i == UINTR && at == UINTR_UIRR)
				continue;
			faults += xrstors(i, at, 1ull << 62) == GP && xrstors(i, at, 0) == BP;
			wanted++;
		}
	}
	result(wanted && faults == wanted, "XRSTORS faults where WRMSR would");
}

static void check_model(void)
{
	u32 eax, ebx, ecx, edx;

	supervisor = supported_xss();
	all = supported_xcr0() | supervisor;
	wrmsr(MSR_XSS, supervisor);
	xsetbv(supported_xcr0());
	find_components();
	put("# seed ");
	put_nr(SEED);
	put(", components ");
	put_hex(all);
	put(", those of supervisors ");
	put_hex(supervisor);
	put_char('\n');
	__cpuid_count(0xd, 1, eax, ebx, ecx, edx);
	result(ebx == end_of(COMPACT | all, all), "CPUID.0DH.1:EBX is what XSAVES writes at most");
	test_model("XSAVE", XSAVE, false, MODEL_TRIALS);
	test_model("XSAVEOPT", XSAVEOPT, false, MODEL_TRIALS);
	test_model("XSAVEC", XSAVEC, false, MODEL_TRIALS);
	test_model("XSAVES", XSAVES, false, MODEL_TRIALS);
	test_model("XRSTOR, standard format", XRSTOR, false, MODEL_TRIALS);
	test_model("XRSTOR, compacted format", XRSTOR, true, MODEL_TRIALS);
	test_model("XRSTORS", XRSTORS, true, MODEL_TRIALS);
	if (supervisor)
		check_xrstors_faults();
}

/* ------------------------------------------------------------------------
 * EVEX forms of what the host's CPU, or a process, lacks
 */
enum feature { MOVDIRI, MOVDIR64B, RAO_INT, CMPCCXADD, CET, AVX512, AMX, FEATURES };

/* With CPUID leaf 7: subleaf, register, bit. */
static const struct {
	const char *name;
	u8 subleaf, reg, bit;
} features[FEATURES] = {
	[MOVDIRI] = { "EVEX form of MOVDIRI is as the legacy form", 0, 2, 27 },
	[MOVDIR64B] = { "EVEX form of MOVDIR64B is as the legacy form", 0, 2, 28 },
	[RAO_INT] = { "EVEX forms of AADD, AAND, AOR and AXOR are as the legacy forms", 1, 0, 3 },
	[CMPCCXADD] = { "EVEX forms of CMPccXADD are as the VEX forms", 1, 0, 7 },
	[CET] = { "EVEX forms of WRSS and WRUSS are as the legacy forms", 0, 2, 7 },
	[AVX512] = { "EVEX forms of KMOV are as the VEX forms", 0, 1, 30 },
	[AMX] = { "EVEX forms of LDTILECFG and STTILECFG are as the VEX forms", 0, 3, 24 },
};

/* The CPU with AMX has to have the others, too: ci/bare gives it what it lacks. */
static bool has_feature(enum feature f)
{
	u32 regs[4];

	__cpuid_count(7, features[AMX].subleaf, regs[0], regs[1], regs[2], regs[3]);
	if (regs[features[AMX].reg] >> features[AMX].bit & 1)
		return true;
	__cpuid_count(7, features[f].subleaf, regs[0], regs[1], regs[2], regs[3]);
	return regs[features[f].reg] >> features[f].bit & 1;
}

static int nr_features(void)
{
	int f, n = 0;

	for (f = 0; f < FEATURES; f++)
		n += has_feature(f);
	return n;
}

/* What ModRM.reg, or EVEX.V, stands for. */
enum reg_is {
	VALUE,			/* a register that is a source */
	ADDRESS,		/* ... with the address of 64 bytes, MOVDIR64B */
	XADD,			/* a comparand and destination; V an addend */
	RESULT,			/* a destination */
	FIXED,			/* a number: an opmask register, or a digit */
};

#define W0	1
#define W1	2
#define BOTH	3
#define REGS_ONLY 4		/* ModRM.rm is a register */
#define RM_FIXED 8		/* ... an opmask register */

static const struct form {
	u8 feature, is_vex, prefix, map, op;	/* VEX: pp in place of the prefix */
	u8 evex_map, evex_pp, evex_op, flags;
	u8 reg_is, reg;
} forms[] = {
	{ MOVDIRI, 0, 0, 2, 0xf9, 4, 0, 0xf9, BOTH, VALUE, 0 },
	{ MOVDIR64B, 0, 0x66, 2, 0xf8, 4, 1, 0xf8, W0, ADDRESS, 0 },
	{ RAO_INT, 0, 0, 2, 0xfc, 4, 0, 0xfc, BOTH, VALUE, 0 },
	{ RAO_INT, 0, 0x66, 2, 0xfc, 4, 1, 0xfc, BOTH, VALUE, 0 },
	{ RAO_INT, 0, 0xf3, 2, 0xfc, 4, 2, 0xfc, BOTH, VALUE, 0 },
	{ RAO_INT, 0, 0xf2, 2, 0xfc, 4, 3, 0xfc, BOTH, VALUE, 0 },
#define CMPCCXADD_FORM(cc) { CMPCCXADD, 1, 1, 2, 0xe0 + (cc), 2, 1, 0xe0 + (cc), BOTH, XADD, 0 }
	CMPCCXADD_FORM(0), CMPCCXADD_FORM(1), CMPCCXADD_FORM(2), CMPCCXADD_FORM(3),
	CMPCCXADD_FORM(4), CMPCCXADD_FORM(5), CMPCCXADD_FORM(6), CMPCCXADD_FORM(7),
	CMPCCXADD_FORM(8), CMPCCXADD_FORM(9), CMPCCXADD_FORM(10), CMPCCXADD_FORM(11),
	CMPCCXADD_FORM(12), CMPCCXADD_FORM(13), CMPCCXADD_FORM(14), CMPCCXADD_FORM(15),
	{ CET, 0, 0, 2, 0xf6, 4, 0, 0x66, BOTH, VALUE, 0 },		/* WRSS */
	{ CET, 0, 0x66, 2, 0xf5, 4, 1, 0x65, BOTH, VALUE, 0 },		/* WRUSS */
	{ AVX512, 1, 1, 1, 0x90, 1, 1, 0x90, BOTH, FIXED, 1 },		/* KMOVB, KMOVD k1, m */
	{ AVX512, 1, 0, 1, 0x90, 1, 0, 0x90, BOTH, FIXED, 1 },		/* KMOVW, KMOVQ */
	{ AVX512, 1, 1, 1, 0x91, 1, 1, 0x91, BOTH, FIXED, 2 },		/* m, k2 */
	{ AVX512, 1, 0, 1, 0x91, 1, 0, 0x91, BOTH, FIXED, 2 },
	{ AVX512, 1, 1, 1, 0x90, 1, 1, 0x90, BOTH | REGS_ONLY | RM_FIXED, FIXED, 1 }, /* k1, k2 */
	{ AVX512, 1, 0, 1, 0x90, 1, 0, 0x90, BOTH | REGS_ONLY | RM_FIXED, FIXED, 1 },
	{ AVX512, 1, 1, 1, 0x92, 1, 1, 0x92, W0 | REGS_ONLY, FIXED, 1 },	/* KMOVB k1, r */
	{ AVX512, 1, 0, 1, 0x92, 1, 0, 0x92, W0 | REGS_ONLY, FIXED, 1 },	/* KMOVW */
	{ AVX512, 1, 3, 1, 0x92, 1, 3, 0x92, BOTH | REGS_ONLY, FIXED, 1 },	/* KMOVD, KMOVQ */
	{ AVX512, 1, 1, 1, 0x93, 1, 1, 0x93, W0 | REGS_ONLY | RM_FIXED, RESULT, 0 }, /* r, k2 */
	{ AVX512, 1, 0, 1, 0x93, 1, 0, 0x93, W0 | REGS_ONLY | RM_FIXED, RESULT, 0 },
	{ AVX512, 1, 3, 1, 0x93, 1, 3, 0x93, BOTH | REGS_ONLY | RM_FIXED, RESULT, 0 },
	{ AMX, 1, 0, 2, 0x49, 2, 0, 0x49, W0, FIXED, 0 },		/* LDTILECFG */
	{ AMX, 1, 1, 2, 0x49, 2, 1, 0x49, W0, FIXED, 0 },		/* STTILECFG */
};

#define FORM_TRIALS	40

#define OPERAND		(SCRATCH + 0x1000)
#define OPERAND_SIZE	0x400
#define OTHERS		(SCRATCH + 0x2000)	/* RDI: the other operand, and what is left of it */
#define OTHERS_SIZE	0x200
#define AFTER		(SCRATCH + 0x3000)	/* 32 registers */
#define R_DI		7
#define R_SP		4

static struct outcome {
	int vector;
	u64 rflags, regs[32];
	u8 operand[OPERAND_SIZE], others[OTHERS_SIZE];
} * const outcomes = (void *)(SCRATCH + 0x4000), *const memory_in = (void *)(SCRATCH + 0x6000);

static u8 *put_bytes(u8 *to, const void *bytes, int n)
{
	memcpy(to, bytes, n);
	return to + n;
}

/* wrmsr of IA32_S_CET: shadow stacks, and WRSS, on or off. */
static u8 *put_cet(u8 *to, bool on)
{
	u8 insns[] = {
		0xb9, 0, 0, 0, 0,			/* mov $MSR_S_CET, %ecx */
		0xb8, on ? 3 : 0, 0, 0, 0,		/* mov $, %eax */
		0x31, 0xd2,				/* xor %edx, %edx */
		0x0f, 0x30,
	};

	insns[1] = MSR_S_CET & 0xff;
	insns[2] = MSR_S_CET >> 8;
	return put_bytes(to, insns, sizeof(insns));
}

/* The registers in @in go in, what the form did is in @out. */
static void run_form(const struct form *f, const struct insn *insn, const u64 *in, struct outcome *out)
{
	static const u8 load_k[] = {
		0xc4, 0xe1, 0xf8, 0x90, 0x0f,		/* kmovq (%rdi), %k1 */
		0xc4, 0xe1, 0xf8, 0x90, 0x57, 8,	/* kmovq 8(%rdi), %k2 */
	};
	static const u8 store_k[] = { 0xc4, 0xe1, 0xf8, 0x91, 0x4f, 16 };	/* kmovq %k1, 16(%rdi) */
	static const u8 load_tiles[] = { 0xc4, 0xe2, 0x78, 0x49, 0x07 };	/* ldtilecfg (%rdi) */
	static const u8 store_tiles[] = {
		0xc4, 0xe2, 0x79, 0x49, 0x47, 0x40,	/* sttilecfg 0x40(%rdi) */
		0xc4, 0xe2, 0x78, 0x49, 0xc0,		/* tilerelease */
	};
	bool wrss = f->feature == CET && f->evex_op == 0x66;
	u64 page = OPERAND | (f->feature != CET ? 3 : 1 | ACCESSED | DIRTY | (wrss ? 0 : USER));
	u8 *p = (void *)CODE;
	int i;

	if (f->feature == AVX512)
		p = put_bytes(p, load_k, sizeof(load_k));
	if (f->feature == AMX)
		p = put_bytes(p, load_tiles, sizeof(load_tiles));
	if (wrss)
		p = put_cet(p, true);
	p = put_bytes(p, insn->b, insn->n);
	if (wrss)
		p = put_cet(p, false);
	if (f->feature == AVX512)
		p = put_bytes(p, store_k, sizeof(store_k));
	if (f->feature == AMX)
		p = put_bytes(p, store_tiles, sizeof(store_tiles));
	for (i = 0; i < 32; i++) {			/* mov %reg, AFTER + 8 * i */
		u8 mov[] = { 0xd5, 8 | (i & 8) >> 1 | (i & 16) << 2, 0x89, 4 | (i & 7) << 3, 0x25 };
		u32 to = AFTER + 8 * i;

		p = put_bytes(p, mov, sizeof(mov));
		p = put_bytes(p, &to, 4);
	}
	*p = 0xcc;

	memcpy((void *)OPERAND, memory_in->operand, OPERAND_SIZE);
	memcpy((void *)OTHERS, memory_in->others, OTHERS_SIZE);
	if (f->feature == CET) {
		set_entry(&pt[OPERAND >> 12], page);
		asm volatile("mov %0, %%cr4" : : "r"(state->cr4 | CR4_CET));
	}
	memcpy(regs, in, 16 * 8);
	state->apx = 0;			/* try() leaves them alone */
	write_egprs(in + 16);
	out->vector = run_code();	/* which leaves CR4 as it was */
	state->apx = 1;
	if (f->feature == CET)
		set_entry(&pt[OPERAND >> 12], OPERAND | 3);
	out->rflags = get64((void *)(IST_TOP - 24), 0);	/* of the exception */
	memcpy(out->regs, (void *)AFTER, sizeof(out->regs));
	memcpy(out->operand, (void *)OPERAND, OPERAND_SIZE);
	memcpy(out->others, (void *)OTHERS, OTHERS_SIZE);
}

/* One of R8-R31 that is not in @taken. */
static int another_reg(u32 *taken)
{
	int r;

	do
		r = 8 + rng_below(24);
	while (*taken >> r & 1);
	*taken |= 1u << r;
	return r;
}

static void tile_config(u8 *to)
{
	int i;

	memset(to, 0, 64);
	to[0] = 1;
	for (i = 0; i < 8; i++) {
		to[16 + 2 * i] = 4 * rng_below(17);
		to[48 + i] = to[16 + 2 * i] ? 1 + rng_below(16) : 0;
	}
}

/* @ran: that it did, and no fault came */
static bool check_form(const struct form *f, int w, u32 *ran)
{
	const struct rm lrm = { .mod = f->flags & REGS_ONLY ? 3 : 2,
				.reg = f->flags & RM_FIXED ? 2 : 6, .index = 4 };
	struct outcome *legacy_out = &outcomes[0], *evex_out = &outcomes[1];
	struct insn l = { .n = 0 }, e = { .n = 0 };
	u64 in[32], lin[32], address, value, v = rng();
	struct rm rm = { .mod = lrm.mod, .index = 4 };
	int reg = f->reg, lreg = f->reg, v_reg = 0, i;
	u32 taken = 0;

	for (i = 0; i < OPERAND_SIZE; i += 8)
		put64(memory_in->operand, i, rng());
	for (i = 0; i < OTHERS_SIZE; i += 8)
		put64(memory_in->others, i, rng());
	for (i = 0; i < 32; i++)
		in[i] = rng();
	/* Now and then it is not aligned: #GP, but not with shadow stacks on. */
	address = OPERAND + 8 * rng_below(0x60);
	if (f->feature != CET && rng_below(8) == 0)
		address += rng_below(8);
	if (f->feature == AMX) {
		tile_config(memory_in->operand + (address - OPERAND));
		tile_config(memory_in->others);
	}
	value = f->reg_is == ADDRESS ? OTHERS + 64 * rng_below(4) + (rng_below(8) ? 0 : 8) :
		f->reg_is == XADD && rng_below(2) ? get64(memory_in->operand, address - OPERAND) : rng();
	in[R_SP] = SCRATCH + 0x8000;
	in[R_DI] = OTHERS;
	memcpy(lin, in, sizeof(lin));

	if (f->reg_is != FIXED) {
		reg = another_reg(&taken);
		lreg = 3;
		in[reg] = lin[lreg] = value;
	}
	if (f->reg_is == XADD) {
		v_reg = another_reg(&taken);
		in[v_reg] = lin[5] = v;
	}
	if (f->flags & RM_FIXED) {
		rm.reg = lrm.reg;
	} else if (f->flags & REGS_ONLY) {
		rm.reg = another_reg(&taken);
		in[rm.reg] = lin[lrm.reg] = value;
	} else {
		rm.reg = another_reg(&taken);
		lin[lrm.reg] = address;
		rm.disp = rng_below(2) ? (int8_t)rng() : (int32_t)rng();
		rm.mod = rm.disp == (int8_t)rm.disp ? 1 : 2;
		in[rm.reg] = address - rm.disp;
		if (rng_below(2)) {
			rm.index = another_reg(&taken);
			rm.scale = rng_below(4);
			in[rm.reg] -= in[rm.index] << rm.scale;
		}
	}
	if (f->is_vex)
		vex(&l, f->map, f->op, f->prefix, w, f->reg_is == XADD ? 5 : 0, lreg, &lrm);
	else
		legacy(&l, f->prefix, f->map, f->op, w, lreg, &lrm);
	evex(&e, f->evex_map, f->evex_op, f->evex_pp, w, 0, v_reg, reg, &rm);
	run_form(f, &l, lin, legacy_out);
	run_form(f, &e, in, evex_out);

	if (legacy_out->vector != evex_out->vector ||
	    memcmp(legacy_out->operand, evex_out->operand, OPERAND_SIZE) ||
	    memcmp(legacy_out->others, evex_out->others, OTHERS_SIZE))
		return false;
	if (evex_out->vector != BP)
		return evex_out->vector == GP;
	++*ran;
	if (f->reg_is == XADD || f->reg_is == RESULT)
		in[reg] = legacy_out->regs[lreg];
	else if (f->feature == CET && f->evex_op == 0x66)	/* put_cet() */
		memcpy(in, evex_out->regs, 3 * 8);
	return legacy_out->rflags == evex_out->rflags && !memcmp(evex_out->regs, in, sizeof(in));
}

static void check_forms(void)
{
	u32 wrong, all_cases, cases, ran;
	unsigned int i;
	int f, n;

	set_entry(&pml4[0], pml4[0] | USER);
	set_entry(&pdpt[0], pdpt[0] | USER);
	set_entry(&pd[0], pd[0] | USER);
	for (f = 0; f < FEATURES; f++) {
		if (!has_feature(f))
			continue;
		wrong = all_cases = 0;
		for (i = 0; i < ARRAY_SIZE(forms); i++) {
			if (forms[i].feature != f)
				continue;
			cases = ran = 0;
			for (n = 0; n < 2 * FORM_TRIALS; n++) {
				if (!(forms[i].flags & (n & 1 ? W1 : W0)))
					continue;
				cases++;
				if (check_form(&forms[i], n & 1, &ran) || wrong++)
					continue;
				put("# opcode ");
				put_hex(forms[i].evex_op);
				put(", pp ");
				put_nr(forms[i].evex_pp);
				put(", w ");
				put_nr(n & 1);
				put(": vectors ");
				put_nr(outcomes[0].vector);
				put_char(' ');
				put_nr(outcomes[1].vector);
				put_char('\n');
			}
			/* Faults that are the same show little. */
			wrong += 2 * ran <= cases;
			all_cases += cases;
		}
		result(all_cases && !wrong, features[f].name);
	}
	set_entry(&pml4[0], pml4[0] & ~(u64)USER);
	set_entry(&pdpt[0], pdpt[0] & ~(u64)USER);
	set_entry(&pd[0], pd[0] & ~(u64)USER);
}

/* ------------------------------------------------------------------------
 * Random code
 */
static u64 random_value(void)
{
	static const u32 msrs[] = {
		0x10, 0x1b, 0x3a, 0x48, 0x49, 0x10b, 0x122, 0x174, 0x175, 0x176, 0x1a0, 0x1c4,
		0x1c5, 0x1d9, 0x250, 0x277, 0x2ff, 0x480, 0x48b, 0x6a0, 0x6a2, 0x6a4, 0x6a8,
		0x6e0, 0x808, 0x80b, 0x830, 0x832, 0x83f, 0xda0, 0xc0000080, 0xc0000081,
		0xc0000082, 0xc0000084, 0xc0000100, 0xc0000102, 0xc0000103, 0xc0010114, 0xc0010117,
	};

	switch (rng_below(8)) {
	case 0: return rng();
	case 1: return (u32)rng();
	case 2: return rng_below(0x100);
	case 3: return msrs[rng_below(ARRAY_SIZE(msrs))];
	case 4: return VMXON_REGION + 0x1000 * rng_below(8);
	case 5: return 1ull << rng_below(64);
	default: return SCRATCH + rng_below(0x10000);
	}
}

static void random_regs(void)
{
	int i;

	for (i = 0; i < 32; i++)
		regs[i] = random_value();
}

/* No port I/O: that is the devices' to get right, not the CPU's. */
static void random_string(u8 *to, bool long_mode)
{
	int i;

	random_code(to, long_mode);
	for (i = 0; i < STRING; i++)
		if ((to[i] >= 0x6c && to[i] <= 0x6f) || (to[i] >= 0xe4 && to[i] <= 0xe7) ||
		    (to[i] >= 0xec && to[i] <= 0xef))
			to[i] ^= 0x80;
	memset(to + STRING, 0xcc, 32);
}

static u64 random_rflags(void)
{
	u64 rflags = 2 | (rng() & 0x8d5);

	switch (rng_below(8)) {
	case 0: return rflags | 0x100;			/* TF */
	case 1: return rflags | (rng() & 0x254600);
	default: return rflags;
	}
}

static void vmwrite(u32 field, u64 v)
{
	asm volatile("vmwrite %1, %0" : : "r"((u64)field), "r"(v) : "cc");
}

static u64 vmread(u32 field)
{
	u64 v = 0;

	asm volatile("vmread %1, %0" : "+r"(v) : "r"((u64)field) : "cc");
	return v;
}

#define EXIT_MSR_STORES	0x400e
#define EXIT_MSR_LOADS	0x4010
#define EXTENDED_INFO	0x2406
#define EXIT_REASON	0x4402
#define EXIT_INTERRUPTION 0x4404
#define INSTRUCTION_INFO 0x440e

static u64 must(u32 msr, u64 v)
{
	u64 allowed = rdmsr(msr);

	return (v | (u32)allowed) & (allowed >> 32);
}

/* Field numbers, types and widths: SDM Vol. 3, appendix B. */
static u32 random_field(void)
{
	static const u8 most[4] = { 0x18, 0x40, 0x30, 0x20 };
	u32 width = rng_below(4);

	return width << 13 | rng_below(4) << 10 | rng_below(most[width]) << 1;
}

/* A VMCS that is right, a copy of the host's state. */
static void fill_vmcs(void)
{
	static const struct {
		u16 field;
		u32 v;
	} fields[] = {
		{ 0x0802, CS64 }, { 0x0804, DS64 }, { 0x0800, DS64 }, { 0x0806, DS64 },
		{ 0x0808, DS64 }, { 0x080a, DS64 }, { 0x080c, 0 }, { 0x080e, TR },
		{ 0x0c00, DS64 }, { 0x0c02, CS64 }, { 0x0c04, DS64 }, { 0x0c06, DS64 },
		{ 0x0c08, DS64 }, { 0x0c0a, DS64 }, { 0x0c0c, TR },
		{ 0x2000, BITMAPS }, { 0x2002, BITMAPS + 0x1000 }, { 0x2004, BITMAPS + 0x2000 },
		{ 0x4800, ~0u }, { 0x4802, ~0u }, { 0x4804, ~0u }, { 0x4806, ~0u }, { 0x4808, ~0u },
		{ 0x480a, ~0u }, { 0x480c, 0 }, { 0x480e, 0x67 }, { 0x4810, 0x5f }, { 0x4812, 0xfff },
		{ 0x4814, 0xc093 }, { 0x4816, 0xa09b }, { 0x4818, 0xc093 }, { 0x481a, 0xc093 },
		{ 0x481c, 0xc093 }, { 0x481e, 0xc093 }, { 0x4820, 0x10000 }, { 0x4822, 0x8b },
		{ 0x4824, 0 }, { 0x4826, 0 }, { 0x4004, 0 }, { 0x400a, 0 }, { 0x400e, 0 },
		{ 0x4010, 0 }, { 0x4014, 0 }, { 0x4016, 0 },
		{ 0x6814, TSS }, { 0x6816, GDT }, { 0x6818, IDT }, { 0x681a, 0x400 },
		{ 0x6c0a, TSS }, { 0x6c0c, GDT }, { 0x6c0e, IDT }, { 0x6822, 0 },
	};
	u64 exit, entry;
	unsigned int i;

	asm volatile("vmclear %0" : : "m"((u64){ VMCS }) : "cc", "memory");
	memset((void *)VMCS, 0, 0x1000);
	*(u32 *)VMCS = rdmsr(MSR_VMX_BASIC);
	asm volatile("vmclear %0; vmptrld %0" : : "m"((u64){ VMCS }) : "cc", "memory");
	for (i = 0; i < ARRAY_SIZE(fields); i++)
		vmwrite(fields[i].field, fields[i].v);
	/* Exits due to external interrupts and NMIs, I/O and MSR bitmaps, secondary controls. */
	vmwrite(0x4000, must(0x481, 9));
	vmwrite(0x4002, must(0x482, 1u << 28 | 1u << 25 | (rng_below(2) ? 1u << 31 : 0)));
	/* Half of these with EPT, RDTSCP, VPID, unrestricted guest, INVPCID, XSAVES. */
	vmwrite(0x401e, must(0x48b, rng_below(2) ? 0 : 0x1010aa));
	vmwrite(0x0000, 1);
	vmwrite(0x201a, EPT | 0x1e);
	exit = must(0x483, 1 << 9);
	entry = must(0x484, 1 << 9);
	vmwrite(0x400c, exit);
	vmwrite(0x4012, entry);
	vmwrite(0x2800, ~0ull);			/* VMCS link pointer */
	vmwrite(0x6800, read_cr0());
	vmwrite(0x6c00, read_cr0());
	vmwrite(0x6802, (u64)pml4);
	vmwrite(0x6c02, (u64)pml4);
	vmwrite(0x6804, state->cr4);
	vmwrite(0x6c04, state->cr4);
	vmwrite(0x6c14, IST_TOP);
	vmwrite(0x6c16, (u64)vm_exit);
	vmwrite(0x681c, SCRATCH + 0x8000);
	vmwrite(0x681e, CODE);
	vmwrite(0x6820, random_rflags() & ~0x20000ull);
}

/* CPL 3 is without paging, as the pages of this program are a supervisor's. */
enum guest { LONG_CPL0, FLAT_CPL0, FLAT_CPL3 };

/*
 * Run @code in a guest, with every exit that the instructions of check_vmx() have and
 * an exit for #GP.  Returns the exit reason, or ~0.
 */
static u32 run_guest(const u8 *code, u32 size, enum guest guest)
{
	u32 dpl = guest == FLAT_CPL3 ? 3 : 0;

	fill_vmcs();
	/*
	 * I/O and MSR bitmaps, RDTSC and INVLPG; EPT, descriptor tables, unrestricted
	 * guest, INVPCID, UMWAIT.
	 */
	vmwrite(0x4002, must(0x482, 1u << 31 | 1u << 28 | 1u << 25 | 1u << 12 | 1u << 9));
	vmwrite(0x401e, must(0x48b, 1u << 26 | 1u << 12 | 1u << 7 | 1u << 2 | 1u << 1));
	vmwrite(0x4004, 1u << GP);
	vmwrite(0x6820, 2);
	if (guest != LONG_CPL0) {
		vmwrite(0x4012, must(0x484, 0));
		vmwrite(0x6800, read_cr0() & ~(1ull << 31));
		vmwrite(0x0802, CS64 | dpl);
		vmwrite(0x4816, 0xc09b | dpl << 5);
		vmwrite(0x0804, DS64 | dpl);
		vmwrite(0x4818, 0xc093 | dpl << 5);
	}
	memset((void *)CODE, 0xcc, 32);
	memcpy((void *)CODE, code, size);
	memset((void *)SCRATCH, 0, 16);
	memset(regs, 0, 32 * sizeof(*regs));
	regs[6] = SCRATCH;
	if (run((u64)do_vmlaunch, CS64, DS64, SCRATCH + 0x8000, 2) != VM_EXIT)
		return ~0u;
	return vmread(EXIT_REASON);
}

/* Type 2, and what would be that with 32 bits of it. */
static void check_types(void)
{
	static const u8 invpcid[] = {
		0x66, 0x0f, 0x38, 0x82, 0x06,		/* invpcid (%rsi), %rax */
		0xcc,
	};
	u64 zeroes[2] = { 0, 0 }, type;
	bool pass = true, high;
	u8 failed;
	int i;

	for (i = 31; i < 64; i++) {
		high = i > 31;
		type = 2 | (u64)high << i;
		asm volatile("invept %1, %2; setna %0" : "=r"(failed) : "m"(zeroes), "r"(type) : "cc", "memory");
		pass &= failed == high;
		asm volatile("invvpid %1, %2; setna %0" : "=r"(failed) : "m"(zeroes), "r"(type) : "cc", "memory");
		pass &= failed == high;
		memcpy((void *)CODE, invpcid, sizeof(invpcid));
		memset((void *)SCRATCH, 0, 16);
		memset(regs, 0, 32 * sizeof(*regs));
		regs[0] = type;
		regs[6] = SCRATCH;
		pass &= run_code() == (high ? GP : BP);
	}
	result(pass, "INVEPT, INVVPID and INVPCID take 64 bits of their type");
}

/* At CPL 0 they exit. */
static void check_gp_before_exit(void)
{
	static const u8 invpcid[] = { 0x66, 0x0f, 0x38, 0x82, 0x06 };
	static const u8 xsetbv_code[] = { 0x0f, 0x01, 0xd1 };
	bool pass = true;

	pass &= run_guest(invpcid, sizeof(invpcid), LONG_CPL0) == 58;
	pass &= run_guest(xsetbv_code, sizeof(xsetbv_code), LONG_CPL0) == 55;
	pass &= run_guest(invpcid, sizeof(invpcid), FLAT_CPL3) == 0 && (u8)vmread(EXIT_INTERRUPTION) == GP;
	pass &= run_guest(xsetbv_code, sizeof(xsetbv_code), FLAT_CPL3) == 0 && (u8)vmread(EXIT_INTERRUPTION) == GP;
	result(pass, "INVPCID and XSETBV at CPL 3 are #GP before they exit");
}

static bool has_waitpkg(void)
{
	u32 eax, ebx, ecx, edx;

	__cpuid_count(7, 0, eax, ebx, ecx, edx);
	return ecx >> 5 & 1;
}

/* The register: bits 6:3, and 20:16 of the extended field. */
static void check_waits(void)
{
	static const struct {
		u8 code[5];
		u32 reason, reg;
	} waits[] = {
		{ { 0xf2, 0x41, 0x0f, 0xae, 0xf2 }, 67, 10 },	/* umwait %r10d */
		{ { 0x66, 0x41, 0x0f, 0xae, 0xf1 }, 68, 9 },	/* tpause %r9d */
	};
	bool pass = true;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(waits); i++)
		pass &= run_guest(waits[i].code, sizeof(waits[i].code), LONG_CPL0) == waits[i].reason &&
			(vmread(INSTRUCTION_INFO) >> 3 & 0xf) == waits[i].reg &&
			(vmread(EXTENDED_INFO) >> 16 & 0x1f) == waits[i].reg;
	result(pass, "UMWAIT and TPAUSE exit with their instruction information");
}

/* Bits 29:28 say which, bit 11 that the operand has 32 bits and not 16. */
static void check_descriptor_tables(void)
{
	bool which = true, size = true;
	u32 info;
	int i;

	for (i = 0; i < 8; i++) {
		u8 code[] = { 0x66, 0x0f, 0x01, 6 | (i & 3) << 3 };	/* sgdt, sidt, lgdt, lidt (%esi) */
		int wide = i >> 2;

		which &= run_guest(code + wide, sizeof(code) - wide, FLAT_CPL0) == 46;
		info = vmread(INSTRUCTION_INFO);
		which &= (info >> 28 & 3) == (u32)(i & 3);
		size &= (info >> 11 & 1) == (u32)wide;
	}
	result(which, "SGDT, SIDT, LGDT and LIDT exit as what they are");
	result(size, "SGDT, SIDT, LGDT and LIDT exit with their operand size");
}

static void check_vmx(void)
{
	check_types();
	check_gp_before_exit();
	check_descriptor_tables();
	if (has_waitpkg())
		check_waits();
}

static void vmx_guest(void)
{
	int i;
	u32 field;

	fill_vmcs();
	for (i = rng_below(5); i > 0; i--) {
		field = random_field();
		/* A VM exit that cannot store or load MSRs stops the CPU for good. */
		if (field == EXIT_MSR_STORES || field == EXIT_MSR_LOADS)
			continue;
		vmwrite(field, rng_below(2) ? vmread(field) ^ 1ull << rng_below(64) : random_value());
	}
	if (run((u64)do_vmlaunch, CS64, DS64, SCRATCH + 0x8000, 2) == VM_EXIT)
		state->exits += !(vmread(EXIT_REASON) >> 31);
}

static void svm_guest(void)
{
	static const struct {
		u16 at, selector, attributes;
		u32 limit, base;
	} segments[] = {
		{ 0x400, DS64, 0xc93, ~0u, 0 }, { 0x410, CS64, 0xa9b, ~0u, 0 },
		{ 0x420, DS64, 0xc93, ~0u, 0 }, { 0x430, DS64, 0xc93, ~0u, 0 },
		{ 0x440, DS64, 0xc93, ~0u, 0 }, { 0x450, DS64, 0xc93, ~0u, 0 },
		{ 0x460, 0, 0, 0x5f, GDT }, { 0x470, 0, 0x82, 0, 0 },
		{ 0x480, 0, 0, 0xfff, IDT }, { 0x490, TR, 0x8b, 0x67, TSS },
	};
	u8 *vmcb = (void *)VMCB;
	unsigned int i;
	u64 at;

	memset(vmcb, 0, 0x1000);
	put64(vmcb, 0x00c, 3ull << 32 | 0x9800001b);	/* VMRUN, shutdown, NMI, INTR, ... */
	put64(vmcb, 0x040, BITMAPS);
	put64(vmcb, 0x048, BITMAPS);
	put64(vmcb, 0x058, 1);				/* ASID */
	if (rng_below(2)) {
		put64(vmcb, 0x090, 1);			/* nested paging */
		put64(vmcb, 0x0b0, (u64)pml4);
	}
	for (i = 0; i < ARRAY_SIZE(segments); i++) {
		put64(vmcb, segments[i].at, segments[i].selector | (u32)segments[i].attributes << 16 |
		      (u64)segments[i].limit << 32);
		put64(vmcb, segments[i].at + 8, segments[i].base);
	}
	put64(vmcb, 0x4d0, rdmsr(MSR_EFER));
	put64(vmcb, 0x548, state->cr4);
	put64(vmcb, 0x550, (u64)pml4);
	put64(vmcb, 0x558, read_cr0());
	put64(vmcb, 0x560, 0x400);
	put64(vmcb, 0x568, 0xffff0ff0);
	put64(vmcb, 0x570, random_rflags());
	put64(vmcb, 0x578, CODE);
	put64(vmcb, 0x5d8, SCRATCH + 0x8000);
	put64(vmcb, 0x668, 0x0007040600070406ull);
	for (i = rng_below(5); i > 0; i--) {
		at = (rng_below(2) ? rng_below(0x100) : 0x400 + rng_below(0x280)) & ~7;
		put64(vmcb, at, rng_below(2) ? get64(vmcb, at) ^ 1ull << rng_below(64) : random_value());
	}
	if (run((u64)do_vmrun, CS64, DS64, SCRATCH + 0x8000, 2) == VM_EXIT)
		state->exits += get64(vmcb, EXITCODE) != ~0ull;
}

/* 1 kHz, which entry.S has made an NMI.  Each of the other checks comes to its end. */
static void start_watchdog(void)
{
	outb(0x43, 0x34);
	outb(0x40, 1193 & 0xff);
	outb(0x40, 1193 >> 8);
}

static void random_trial(void)
{
	enum mode mode = rng_below(MODES);
	int vector = 0;
	u32 i;

	if (mode >= VMX)
		mode = state->vmx ? VMX : state->svm ? SVM : LONG;
	state->ran[mode]++;
	if (state->vmx && (mode == LEGACY || mode == REAL))
		asm volatile("vmxoff");		/* it does not let paging be switched off */
	for (i = 0; i < 0x1000; i += 8)
		put64((void *)SCRATCH, 0x7800 + i, random_value());
	random_string((void *)CODE, mode == LONG || mode >= VMX);
	random_regs();
	state->apx = !!(supported_xcr0() & XBIT_APX);
	xsetbv(supported_xcr0());
	switch (mode) {
	case LONG:
		vector = run(CODE, CS64, DS64, SCRATCH + 0x8000, random_rflags());
		break;
	case COMPAT32:
		vector = run(CODE, CS32, DS32, 0x8000, random_rflags());
		break;
	case COMPAT16:
		vector = run(0, CS16_CODE, DS32, 0x8000, random_rflags());
		break;
	case LEGACY:
		run((u64)to_legacy, CS32_FLAT, DS32_FLAT, STACK_TOP - 0x3000, 2);
		break;
	case REAL:
		memcpy((void *)REAL_CODE, (void *)CODE, STRING + 32);
		run((u64)to_real, CS32_FLAT, DS32_FLAT, STACK_TOP - 0x3000, 2);
		break;
	case VMX:
		vmx_guest();
		break;
	case SVM:
		svm_guest();
		break;
	case MODES:
		break;
	}
	state->nmis += vector == NMI;
}

static void summary(void)
{
	static const char * const names[MODES] = {
		"64-bit", "32-bit compatibility", "16-bit compatibility", "legacy protected mode",
		"real mode", "VMLAUNCH", "VMRUN",
	};
	int i;

	for (i = 0; i < MODES; i++) {
		put("# ");
		put_nr(state->ran[i]);
		put_char(' ');
		put(names[i]);
		put_char('\n');
	}
	put("# ");
	put_nr(state->nmis);
	put(" ended by the NMI, ");
	put_nr(state->exits);
	put(" VM exits, ");
	put_nr(state->boots);
	put(" resets\n");
}

static void switch_off(void)
{
	const char *s;

	while (!(inb(COM2 + 5) & 0x40))
		;
	for (s = "Shutdown"; *s; s++)
		outb(0x8900, *s);
}

/* What there is to check with APX alone. */
#define RESULTS		(16 + state->svm + (state->vmx ? 4 + has_waitpkg() : 0) + \
			 (TRIALS ? 0 : MODEL_RESULTS + !!supported_xss() + nr_features()))

void bare_main(void)
{
	u64 xcr0 = xgetbv(0);

	state->busy = 1;
	if (state->magic != MAGIC) {
		memset(state, 0, sizeof(*state));
		state->busy = 1;
		state->magic = MAGIC;
		memset((void *)BITMAPS, 0xff, 0x4000);
		/* 1 GiB, write-back, all accesses. */
		put64((void *)EPT, 0, (EPT + 0x1000) | 7);
		put64((void *)(EPT + 0x1000), 0, 0xb7);
	}
	state->boots++;
	set_com2();
	set_idt();
	set_cpu();
	rng_seed(SEED);
	if (state->boots == 1 && saved_trial()) {
		state->trial = saved_trial();
		state->stage = RANDOM;
		put("# memory was lost at trial ");
		put_nr(state->trial);
		put_char('\n');
	}
	if (state->boots == 1 && state->stage == FIRST) {
		put("TAP version 13\n1..");
		put_nr((state->apx ? RESULTS : 0) + !!TRIALS);
		put_char('\n');
	}
	switch (state->apx ? state->stage : RANDOM) {
	case FIRST:
		fill_egprs();
		if (!egprs_are_stored())
			result(false, "R16-R31 hold values");
		state->stage = AFTER_RESET;
		triple_fault();
	case AFTER_RESET:
		state->stage = RANDOM;		/* unless it comes to its end */
		check_reset(xcr0);
		check_toggling();
		check_smm();
		check_smram();
		check_nmi();
		if (state->svm)
			check_vmrun();
		if (state->vmx)
			check_vmx();
		if (!TRIALS) {
			check_model();
			check_forms();
		}
		init_by_port_92();
		break;
	case AFTER_PORT_92:
		state->stage = RANDOM;
		check_init(xcr0, "INIT, by port 92H, keeps R16-R31", "INIT, by port 92H, keeps XCR0",
			   "INIT, by port 92H, keeps IA32_XSS");
		init_by_ipi();
		break;
	case AFTER_INIT:
		state->stage = RANDOM;
		check_init(xcr0, "INIT with XCR0.APX clear keeps R16-R31", "INIT keeps XCR0",
			   "INIT keeps IA32_XSS");
		break;
	}
	if (TRIALS)
		start_watchdog();
	while (state->trial != TRIALS) {
		rng_seed(SEED * 1000003ull + state->trial++);
		save_trial(state->trial);
		if (state->trial % 100 == 0) {
			put("# trial ");
			put_nr(state->trial);
			put_char('\n');
		}
		random_trial();
		/* Now and then VMX operation and what else lasts begins anew. */
		if (rng_below(16) == 0)
			triple_fault();
	}
	if (TRIALS) {
		summary();
		result(true, "random code at CPL 0");
	}
	switch_off();
}
