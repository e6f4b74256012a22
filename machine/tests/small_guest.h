/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A VM with one vCPU, by KVM's ioctls alone, for tests that want less of a guest
 * than the library of the KVM selftests sets up.
 */
#ifndef SMALL_GUEST_H
#define SMALL_GUEST_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "apx_test.h"

static int vm, vcpu;
static struct kvm_run *run;
static u8 *mem;

/*
 * Sets all of the above: @mem_size bytes from address 0, which nobody touched; with
 * @irqchip KVM has the interrupt controllers.  @disabled_exits: KVM_X86_DISABLE_EXITS_*.
 */
static bool create_vcpu(u64 mem_size, bool irqchip, u64 disabled_exits)
{
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_X86_DISABLE_EXITS,
		.args[0] = disabled_exits,
	};
	struct kvm_userspace_memory_region region = { .memory_size = mem_size };
	int kvm;

	kvm = open("/dev/kvm", O_RDWR);
	if (kvm < 0)
		return false;
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	mem = mmap(NULL, mem_size, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	madvise(mem, mem_size, MADV_NOHUGEPAGE);
	region.userspace_addr = (unsigned long)mem;
	if (irqchip && ioctl(vm, KVM_CREATE_IRQCHIP))
		return false;
	if (disabled_exits && ioctl(vm, KVM_ENABLE_CAP, &cap))
		return false;
	vcpu = ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) ? -1 :
	       ioctl(vm, KVM_CREATE_VCPU, 0);
	if (vcpu < 0)
		return false;
	run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0),
		   PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	return true;
}

/* Whether the guest runs to an OUT to @port. */
static bool run_to_out(const char *what, int port)
{
	if (ioctl(vcpu, KVM_RUN, 0) || run->exit_reason != KVM_EXIT_IO) {
		ktap_note("%s: exit reason %u, errno %d", what, run->exit_reason, errno);
		return false;
	}
	if (run->io.port != port) {
		ktap_note("%s: OUT to port %x instead of %x", what, run->io.port, port);
		return false;
	}
	return true;
}

static inline bool is_amd(void)
{
	u32 eax, ebx, ecx, edx;

	__cpuid(0, eax, ebx, ecx, edx);
	return ebx == signature_AMD_ebx;
}

/* Binds the calling thread to @cpu. */
static inline bool run_on(int cpu)
{
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(cpu, &cpus);
	return !sched_setaffinity(0, sizeof(cpus), &cpus);
}

#endif /* SMALL_GUEST_H */
