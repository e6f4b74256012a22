// SPDX-License-Identifier: GPL-2.0-only
/*
 * Random and almost valid arguments for the ioctls through which userspace sets
 * R16-R31, XCR0, and what they depend on:
 *
 * - one that fails changes nothing that userspace can get;
 * - KVM_SET_XSAVE and KVM_SET_XCRS succeed when they should, and then do what
 *   they should, as seen by KVM_GET_XSAVE2, KVM_GET_XCRS, and the guest;
 * - KVM_SET_CPUID2 that succeeds sets what it was given, and nothing else;
 * - a vCPU without APX never shows R16-R31, nor has it XCR0.APX.
 *
 * KVM_SET_NESTED_STATE is special.  It leaves L2 before it knows whether it is
 * going to succeed, APX or not, i.e. of a vCPU in L2 only R16-R31, XCR0 and CPUID
 * must not change.  Of another one nothing must, but what VMX has of nested state:
 * KVM leaves and enters VMX operation before it looks at the VMCS.  Where one that
 * succeeds takes the vCPU is up to chance: it runs from there for a while, whatever
 * that ends with, and has to have its R16-R31 and XCR0 then.
 */
#include <errno.h>
#include <signal.h>
#include <time.h>

#include "soak.h"
#include "svm_util.h"
#include "vmx.h"

#define MAX_CPUID_ENTRIES	256
#define MAX_MSRS		1024
#define WILD_NSECS		2000000	/* that a vCPU runs that may be anywhere */

enum kind {
	WITH_APX,
	WITHOUT_APX,
	IN_L2,
	NEVER_RUN,
	AFTER_L2,	/* in VMX operation, with a VMCS */
	NR_KINDS,
};

enum call {
	SET_XSAVE,
	SET_XCRS,
	SET_CPUID,
	SET_NESTED,
	NR_CALLS,
};

/* What the guest sees. */
static struct {
	u64 xcr0;
	struct egprs egprs;
} seen;
static void *nested_data;

#define L2_STACK_SIZE	512
static u64 l2_stack[L2_STACK_SIZE] __aligned(16);

static void guest_look(void)
{
	for (;;) {
		GUEST_SYNC(0);
		seen.xcr0 = xgetbv(0);
		if (seen.xcr0 & XFEATURE_MASK_APX)
			store_egprs(&seen.egprs);
	}
}

static void l2_that_returns(void)
{
	if (host_cpu_is_intel)
		vmcall();
	else
		vmmcall();
}

static void guest_code(u64 kind)
{
	void *code = kind == IN_L2 ? guest_look : l2_that_returns;
	struct svm_test_data *svm = nested_data;
	void *rsp = &l2_stack[L2_STACK_SIZE - 1];

	if (kind != IN_L2 && kind != AFTER_L2) {
		guest_look();
	} else if (host_cpu_is_intel) {
		GUEST_ASSERT(prepare_for_vmx_operation(nested_data));
		GUEST_ASSERT(load_vmcs(nested_data));
		prepare_vmcs(nested_data, code, rsp);
		GUEST_ASSERT(!vmlaunch());
		GUEST_ASSERT_EQ(vmreadz(VM_EXIT_REASON), EXIT_REASON_VMCALL);
	} else {
		generic_svm_setup(nested_data, code, rsp);
		run_guest(svm->vmcb, svm->vmcb_gpa);
		asm volatile("stgi");
		GUEST_ASSERT_EQ(svm->vmcb->control.exit_code, SVM_EXIT_VMMCALL);
	}
	GUEST_ASSERT(kind == AFTER_L2);
	guest_look();
}

/* What userspace can get, but for what is of the VM. */
struct snapshot {
	u8 xsave[SOAK_XSAVE_SIZE] __aligned(64);
	struct kvm_xcrs xcrs;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_vcpu_events events;
	struct kvm_debugregs debugregs;
	struct kvm_mp_state mp_state;
	struct kvm_lapic_state lapic;
	struct kvm_msrs msrs;
	struct kvm_msr_entry msr_entries[MAX_MSRS];
	struct kvm_cpuid2 cpuid;
	struct kvm_cpuid_entry2 cpuid_entries[MAX_CPUID_ENTRIES];
	union {
		struct kvm_nested_state nested;
		u8 nested_[16384];
	};
};

