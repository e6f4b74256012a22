// SPDX-License-Identifier: GPL-2.0-only
/*
 * Stubs for, and checks of, the functions that ci/unit takes from KVM.  Bits and
 * layouts that the checks want are the manuals', i.e. numbers, not the kernel's
 * names for them.
 *
 * Output: "pass|fail NAME DETAIL" per check, with tabs, and "end".
 */
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32, __u32;
typedef uint64_t u64;

/* ------------------------------------------------------------------------
 * Stubs.
 */
#define CONFIG_X86_64		1
#define IS_ENABLED(option)	1	/* all that is asked for is CONFIG_KVM_APX */
#define EXPORT_SYMBOL_FOR_KVM_INTERNAL(f)
#define ARRAY_SIZE(a)		(sizeof(a) / sizeof((a)[0]))
#define BIT(n)			(1ul << (n))
#define BIT_ULL(n)		(1ull << (n))
#define GENMASK(h, l)		((~0ul >> (63 - (h))) & (~0ul << (l)))

/* None of them fires. */
#define BUG_ON(condition)							\
do {										\
	if (condition) {							\
		printf("%s, line %d: %s\n", __FILE__, __LINE__, #condition);	\
		exit(1);							\
	}									\
} while (0)
#define BUILD_BUG_ON(condition)	BUG_ON(condition)
#define BUILD_BUG()		BUG_ON(true)
#define WARN_ON_ONCE(condition)	BUG_ON(condition)

struct kvm_cpuid_entry2 {
	u32 function, index, flags, eax, ebx, ecx, edx;
};

struct kvm_cpuid2 {
	u32 nent;
	struct kvm_cpuid_entry2 entries[1];
};

struct kvm_vcpu;

struct kvm {
	struct kvm_vcpu *vcpus[2];
};

struct kvm_vcpu {
	struct kvm *kvm;
	struct {
		u64 xcr0;
		u64 guest_supported_xcr0;
		u64 reserved_gpa_bits;
		bool cpuid_dynamic_bits_dirty;
		u32 cpu_caps[64];
	} arch;
};

struct vcpu_vmx {
	struct kvm_vcpu vcpu;
	struct {
		bool launched;
	} *loaded_vmcs;
};

struct vcpu_svm {
	struct kvm_vcpu vcpu;
};

struct td_params {
	struct tdx_cpuid_value {
		u32 eax, ebx, ecx, edx;
	} cpuid_values[1];
};

static struct {
	u64 supported_xcr0;
	u64 supported_xss;
} kvm_caps;
static u32 kvm_cpu_caps[64];
static bool kvm_is_configuring_cpu_caps = true;

/* What the CPU, the guest, the VMCS and MSR bitmaps say. */
static bool in_64_bit_mode;
static bool cpu_has_apx, cpu_has_decode_assists, cpu_has_mmio_stale_data;
static bool is_using_evmcs, spec_ctrl_is_intercepted, has_host_mmio;

#define cpu_has(f)			((f) == X86_FEATURE_APX ? cpu_has_apx :			\
					 (f) == X86_FEATURE_DECODEASSISTS ? cpu_has_decode_assists :	\
					 (f) == X86_FEATURE_CLEAR_CPU_BUF_VM_MMIO && cpu_has_mmio_stale_data)
#define boot_cpu_has(f)			cpu_has(f)
#define static_cpu_has(f)		cpu_has(f)
#define cpu_feature_enabled(f)		cpu_has(f)
#define is_64_bit_mode(v)		((void)(v), in_64_bit_mode)
#define kvm_is_using_evmcs()		is_using_evmcs
#define msr_write_intercepted(v, msr)	((void)(v), (msr) == MSR_IA32_SPEC_CTRL && spec_ctrl_is_intercepted)
#define kvm_vcpu_can_access_host_mmio(v) ((void)(v), has_host_mmio)
#define MSR_IA32_SPEC_CTRL		0x48

/* The VMCS: different values of either width. */
#define VMX_INSTRUCTION_INFO		0x440e
#define EXTENDED_INSTRUCTION_INFO	0x2406
#define vmcs_read32(field)		((u32)((field) == VMX_INSTRUCTION_INFO ? 0x32323232 : 0))
#define vmcs_read64(field)		((u64)((field) == EXTENDED_INSTRUCTION_INFO ? 0x6464646464646464 : 0))

/* Ways to get at other vCPUs than the one that is asked about. */
static inline struct kvm_vcpu *kvm_get_vcpu(struct kvm *kvm, int i)
{
	return kvm->vcpus[i];
}

static struct kvm_vcpu *running_vcpu;

