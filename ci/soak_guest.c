// SPDX-License-Identifier: GPL-2.0-only
/*
 * Guests that do random things with R16-R31, and all that may go wrong with them
 * meanwhile.  Guests keep a model of their registers in memory, check it after
 * each step, and the host checks it against KVM_GET_XSAVE.
 *
 * What is different is how they run, see SOAK_PART:
 *   guest    two vCPUs that share a thread, vCPU 0 sends INIT and SIPI to vCPU 1
 *   load     eight vCPUs, with APX and without, and as many threads, signals, and
 *            changing affinity
 *   migrate  one vCPU, often saved and restored to another VM, at a sync, in SMM,
 *            and wherever a signal has ended KVM_RUN
 *
 * All of them run beside threads with values of their own, with entries that fail,
 * and with INITs that userspace injects.  vCPU 0 also has L2, whose entries fail
 * now and then, too, and gets SMIs.
 *
 * Where signals land isn't up to the seed, and must not change what else happens:
 * what depends on it has random numbers of its own.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "apic.h"
#include "smm.h"
#include "soak.h"
#include "svm_util.h"
#include "vmx.h"

#define MAX_VCPUS	8
#define MAX_SECRET_THREADS 4
#define STUCK_SECONDS	20

#define MMIO_GPA	0xd0000000ull
#define MMIO_GVA	0xd0000000ull
#define MMIO_R16	0x100	/* where R16 is written to, and read from */
#define PIO_PORT	0x2000
#define SIPI_GPA	0x1000
#define SMRAM_GPA	0x1000000
#define SMI_PORT	0xe
#define NO_APIC_ID	0x7f

#define SECONDARY_EXEC_ENABLE_XSAVES	BIT(20)

#define TIMER_VECTOR	0x40	/* and the vCPU's number */

enum xsave_form {
	XSAVE,
	XSAVEOPT,
	XSAVEC,
	XSAVES,
	NR_XSAVE_FORMS,
};

struct guest {
	/* The host's. */
	u64 random;
	u64 round_state;
	u64 steps;
	u64 id;
	void *nested_data;
	bool has_apx;
	bool has_xsave_form[NR_XSAVE_FORMS];
	u32 apx_offset;
	bool sends_init;
	bool may_send_init;
	bool gets_smis;
	bool lost_apic;

	/* The model. */
	struct egprs model;
	bool apx_is_on;

	u64 step;
	const char *what;
	u64 nr_irqs;
	u64 nr_l2_runs;
	u64 nr_failed_l2_entries;
	u64 nr_xsaves[NR_XSAVE_FORMS];
	u64 nr_xrstors;
	bool timer_is_set;

	/* What was saved by XSAVE, and in which of the areas. */
	struct egprs saved;
	bool has_saved;
	bool saved_is_compacted;
	bool has_restored;
	int area;
	u8 xsave_areas[2][2048] __aligned(64);
};

/* One set per VM. */
static struct guest guests[MAX_VCPUS];
static u64 guest_pages[MAX_VCPUS][PAGE_SIZE / sizeof(u64)] __aligned(PAGE_SIZE);

enum {
	SYNC_ANY,
	SYNC_BEFORE_INIT,
	SYNC_AFTER_INIT,
	SYNC_L2,
};

static void check(struct guest *g)
{
	struct egprs actual;
	u64 val;
	int i;

	if (!g->apx_is_on) {
		__GUEST_ASSERT(store_r31_safe(&val) == UD_VECTOR,
			       "vCPU %lu, step %lu, %s: no #UD without XCR0.APX",
			       g->id, g->step, g->what);
		return;
	}

	store_egprs(&actual);
	for (i = 0; i < NR_EGPRS; i++)
		__GUEST_ASSERT(actual.r[i] == g->model.r[i],
			       "vCPU %lu, step %lu, %s: wanted R%d = 0x%lx, got 0x%lx",
			       g->id, g->step, g->what, i + 16, g->model.r[i], actual.r[i]);
}

static void timer_handler(struct ex_regs *regs)
{
	struct guest *g = &guests[regs->vector - TIMER_VECTOR];

	check(g);
	g->nr_irqs++;
	g->timer_is_set = false;
	x2apic_write_reg(APIC_EOI, 0);
	check(g);
}

static void init_apic(struct guest *g)
{
	x2apic_enable();
	x2apic_write_reg(APIC_LVTT, APIC_LVT_TIMER_TSCDEADLINE | (TIMER_VECTOR + g->id));
	asm volatile("mfence" : : : "memory");
	g->lost_apic = false;
}

static void set_timer(struct guest *g)
{
	if (READ_ONCE(g->timer_is_set))
		return;
	WRITE_ONCE(g->timer_is_set, true);
	wrmsr(MSR_IA32_TSC_DEADLINE, rdtsc() + 1000 + soak_random(&g->random) % 30000);
}

/* add $1, %rN */
static void add_one(int nr)
{
	switch (nr) {
#define CASE(nr)								\
	case nr:								\
		asm volatile(".byte 0xd5, 0x18 | " #nr " >> 3, 0x83, 0xc0 | (" #nr " & 7), 1" \
			     : : : "cc");					\
		break
	CASE(0); CASE(1); CASE(2); CASE(3); CASE(4); CASE(5); CASE(6); CASE(7);
	CASE(8); CASE(9); CASE(10); CASE(11); CASE(12); CASE(13); CASE(14); CASE(15);
	}
}

/* Each register's value goes to the one below. */
static void rotate(struct guest *g)
{
	struct egprs before, after;
	int i;

	store_egprs(&before);
	for (i = 0; i < NR_EGPRS; i++)
		after.r[i] = before.r[(i + 1) % NR_EGPRS];
	load_egprs(&after);

	before = g->model;
	for (i = 0; i < NR_EGPRS; i++)
		g->model.r[i] = before.r[(i + 1) % NR_EGPRS];
}

#define XSAVE_INSN(g, insn)						\
	asm volatile(insn " (%0)" : : "r"((g)->xsave_areas[(g)->area]),		\
		     "a"((u32)XFEATURE_MASK_APX), "d"(0) : "memory")

