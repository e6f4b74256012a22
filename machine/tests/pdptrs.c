// SPDX-License-Identifier: GPL-2.0
/*
 * KVM caches the page directory pointers of a guest with PAE paging, and no KVM
 * selftest has such a guest.  This one does: pointers that userspace sets are
 * used and read back, and those that the guest loads, with and without an exit,
 * are what userspace sees, i.e. KVM's copy isn't an old one.
 */
#include "small_guest.h"

#define MEM_SIZE	0x400000
#define PDPT		0x1000
#define PAGE_DIRECTORY	0x2000
#define CODE		0x8000
#define PORT		0x80

#define P_PRESENT	0x1
#define P_RW		0x2
#define P_PS		0x80

#define CR0_PE		(1u << 0)
#define CR0_PG		(1u << 31)
#define CR4_PAE		(1u << 5)

/* The instruction that follows comes after the exit that OUT causes. */
static const u8 code[] = {
	0xe6, PORT,		/* 1: out %al, $PORT */
	0x0f, 0x20, 0xd8,	/*    mov %cr3, %eax */
	0x0f, 0x22, 0xd8,	/*    mov %eax, %cr3 */
	0xe6, PORT,		/* 2: out %al, $PORT */
	0x0f, 0x20, 0xc0,	/*    mov %cr0, %eax */
	0x0f, 0xba, 0xf8, 31,	/*    btc $31, %eax */
	0x0f, 0x22, 0xc0,	/*    mov %eax, %cr0 */
	0x0f, 0xba, 0xf8, 31,	/*    btc $31, %eax */
	0x0f, 0x22, 0xc0,	/*    mov %eax, %cr0 */
	0xe6, PORT,		/* 3: out %al, $PORT */
	0xf4,
};

/* An entry that no translation uses: the guest runs in its first GiB. */
static void set_pdpt(int nr, u64 entry)
{
	memcpy(mem + PDPT + 8 * nr, &entry, sizeof(entry));
}

static bool pdptrs_are(const char *what, const u64 *expected)
{
	struct kvm_sregs2 sregs;
	int i;

	if (ioctl(vcpu, KVM_GET_SREGS2, &sregs)) {
		ktap_note("%s: KVM_GET_SREGS2, errno %d", what, errno);
		return false;
	}
	if (!(sregs.flags & KVM_SREGS2_FLAGS_PDPTRS_VALID)) {
		ktap_note("%s: no PDPTRs", what);
		return false;
	}
	for (i = 0; i < 4; i++) {
		if (sregs.pdptrs[i] != expected[i]) {
			ktap_note("%s: PDPTR%d is %llx instead of %llx", what, i,
				  (unsigned long long)sregs.pdptrs[i],
				  (unsigned long long)expected[i]);
			return false;
		}
	}
	return true;
}

static void set_segment(struct kvm_segment *s, u8 type)
{
	*s = (struct kvm_segment){
		.limit = 0xffffffff, .selector = 8, .type = type,
		.present = 1, .db = 1, .s = 1, .g = 1,
	};
}

/* Whether there is a VM with 32-bit code about to run, PAE paging enabled. */
static bool create(u64 *pdptrs)
{
	struct kvm_regs regs = { .rip = CODE, .rflags = 2 };
	struct kvm_sregs2 sregs;
	u64 entry = P_PRESENT | P_RW | P_PS;

	if (!create_vcpu(MEM_SIZE, false, 0))
		return false;

	memcpy(mem + CODE, code, sizeof(code));
	memcpy(mem + PAGE_DIRECTORY, &entry, sizeof(entry));
	pdptrs[0] = PAGE_DIRECTORY | P_PRESENT;
	pdptrs[1] = pdptrs[2] = pdptrs[3] = 0;
	set_pdpt(0, pdptrs[0]);

	if (ioctl(vcpu, KVM_GET_SREGS2, &sregs))
		return false;
	set_segment(&sregs.cs, 11);
	set_segment(&sregs.ds, 3);
	sregs.es = sregs.fs = sregs.gs = sregs.ss = sregs.ds;
	sregs.cr0 |= CR0_PE | CR0_PG;
	sregs.cr3 = PDPT;
	sregs.cr4 |= CR4_PAE;
	/* Not what memory has: userspace's pointers are to be used. */
	pdptrs[3] = 0x3000 | P_PRESENT;
	sregs.flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;
	memcpy(sregs.pdptrs, pdptrs, sizeof(sregs.pdptrs));
	return !ioctl(vcpu, KVM_SET_SREGS2, &sregs) &&
	       !ioctl(vcpu, KVM_SET_REGS, &regs);
}

int main(void)
{
	u64 pdptrs[4];

	ktap_plan(4);
	if (!create(pdptrs)) {
		ktap_note("no guest, errno %d", errno);
		return EXIT_FAIL;
	}

	ktap_result(pdptrs_are("set", pdptrs), "userspace reads the PDPTRs that it set");
	/* AMD's CPUs have no such registers with nested paging, but read memory. */
	if (is_amd())
		pdptrs[3] = 0;
	ktap_result(run_to_out("first exit", PORT) && pdptrs_are("first exit", pdptrs),
		    "an exit leaves the PDPTRs as the CPU has them");

	pdptrs[3] = 0;
	pdptrs[2] = 0x4000 | P_PRESENT;
	set_pdpt(2, pdptrs[2]);
	ktap_result(run_to_out("MOV to CR3", PORT) && pdptrs_are("MOV to CR3", pdptrs),
		    "MOV to CR3 loads PDPTRs from memory");

	pdptrs[1] = 0x5000 | P_PRESENT;
	set_pdpt(1, pdptrs[1]);
	ktap_result(run_to_out("MOV to CR0", PORT) && pdptrs_are("MOV to CR0", pdptrs),
		    "MOV to CR0 loads PDPTRs from memory");
	return ktap_exit();
}
