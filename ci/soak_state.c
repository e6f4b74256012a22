// SPDX-License-Identifier: GPL-2.0-only
/*
 * A guest that never had APX, stopped at a random point, in L2 or not: print all
 * of its state as lines of "round R SECTION OFFSET WORD", words that are zero or
 * memory that is as it was when the VM was created left out, and run it to its
 * end.  With SOAK_LOAD=FILE load such states, print what the vCPU has then, and
 * run them to the same end.
 *
 * KVM with the series and without has to print the same lines, and has to be
 * able to go on with the other's.
 */
#include "soak.h"
#include "svm_util.h"
#include "vmx.h"

#define NR_STEPS	60

/* No ucalls: they would put addresses of this process into the guest. */
#define STEP_PORT	0x2000
#define DONE_PORT	0x2001
#define FAILED_PORT	0x2002

static void outb(u16 port, u8 val)
{
	asm volatile("outb %%al, %%dx" : : "a"(val), "d"(port) : "memory");
}

/* The guest's.  @sum depends on all that it did and found. */
static u64 guest_random, sum, step;
static void *nested_data;
static u64 scratch[4][512] __aligned(PAGE_SIZE);

#define L2_STACK_SIZE	512
static u64 l2_stack[L2_STACK_SIZE] __aligned(16);
static bool l2_is_ready, l2_launched;

static u64 read_dr1(void)
{
	u64 val;

	asm volatile("mov %%dr1, %0" : "=r"(val));
	return val;
}

static u64 read_xmm7(void)
{
	u64 val;

	asm volatile("movq %%xmm7, %0" : "=r"(val));
	return val;
}

/* What the step before has left in registers has to be there. */
static void guest_step(bool is_l2)
{
	static u64 last;
	u64 val, *word;

	if (step && (read_dr1() != (u32)last || read_xmm7() != last))
		outb(FAILED_PORT, 1);

	val = soak_random(&guest_random);
	word = &scratch[val & 3][(val >> 2) & 511];
	sum = (sum << 7 | sum >> 57) ^ *word ^ val;
	*word = sum;

	last = sum;
	asm volatile("movq %0, %%xmm7" : : "r"(sum));
	asm volatile("movq %0, %%xmm13; fldpi; fild %1; fstp %%st(1)" : : "r"(~sum), "m"(sum));
	wrmsr(MSR_KERNEL_GS_BASE, (u32)sum);
	asm volatile("mov %0, %%dr1" : : "r"((u64)(u32)sum));
	if (!is_l2)
		asm volatile("mov %0, %%cr2" : : "r"(sum));
	step++;
	outb(STEP_PORT, sum);
}

static void l2_code(void)
{
	for (;;) {
		guest_step(true);
		if (soak_random(&guest_random) & 1)
			guest_step(true);
		if (host_cpu_is_intel)
			vmcall();
		else
			vmmcall();
	}
}

static void run_l2(void)
{
	struct svm_test_data *svm = nested_data;
	void *rsp = &l2_stack[L2_STACK_SIZE - 1];

	if (host_cpu_is_intel) {
		if (!l2_is_ready) {
			if (!prepare_for_vmx_operation(nested_data) || !load_vmcs(nested_data))
				outb(FAILED_PORT, 2);
			prepare_vmcs(nested_data, l2_code, rsp);
			vmwrite(CPU_BASED_VM_EXEC_CONTROL, vmreadz(CPU_BASED_VM_EXEC_CONTROL) |
							   CPU_BASED_USE_MSR_BITMAPS);
		}
		l2_is_ready = true;
		if (l2_launched ? vmresume() : vmlaunch())
			outb(FAILED_PORT, 3);
		l2_launched = true;
		if (vmreadz(VM_EXIT_REASON) != EXIT_REASON_VMCALL)
			outb(FAILED_PORT, 4);
		vmwrite(GUEST_RIP, vmreadz(GUEST_RIP) + 3);
	} else {
		if (!l2_is_ready)
			generic_svm_setup(nested_data, l2_code, rsp);
		l2_is_ready = true;
		run_guest(svm->vmcb, svm->vmcb_gpa);
		if (svm->vmcb->control.exit_code != SVM_EXIT_VMMCALL)
			outb(FAILED_PORT, 4);
		svm->vmcb->save.rip += 3;
	}
}

static void guest_code(void)
{
	while (step < NR_STEPS) {
		if (soak_random(&guest_random) % 4)
			guest_step(false);
		else
			run_l2();
	}
	for (;;)
		outb(DONE_PORT, 0);
}

/* The state, in sections of whole words. */
static struct state {
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_xcrs xcrs;
	struct kvm_vcpu_events events;
	struct kvm_debugregs debugregs;
	struct kvm_mp_state mp_state __aligned(8);
	struct kvm_lapic_state lapic __aligned(8);
	struct kvm_xsave xsave;
	u8 nested[16384];
	u8 cpuid[sizeof(struct kvm_cpuid2) + 256 * sizeof(struct kvm_cpuid_entry2)] __aligned(8);
	u8 msrs[sizeof(struct kvm_msrs) + 1024 * sizeof(struct kvm_msr_entry)] __aligned(8);
	u64 end[1];
} now, loaded;

