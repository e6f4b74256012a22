// SPDX-License-Identifier: GPL-2.0
/*
 * What another CPU writes ends MWAIT, whichever address it has there for the
 * memory, and whether it knew the page before MONITOR or read from it since.
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
#define FLAG		0x2000	/* what the guest waits for */
#define READY		0x4000	/* how often it began to */
#define SEEN		0x6000	/* set when it does not any more */

#define NR_ROUNDS	16
#define SOON		20000	/* cycles, i.e. instructions */
#define SLEEP		100000	/* cycles until the flag is set */

static const u8 code[] = {
	0x66, 0xb8, FLAG & 0xff, FLAG >> 8, 0, 0,	/* 1: mov $FLAG, %eax */
	0x66, 0x31, 0xc9,				/*    xor %ecx, %ecx */
	0x66, 0x31, 0xd2,				/*    xor %edx, %edx */
	0x0f, 0x01, 0xc8,				/*    monitor */
	0xfe, 0x06, READY & 0xff, READY >> 8,		/*    incb READY */
	0x80, 0x3e, FLAG & 0xff, FLAG >> 8, 0,		/*    cmpb $0, FLAG */
	0x75, 0x0d,					/*    jne 2f */
	0x66, 0x31, 0xc0,				/*    xor %eax, %eax */
	0x0f, 0x01, 0xc9,				/*    mwait */
	0x80, 0x3e, FLAG & 0xff, FLAG >> 8, 0,		/*    cmpb $0, FLAG */
	0x74, 0xd9,					/*    je 1b */
	0xc6, 0x06, SEEN & 0xff, SEEN >> 8, 1,		/* 2: movb $1, SEEN */
	0xe6, PORT,					/*    out %al, $PORT */
};

static volatile u8 *at(u32 gpa)
{
	return mem + gpa;
}

static u64 tsc(void)
{
	return __builtin_ia32_rdtsc();
}

static bool reads_flag;
static volatile bool knows_flag;
static unsigned int late, restless;

/* Returns NULL if it ran on the other CPU. */
static void *write_flag(void *unused)
{
	bool moved = run_on(1);
	u64 begin;

	/* The write, of the value that is there, is for the TLB's sake. */
	*at(FLAG) = 0;
	knows_flag = true;
	while (!*at(READY))
		;
	begin = tsc();
	while (tsc() - begin < SLEEP)
		if (reads_flag)
			(void)*at(FLAG);
	if (*at(READY) > 2)
		restless++;

	begin = tsc();
	*at(FLAG) = 1;
	while (!*at(SEEN))
		;
	if (tsc() - begin > SOON)
		late++;
	return moved ? NULL : &vm;
}

static bool set(void)
{
	struct kvm_regs regs = { .rip = CODE, .rflags = 2, .rsp = 0x1000 };

	*at(READY) = 0;
	*at(SEEN) = 0;
	return !ioctl(vcpu, KVM_SET_REGS, &regs);
}

/* A tick of the host, or another task, may come in between now and then. */
static bool write_ends_mwait(bool reads)
{
	pthread_t writer;
	void *unmoved;
	int i;

	reads_flag = reads;
	late = restless = 0;
	for (i = 0; i < NR_ROUNDS; i++) {
		knows_flag = false;
		if (!set() || pthread_create(&writer, NULL, write_flag, NULL))
			return false;
		while (!knows_flag)
			;
		if (!run_to_out("MWAIT", PORT))
			return false;
		pthread_join(writer, &unmoved);
		if (unmoved) {
			ktap_note("sched_setaffinity() failed");
			return false;
		}
	}
	if (restless > NR_ROUNDS / 4)
		ktap_note("%u of %d did not sleep", restless, NR_ROUNDS);
	if (late > NR_ROUNDS / 4)
		ktap_note("%u of %d came late", late, NR_ROUNDS);
	return restless <= NR_ROUNDS / 4 && late <= NR_ROUNDS / 4;
}

int main(void)
{
	struct kvm_sregs sregs;

	ktap_plan(2);
	if (get_nprocs() < 2) {
		ktap_skip("a write of another CPU ends MWAIT", "one CPU");
		ktap_skip("it does if that CPU has read there since MONITOR", "one CPU");
		return ktap_exit();
	}
	if (!run_on(0) || !create_vcpu(MEM_SIZE, false, KVM_X86_DISABLE_EXITS_MWAIT) ||
	    ioctl(vcpu, KVM_GET_SREGS, &sregs)) {
		ktap_note("no guest, errno %d", errno);
		return EXIT_FAIL;
	}
	memcpy(mem + CODE, code, sizeof(code));
	sregs.cs.base = sregs.cs.selector = 0;
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs))
		return EXIT_FAIL;

	ktap_result(write_ends_mwait(false), "a write of another CPU ends MWAIT");
	ktap_result(write_ends_mwait(true), "it does if that CPU has read there since MONITOR");
	return ktap_exit();
}