static struct snapshot before, after;
static enum kind kind;
static struct kvm_vcpu *vcpu;
static u64 rng;

/* The model. */
static struct egprs egprs;	/* that KVM has, whatever the vCPU has */
static bool has_apx;
static u64 xcr0, vcpu_xcr0;	/* the current one, and what the vCPU may set */

static u64 nr_succeeded[NR_CALLS], nr_failed[NR_CALLS];
static u64 nr_ended, nr_repaired, nr_unchanged, nr_runs, nr_wild_runs;

static u64 rnd(u64 n)
{
	return soak_random(&rng) % n;
}

static void get_cpuid(struct snapshot *s)
{
	int r;

	s->cpuid.nent = MAX_CPUID_ENTRIES;
	r = ioctl(vcpu->fd, KVM_GET_CPUID2, &s->cpuid);
	TEST_ASSERT(!r, KVM_IOCTL_ERROR(KVM_GET_CPUID2, r));
}

/* But for those that the vCPU doesn't have, i.e. VMX's without VMX. */
static void get_msrs(struct snapshot *s)
{
	const struct kvm_msr_list *list = kvm_get_msr_index_list();
	int i, r;

	TEST_ASSERT(list->nmsrs <= MAX_MSRS, "%u MSRs", list->nmsrs);
	for (i = 0; i < list->nmsrs; i++) {
		if (!soak_is_time(list->indices[i]))
			s->msr_entries[s->msrs.nmsrs++].index = list->indices[i];
	}
	while ((r = ioctl(vcpu->fd, KVM_GET_MSRS, &s->msrs)) != s->msrs.nmsrs) {
		TEST_ASSERT(r >= 0, KVM_IOCTL_ERROR(KVM_GET_MSRS, r));
		s->msrs.nmsrs--;
		for (i = r; i < s->msrs.nmsrs; i++)
			s->msr_entries[i].index = s->msr_entries[i + 1].index;
		s->msr_entries[i].index = 0;
	}
}

static void take(struct snapshot *s)
{
	soak_clear(s, sizeof(*s));
	soak_get_xsave(vcpu, s->xsave);
	vcpu_xcrs_get(vcpu, &s->xcrs);
	vcpu_regs_get(vcpu, &s->regs);
	vcpu_sregs_get(vcpu, &s->sregs);
	vcpu_events_get(vcpu, &s->events);
	vcpu_debugregs_get(vcpu, &s->debugregs);
	vcpu_mp_state_get(vcpu, &s->mp_state);
	vcpu_ioctl(vcpu, KVM_GET_LAPIC, &s->lapic);
	get_msrs(s);
	get_cpuid(s);
	s->nested.size = sizeof(s->nested_);
	vcpu_nested_state_get(vcpu, &s->nested);
}

static void compare(const char *what, const char *member, const void *a, const void *b, size_t size)
{
	const u8 *x = a, *y = b;
	size_t i;

	if (soak_is_same(a, b, size))
		return;
	for (i = 0; i < size; i++)
		TEST_ASSERT(x[i] == y[i], "%s changed %s at %zu: 0x%02x, now 0x%02x",
			    what, member, i, x[i], y[i]);
}