static inline struct kvm_vcpu *kvm_get_running_vcpu(void)
{
	return running_vcpu;
}

static struct kvm_cpuid_entry2 *kvm_find_cpuid_entry(struct kvm_vcpu *vcpu, u32 function)
{
	return NULL;
}

static struct kvm_cpuid_entry2 *kvm_find_cpuid_entry2(struct kvm_cpuid_entry2 *entries,
						      int nent, u32 function, u64 index)
{
	int i;

	for (i = 0; i < nent; i++) {
		if (entries[i].function == function && entries[i].index == index)
			return &entries[i];
	}
	return NULL;
}

static struct tdx_sys_info {
	struct tdx_sys_info_td_conf {
		u64 xfam_fixed0, xfam_fixed1;
		u16 num_cpuid_config;
		u64 cpuid_config_leaves[1];
		u64 cpuid_config_values[1][2];
	} td_conf;
} *tdx_sysinfo;

#include "extracted.h"

/* ------------------------------------------------------------------------
 * Checks.
 */
static const char *name;
static bool failed;
static unsigned long nr_cases;

static bool __attribute__((format(printf, 2, 3))) want(bool condition, const char *fmt, ...)
{
	va_list ap;

	nr_cases++;
	/* The first one of a check is enough. */
	if (condition || failed)
		return condition;

	failed = true;
	printf("fail\t%s\t", name);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
	return false;
}

static void check(const char *what, void (*function)(void))
{
	name = what;
	failed = false;
	nr_cases = 0;
	function();
	if (!failed)
		printf("%s\t%s\t%lu cases\n", nr_cases ? "pass" : "fail", name, nr_cases);
}

/* Components of XSAVE, and the bits of XCR0 that KVM knows. */
#define FP		BIT_ULL(0)
#define SSE		BIT_ULL(1)
#define AVX		BIT_ULL(2)
#define BNDREGS		BIT_ULL(3)
#define BNDCSR		BIT_ULL(4)
#define MPX		(BNDREGS | BNDCSR)
#define AVX512		(7ull << 5)
#define CET_U		BIT_ULL(11)
#define TILE		(3ull << 17)
#define APX		BIT_ULL(19)

/* Put the low bits of @bits where @mask has bits: all of its subsets, if counted. */
static u64 spread(u64 bits, u64 mask)
{
	u64 val = 0;

	for (; mask; mask &= mask - 1, bits >>= 1) {
		if (bits & 1)
			val |= mask & -mask;
	}
	return val;
}

static bool some_but_not_all(u64 val, u64 mask)
{
	return (val & mask) && (val & mask) != mask;
}

static bool xcr0_is_valid(u64 val, u64 supported)
{
	return (val & FP) && !(val & ~(supported | FP)) &&
	       !((val & AVX) && !(val & SSE)) &&
	       !((val & AVX512) && !(val & AVX)) &&
	       !some_but_not_all(val, MPX) && !some_but_not_all(val, AVX512) &&
	       !some_but_not_all(val, TILE) &&
	       !((val & APX) && (val & MPX));
}

static void set_xcr(u32 index, u64 val, u64 old, u64 supported)
{
	struct kvm_vcpu vcpu = { .arch = { .xcr0 = old, .guest_supported_xcr0 = supported } };
	bool valid = !index && xcr0_is_valid(val, supported);
	int r = __kvm_set_xcr(&vcpu, index, val);

	want(!r == valid, "XCR%u = 0x%lx of 0x%lx: %s", index, val, supported,
	     r ? "refused" : "accepted");
	want(vcpu.arch.xcr0 == (r ? old : val), "XCR0 becomes 0x%lx, wanted 0x%lx",
	     vcpu.arch.xcr0, r ? old : val);
	want(vcpu.arch.cpuid_dynamic_bits_dirty == (!r && ((val ^ old) & ~(FP | SSE))),
	     "XCR0 0x%lx to 0x%lx: CPUID %s", old, val,
	     vcpu.arch.cpuid_dynamic_bits_dirty ? "changes" : "stays");
}

static void check_set_xcr(void)
{
	const u64 known = FP | SSE | AVX | MPX | AVX512 | TILE | APX;
	u64 i, j;

	for (i = 0; i < 1 << __builtin_popcountll(known); i++) {
		for (j = 0; j < 1 << __builtin_popcountll(known); j++)
			set_xcr(0, spread(i, known), FP, spread(j, known));
		set_xcr(0, spread(i, known), FP | SSE | AVX | APX, known);
		set_xcr(1, spread(i, known), FP, known);
	}
	for (i = 0; i < 64; i++)
		set_xcr(0, FP | BIT_ULL(i), FP, known);
}