static void xsave_by(struct guest *g, enum xsave_form form)
{
	u8 *area = g->xsave_areas[g->area];
	struct xstate *xstate = (void *)area;
	struct egprs *egprs;
	int i;

	if (!g->has_xsave_form[form])
		return;
	g->saved_is_compacted = form == XSAVEC || form == XSAVES;
	egprs = (void *)area + (g->saved_is_compacted ? sizeof(*xstate) : g->apx_offset);
	memset(egprs, 0x5a, sizeof(*egprs));
	memset(&xstate->header, 0, sizeof(xstate->header));

	switch (form) {
	case XSAVE:
		XSAVE_INSN(g, "xsave64");
		break;
	case XSAVEOPT:
		XSAVE_INSN(g, "xsaveopt64");
		break;
	case XSAVEC:
		XSAVE_INSN(g, "xsavec64");
		break;
	default:
		XSAVE_INSN(g, "xsaves64");
		break;
	}
	GUEST_ASSERT_EQ(xstate->header.xcomp_bv,
			g->saved_is_compacted ? BIT_ULL(63) | XFEATURE_MASK_APX : 0);
	g->nr_xsaves[form]++;

	/* XSAVE may take zeros for what they are, or for the initial state. */
	if (xstate->header.xstate_bv & XFEATURE_MASK_APX) {
		for (i = 0; i < NR_EGPRS; i++)
			__GUEST_ASSERT(egprs->r[i] == g->model.r[i],
				       "vCPU %lu, step %lu: R%d = 0x%lx, XSAVE (form %d) wrote 0x%lx",
				       g->id, g->step, i + 16, g->model.r[i], form, egprs->r[i]);
	} else {
		__GUEST_ASSERT(egprs_are_zero(&g->model),
			       "vCPU %lu, step %lu: XSAVE (form %d) says that R16-R31 are zero",
			       g->id, g->step, form);
	}
	g->saved = g->model;
	g->has_saved = true;
}

/*
 * Any of them is the last one.  XSAVEOPT and XSAVES need not write what hasn't
 * changed since XRSTOR: only to where that was.
 */
static void xsave(struct guest *g)
{
	int first = soak_random(&g->random) % NR_XSAVE_FORMS, i;

	if (g->has_restored)
		g->area ^= 1;
	g->has_restored = false;
	for (i = 0; i < NR_XSAVE_FORMS; i++)
		xsave_by(g, (first + i) % NR_XSAVE_FORMS);
}

static void xrstor(struct guest *g)
{
	struct xstate *xstate;

	if (!g->has_saved)
		xsave(g);
	xstate = (void *)g->xsave_areas[g->area];
	g->has_restored = true;
	if (soak_once_in(&g->random, 4)) {
		xstate->header.xstate_bv = 0;
		memset(&g->saved, 0, sizeof(g->saved));
	}
	/* XRSTORS takes the compacted format only. */
	if (g->has_xsave_form[XSAVES] && g->saved_is_compacted && !soak_once_in(&g->random, 4)) {
		XSAVE_INSN(g, "xrstors64");
		g->nr_xrstors++;
	} else {
		XSAVE_INSN(g, "xrstor64");
	}
	g->model = g->saved;
}

/* What changes R16-R31, with interrupts off. */
static void change(struct guest *g)
{
	int nr;

	switch (soak_random(&g->random) % 8) {
	case 0:
	case 1:
		g->what = "load";
		soak_fill(&g->model, &g->random, TAG_GUEST | g->id);
		load_egprs(&g->model);
		break;
	case 2:
		g->what = "add";
		nr = soak_random(&g->random) % NR_EGPRS;
		add_one(nr);
		g->model.r[nr]++;
		break;
	case 3:
		g->what = "rotate";
		rotate(g);
		break;
	case 4:
		g->what = "load zeros, or all but one";
		memset(&g->model, 0, sizeof(g->model));
		if (soak_once_in(&g->random, 2))
			g->model.r[soak_random(&g->random) % NR_EGPRS] = 1;
		load_egprs(&g->model);
		break;
	case 5:
		g->what = "XSAVE";
		xsave(g);
		break;
	case 6:
		g->what = "XRSTOR";
		xrstor(g);
		break;
	case 7:
		/* mov (%rbx), %r16: the host knows what it is going to be. */
		g->what = "load from MMIO";
		asm volatile(".byte 0xd5, 0x48, 0x8b, 0x03" : : "b"(MMIO_GVA + MMIO_R16) : "memory");
		break;
	}
}

static void toggle(struct guest *g)
{
	u64 xcr0 = xgetbv(0);

	g->what = "XSETBV";
	if (!g->has_apx) {
		__GUEST_ASSERT(xsetbv_safe(0, xcr0 | XFEATURE_MASK_APX) == GP_VECTOR,
			       "vCPU %lu: no #GP", g->id);
		return;
	}
	xsetbv(0, xcr0 ^ XFEATURE_MASK_APX);
	g->apx_is_on = !g->apx_is_on;
}

static void spin(struct guest *g)
{
	u64 i = soak_random(&g->random) % 3000;

	while (i--)
		cpu_relax();
}

/* Exits of L1 and L2 that R16-R31 have to survive. */
static void exit_to_l0(struct guest *g, int sync)
{
	u64 *mmio = (void *)MMIO_GVA;
	u8 buf[16], *src = buf;
	u64 len = sizeof(buf);

	switch (soak_random(&g->random) % 12) {
	case 0:
		g->what = "MMIO read";
		READ_ONCE(*mmio);
		break;
	case 1:
		g->what = "MMIO write";
		WRITE_ONCE(*mmio, g->step);
		break;
	case 2:
		/* mov %r16, (%rbx): the host compares. */
		g->what = "store to MMIO";
		if (g->apx_is_on)
			asm volatile(".byte 0xd5, 0x48, 0x89, 0x03"
				     : : "b"(MMIO_GVA + MMIO_R16) : "memory");
		break;
	case 3:
		g->what = "RDMSR";
		rdmsr(MSR_IA32_UCODE_REV);
		break;
	case 4:
		g->what = "page fault";
		WRITE_ONCE(guest_pages[g->id][0], g->step);
		break;
	case 5:
		g->what = "OUTS";
		asm volatile("rep outsb" : "+S"(src), "+c"(len) : "d"(PIO_PORT) : "memory");
		break;
	case 6:
		g->what = "busy";
		spin(g);
		break;
	default:
		g->what = "sync";
		GUEST_SYNC(sync);
		break;
	}
}