#define COMPARE(what, member)							\
	compare(what, #member, &before.member, &after.member, sizeof(before.member))

/* Of what no call is to change that succeeds, but for KVM_SET_NESTED_STATE. */
static void others_unchanged(const char *what)
{
	COMPARE(what, regs);
	COMPARE(what, sregs);
	COMPARE(what, events);
	COMPARE(what, debugregs);
	COMPARE(what, mp_state);
	COMPARE(what, lapic);
}

/* Which there are, and some of VMX's, is up to CPUID. */
static void msrs_unchanged(const char *what)
{
	COMPARE(what, msrs);
	COMPARE(what, msr_entries);
}

static void cpuid_unchanged(const char *what)
{
	COMPARE(what, cpuid);
	COMPARE(what, cpuid_entries);
}

static void all_but_nested_unchanged(const char *what)
{
	COMPARE(what, xsave);
	COMPARE(what, xcrs);
	others_unchanged(what);
	msrs_unchanged(what);
	cpuid_unchanged(what);
}

static void nothing_changed(const char *what)
{
	take(&after);
	all_but_nested_unchanged(what);
	COMPARE(what, nested_);
}

/* The model against KVM. */
static void check(const char *what)
{
	struct kvm_xcrs xcrs;

	soak_check_xsave(vcpu, has_apx ? &egprs : &(struct egprs){}, what);
	vcpu_xcrs_get(vcpu, &xcrs);
	TEST_ASSERT(xcrs.xcrs[0].value == xcr0, "%s: XCR0 = 0x%llx, wanted 0x%lx",
		    what, xcrs.xcrs[0].value, xcr0);
}

/* The model against the guest. */
static void run_guest_once(void)
{
	struct ucall uc;
	int i;

	nr_runs++;
	TEST_ASSERT(!soak_run(vcpu, &rng), "KVM_RUN failed, errno %d", errno);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	if (get_ucall(vcpu, &uc) == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);
	TEST_ASSERT_EQ(uc.cmd, UCALL_SYNC);

	sync_global_from_guest(vcpu->vm, seen);
	TEST_ASSERT(seen.xcr0 == xcr0, "The guest's XCR0 is 0x%lx, wanted 0x%lx", seen.xcr0, xcr0);
	for (i = 0; (xcr0 & XFEATURE_MASK_APX) && i < NR_EGPRS; i++)
		TEST_ASSERT(seen.egprs.r[i] == egprs.r[i],
			    "The guest's R%d is 0x%lx, wanted 0x%lx",
			    i + 16, seen.egprs.r[i], egprs.r[i]);
	check("after KVM_RUN");
}

static void count(enum call call, int r)
{
	if (r)
		nr_failed[call]++;
	else
		nr_succeeded[call]++;
}

static void expect(const char *what, int r, bool valid)
{
	TEST_ASSERT(!r == valid, "%s %s, has to %s (errno %d)", what,
		    r ? "fails" : "succeeds", valid ? "succeed" : "fail", r ? errno : 0);
}

static u32 mxcsr_mask(void)
{
	u32 fxsave[512 / 4] __aligned(16);

	asm volatile("fxsave %0" : "=m"(fxsave));
	return fxsave[28 / 4] ? : 0xffbf;
}

/*
 * What KVM_SET_XSAVE takes, whatever the vCPU has.  XTILE_CFG doesn't need
 * userspace's permission, although KVM advertises it with XTILE_DATA only.
 */
static u64 xsave_features(void)
{
	return kvm_cpu_supported_xcr0() | (this_cpu_supported_xcr0() & XFEATURE_MASK_XTILE_CFG);
}

static void set_xsave(void)
{
	static u8 xsave[SOAK_XSAVE_SIZE] __aligned(64);
	struct xstate_header *header = xsave_header(xsave);
	u32 *mxcsr = (u32 *)&xsave[24];
	bool valid;
	int i, r, n;

	soak_copy(xsave, before.xsave, sizeof(xsave));
	for (n = rnd(4); n >= 0; n--) {
		switch (rnd(12)) {
		case 0:
			header->xstate_bv ^= BIT_ULL(rnd(64));
			break;
		case 1:
			header->xstate_bv = soak_random(&rng) & kvm_cpu_supported_xcr0();
			break;
		case 2:
			header->xcomp_bv = soak_once_in(&rng, 2) ? BIT_ULL(rnd(64)) :
					   BIT_ULL(63) | header->xstate_bv;
			break;
		case 3:
			header->reserved[rnd(6)] ^= BIT_ULL(rnd(64));
			break;
		case 4:
			*mxcsr ^= BIT(rnd(32));
			break;
		case 5:
			memset(xsave_egprs(xsave), 0, sizeof(egprs));
			break;
		case 6:
			memset(xsave_egprs(xsave), 0, sizeof(egprs));
			xsave_egprs(xsave)[rnd(NR_EGPRS)] = 1;
			break;
		case 7:
			/* Registers, i.e. nothing that may be invalid. */
			for (i = 160; i < 416; i++)
				xsave[i] = soak_random(&rng);
			break;
		case 8:
			if (!soak_once_in(&rng, 4))
				break;
			for (i = 0; i < 1088; i++)
				xsave[i] = soak_random(&rng);
			break;
		case 9:
			header->xstate_bv |= XFEATURE_MASK_APX;
			break;
		default:
			soak_fill((void *)xsave_egprs(xsave), &rng, TAG_GUEST);
			break;
		}
	}

	valid = !(header->xstate_bv & ~xsave_features()) && !header->xcomp_bv;
	for (i = 0; i < 6; i++)
		valid &= !header->reserved[i];
	if (header->xstate_bv & (XFEATURE_MASK_FP | XFEATURE_MASK_SSE | XFEATURE_MASK_YMM))
		valid &= !(*mxcsr & ~mxcsr_mask());

	r = __vcpu_ioctl(vcpu, KVM_SET_XSAVE, (struct kvm_xsave *)xsave);
	count(SET_XSAVE, r);
	expect("KVM_SET_XSAVE", r, valid);
	if (r) {
		nothing_changed("KVM_SET_XSAVE");
		return;
	}

	if (header->xstate_bv & XFEATURE_MASK_APX)
		memcpy(&egprs, xsave_egprs(xsave), sizeof(egprs));
	else
		memset(&egprs, 0, sizeof(egprs));
	check("after KVM_SET_XSAVE");

	/* XMM0-15, which tell whether the rest of the image was taken, too. */
	take(&after);
	if (!(header->xstate_bv & XFEATURE_MASK_SSE))
		memset(&xsave[160], 0, 256);
	compare("KVM_SET_XSAVE", "XMM registers, which it should have set", &xsave[160],
		&after.xsave[160], 256);
	COMPARE("KVM_SET_XSAVE", xcrs);
	others_unchanged("KVM_SET_XSAVE");
	msrs_unchanged("KVM_SET_XSAVE");
	cpuid_unchanged("KVM_SET_XSAVE");
	COMPARE("KVM_SET_XSAVE", nested_);
}

static bool xcr0_is_valid(u64 val)
{
	const u64 avx512 = XFEATURE_MASK_OPMASK | XFEATURE_MASK_ZMM_Hi256 | XFEATURE_MASK_Hi16_ZMM;
	const u64 xtile = XFEATURE_MASK_XTILE_CFG | XFEATURE_MASK_XTILE_DATA;
	const u64 mpx = XFEATURE_MASK_BNDREGS | XFEATURE_MASK_BNDCSR;

	if (!(val & XFEATURE_MASK_FP) || (val & ~(vcpu_xcr0 | XFEATURE_MASK_FP)))
		return false;
	if ((val & XFEATURE_MASK_YMM) && !(val & XFEATURE_MASK_SSE))
		return false;
	if ((val & avx512) && ((val & avx512) != avx512 || !(val & XFEATURE_MASK_YMM)))
		return false;
	if ((val & xtile) && (val & xtile) != xtile)
		return false;
	if ((val & mpx) && ((val & mpx) != mpx || (val & XFEATURE_MASK_APX)))
		return false;
	return true;
}

static void set_xcrs(void)
{
	struct kvm_xcrs xcrs = {};
	bool valid;
	u64 val;
	int i, r;

	val = xcr0;
	switch (rnd(6)) {
	case 0:
	case 1:
		val ^= XFEATURE_MASK_APX;
		break;
	case 2:
		val = soak_random(&rng) & vcpu_xcr0;
		break;
	case 3:
		val = (soak_random(&rng) & vcpu_xcr0) | XFEATURE_MASK_FP | XFEATURE_MASK_APX;
		break;
	case 4:
		val ^= BIT_ULL(rnd(64));
		break;
	}

	xcrs.nr_xcrs = soak_once_in(&rng, 8) ? rnd(20) : 1;
	xcrs.flags = soak_once_in(&rng, 8) ? BIT(rnd(32)) : 0;
	/* The first one for XCR0 counts, those for others don't. */
	for (i = 0; i < KVM_MAX_XCRS; i++) {
		xcrs.xcrs[i].xcr = soak_once_in(&rng, 8) ? rnd(3) : 0;
		xcrs.xcrs[i].value = i ? soak_random(&rng) : val;
	}
	valid = xcrs.nr_xcrs <= KVM_MAX_XCRS && !xcrs.flags;
	for (i = 0; valid && i < xcrs.nr_xcrs; i++) {
		if (xcrs.xcrs[i].xcr)
			continue;
		val = xcrs.xcrs[i].value;
		valid = xcr0_is_valid(val);
		break;
	}
	if (i == xcrs.nr_xcrs)
		val = xcr0;

	r = __vcpu_ioctl(vcpu, KVM_SET_XCRS, &xcrs);
	count(SET_XCRS, r);
	expect("KVM_SET_XCRS", r, valid);
	if (r) {
		nothing_changed("KVM_SET_XCRS");
		return;
	}
	xcr0 = val;
	check("after KVM_SET_XCRS");
	take(&after);
	COMPARE("KVM_SET_XCRS", xsave);
	others_unchanged("KVM_SET_XCRS");
	msrs_unchanged("KVM_SET_XCRS");
	COMPARE("KVM_SET_XCRS", nested_);
}

static struct kvm_cpuid_entry2 *find_in(struct kvm_cpuid_entry2 *e, int nent,
					u32 function, u32 index)
{
	int i;

	for (i = 0; i < nent; i++, e++) {
		if (e->function == function &&
		    (!(e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) || e->index == index))
			return e;
	}
	return NULL;
}

static struct kvm_cpuid_entry2 *find(struct snapshot *s, u32 function, u32 index)
{
	return find_in(s->cpuid_entries, s->cpuid.nent, function, index);
}

/* What the vCPU has, by the @nent entries at @e. */
static void look_at_cpuid(struct kvm_cpuid_entry2 *e, int nent)
{
	struct kvm_cpuid_entry2 *leaf_d = find_in(e, nent, 0xd, 0);
	struct kvm_cpuid_entry2 *leaf_7 = find_in(e, nent, 7, 1);

	vcpu_xcr0 = leaf_d ? leaf_d->eax | (u64)leaf_d->edx << 32 : 0;
	vcpu_xcr0 &= kvm_cpu_supported_xcr0();
	if (!leaf_7 || !(leaf_7->edx & BIT(21)))
		vcpu_xcr0 &= ~XFEATURE_MASK_APX;
	has_apx = vcpu_xcr0 & XFEATURE_MASK_APX;
}

/* What KVM maintains itself doesn't count. */
static struct kvm_cpuid_entry2 without_kvms(struct kvm_cpuid_entry2 e)
{
	if (e.function == 1) {
		e.ecx &= ~(BIT(27) | BIT(3));	/* OSXSAVE, MONITOR */
		e.edx &= ~BIT(9);		/* APIC */
	} else if (e.function == 7 && !e.index) {
		e.ecx &= ~BIT(4);		/* OSPKE */
	} else if (e.function == 0xd && e.index < 2) {
		e.ebx = 0;			/* the size for XCR0, and XSS */
	} else if (e.function == KVM_CPUID_FEATURES) {
		e.eax &= ~BIT(KVM_FEATURE_PV_UNHALT);
	}
	return e;
}

static void cpuid_is(struct kvm_cpuid_entry2 *e, int nent)
{
	struct kvm_cpuid_entry2 is, wanted;
	int i;

	TEST_ASSERT(after.cpuid.nent == nent, "KVM_SET_CPUID2 set %u entries of %d",
		    after.cpuid.nent, nent);
	for (i = 0; i < nent; i++) {
		is = without_kvms(after.cpuid_entries[i]);
		wanted = without_kvms(e[i]);
		TEST_ASSERT(soak_is_same(&is, &wanted, sizeof(is)),
			    "KVM_SET_CPUID2 set 0x%x.%u to %x %x %x %x, wanted %x %x %x %x",
			    is.function, is.index, is.eax, is.ebx, is.ecx, is.edx,
			    wanted.eax, wanted.ebx, wanted.ecx, wanted.edx);
	}
}

static void set_cpuid(void)
{
	static struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 e[MAX_CPUID_ENTRIES + 64];
	} cpuid;
	bool own_bits = false, changed = false;
	struct kvm_cpuid_entry2 *e;
	int n, r;

	soak_clear(&cpuid, sizeof(cpuid));
	cpuid.head = before.cpuid;
	soak_copy(cpuid.e, before.cpuid_entries, sizeof(before.cpuid_entries));

	for (n = rnd(3); n > 0; n--) {
		switch (rnd(8)) {
		case 0:
			e = find(&before, 7, 1);
			if (e) {
				cpuid.e[e - before.cpuid_entries].edx ^= BIT(21);
				changed = true;
			}
			break;
		case 1:
			e = find(&before, 0xd, 0);
			if (e) {
				cpuid.e[e - before.cpuid_entries].eax ^= XFEATURE_MASK_APX;
				changed = true;
			}
			break;
		case 2:
			/* Without one of them. */
			if (!cpuid.head.nent)
				break;
			e = &cpuid.e[rnd(cpuid.head.nent)];
			*e = cpuid.e[--cpuid.head.nent];
			own_bits = true;
			break;
		case 3:
			cpuid.head.nent = soak_once_in(&rng, 4) ? rnd(MAX_CPUID_ENTRIES + 64) : 0;
			own_bits = true;
			break;
		case 4:
			/* An address width that doesn't exist. */
			e = find(&before, 0x80000008, 0);
			if (e) {
				cpuid.e[e - before.cpuid_entries].eax ^= BIT(8 + rnd(8));
				changed = true;
			}
			break;
		default:
			if (!cpuid.head.nent)
				break;
			e = &cpuid.e[rnd(cpuid.head.nent)];
			(&e->eax)[rnd(4)] ^= BIT(rnd(32));
			own_bits = true;
			break;
		}
	}

	r = ioctl(vcpu->fd, KVM_SET_CPUID2, &cpuid.head);
	count(SET_CPUID, r);

	/*
	 * Once the vCPU has run, CPUID must not change.  Bits that KVM itself
	 * maintains, and an even number of changes, don't count.
	 */
	if (kind != NEVER_RUN && changed && !own_bits &&
	    memcmp(cpuid.e, before.cpuid_entries, sizeof(before.cpuid_entries)))
		TEST_ASSERT(r, "KVM_SET_CPUID2 succeeds after KVM_RUN");
	if (r || kind != NEVER_RUN) {
		nothing_changed("KVM_SET_CPUID2");
		return;
	}

	look_at_cpuid(cpuid.e, cpuid.head.nent);
	if (!has_apx)
		xcr0 &= ~XFEATURE_MASK_APX;
	check("after KVM_SET_CPUID2");
	take(&after);
	cpuid_is(cpuid.e, cpuid.head.nent);
	others_unchanged("KVM_SET_CPUID2");
	compare("KVM_SET_CPUID2", "XMM registers", &before.xsave[160], &after.xsave[160], 256);
	COMPARE("KVM_SET_CPUID2", nested_);
}