static void check_xcr0_caps(void)
{
	u32 caps[ARRAY_SIZE(kvm_cpu_caps)];
	bool xcr0, f, nci;
	int i;

	for (i = 0; i < 8; i++) {
		xcr0 = i & 1;
		f = i & 2;
		nci = i & 4;

		kvm_caps.supported_xcr0 = ~0ull ^ (xcr0 ? 0 : APX);
		memset(kvm_cpu_caps, 0xff, sizeof(kvm_cpu_caps));
		memcpy(caps, kvm_cpu_caps, sizeof(caps));
		kvm_cpu_caps[CPUID_7_1_EDX] ^= f ? 0 : BIT(21);
		kvm_cpu_caps[CPUID_29_0_EBX] ^= nci ? 0 : BIT(0);
		caps[CPUID_7_1_EDX] ^= f && xcr0 ? 0 : BIT(21);
		caps[CPUID_29_0_EBX] ^= f && xcr0 && nci ? 0 : BIT(0);

		kvm_setup_xcr0_caps();
		want(kvm_caps.supported_xcr0 == (~0ull ^ (f && xcr0 ? 0 : APX)),
		     "XCR0.APX %d, APX %d: 0x%lx", xcr0, f, kvm_caps.supported_xcr0);
		want(!memcmp(caps, kvm_cpu_caps, sizeof(caps)),
		     "XCR0.APX %d, APX %d, APX_NCI_NDD_NF %d: wrong features", xcr0, f, nci);
	}
}

static void check_xfam(void)
{
	const u64 bits = FP | AVX | CET_U | APX;
	struct tdx_sys_info_td_conf conf;
	u64 i, val, wanted;

	for (i = 0; i < 0x10000; i++) {
		kvm_caps.supported_xcr0 = spread(i, bits);
		kvm_caps.supported_xss = spread(i >> 4, bits);
		conf.xfam_fixed0 = spread(i >> 8, bits);
		conf.xfam_fixed1 = spread(i >> 12, bits);
		wanted = (kvm_caps.supported_xcr0 | kvm_caps.supported_xss) & ~APX;
		wanted = (conf.xfam_fixed1 & ~wanted) ? 0 : wanted & conf.xfam_fixed0;

		val = tdx_get_supported_xfam(&conf);
		want(val == wanted, "XCR0 0x%lx, XSS 0x%lx, fixed 0x%lx 0x%lx: 0x%lx, wanted 0x%lx",
		     kvm_caps.supported_xcr0, kvm_caps.supported_xss,
		     conf.xfam_fixed0, conf.xfam_fixed1, val, wanted);
	}
}

/* CPUID.7: HLE, RTM, WAITPKG and, in subleaf 1, APX are not for TDs. */
static void td_unsupported(u32 index, u32 *ebx, u32 *ecx, u32 *edx)
{
	*ebx = index == 0 ? BIT(4) | BIT(11) : 0;
	*ecx = index == 0 ? BIT(5) : 0;
	*edx = index == 1 ? BIT(21) : 0;
}

static void check_td_cpuid(void)
{
	static struct tdx_sys_info info = { .td_conf = { .num_cpuid_config = 1 } };
	struct kvm_cpuid2 cpuid = { .nent = 1 };
	struct kvm_cpuid_entry2 entry, *e = &cpuid.entries[0];
	struct td_params params;
	u32 index, bit, flip, ebx, ecx, edx;
	u32 *regs[] = { &e->eax, &e->ebx, &e->ecx, &e->edx };
	bool unsupported;
	int r;

	tdx_sysinfo = &info;
	for (index = 0; index < 3; index++) {
		td_unsupported(index, &ebx, &ecx, &edx);
		info.td_conf.cpuid_config_leaves[0] = (u64)index << 32 | 7;

		/* What is configurable: each bit, alone and as the only one missing. */
		for (bit = 0; bit < 128 * 2; bit++) {
			for (flip = 0; flip < 4; flip++)
				*regs[flip] = bit & 128 ? ~0u : 0;
			*regs[bit / 32 % 4] ^= BIT(bit % 32);

			info.td_conf.cpuid_config_values[0][0] = e->eax | (u64)e->ebx << 32;
			info.td_conf.cpuid_config_values[0][1] = e->ecx | (u64)e->edx << 32;
			td_init_cpuid_entry2(&entry, 0);
			want(entry.function == 7 && entry.index == index && entry.eax == e->eax &&
			     entry.ebx == (e->ebx & ~ebx) && entry.ecx == (e->ecx & ~ecx) &&
			     entry.edx == (e->edx & ~edx),
			     "CPUID.7.%u of 0x%x 0x%x 0x%x 0x%x: 0x%x 0x%x 0x%x 0x%x is offered", index,
			     e->eax, e->ebx, e->ecx, e->edx, entry.eax, entry.ebx, entry.ecx, entry.edx);

			/* What userspace asks for. */
			e->function = 7;
			e->index = index;
			memset(&params, 0, sizeof(params));
			r = setup_tdparams_cpuids(&cpuid, &params);
			unsupported = (e->ebx & ebx) || (e->ecx & ecx) || (e->edx & edx);
			want(!r == !unsupported, "CPUID.7.%u = 0x%x 0x%x 0x%x 0x%x: %d", index,
			     e->eax, e->ebx, e->ecx, e->edx, r);
		}
	}
}

