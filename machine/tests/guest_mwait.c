// SPDX-License-Identifier: GPL-2.0
/*
 * What another CPU writes ends MWAIT, which has another address for the memory, and
 * knew it before; what it monitors itself doesn't.
 *
 * A guest in real mode waits, whose MWAIT doesn't exit: Linux lets no process do so.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/sysinfo.h>

#include "small_guest.h"

#define MEM_SIZE	0xa0000
#define CODE		0x8000
#define PORT		0x80

/* Each in a page of its own. */
#define FLAG		0x2000	/* what the guest waits for, in a line of so many bytes */
#define LINE		64
#define READY		0x4000	/* how often it began to */
#define SEEN		0x6000	/* set when it does not any more */
#define OTHER		0xa000	/* what a guest on the other CPU monitors */

#define NR_ROUNDS	16
#define NR_MONITORS	20000
#define SOON		20000	/* cycles */
#define FEW		16	/* waits: ticks and interrupts of the host, too, end them */
#define SLEEP		100000	/* cycles until the flag is set */

static const u8 code[] = {
	0x66, 0xb8, FLAG & 0xff, FLAG >> 8, 0, 0,	/* 1: mov $FLAG, %eax */
	0x66, 0x31, 0xc9,				/*    xor %ecx, %ecx */
	0x66, 0x31, 0xd2,				/*    xor %edx, %edx */
	0x0f, 0x01, 0xc8,				/*    monitor */
	0xff, 0x06, READY & 0xff, READY >> 8,		/*    incw READY */
	0x80, 0x3c, 0,					/*    cmpb $0, (%si) */
	0x75, 0x0b,					/*    jne 2f */
	0x66, 0x31, 0xc0,				/*    xor %eax, %eax */
	0x0f, 0x01, 0xc9,				/*    mwait */
	0x80, 0x3c, 0,					/*    cmpb $0, (%si) */
	0x74, 0xdd,					/*    je 1b */
	0xc6, 0x06, SEEN & 0xff, SEEN >> 8, 1,		/* 2: movb $1, SEEN */
	0xe6, PORT,					/*    out %al, $PORT */
};

static const u8 code_monitors[] = {
	0x66, 0xb8, OTHER & 0xff, OTHER >> 8, 0, 0,	/*    mov $OTHER, %eax */
	0x66, 0x31, 0xc9,				/*    xor %ecx, %ecx */
	0x66, 0x31, 0xd2,				/*    xor %edx, %edx */
	0xbe, NR_MONITORS & 0xff, NR_MONITORS >> 8,	/*    mov $NR_MONITORS, %si */
	0x0f, 0x01, 0xc8,				/* 1: monitor */
	0x4e,						/*    dec %si */
	0x75, 0xfa,					/*    jne 1b */
	0xe6, PORT,					/*    out %al, $PORT */
};

static int other_vcpu;

static volatile u8 *at(u32 gpa)
{
	return mem + gpa;
}

static u16 nr_waits(void)
{
	return *(volatile u16 *)at(READY);
}

static u64 tsc(void)
{
	return __builtin_ia32_rdtsc();
}

static bool set(int fd, u32 si)
{
	struct kvm_regs regs = { .rip = CODE, .rsi = si, .rflags = 2, .rsp = 0x1000 };

	return !ioctl(fd, KVM_SET_REGS, &regs);
}

/* What the other CPU does while the guest waits. */
enum meanwhile {
	NOTHING,
	READ,
	MONITOR,
};

static enum meanwhile meanwhile;
static u32 flag;
static volatile bool knows_flag;
static unsigned int late, restless;

/* Returns NULL if it ran on the other CPU, and so did the guest there. */
static void *write_flag(void *unused)
{
	bool ok = run_on(1);
	u64 begin;

	/* The write, of the value that is there, is for the TLB's sake. */
	*at(flag) = 0;
	knows_flag = true;
	while (!nr_waits())
		;
	if (meanwhile == MONITOR)
		ok &= set(other_vcpu, 0) && !ioctl(other_vcpu, KVM_RUN, 0);
	begin = tsc();
	while (tsc() - begin < SLEEP)
		if (meanwhile == READ)
			(void)*at(flag);
	if (nr_waits() > FEW)
		restless++;

	begin = tsc();
	*at(flag) = 1;
	while (!*at(SEEN))
		;
	if (tsc() - begin > SOON)
		late++;
	return ok ? NULL : &vm;
}

/* A tick of the host, or another task, may come in between now and then. */
static bool write_ends_mwait(u32 at_flag, enum meanwhile other)
{
	pthread_t writer;
	void *failed;
	int i;

	flag = at_flag;
	meanwhile = other;
	late = restless = 0;
	for (i = 0; i < NR_ROUNDS; i++) {
		knows_flag = false;
		*(volatile u16 *)at(READY) = 0;
		*at(SEEN) = 0;
		if (!set(vcpu, flag) || pthread_create(&writer, NULL, write_flag, NULL))
			return false;
		while (!knows_flag)
			;
		if (!run_to_out("MWAIT", PORT))
			return false;
		pthread_join(writer, &failed);
		if (failed) {
			ktap_note("the other CPU did not what it had to");
			return false;
		}
	}
	if (restless > NR_ROUNDS / 4)
		ktap_note("%u of %d did not sleep", restless, NR_ROUNDS);
	if (late > NR_ROUNDS / 4)
		ktap_note("%u of %d came late", late, NR_ROUNDS);
	return restless <= NR_ROUNDS / 4 && late <= NR_ROUNDS / 4;
}

static bool create(const u8 *code, size_t size)
{
	struct kvm_sregs sregs;

	if (!create_vcpu(MEM_SIZE, false, KVM_X86_DISABLE_EXITS_MWAIT) ||
	    ioctl(vcpu, KVM_GET_SREGS, &sregs))
		return false;
	memcpy(mem + CODE, code, size);
	sregs.cs.base = sregs.cs.selector = 0;
	return !ioctl(vcpu, KVM_SET_SREGS, &sregs);
}

int main(void)
{
	static const char * const names[] = {
		"a write of another CPU ends MWAIT",
		"it does if that CPU has read there since MONITOR",
		"it does if it is to the last byte that is monitored",
		"another CPU's MONITOR ends nothing",
	};
	unsigned int i;

	ktap_plan(ARRAY_SIZE(names));
	if (get_nprocs() < 2) {
		for (i = 0; i < ARRAY_SIZE(names); i++)
			ktap_skip(names[i], "one CPU");
		return ktap_exit();
	}
	if (!run_on(0) || !create(code_monitors, sizeof(code_monitors)))
		return EXIT_FAIL;
	other_vcpu = vcpu;
	if (!create(code, sizeof(code)))
		return EXIT_FAIL;

	ktap_result(write_ends_mwait(FLAG, NOTHING), "%s", names[0]);
	ktap_result(write_ends_mwait(FLAG, READ), "%s", names[1]);
	ktap_result(write_ends_mwait(FLAG + LINE - 1, NOTHING), "%s", names[2]);
	ktap_result(write_ends_mwait(FLAG, MONITOR), "%s", names[3]);
	return ktap_exit();
}