union nested_state {
	struct kvm_nested_state state;
	u8 bytes[16384];
};

static bool is_in_l2(struct snapshot *s)
{
	return s->nested.flags & KVM_STATE_NESTED_GUEST_MODE;
}

/* What the vCPU could have been in, if it hasn't. */
static void invent_nested_state(union nested_state *nested)
{
	void *data = addr_gva2hva(vcpu->vm, (gva_t)nested_data);
	struct svm_test_data *svm = data;
	struct vmx_pages *vmx = data;
	struct vmcb *vmcb;

	if (kvm_cpu_has(X86_FEATURE_VMX)) {
		if (nested->state.hdr.vmx.vmxon_pa == -1ull)
			nested->state.hdr.vmx.vmxon_pa = vmx->vmxon_gpa;
		else if (soak_once_in(&rng, 2))
			nested->state.flags |= KVM_STATE_NESTED_GUEST_MODE;
	} else if (kind == AFTER_L2 && !is_in_l2(&before)) {
		/* L2's is as good as L1's: both are 64-bit. */
		vmcb = addr_gva2hva(vcpu->vm, (gva_t)svm->vmcb);
		soak_copy(nested->state.data.svm, vmcb, sizeof(*vmcb));
		nested->state.hdr.svm.vmcb_pa = svm->vmcb_gpa;
		nested->state.flags |= KVM_STATE_NESTED_GUEST_MODE;
		nested->state.size = sizeof(nested->state) + KVM_STATE_NESTED_SVM_VMCB_SIZE;
	}
}