static void exit_of_l1(struct guest *g)
{
	u64 nr;
	u32 eax, ebx, ecx, edx;

	switch (soak_random(&g->random) % 10) {
	case 0:
		g->what = "CPUID";
		__cpuid(0, 0, &eax, &ebx, &ecx, &edx);
		break;
	case 1:
		g->what = "hypercall";
		kvm_hypercall(KVM_HC_VAPIC_POLL_IRQ, 0, 0, 0, 0);
		break;
	case 2:
		g->what = "XSETBV of the same";
		xsetbv(0, xgetbv(0));
		break;
	case 3:
		g->what = "IPI to nobody";
		x2apic_write_reg(APIC_ICR, (u64)NO_APIC_ID << 32 | APIC_INT_ASSERT | TIMER_VECTOR);
		break;
	case 4:
		g->what = "HLT";
		cli();
		nr = READ_ONCE(g->nr_irqs);
		set_timer(g);
		while (READ_ONCE(g->nr_irqs) == nr) {
			safe_halt();
			cli();
		}
		break;
	case 5:
		g->what = "SMI to itself";
		if (g->gets_smis)
			x2apic_write_reg(APIC_ICR, APIC_DEST_SELF | APIC_INT_ASSERT | APIC_DM_SMI);
		break;
	default:
		exit_to_l0(g, SYNC_ANY);
		break;
	}
}

static void send_init(struct guest *g)
{
	const u64 icr = 1ull << 32 | APIC_DEST_PHYSICAL | APIC_INT_ASSERT;

	g->what = "INIT and SIPI to vCPU 1";
	GUEST_SYNC(SYNC_BEFORE_INIT);
	if (!g->may_send_init)
		return;
	x2apic_write_reg(APIC_ICR, icr | APIC_DM_INIT);
	x2apic_write_reg(APIC_ICR, icr | APIC_DM_STARTUP | (SIPI_GPA >> 12));
	GUEST_SYNC(SYNC_AFTER_INIT);
}

/* Only vCPU 0 has it: svm_util.c, too, has one set of L2's registers only. */
#define L2_STACK_SIZE	1024
static u64 l2_stack[L2_STACK_SIZE] __aligned(16);
static bool l2_is_ready, l2_launched;

static void l2_code(void)
{
	struct guest *g = &guests[0];
	int i, nr;

	for (;;) {
		nr = soak_random(&g->random) % 6;
		for (i = 0; i < nr; i++) {
			check(g);
			if (soak_once_in(&g->random, 3) && g->apx_is_on)
				change(g);
			else
				exit_to_l0(g, SYNC_L2);
			check(g);
			/* Let a timer in. */
			if (soak_once_in(&g->random, 2))
				sti_nop_cli();
		}
		g->what = "call of L1";
		if (host_cpu_is_intel)
			vmcall();
		else
			vmmcall();
	}
}

static void prepare_l2(struct guest *g)
{
	void *rsp = &l2_stack[L2_STACK_SIZE - 1];

	if (host_cpu_is_intel) {
		GUEST_ASSERT(prepare_for_vmx_operation(g->nested_data));
		GUEST_ASSERT(load_vmcs(g->nested_data));
		prepare_vmcs(g->nested_data, l2_code, rsp);
		vmwrite(CPU_BASED_VM_EXEC_CONTROL, vmreadz(CPU_BASED_VM_EXEC_CONTROL) |
						   CPU_BASED_USE_MSR_BITMAPS);
		if (g->has_xsave_form[XSAVES]) {
			vmwrite(CPU_BASED_VM_EXEC_CONTROL, vmreadz(CPU_BASED_VM_EXEC_CONTROL) |
							   CPU_BASED_ACTIVATE_SECONDARY_CONTROLS);
			vmwrite(SECONDARY_VM_EXEC_CONTROL, vmreadz(SECONDARY_VM_EXEC_CONTROL) |
							   SECONDARY_EXEC_ENABLE_XSAVES);
			vmwrite(XSS_EXIT_BITMAP, 0);
		}
	} else {
		generic_svm_setup(g->nested_data, l2_code, rsp);
	}
	l2_is_ready = true;
}

/* Where svm_util.c has those of L2's registers that the VMCB has, too. */
extern struct gpr64_regs guest_regs;
extern u64 rflags;

/*
 * Enter L2 with state that is invalid: KVM finds out, or lets the CPU do so.  What
 * it leaves in the VMCB is the CPU's business, rely on R16-R31 only.
 */
static void fail_to_run_l2(struct guest *g)
{
	static struct vmcb vmcb;
	struct svm_test_data *svm = g->nested_data;
	bool found_by_kvm = soak_once_in(&g->random, 2);
	u64 field, val, rax = guest_regs.rax, flags = rflags;

	g->what = found_by_kvm ? "entry to L2 that KVM refuses" : "entry to L2 that fails";
	if (host_cpu_is_intel) {
		/* Not aligned, or with bit 1 clear. */
		field = found_by_kvm ? VMCS_LINK_POINTER : GUEST_RFLAGS;
		val = vmreadz(field);
		vmwrite(field, found_by_kvm);
		GUEST_ASSERT(!(l2_launched ? vmresume() : vmlaunch()));
		GUEST_ASSERT_EQ(vmreadz(VM_EXIT_REASON),
				EXIT_REASON_INVALID_STATE | VMX_EXIT_REASONS_FAILED_VMENTRY);
		vmwrite(field, val);
	} else {
		vmcb = *svm->vmcb;
		if (found_by_kvm)
			svm->vmcb->control.asid = 0;
		else
			svm->vmcb->save.cs.attrib |= SVM_SELECTOR_DB_MASK;
		run_guest(svm->vmcb, svm->vmcb_gpa);
		asm volatile("stgi");
		GUEST_ASSERT_EQ(svm->vmcb->control.exit_code, SVM_EXIT_ERR);
		*svm->vmcb = vmcb;
		guest_regs.rax = rax;
		rflags = flags;
	}
	g->nr_failed_l2_entries++;
	check(g);
}