static void check_sev(void)
{
	struct vcpu_svm svm;
	struct kvm_vcpu wanted;
	int i;

	for (i = 0; i < 8; i++) {
		memset(&svm, 0xff, sizeof(svm));
		svm.vcpu.arch.xcr0 ^= i & 1 ? 0 : APX;
		svm.vcpu.arch.guest_supported_xcr0 ^= i & 2 ? 0 : APX;
		svm.vcpu.arch.cpu_caps[CPUID_7_1_EDX] ^= i & 4 ? 0 : BIT(21);
		svm.vcpu.arch.cpuid_dynamic_bits_dirty = false;

		wanted = svm.vcpu;
		wanted.arch.xcr0 &= ~APX;
		wanted.arch.guest_supported_xcr0 &= ~APX;
		wanted.arch.cpu_caps[CPUID_7_1_EDX] &= ~BIT(21);
		wanted.arch.cpuid_dynamic_bits_dirty = i & 1;

		sev_vcpu_after_set_cpuid(&svm);
		want(svm.vcpu.arch.xcr0 == wanted.arch.xcr0 &&
		     svm.vcpu.arch.guest_supported_xcr0 == wanted.arch.guest_supported_xcr0,
		     "XCR0 0x%lx of 0x%lx", svm.vcpu.arch.xcr0, svm.vcpu.arch.guest_supported_xcr0);
		want(!memcmp(&svm.vcpu.arch.cpu_caps, &wanted.arch.cpu_caps, sizeof(wanted.arch.cpu_caps)),
		     "CPUID.7.1:EDX 0x%x, or another feature", svm.vcpu.arch.cpu_caps[CPUID_7_1_EDX]);
		want(svm.vcpu.arch.cpuid_dynamic_bits_dirty == wanted.arch.cpuid_dynamic_bits_dirty,
		     "CPUID %s", wanted.arch.cpuid_dynamic_bits_dirty ? "stays" : "changes");
	}
}

static void check_decode_assist(void)
{
	struct kvm_vcpu vcpu;
	int i;

	for (i = 0; i < 8; i++) {
		cpu_has_decode_assists = i & 1;
		vcpu.arch.xcr0 = FP | (i & 2 ? APX : 0);
		in_64_bit_mode = i & 4;
		want(svm_has_gpr_decode_assist(&vcpu) == (cpu_has_decode_assists && (i & 6) != 6),
		     "decode assists %d, XCR0.APX %d, 64-bit mode %d", i & 1, i >> 1 & 1, i >> 2);
	}
}

/* Two vCPUs, each of which is entered while the other one has APX, or has not. */
static void check_run_flags(bool is_svm)
{
	struct vcpu_vmx vmx[2];
	struct vcpu_svm svm[2];
	struct kvm_vcpu *vcpus[2];
	struct kvm kvm;
	unsigned int i, n, flags, wanted;

	memset(vmx, 0, sizeof(vmx));
	memset(svm, 0, sizeof(svm));
	for (n = 0; n < 2; n++) {
		vcpus[n] = is_svm ? &svm[n].vcpu : &vmx[n].vcpu;
		vcpus[n]->kvm = &kvm;
		kvm.vcpus[n] = vcpus[n];
		vmx[n].loaded_vmcs = malloc(sizeof(*vmx[n].loaded_vmcs));
	}

	for (i = 0; i < 128; i++) {
		n = i & 1;
		vcpus[n]->arch.xcr0 = FP | (i & 2 ? APX : 0);
		vcpus[!n]->arch.xcr0 = FP | (i & 4 ? APX : 0);
		running_vcpu = vcpus[!n];
		vmx[n].loaded_vmcs->launched = i & 8;
		vmx[!n].loaded_vmcs->launched = !(i & 8);
		spec_ctrl_is_intercepted = i & 16;
		cpu_has_mmio_stale_data = i & 32;
		has_host_mmio = i & 64;

		wanted = i & 2 ? VCPU_RUN_SWAP_EGPRS : 0;
		wanted |= spec_ctrl_is_intercepted ? VCPU_RUN_SPEC_CTRL_INTERCEPTED : 0;
		if (!is_svm) {
			wanted |= i & 8 ? VCPU_RUN_VMRESUME : 0;
			wanted |= cpu_has_mmio_stale_data && has_host_mmio ?
				  VCPU_RUN_CLEAR_CPU_BUFFERS_FOR_MMIO : 0;
		}

		flags = is_svm ? svm_vcpu_run_flags(vcpus[n]) : __vmx_vcpu_run_flags(&vmx[n]);
		want(flags == wanted && flags <= 0xff,
		     "vCPU %u, XCR0.APX %d, the other one's %d: 0x%x, wanted 0x%x", n,
		     !!(i & 2), !!(i & 4), flags, wanted);
	}
}