/* To what it was before, by way of no nested state at all. */
static void repair(void)
{
	union nested_state none = {};

	none.state.size = sizeof(none.state);
	none.state.format = before.nested.format;
	if (kvm_cpu_has(X86_FEATURE_VMX)) {
		none.state.hdr.vmx.vmxon_pa = -1ull;
		none.state.hdr.vmx.vmcs12_pa = -1ull;
	} else {
		none.state.flags = KVM_STATE_NESTED_GIF_SET;
	}
	vcpu_nested_state_set(vcpu, &none.state);
	vcpu_sregs_set(vcpu, &before.sregs);
	vcpu_events_set(vcpu, &before.events);
	vcpu_mp_state_set(vcpu, &before.mp_state);
	vcpu_debugregs_set(vcpu, &before.debugregs);
	vcpu_regs_set(vcpu, &before.regs);
	vcpu_nested_state_set(vcpu, &before.nested);
	nothing_changed("KVM_SET_NESTED_STATE, and what sets it to what it was");
	nr_repaired++;
}

static void on_signal(int sig)
{
}

/* From wherever it is.  What runs on the way doesn't set R16-R31. */
static void run_wild_guest(void)
{
	/* Again and again: the first one may come before KVM_RUN. */
	struct itimerspec often = {
		.it_value.tv_nsec = WILD_NSECS,
		.it_interval.tv_nsec = WILD_NSECS,
	};
	/* Not SIGALRM, which ends what soak_minimise() tries. */
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
	struct sigaction action = { .sa_handler = on_signal };
	timer_t timer;

	if (kind == NEVER_RUN)
		return;
	sigaction(SIGUSR1, &action, NULL);
	TEST_ASSERT(!timer_create(CLOCK_MONOTONIC, &event, &timer), "timer_create() failed");
	TEST_ASSERT(!timer_settime(timer, 0, &often, NULL), "timer_settime() failed");
	soak_run(vcpu, &rng);
	TEST_ASSERT(!timer_delete(timer), "timer_delete() failed");
	nr_wild_runs++;
	check("after KVM_SET_NESTED_STATE and KVM_RUN");
}