static void run_l2(struct guest *g)
{
	struct svm_test_data *svm = g->nested_data;

	if (!l2_is_ready)
		prepare_l2(g);
	if (soak_once_in(&g->random, 3))
		fail_to_run_l2(g);
	g->what = "L2";
	g->nr_l2_runs++;

	if (host_cpu_is_intel) {
		GUEST_ASSERT(!(l2_launched ? vmresume() : vmlaunch()));
		l2_launched = true;
		GUEST_ASSERT_EQ(vmreadz(VM_EXIT_REASON), EXIT_REASON_VMCALL);
		vmwrite(GUEST_RIP, vmreadz(GUEST_RIP) + vmreadz(VM_EXIT_INSTRUCTION_LEN));
	} else {
		run_guest(svm->vmcb, svm->vmcb_gpa);
		asm volatile("stgi");
		GUEST_ASSERT_EQ(svm->vmcb->control.exit_code, SVM_EXIT_VMMCALL);
		svm->vmcb->save.rip += 3;
	}
}

static void guest_code(u64 id)
{
	struct guest *g = &guests[id];

	cli();
	init_apic(g);
	if (g->has_apx)
		load_egprs(&g->model);
	GUEST_SYNC(SYNC_ANY);

	for (g->step = 0; g->step < g->steps; g->step++) {
		if (soak_left_out[g->step])
			continue;
		g->random = soak_step_state(g->round_state, g->step);
		if (g->lost_apic)
			init_apic(g);
		check(g);

		switch (soak_random(&g->random) % 12) {
		case 0:
			toggle(g);
			break;
		case 1:
		case 2:
		case 3:
			if (g->apx_is_on)
				change(g);
			break;
		case 4:
			g->what = "L2";
			if (g->nested_data)
				run_l2(g);
			break;
		case 5:
			if (g->sends_init)
				send_init(g);
			break;
		default:
			/* Interrupts may come whenever they want to. */
			if (soak_once_in(&g->random, 4))
				set_timer(g);
			if (soak_once_in(&g->random, 2))
				sti();
			exit_of_l1(g);
			cli();
			break;
		}
		check(g);
	}
	GUEST_DONE();
}

/* Everything below is the host's. */

struct host {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	struct guest *g;
	u64 random;
	/* For what depends on where signals land. */
	u64 chance;
	u64 nr_syncs;
	int id;
	bool done;
	bool has_said_where;
	/* Outside of any ucall's handling, i.e. at a sync. */
	bool is_at_sync;
};

static struct host hosts[MAX_VCPUS];
static int nr_vcpus;
static bool migrates;
static bool is_kicked;
static timer_t kick_timer;
static u64 total_steps, total_exits, total_syncs, total_migrations, total_in_l2, total_at_random;
static u64 total_smis, total_inits, total_user_inits, total_irqs, total_l2_runs;
static u64 total_failed_entries, total_failed_l2_entries;
static u64 total_signals, total_interrupted;
static u64 total_xsaves[NR_XSAVE_FORMS], total_xrstors;
static bool can_xsave[NR_XSAVE_FORMS];
static bool is_stuck;

/* Threads do it, too. */
#define count(nr)	__atomic_fetch_add(&(nr), 1, __ATOMIC_RELAXED)

static void move_to_any_cpu(struct host *h)
{
	int nr_cpus = sysconf(_SC_NPROCESSORS_ONLN);

	if (nr_cpus > 1)
		pin_self_to_cpu(soak_random(&h->chance) % nr_cpus);
}

static void migrate(struct host *h)
{
	static u8 before[SOAK_XSAVE_SIZE] __aligned(64), after[SOAK_XSAVE_SIZE] __aligned(64);
	struct kvm_x86_state *state;
	struct kvm_lapic_state lapic;
	u64 deadline;
	struct kvm_vcpu *vcpu;

	total_exits += vcpu_get_stat(h->vcpu, exits);
	state = vcpu_save_state(h->vcpu);
	soak_get_xsave(h->vcpu, before);
	vcpu_ioctl(h->vcpu, KVM_GET_LAPIC, &lapic);
	deadline = vcpu_get_msr(h->vcpu, MSR_IA32_TSC_DEADLINE);

	kvm_vm_release(h->vm);
	move_to_any_cpu(h);
	vcpu = vm_recreate_with_one_vcpu(h->vm);
	if (!h->g->has_apx)
		vcpu_clear_cpuid_feature(vcpu, X86_FEATURE_APX);
	vcpu_load_state(vcpu, state);
	vcpu_ioctl(vcpu, KVM_SET_LAPIC, &lapic);
	vcpu_set_msr(vcpu, MSR_IA32_TSC_DEADLINE, deadline);

	soak_get_xsave(vcpu, after);
	TEST_ASSERT(soak_is_same(before, after, sizeof(before)),
		    "KVM_GET_XSAVE2 differs after migration, step %lu, %s", h->g->step, h->g->what);

	if (state->nested.flags & KVM_STATE_NESTED_GUEST_MODE)
		total_in_l2++;
	total_migrations++;
	kvm_x86_state_cleanup(state);
	h->vcpu = vcpu;
}

static void check_host(struct host *h, const char *where)
{
	struct kvm_xcrs xcrs;

	soak_check_xsave(h->vcpu, &h->g->model, where);
	vcpu_xcrs_get(h->vcpu, &xcrs);
	TEST_ASSERT(!!(xcrs.xcrs[0].value & XFEATURE_MASK_APX) == h->g->apx_is_on,
		    "vCPU %d, %s: XCR0 = 0x%llx, XCR0.APX has to be %d",
		    h->id, where, xcrs.xcrs[0].value, h->g->apx_is_on);
}

/* The guest may be amid a change, but values are its own, or small. */
static void check_tags(struct host *h)
{
	u8 xsave[SOAK_XSAVE_SIZE] __aligned(64);
	u64 val, tag;
	int i;

	soak_get_xsave(h->vcpu, xsave);
	for (i = 0; i < NR_EGPRS; i++) {
		val = xsave_egprs(xsave)[i];
		tag = val >> 48;
		TEST_ASSERT(h->g->has_apx ? !tag || tag == (TAG_GUEST | h->id) : !val,
			    "vCPU %d, step %lu, %s: R%d = 0x%lx when interrupted",
			    h->id, h->g->step, h->g->what, i + 16, val);
	}
}