static void check_vmx_run_flags(void)
{
	check_run_flags(false);
}

static void check_svm_run_flags(void)
{
	check_run_flags(true);
}

/* The getters' fields: VM-exit instruction information, and the extended one. */
static int exit_qual_gpr(u64 info)
{
	return vmx_get_exit_qual_gpr(info);
}

static int is_reg(u64 info)
{
	return vmx_instr_info_is_reg(info);
}

static int no_index(u64 info)
{
	return !vmx_instr_info_has_index(info);
}

static int no_base(u64 info)
{
	return !vmx_instr_info_has_base(info);
}

static const struct field {
	const char *name;
	int (*get)(u64 info);
	int shift, bits;
	int extended_shift, extended_bits;
} fields[] = {
	{ "scaling", vmx_get_instr_info_scaling, 0, 2, 0, 2 },
	{ "reg1", vmx_get_instr_info_reg, 3, 4, 16, 5 },
	{ "address size", vmx_get_instr_info_addr_size, 7, 3, 2, 2 },
	{ "mem/reg", is_reg, 10, 1, 4, 1 },
	{ "segment", vmx_get_instr_info_seg, 15, 3, 7, 3 },
	{ "index", vmx_get_instr_info_index, 18, 4, 24, 5 },
	{ "no index", no_index, 22, 1, 10, 1 },
	{ "base", vmx_get_instr_info_base, 23, 4, 32, 5 },
	{ "no base", no_base, 27, 1, 11, 1 },
	{ "reg2", vmx_get_instr_info_reg2, 28, 4, 40, 5 },
};

static void check_field(const char *what, int (*get)(u64 info), int shift, int bits, u64 width)
{
	u64 val, mask = (BIT_ULL(bits) - 1) << shift;
	int i;

	/* Each value, and in all other bits zeros or ones. */
	for (val = 0; val < BIT_ULL(bits); val++) {
		for (i = 0; i < 2; i++)
			want(get((val << shift) | (i ? width & ~mask : 0)) == val,
			     "%s, APX %d, eVMCS %d: 0x%x, wanted 0x%lx", what, cpu_has_apx,
			     is_using_evmcs, get((val << shift) | (i ? width & ~mask : 0)), val);
	}
}

static void check_instr_info(void)
{
	const struct field *f;
	bool extended;
	int i;

	for (i = 0; i < 4; i++) {
		cpu_has_apx = i & 1;
		is_using_evmcs = i & 2;
		extended = i == 1;
		want(vmx_get_instr_info() == (extended ? 0x6464646464646464 : 0x32323232),
		     "APX %d, eVMCS %d: 0x%lx", cpu_has_apx, is_using_evmcs, vmx_get_instr_info());

		for (f = fields; f < fields + ARRAY_SIZE(fields); f++)
			check_field(f->name, f->get, extended ? f->extended_shift : f->shift,
				    extended ? f->extended_bits : f->bits,
				    extended ? ~0ull : ~0u);
		check_field("exit qualification", exit_qual_gpr, 8, cpu_has_apx ? 5 : 4, ~0ull);
	}
}

int main(void)
{
	check("__kvm_set_xcr", check_set_xcr);
	check("kvm_setup_xcr0_caps", check_xcr0_caps);
	check("tdx_get_supported_xfam", check_xfam);
	check("CPUID of TDs", check_td_cpuid);
	check("sev_vcpu_after_set_cpuid", check_sev);
	check("svm_has_gpr_decode_assist", check_decode_assist);
	check("__vmx_vcpu_run_flags", check_vmx_run_flags);
	check("svm_vcpu_run_flags", check_svm_run_flags);
	check("VM-exit instruction information", check_instr_info);
	printf("end\n");
	return 0;
}