/* Returns false if the vCPU is beyond repair, or may be. */
static bool set_nested_state(void)
{
	static union nested_state nested;
	int n, r;

	/*
	 * KVM_SET_SREGS refuses bits of CR4 that CPUID doesn't have any more, which
	 * KVM_SET_CPUID2 leaves set: there would be no way back.
	 */
	if (!is_in_l2(&before) && __vcpu_ioctl(vcpu, KVM_SET_SREGS, &before.sregs))
		return true;

	soak_copy(&nested, before.nested_, sizeof(nested));
	if (soak_once_in(&rng, 2))
		invent_nested_state(&nested);
	for (n = rnd(4); n > 0; n--) {
		switch (rnd(6)) {
		case 0:
			nested.state.flags ^= BIT(rnd(16));
			break;
		case 1:
			nested.state.format ^= BIT(rnd(16));
			break;
		case 2:
			nested.state.size = soak_once_in(&rng, 2) ? rnd(sizeof(nested)) : BIT(rnd(32));
			break;
		case 3:
			nested.bytes[rnd(128)] ^= BIT(rnd(8));
			break;
		default:
			nested.bytes[rnd(128 + 4096)] ^= BIT(rnd(8));
			break;
		}
	}
	r = __vcpu_ioctl(vcpu, KVM_SET_NESTED_STATE, &nested.state);
	count(SET_NESTED, r);
	check("after KVM_SET_NESTED_STATE");
	take(&after);
	COMPARE("KVM_SET_NESTED_STATE", xsave);
	COMPARE("KVM_SET_NESTED_STATE", xcrs);
	COMPARE("KVM_SET_NESTED_STATE", cpuid_entries);

	/* 1 says that it failed in the end, with some of L2's state loaded. */
	if (r < 0 && !is_in_l2(&before)) {
		all_but_nested_unchanged("KVM_SET_NESTED_STATE");
		if (!kvm_cpu_has(X86_FEATURE_VMX) || nested.state.hdr.vmx.vmxon_pa == -1ull)
			COMPARE("KVM_SET_NESTED_STATE", nested_);
		nr_unchanged++;
	}
	if (soak_is_same(&before.nested_, &after.nested_, sizeof(before.nested_)) &&
	    soak_is_same(&before.regs, &after.regs, sizeof(before.regs)) &&
	    soak_is_same(&before.sregs, &after.sregs, sizeof(before.sregs)))
		return true;

	/* Leaving an L2 of that kind may take the vCPU anywhere. */
	if (r > 0 || is_in_l2(&after)) {
		run_wild_guest();
		return false;
	}
	repair();
	return true;
}