/* What a vCPU is at that makes no progress. */
static void say_where(struct host *h)
{
	struct kvm_lapic_state lapic;
	struct kvm_vcpu_events events;
	struct kvm_mp_state mp_state;
	struct kvm_sregs sregs;
	struct kvm_regs regs;
	u32 *apic = (void *)lapic.regs;
	int i;

	vcpu_regs_get(h->vcpu, &regs);
	vcpu_sregs_get(h->vcpu, &sregs);
	vcpu_events_get(h->vcpu, &events);
	vcpu_ioctl(h->vcpu, KVM_GET_LAPIC, &lapic);
	vcpu_mp_state_get(h->vcpu, &mp_state);
	printf("vCPU %d: RIP 0x%llx, RSP 0x%llx, RFLAGS 0x%llx, CR3 0x%llx, CR4 0x%llx, MP state %u\n",
	       h->id, regs.rip, regs.rsp, regs.rflags, sregs.cr3, sregs.cr4, mp_state.mp_state);
	printf("vCPU %d: events: exception %u, interrupt %u (%u, shadow %u), SMI %u, in SMM %u\n",
	       h->id, events.exception.injected || events.exception.pending,
	       events.interrupt.injected, events.interrupt.nr, events.interrupt.shadow,
	       events.smi.pending, events.smi.smm);
	printf("vCPU %d: APIC: LVTT 0x%x, SPIV 0x%x, TPR 0x%x, PPR 0x%x, deadline 0x%lx, TSC 0x%lx\n",
	       h->id, apic[APIC_LVTT / 4], apic[APIC_SPIV / 4], apic[APIC_TASKPRI / 4],
	       apic[APIC_PROCPRI / 4], vcpu_get_msr(h->vcpu, MSR_IA32_TSC_DEADLINE),
	       vcpu_get_msr(h->vcpu, MSR_IA32_TSC));
	for (i = 0; i < 8; i++)
		if (apic[APIC_IRR / 4 + i * 4] || apic[APIC_ISR / 4 + i * 4])
			printf("vCPU %d: vectors from 0x%x: IRR 0x%x, ISR 0x%x\n", h->id, i * 32,
			       apic[APIC_IRR / 4 + i * 4], apic[APIC_ISR / 4 + i * 4]);
}

/* KVM_RUN, often with a signal that comes in it, or just before or after. */
static int run(struct host *h)
{
	struct itimerspec when = {};
	bool kick = is_kicked && soak_once_in(&h->chance, 2);
	int r, err;

	if (kick) {
		when.it_value.tv_nsec = soak_random(&h->chance) % 1000;
		when.it_value.tv_nsec <<= soak_random(&h->chance) % 6;
		when.it_value.tv_nsec += 1000;
		TEST_ASSERT(!timer_settime(kick_timer, 0, &when, NULL), "timer_settime() failed");
	}
	r = soak_run(h->vcpu, &h->chance);
	err = errno;
	/* KVM_CREATE_VM, too, may fail for the sake of a signal. */
	if (kick) {
		when = (struct itimerspec) {};
		TEST_ASSERT(!timer_settime(kick_timer, 0, &when, NULL), "timer_settime() failed");
	}
	if (r) {
		TEST_ASSERT(err == EINTR, "KVM_RUN failed, errno %d", err);
		count(total_interrupted);
		check_tags(h);
		if (READ_ONCE(is_stuck) && !h->has_said_where) {
			h->has_said_where = true;
			say_where(h);
		}
	}
	return r;
}

static void set_xsave(struct host *h)
{
	u8 xsave[SOAK_XSAVE_SIZE] __aligned(64);
	struct egprs egprs;

	soak_fill(&egprs, &h->random, TAG_GUEST | h->id);
	switch (soak_random(&h->random) % 3) {
	case 0:
		/* Values that a vCPU without APX never shows. */
		soak_set_xsave_egprs(h->vcpu, &egprs);
		if (h->g->has_apx)
			h->g->model = egprs;
		break;
	case 1:
		soak_get_xsave(h->vcpu, xsave);
		memcpy(xsave_egprs(xsave), &egprs, sizeof(egprs));
		xsave_header(xsave)->xstate_bv &= ~XFEATURE_MASK_APX;
		vcpu_xsave_set(h->vcpu, (struct kvm_xsave *)xsave);
		memset(&h->g->model, 0, sizeof(egprs));
		break;
	default:
		soak_get_xsave(h->vcpu, xsave);
		memcpy(xsave_egprs(xsave), &egprs, sizeof(egprs));
		xsave_header(xsave)->xstate_bv |= XFEATURE_MASK_APX;
		xsave_header(xsave)->reserved[soak_random(&h->random) % 6] = 1;
		TEST_ASSERT(__vcpu_ioctl(h->vcpu, KVM_SET_XSAVE, (struct kvm_xsave *)xsave),
			    "KVM_SET_XSAVE succeeded");
		break;
	}
	check_host(h, "after KVM_SET_XSAVE");
}

static void exit_immediately(struct host *h)
{
	int i, r;

	h->vcpu->run->immediate_exit = 1;
	for (i = 0; i < 3; i++) {
		r = soak_run(h->vcpu, &h->chance);
		TEST_ASSERT(r && errno == EINTR, "Wanted EINTR, got %d (%d)", r, errno);
	}
	h->vcpu->run->immediate_exit = 0;
	check_host(h, "after KVM_RUN with immediate_exit");
}

/*
 * A code segment can't be 64-bit and 32-bit, neither for VMX nor for SVM.  An
 * interrupt that was about to be injected would be lost.
 */
static void fail_to_run(struct host *h)
{
	struct kvm_vcpu_events events;
	struct kvm_sregs good, bad;
	struct kvm_regs regs, disabled;

	vcpu_events_get(h->vcpu, &events);
	if (events.smi.pending || events.interrupt.injected)
		return;
	vcpu_sregs_get(h->vcpu, &good);
	vcpu_regs_get(h->vcpu, &regs);
	bad = good;
	bad.cs.db = 1;
	disabled = regs;
	disabled.rflags &= ~X86_EFLAGS_IF;

	vcpu_sregs_set(h->vcpu, &bad);
	vcpu_regs_set(h->vcpu, &disabled);
	while (run(h))
		;
	TEST_ASSERT_KVM_EXIT_REASON(h->vcpu, KVM_EXIT_FAIL_ENTRY);
	check_host(h, "after an entry that failed");

	vcpu_sregs_set(h->vcpu, &good);
	vcpu_regs_set(h->vcpu, &regs);
	check_host(h, "after an entry that failed, and back");
	count(total_failed_entries);
}

