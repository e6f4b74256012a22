/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Shared by the APX instruction tests: KTAP output, CPUID/XCR0 queries, a
 * seeded random number generator.
 */
#ifndef APX_TEST_H
#define APX_TEST_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <cpuid.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int64_t s64;

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

#define XFEATURE_APX	19
#define XBIT_FP		(1ull << 0)
#define XBIT_SSE	(1ull << 1)
#define XBIT_YMM	(1ull << 2)
#define XBIT_PKRU	(1ull << 9)
#define XBIT_APX	(1ull << XFEATURE_APX)

/* Layout of an XSAVE area. */
#define XS_MXCSR	24
#define XS_ST0		32
#define XS_XMM0		160
#define XS_HEADER	512	/* XSTATE_BV, XCOMP_BV, 48 bytes of zeroes */
#define XS_EXTENDED	576

#define MAX_INSN	24		/* bytes: 15, and what stands behind */

#define EXIT_PASS	0
#define EXIT_FAIL	1
#define EXIT_SKIP	4

/* Fields of an XSAVE area. */
static inline u64 get64(const void *area, u32 at)
{
	u64 v;

	memcpy(&v, (const u8 *)area + at, 8);
	return v;
}

static inline void put64(void *area, u32 at, u64 v)
{
	memcpy((u8 *)area + at, &v, 8);
}

/* One test program runs one plan; a "# " line explains every "not ok". */
static unsigned int ktap_nr, ktap_failed;

static inline void ktap_plan(unsigned int n)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("TAP version 13\n1..%u\n", n);
}

__attribute__((format(printf, 1, 2)))
static inline void ktap_note(const char *fmt, ...)
{
	va_list ap;

	fputs("# ", stdout);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
}

__attribute__((format(printf, 2, 3)))
static inline void ktap_result(bool pass, const char *fmt, ...)
{
	va_list ap;

	ktap_failed += !pass;
	printf("%s %u ", pass ? "ok" : "not ok", ++ktap_nr);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
}

static inline void ktap_skip(const char *name, const char *why)
{
	printf("ok %u %s # SKIP %s\n", ++ktap_nr, name, why);
}

static inline int ktap_exit(void)
{
	return ktap_failed ? EXIT_FAIL : EXIT_PASS;
}

static inline int ktap_skip_all(const char *why)
{
	printf("TAP version 13\n1..0 # SKIP %s\n", why);
	return EXIT_SKIP;
}

/* The assembler may be older than XGETBV with operands it likes: bytes. */
static inline u64 xgetbv(u32 index)
{
	u32 eax, edx;

	asm volatile(".byte 0x0f, 0x01, 0xd0" : "=a"(eax), "=d"(edx) : "c"(index));
	return eax | (u64)edx << 32;
}

static inline bool cpu_bit(u32 leaf, u32 subleaf, int reg, int bit)
{
	u32 r[4];

	if (!__get_cpuid_count(leaf, subleaf, &r[0], &r[1], &r[2], &r[3]))
		return false;
	return r[reg] >> bit & 1;
}

static inline bool cpu_has_osxsave(void)
{
	return cpu_bit(1, 0, 2, 27);
}

/* NULL if R16-R31 can be used, else the reason why not. */
static inline const char *apx_missing(void)
{
	u32 max7, ebx, ecx, edx;

	if (!__get_cpuid_count(7, 0, &max7, &ebx, &ecx, &edx) || max7 < 1 ||
	    !cpu_bit(7, 1, 3, 21))
		return "the CPU has no APX: CPUID.7.1:EDX[21] is 0";
	if (!cpu_has_osxsave())
		return "the OS did not set CR4.OSXSAVE";
	if (!(xgetbv(0) & XBIT_APX))
		return "the OS did not enable APX: XCR0[19] is 0";
	return NULL;
}

/* Offset of R16-R31 in a standard-format XSAVE area. */
static inline u32 apx_offset(void)
{
	u32 eax, ebx, ecx, edx;

	__cpuid_count(0xd, XFEATURE_APX, eax, ebx, ecx, edx);
	return ebx;
}

/* xorshift64*: the seed is printed, so that a failure can be replayed. */
static u64 rng_state = 1;

static inline void rng_seed(u64 seed)
{
	rng_state = seed * 0x9e3779b97f4a7c15ull | 1;
}

static inline u64 rng(void)
{
	rng_state ^= rng_state >> 12;
	rng_state ^= rng_state << 25;
	rng_state ^= rng_state >> 27;
	return rng_state * 0x2545f4914f6cdd1dull;
}

static inline u32 rng_below(u32 n)
{
	return (rng() >> 32) % n;
}

#endif /* APX_TEST_H */