static u64 steps;

static void run_round(void)
{
	struct kvm_vm *vm;
	struct ucall uc;
	gva_t gva;
	u64 i;

	rng = soak_round_state();
	kind = soak_round % NR_KINDS;
	vm = vm_create_with_one_vcpu(&vcpu, guest_code);
	vcpu_args_set(vcpu, 1, (u64)kind);
	if (kvm_cpu_has(X86_FEATURE_VMX))
		vcpu_alloc_vmx(vm, &gva);
	else
		vcpu_alloc_svm(vm, &gva);
	nested_data = (void *)gva;
	sync_global_to_guest(vm, nested_data);

	if (kind == WITHOUT_APX)
		vcpu_clear_cpuid_feature(vcpu, X86_FEATURE_APX);
	memset(&egprs, 0, sizeof(egprs));
	take(&before);
	look_at_cpuid(before.cpuid_entries, before.cpuid.nent);
	xcr0 = before.xcrs.xcrs[0].value;
	TEST_ASSERT_EQ(has_apx, kind != WITHOUT_APX);
	TEST_ASSERT(has_apx || !(xcr0 & XFEATURE_MASK_APX), "XCR0.APX without APX");
	check("at first");

	if (kind != NEVER_RUN) {
		TEST_ASSERT(!soak_run(vcpu, &rng), "KVM_RUN failed, errno %d", errno);
		TEST_ASSERT_EQ(get_ucall(vcpu, &uc), UCALL_SYNC);
	}

	for (i = 0; i < steps; i++) {
		if (soak_left_out[i])
			continue;
		rng = soak_step_state(soak_round_state(), i);
		take(&before);
		switch (rnd(8)) {
		case 0:
		case 1:
		case 2:
			set_xsave();
			break;
		case 3:
		case 4:
			set_xcrs();
			break;
		case 5:
			set_cpuid();
			break;
		case 6:
			if (!set_nested_state()) {
				nr_ended++;
				i = steps;
			}
			break;
		default:
			if (kind != NEVER_RUN)
				run_guest_once();
			break;
		}
	}
	kvm_vm_free(vm);
}