/* KVM_GET_MP_STATE takes the INIT, i.e. the vCPU never runs the reset vector. */
static void inject_init(struct host *h)
{
	struct kvm_mp_state mp_state;
	struct kvm_vcpu_events events;
	struct kvm_sregs sregs;
	struct kvm_regs regs, after;
	struct kvm_fpu fpu;

	/* It would wait for the end of VMX operation, and the vCPU for its timer. */
	vcpu_sregs_get(h->vcpu, &sregs);
	if (h->g->timer_is_set || sregs.cr4 & X86_CR4_VMXE || sregs.efer & EFER_SVME)
		return;
	vcpu_regs_get(h->vcpu, &regs);
	vcpu_fpu_get(h->vcpu, &fpu);

	vcpu_events_get(h->vcpu, &events);
	events.flags |= KVM_VCPUEVENT_VALID_SMM;
	events.smi.latched_init = 1;
	vcpu_events_set(h->vcpu, &events);
	vcpu_mp_state_get(h->vcpu, &mp_state);
	vcpu_regs_get(h->vcpu, &after);
	TEST_ASSERT(after.rip == 0xfff0, "vCPU %d: RIP = 0x%llx after INIT", h->id, after.rip);
	check_host(h, "after INIT by userspace");

	mp_state.mp_state = KVM_MP_STATE_RUNNABLE;
	vcpu_mp_state_set(h->vcpu, &mp_state);
	vcpu_sregs_set(h->vcpu, &sregs);
	vcpu_regs_set(h->vcpu, &regs);
	vcpu_fpu_set(h->vcpu, &fpu);
	h->g->lost_apic = true;
	check_host(h, "after INIT by userspace, and back");
	count(total_user_inits);
}

static void at_sync(struct host *h, bool is_l2)
{
	struct kvm_regs regs;

	count(total_syncs);
	check_host(h, h->g->what);

	/* vCPU 0 may be in VMX operation ever after. */
	if (!h->nr_syncs++)
		inject_init(h);

	if (migrates && soak_once_in(&h->random, 4)) {
		migrate(h);
		check_host(h, "after migration");
	}

	switch (soak_random(&h->random) % 12) {
	case 0:
	case 1:
		set_xsave(h);
		break;
	case 2:
		exit_immediately(h);
		break;
	case 3:
		if (h->g->gets_smis)
			inject_smi(h->vcpu);
		break;
	case 4:
		TEST_ASSERT(!madvise(addr_gva2hva(h->vm, (gva_t)guest_pages[h->id]), PAGE_SIZE,
				     MADV_DONTNEED), "madvise() failed, errno %d", errno);
		break;
	case 5:
		vcpu_regs_get(h->vcpu, &regs);
		vcpu_regs_set(h->vcpu, &regs);
		check_host(h, "after KVM_SET_REGS");
		break;
	case 6:
		if (!is_l2)
			fail_to_run(h);
		break;
	case 7:
		if (!is_l2)
			inject_init(h);
		break;
	}
}

/* vCPU 1, wherever it is, goes through INIT, and back. */
static struct kvm_regs init_regs;
static struct kvm_sregs init_sregs;
static struct kvm_fpu init_fpu;
static bool init_is_underway;

static void before_init(void)
{
	struct host *h = &hosts[1];

	/* It isn't if the vCPU is in a ucall, or waits for its timer. */
	hosts[0].g->may_send_init = !h->done && h->is_at_sync && !h->g->timer_is_set;
	if (!hosts[0].g->may_send_init)
		return;
	init_is_underway = true;
	vcpu_regs_get(h->vcpu, &init_regs);
	vcpu_sregs_get(h->vcpu, &init_sregs);
	vcpu_fpu_get(h->vcpu, &init_fpu);
}

static void after_init(void)
{
	struct kvm_mp_state mp_state;
	struct host *h = &hosts[1];

	while (run(h))
		;
	TEST_ASSERT_KVM_EXIT_REASON(h->vcpu, KVM_EXIT_IO);
	TEST_ASSERT_EQ(h->vcpu->run->io.port, PIO_PORT);
	vcpu_run_complete_io(h->vcpu);
	vcpu_mp_state_get(h->vcpu, &mp_state);
	TEST_ASSERT_EQ(mp_state.mp_state, KVM_MP_STATE_RUNNABLE);
	check_host(h, "after INIT and SIPI");

	vcpu_sregs_set(h->vcpu, &init_sregs);
	vcpu_regs_set(h->vcpu, &init_regs);
	vcpu_fpu_set(h->vcpu, &init_fpu);
	h->g->lost_apic = true;
	init_is_underway = false;
	check_host(h, "after INIT and SIPI, and back");
	total_inits++;
}

static void handle_mmio(struct host *h)
{
	struct kvm_run *run = h->vcpu->run;
	u64 val;

	if (run->mmio.phys_addr != MMIO_GPA + MMIO_R16)
		return;
	TEST_ASSERT_EQ(run->mmio.len, 8);
	if (run->mmio.is_write) {
		memcpy(&val, run->mmio.data, sizeof(val));
		TEST_ASSERT(val == h->g->model.r[0], "vCPU %d: R16 = 0x%lx, MMIO data is 0x%lx",
			    h->id, h->g->model.r[0], val);
	} else {
		val = (soak_random(&h->random) >> 16) | (TAG_GUEST | h->id) << 48;
		memcpy(run->mmio.data, &val, sizeof(val));
		h->g->model.r[0] = val;
	}
}