#define SECTION(name)	{ #name, offsetof(struct state, name), sizeof(now.name) }

static const struct section {
	const char *name;
	size_t offset, size;
} sections[] = {
	SECTION(regs), SECTION(sregs), SECTION(xcrs), SECTION(events), SECTION(debugregs),
	SECTION(mp_state), SECTION(lapic), SECTION(xsave), SECTION(nested), SECTION(cpuid),
	SECTION(msrs), SECTION(end),
};

static struct kvm_vm *vm;
static struct kvm_vcpu *vcpu;
static u64 *memory, *memory_at_first;
static size_t memory_words;

static void remove_cpuid(u32 function, u32 index)
{
	struct kvm_cpuid_entry2 *e = vcpu->cpuid->entries;
	int i, nent = vcpu->cpuid->nent;

	for (i = 0; i < nent; i++) {
		if (e[i].function == function && e[i].index == index) {
			memmove(&e[i], &e[i + 1], (nent - i - 1) * sizeof(*e));
			vcpu->cpuid->nent--;
			return;
		}
	}
}

/* As KVM without the series has it: no APX, and nothing that comes with it. */
static void hide_apx(void)
{
	struct kvm_cpuid_entry2 *e, *d = NULL;
	u32 size = 576;
	int i;

	for (i = 0x25; i <= 0x29; i++)
		remove_cpuid(i, 0);
	remove_cpuid(0xd, 19);
	for (i = 0; i < vcpu->cpuid->nent; i++) {
		e = &vcpu->cpuid->entries[i];
		if (!e->function)
			e->eax = min(e->eax, 0x24u);
		if (e->function == 7 && e->index == 1)
			e->edx &= ~BIT(21);
		if (e->function == 0xd && !e->index) {
			e->eax &= ~XFEATURE_MASK_APX;
			d = e;
		}
		/* User states only, i.e. not in XSS. */
		if (e->function == 0xd && e->index > 1 && !(e->ecx & 1))
			size = max(size, e->eax + e->ebx);
	}
	if (d)
		d->ecx = size;
	vcpu_set_cpuid(vcpu);
}

static void create(void)
{
	struct userspace_mem_region *region;
	gva_t gva = 0;

	vm = vm_create_with_one_vcpu(&vcpu, guest_code);
	hide_apx();
	if (kvm_cpu_has(X86_FEATURE_VMX))
		vcpu_alloc_vmx(vm, &gva);
	else
		vcpu_alloc_svm(vm, &gva);
	nested_data = (void *)gva;
	sync_global_to_guest(vm, nested_data);
	guest_random = soak_round_state();
	sync_global_to_guest(vm, guest_random);

	region = memslot2region(vm, 0);
	memory = region->host_mem;
	memory_words = region->region.memory_size / sizeof(u64);
	memory_at_first = malloc(memory_words * sizeof(u64));
	TEST_ASSERT(memory_at_first, "-ENOMEM");
	soak_copy(memory_at_first, memory, memory_words * sizeof(u64));
}

static void destroy(void)
{
	free(memory_at_first);
	kvm_vm_free(vm);
}

static u16 run_once(void)
{
	u64 state = soak_round;
	int r;

	/* On CPUs without APX, the VMM has no R16-R31. */
	r = kvm_cpu_has(X86_FEATURE_APX) ? soak_run(vcpu, &state) : __vcpu_run(vcpu);
	TEST_ASSERT(!r, "KVM_RUN failed, errno %d", errno);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	TEST_ASSERT(vcpu->run->io.port != FAILED_PORT, "The guest failed: %u",
		    *((u8 *)vcpu->run + vcpu->run->io.data_offset));
	return vcpu->run->io.port;
}

static u64 run_to_the_end(void)
{
	while (run_once() != DONE_PORT)
		;
	vcpu_run_complete_io(vcpu);
	sync_global_from_guest(vm, sum);
	return sum;
}

static void save(void)
{
	struct kvm_x86_state *state = vcpu_save_state(vcpu);
	struct kvm_msrs *msrs = (void *)now.msrs;
	struct kvm_cpuid2 *cpuid = (void *)now.cpuid;
	int i;

	soak_clear(&now, sizeof(now));
	now.regs = state->regs;
	now.sregs = state->sregs;
	now.xcrs = state->xcrs;
	now.events = state->events;
	now.debugregs = state->debugregs;
	now.mp_state = state->mp_state;
	vcpu_ioctl(vcpu, KVM_GET_LAPIC, &now.lapic);
	vcpu_xsave_get(vcpu, &now.xsave);
	/* Not what the library has allocated: KVM doesn't write all of it. */
	((struct kvm_nested_state *)now.nested)->size = sizeof(now.nested);
	vcpu_nested_state_get(vcpu, (struct kvm_nested_state *)now.nested);
	msrs->nmsrs = state->msrs.nmsrs;
	for (i = 0; i < msrs->nmsrs; i++) {
		msrs->entries[i].index = state->msrs.entries[i].index;
		if (!soak_is_time(msrs->entries[i].index))
			msrs->entries[i].data = state->msrs.entries[i].data;
	}
	cpuid->nent = 256;
	TEST_ASSERT(!ioctl(vcpu->fd, KVM_GET_CPUID2, cpuid), "KVM_GET_CPUID2 failed");
	kvm_x86_state_cleanup(state);
}