int main(void)
{
	static const char * const names[] = { "xsave", "xcrs", "cpuid", "nested" };
	u64 ok = 0, bad = 0;
	int call;

	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_APX));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_NESTED_STATE));

	soak_begin("uabi");
	steps = soak_nr_steps(200);
	if (soak_env("SOAK_MINIMISE", 0)) {
		soak_minimise(run_round, steps);
		return 0;
	}
	for_each_round() {
		run_round();
		for (call = 0, ok = 0, bad = 0; call < NR_CALLS; call++) {
			ok += nr_succeeded[call];
			bad += nr_failed[call];
		}
		printf("round %lu: %lu succeeded, %lu failed\n", soak_round, ok, bad);
	}
	soak_end();
	printf("total rounds=%lu ioctls=%lu failed=%lu", soak_rounds, ok + bad, bad);
	for (call = 0; call < NR_CALLS; call++)
		printf(" %s=%lu %s_failed=%lu", names[call], nr_succeeded[call],
		       names[call], nr_failed[call]);
	printf(" nested_unchanged=%lu runs=%lu", nr_unchanged, nr_runs);
	/* What KVM_SET_NESTED_STATE leaves behind is up to the CPU and chance. */
	if (nr_repaired)
		printf(" repaired=%lu", nr_repaired);
	if (nr_ended)
		printf(" ended_early=%lu", nr_ended);
	if (nr_wild_runs)
		printf(" wild_runs=%lu", nr_wild_runs);
	printf("\n");
	return 0;
}