static void run_once(struct host *h)
{
	struct ucall uc;

	h->is_at_sync = false;
	while (run(h)) {
		if (migrates && soak_once_in(&h->chance, 2)) {
			migrate(h);
			total_at_random++;
		}
	}

	if (h->vcpu->run->exit_reason == KVM_EXIT_MMIO) {
		handle_mmio(h);
		return;
	}
	TEST_ASSERT_KVM_EXIT_REASON(h->vcpu, KVM_EXIT_IO);
	if (h->vcpu->run->io.port == SMI_PORT) {
		vcpu_run_complete_io(h->vcpu);
		count(total_smis);
		check_host(h, "in SMM");
		if (migrates && soak_once_in(&h->random, 2)) {
			migrate(h);
			check_host(h, "in SMM, after migration");
		}
		return;
	}

	switch (get_ucall(h->vcpu, &uc)) {
	case UCALL_NONE:
		break;
	case UCALL_SYNC:
		if (uc.args[1] == SYNC_BEFORE_INIT)
			before_init();
		else if (uc.args[1] == SYNC_AFTER_INIT)
			after_init();
		else
			at_sync(h, uc.args[1] == SYNC_L2);
		h->is_at_sync = true;
		break;
	case UCALL_DONE:
		check_host(h, "at the end");
		h->done = true;
		break;
	case UCALL_ABORT:
		printf("vCPU %d, step %lu, %s\n", h->id, h->g->step, h->g->what);
		REPORT_GUEST_ASSERT(uc);
		break;
	default:
		TEST_FAIL("Unexpected ucall %lu", uc.cmd);
	}
}

static u64 steps;

/* CPUID.0DH.1 has a bit for each but XSAVE. */
static void look_at_cpuid(struct kvm_vcpu *vcpu, bool *has_form)
{
	u32 eax = get_cpuid_entry(vcpu->cpuid, 0xd, 1)->eax;

	has_form[XSAVE] = true;
	has_form[XSAVEOPT] = eax & BIT(0);
	has_form[XSAVEC] = eax & BIT(1);
	has_form[XSAVES] = eax & BIT(3);
}

static struct kvm_vm *create_vm(u64 random, bool mixed)
{
	static const u8 sipi_code[] = { 0xba, PIO_PORT & 0xff, PIO_PORT >> 8, 0xee, 0xf4 };
	/* In real mode: in $SMI_PORT, %al; rsm. */
	static const u8 smi_handler[] = { 0xe4, SMI_PORT, 0x0f, 0xaa };
	struct kvm_vcpu *vcpus[MAX_VCPUS];
	struct guest *g;
	struct kvm_vm *vm;
	gva_t nested;
	int i;

	vm = vm_create_with_vcpus(nr_vcpus, guest_code, vcpus);
	virt_map(vm, MMIO_GVA, MMIO_GPA, 1);
	sync_global_to_guest(vm, soak_left_out);
	memcpy(addr_gpa2hva(vm, SIPI_GPA), sipi_code, sizeof(sipi_code));
	setup_smram(vm, vcpus[0], SMRAM_GPA, smi_handler, sizeof(smi_handler));
	if (kvm_cpu_has(X86_FEATURE_VMX))
		vcpu_alloc_vmx(vm, &nested);
	else
		vcpu_alloc_svm(vm, &nested);

	g = addr_gva2hva(vm, (gva_t)guests);
	memset(hosts, 0, sizeof(hosts));
	for (i = 0; i < nr_vcpus; i++, g++) {
		vm_install_exception_handler(vm, TIMER_VECTOR + i, timer_handler);
		vcpu_args_set(vcpus[i], 1, (u64)i);

		hosts[i].vm = vm;
		hosts[i].vcpu = vcpus[i];
		hosts[i].g = g;
		hosts[i].id = i;
		hosts[i].random = soak_random(&random);
		hosts[i].chance = ~hosts[i].random;

		g->round_state = soak_random(&random);
		g->steps = steps;
		g->id = i;
		g->what = "begin";
		g->has_apx = !mixed || (soak_round + i) % 3;
		look_at_cpuid(vcpus[i], g->has_xsave_form);
		g->apx_offset = kvm_cpu_property(X86_PROPERTY_XSTATE_APX_OFFSET);
		g->nested_data = i ? NULL : (void *)nested;
		g->gets_smis = !i;
		g->apx_is_on = g->has_apx;
		if (g->has_apx)
			soak_fill(&g->model, &random, TAG_GUEST | i);
		else
			vcpu_clear_cpuid_feature(vcpus[i], X86_FEATURE_APX);
	}
	memcpy(can_xsave, hosts[0].g->has_xsave_form, sizeof(can_xsave));
	return vm;
}

static void free_vm(struct kvm_vm *vm)
{
	int i, form;

	total_steps += steps * nr_vcpus;
	for (i = 0; i < nr_vcpus; i++) {
		total_exits += vcpu_get_stat(hosts[i].vcpu, exits);
		total_irqs += hosts[i].g->nr_irqs;
		total_l2_runs += hosts[i].g->nr_l2_runs;
		total_failed_l2_entries += hosts[i].g->nr_failed_l2_entries;
		for (form = 0; form < NR_XSAVE_FORMS; form++)
			total_xsaves[form] += hosts[i].g->nr_xsaves[form];
		total_xrstors += hosts[i].g->nr_xrstors;
	}
	kvm_vm_free(vm);
}

/* Threads of the host that have nothing to do with KVM. */

static pthread_t secrets[MAX_SECRET_THREADS];
static bool secrets_may_end;
static u64 nr_secret_checks;

static void *secret_thread(void *arg)
{
	u64 random = (u64)arg;
	struct egprs mine, actual;
	u64 i;

	while (!READ_ONCE(secrets_may_end)) {
		soak_fill(&mine, &random, TAG_THREAD);
		load_egprs(&mine);
		for (i = soak_random(&random) % 2000; i; i--)
			cpu_relax();
		if (soak_once_in(&random, 2))
			usleep(soak_random(&random) % 1000);
		store_egprs(&actual);
		for (i = 0; i < NR_EGPRS; i++)
			TEST_ASSERT(actual.r[i] == mine.r[i],
				    "A thread had 0x%lx in its R%lu, and now has 0x%lx",
				    mine.r[i], i + 16, actual.r[i]);
		count(nr_secret_checks);
	}
	return NULL;
}

static void count_signal(int sig)
{
	count(total_signals);
}