static void print(const char *name, size_t i, u64 word)
{
	printf("round %lu %s %zx %lx\n", soak_round, name, i, word);
}

static void print_state(void)
{
	const struct section *s;
	size_t i;

	for (s = sections; s < sections + ARRAY_SIZE(sections); s++) {
		const u64 *words = (void *)&now + s->offset;

		for (i = 0; i < s->size / sizeof(u64); i++) {
			if (words[i])
				print(s->name, i, words[i]);
		}
	}
}

static void print_memory(void)
{
	size_t i;

	for (i = 0; i < memory_words; i++) {
		if (memory[i] != memory_at_first[i])
			print("memory", i, memory[i]);
	}
}

/* The states of all rounds are in the same file. */
static void load(const char *file)
{
	struct kvm_msrs *msrs = (void *)loaded.msrs;
	struct kvm_cpuid2 *cpuid = (void *)loaded.cpuid;
	const struct section *s;
	FILE *f = fopen(file, "r");
	u64 round, i, word, nr = 0;
	char name[32];

	TEST_ASSERT(f, "No %s", file);
	soak_clear(&loaded, sizeof(loaded));
	while (fscanf(f, " round %lu %31s %lx %lx", &round, name, &i, &word) == 4) {
		if (round != soak_round)
			continue;
		nr++;
		if (!strcmp(name, "memory")) {
			TEST_ASSERT(i < memory_words, "Memory at %lx", i);
			memory[i] = word;
			continue;
		}
		for (s = sections; s < sections + ARRAY_SIZE(sections); s++) {
			if (strcmp(name, s->name))
				continue;
			TEST_ASSERT(i < s->size / sizeof(u64), "%s at %lx", name, i);
			((u64 *)((void *)&loaded + s->offset))[i] = word;
			break;
		}
		TEST_ASSERT(s < sections + ARRAY_SIZE(sections), "No section %s", name);
	}
	TEST_ASSERT(feof(f) && nr, "%s has no round %lu, or something else", file, soak_round);
	fclose(f);

	TEST_ASSERT(!ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid), "KVM_SET_CPUID2 failed");
	vcpu_sregs_set(vcpu, &loaded.sregs);
	TEST_ASSERT(ioctl(vcpu->fd, KVM_SET_MSRS, msrs) == msrs->nmsrs, "KVM_SET_MSRS failed");
	vcpu_xcrs_set(vcpu, &loaded.xcrs);
	vcpu_xsave_set(vcpu, &loaded.xsave);
	vcpu_events_set(vcpu, &loaded.events);
	vcpu_mp_state_set(vcpu, &loaded.mp_state);
	vcpu_debugregs_set(vcpu, &loaded.debugregs);
	vcpu_regs_set(vcpu, &loaded.regs);
	vcpu_nested_state_set(vcpu, (void *)loaded.nested);
	vcpu_ioctl(vcpu, KVM_SET_LAPIC, &loaded.lapic);
}

/*
 * What was loaded has to be what the vCPU has now.  Of nested state KVM doesn't
 * take all, with the series or without: print it.
 */
static void check_loaded(void)
{
	const struct section *s;
	size_t i;

	save();
	for (s = sections; s < sections + ARRAY_SIZE(sections); s++) {
		const u64 *is = (void *)&now + s->offset, *was = (void *)&loaded + s->offset;

		if (!strcmp(s->name, "end") || !strcmp(s->name, "nested"))
			continue;
		for (i = 0; i < s->size / sizeof(u64); i++)
			TEST_ASSERT(is[i] == was[i], "Loaded, %s is 0x%lx at %zx, wanted 0x%lx",
				    s->name, is[i], i, was[i]);
	}
	print_state();
}

int main(void)
{
	const char *file = getenv("SOAK_LOAD");
	u64 in_l2 = 0, i, end, stop;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_NESTED_STATE));

	soak_begin("state");
	for_each_round() {
		create();
		if (file) {
			load(file);
			check_loaded();
			end = run_to_the_end();
			TEST_ASSERT(end == loaded.end[0], "The guest ended with 0x%lx, wanted 0x%lx",
				    end, loaded.end[0]);
			in_l2 += !!(((struct kvm_nested_state *)loaded.nested)->flags & KVM_STATE_NESTED_GUEST_MODE);
		} else {
			u64 state = soak_round_state() ^ 1;

			stop = soak_random(&state) % (NR_STEPS - 1) + 1;
			for (i = 0; i < stop; i++)
				run_once();
			save();
			print_memory();
			now.end[0] = run_to_the_end();
			print_state();
			in_l2 += !!(((struct kvm_nested_state *)now.nested)->flags & KVM_STATE_NESTED_GUEST_MODE);
		}
		destroy();
	}
	soak_end();
	printf("total rounds=%lu in_l2=%lu\n", soak_rounds, in_l2);
	return 0;
}