/* Signals are for the vCPUs' threads only. */
static void begin_secrets(int nr, u64 random)
{
	struct sigaction action = { .sa_handler = count_signal, .sa_flags = SA_RESTART };
	sigset_t set;
	int i;

	sigaction(SIGUSR1, &action, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	secrets_may_end = false;
	for (i = 0; i < nr; i++)
		TEST_ASSERT(!pthread_create(&secrets[i], NULL, secret_thread,
					    (void *)soak_random(&random)), "pthread_create() failed");
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

static void end_secrets(int nr)
{
	int i;

	WRITE_ONCE(secrets_may_end, true);
	for (i = 0; i < nr; i++)
		pthread_join(secrets[i], NULL);
}

static void run_round(void)
{
	bool sends_init = nr_vcpus > 1 && !migrates;
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
	u64 random = soak_round_state();
	struct kvm_vm *vm = create_vm(random, migrates);
	struct host *h;

	hosts[0].g->sends_init = sends_init;
	begin_secrets(1, random);
	TEST_ASSERT(!timer_create(CLOCK_MONOTONIC, &event, &kick_timer), "timer_create() failed");
	is_kicked = true;
	do {
		h = &hosts[soak_random(&random) % nr_vcpus];
		if (h->done || init_is_underway)
			h = &hosts[0];
		if (h->done)
			h = &hosts[nr_vcpus - 1];
		run_once(h);
	} while (!hosts[0].done || !hosts[nr_vcpus - 1].done);
	timer_delete(kick_timer);
	end_secrets(1);
	free_vm(vm);
}

static void *vcpu_thread(void *arg)
{
	struct host *h = arg;

	while (!h->done)
		run_once(h);
	return NULL;
}

/* The machine's limit would end it without a word. */
static void look_for_progress(pthread_t *threads)
{
	static time_t since;
	static u64 seen;
	struct timespec now;
	u64 sum = 0;
	int i, tries;

	for (i = 0; i < nr_vcpus; i++)
		sum += READ_ONCE(hosts[i].g->step) + hosts[i].done;
	clock_gettime(CLOCK_MONOTONIC, &now);
	if (!since || sum != seen) {
		seen = sum;
		since = now.tv_sec;
	}
	if (now.tv_sec - since <= STUCK_SECONDS)
		return;

	for (i = 0; i < nr_vcpus; i++)
		printf("vCPU %d: %s at step %lu, %s%s\n", i, hosts[i].done ? "done" : "stuck",
		       hosts[i].g->step, hosts[i].g->what,
		       hosts[i].g->timer_is_set ? ", timer set" : "");
	fflush(stdout);
	WRITE_ONCE(is_stuck, true);
	/* Not every signal comes while its vCPU is in KVM_RUN. */
	for (tries = 0; tries < 100; tries++) {
		for (i = 0; i < nr_vcpus; i++)
			if (!hosts[i].done)
				pthread_kill(threads[i], SIGUSR1);
		usleep(20000);
	}
	TEST_FAIL("No vCPU made progress for %d seconds", STUCK_SECONDS);
}

static void run_threads(void)
{
	u64 random = soak_round_state();
	pthread_t threads[MAX_VCPUS];
	struct kvm_vm *vm = create_vm(random, true);
	int nr_cpus = sysconf(_SC_NPROCESSORS_ONLN);
	int i, nr_done;

	begin_secrets(MAX_SECRET_THREADS, random);
	for (i = 0; i < nr_vcpus; i++)
		TEST_ASSERT(!pthread_create(&threads[i], NULL, vcpu_thread, &hosts[i]),
			    "pthread_create() failed");

	do {
		usleep(1000 + soak_random(&random) % 2000);
		i = soak_random(&random) % nr_vcpus;
		pthread_kill(threads[i], SIGUSR1);
		pin_task_to_cpu(threads[soak_random(&random) % nr_vcpus],
				soak_random(&random) % nr_cpus);
		for (i = 0, nr_done = 0; i < nr_vcpus; i++)
			nr_done += READ_ONCE(hosts[i].done);
		look_for_progress(threads);
	} while (nr_done < nr_vcpus);

	for (i = 0; i < nr_vcpus; i++)
		pthread_join(threads[i], NULL);
	end_secrets(MAX_SECRET_THREADS);
	free_vm(vm);
}

int main(void)
{
	const char *part = getenv("SOAK_PART") ? : "guest";
	void (*run_it)(void);
	struct rusage usage;

	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_APX));

	soak_begin(part);
	steps = soak_nr_steps(500);
	migrates = !strcmp(part, "migrate");
	nr_vcpus = migrates ? 1 : strcmp(part, "load") ? 2 : MAX_VCPUS;
	run_it = nr_vcpus == MAX_VCPUS ? run_threads : run_round;
	if (soak_env("SOAK_MINIMISE", 0)) {
		soak_minimise(run_it, steps);
		return 0;
	}
	for_each_round() {
		run_it();
		printf("round %lu: %lu steps, %lu exits\n", soak_round, total_steps, total_exits);
	}
	soak_end();
	getrusage(RUSAGE_SELF, &usage);
	/* What a part or CPU doesn't have isn't counted; what is, has to happen. */
	printf("total rounds=%lu steps=%lu exits=%lu irqs=%lu smis=%lu l2_runs=%lu compared=%lu",
	       soak_rounds, total_steps, total_exits, total_irqs, total_smis, total_l2_runs, total_syncs);
	printf(" failed_entries=%lu l2_failed_entries=%lu user_inits=%lu signals=%lu interrupted=%lu",
	       total_failed_entries, total_failed_l2_entries, total_user_inits, total_signals,
	       total_interrupted);
	printf(" threads=%lu preempted=%lu xsave=%lu", nr_secret_checks, usage.ru_nivcsw,
	       total_xsaves[XSAVE]);
	if (can_xsave[XSAVEOPT])
		printf(" xsaveopt=%lu", total_xsaves[XSAVEOPT]);
	if (can_xsave[XSAVEC])
		printf(" xsavec=%lu", total_xsaves[XSAVEC]);
	if (can_xsave[XSAVES])
		printf(" xsaves=%lu xrstors=%lu", total_xsaves[XSAVES], total_xrstors);
	if (migrates)
		printf(" migrations=%lu in_l2=%lu at_random=%lu", total_migrations, total_in_l2,
		       total_at_random);
	else if (nr_vcpus < MAX_VCPUS)
		printf(" inits=%lu", total_inits);
	printf("\n");
	return 0;
}
