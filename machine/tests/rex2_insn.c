// SPDX-License-Identifier: GPL-2.0
/*
 * REX2: do instructions that name R16-R31 do what they should?
 *
 * 1. A table of byte strings with effects worked out by hand (rex2_cases.h).
 * 2. A sweep over the opcodes of maps 0 and 1 that user space can run.  The
 *    model is the CPU itself without REX2: an instruction in its REX form, the
 *    same in its REX2 form with the same registers, and the REX2 form with
 *    registers renamed to R16-R31 must leave the same state, the last one
 *    after renaming the registers back.
 * 3. What must raise #UD.
 * 4. Code that modifies itself.
 *
 * Usage: rex2_insn [-s seed] [-n trials] [--shim]
 *   --shim runs 1 and 2 on a CPU without APX, see rex2_shim.h.
 * Exit status: 0 pass, 1 fail, 4 skipped: the CPU or the OS has no APX.
 */
#define _GNU_SOURCE
#include <time.h>

#include "rex2_run.h"
#include "rex2_shim.h"
#include "rex2_sweep.h"
#include "rex2_cases.h"

#define MAX_REPORTS 5		/* failures reported for each line of output */

static bool use_shim;
static u64 seed = SEED;
static u32 trials = TRIALS;
static u8 mem_in[MEM_SIZE], mem_want[MEM_SIZE];

/* ------------------------------------------------------------------------
 * 1. Cases worked out by hand
 */
struct expect {
	struct cpu cpu;
	u32 flags_any;
	u32 gpr_any;
	bool fx_any, rip_set;
	u8 mem_any[MEM_SIZE];
};

struct where {
	u64 start, end;
	const struct cpu *in;
};

static u64 fs_base(void)
{
	u64 base = 0;

	syscall(SYS_arch_prctl, ARCH_GET_FS, &base);
	return base;
}

static void __attribute__((noreturn)) bad_case(const char *what)
{
	printf("Bail out! bad test case: %s\n", what);
	exit(EXIT_FAIL);
}

static int find_reg(const char *s, size_t n)
{
	int i;

	for (i = 0; i < NR_GPR; i++)
		if (strlen(reg_name(i)) == n && !strncmp(s, reg_name(i), n))
			return i;
	return -1;
}

/* The length of a register's name at @s, or 0. */
static size_t reg_len(const char *s)
{
	size_t n;

	for (n = 3; n >= 2; n--)
		if (s[0] == 'r' && strlen(s) >= n && find_reg(s, n) >= 0)
			return n;
	return 0;
}

static u64 value(const char *s, const struct where *w)
{
	const char *all = s;
	char *end;
	u64 v = 0;
	size_t n;

	n = reg_len(s);
	if (n) {
		v = w->in->gpr[find_reg(s, n)];
		s += n;
	} else {
		switch (*s) {
		case 'M': v = MEM_BASE; s++; break;
		case 'S': v = STACK_TOP; s++; break;
		case 'I': v = w->start; s++; break;
		case 'N': v = w->end; s++; break;
		case 'L': v = PAD_ADDR; s++; break;
		case 'F': v = fs_base(); s++; break;
		case 'P': v = getpid(); s++; break;
		case 'X': v = xgetbv(0) & 0xffffffff; s++; break;
		}
	}
	if (!*s && s != all)
		return v;
	if (*s == '-')
		v -= strtoull(s + 1, &end, 16);
	else
		v += strtoull(s + (*s == '+'), &end, 16);
	if (*end || end == s)
		bad_case(all);
	return v;
}

static int flag_bit(const char *name)
{
	static const struct { char name[3]; int bit; } flags[] = {
		{ "cf", 0 }, { "pf", 2 }, { "af", 4 }, { "zf", 6 }, { "sf", 7 },
		{ "df", 10 }, { "of", 11 },
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(flags); i++)
		if (!strcmp(name, flags[i].name))
			return flags[i].bit;
	return -1;
}

static u32 flag_letters(const char *s)
{
	u32 f = 0;

	for (; *s; s++) {
		switch (*s) {
		case 'O': f |= 0x800; break;
		case 'S': f |= 0x80; break;
		case 'Z': f |= 0x40; break;
		case 'A': f |= 0x10; break;
		case 'P': f |= 0x04; break;
		case 'C': f |= 0x01; break;
		case '-': break;
		default: bad_case(s);
		}
	}
	return f;
}

/* Apply one name=value to the state; @e is NULL for the state before. */
static void apply(char *token, struct cpu *c, u8 *m, struct expect *e, const struct where *w)
{
	char *val = strchr(token, '='), *close;
	u64 v, addr;
	u32 v32;
	int bit, size;

	if (!val)
		bad_case(token);
	*val++ = 0;
	bit = flag_bit(token);
	if (bit >= 0) {
		if (*val == '*') {
			e->flags_any |= 1u << bit;
			return;
		}
		c->rflags = (c->rflags & ~(1ull << bit)) | value(val, w) << bit;
		if (e)
			e->flags_any &= ~(1u << bit);
	} else if (!strcmp(token, "fl")) {
		if (*val == '*')
			e->flags_any = FL_STATUS;
		else
			c->rflags = (c->rflags & ~(u64)FL_STATUS) | flag_letters(val);
	} else if (find_reg(token, strlen(token)) >= 0) {
		bit = find_reg(token, strlen(token));
		if (*val == '*')
			e->gpr_any |= 1u << bit;
		else
			c->gpr[bit] = value(val, w);
	} else if (token[0] == 'x' && (token[1] == 'l' || token[1] == 'h')) {
		v = value(val, w);
		memcpy(c->fx + XS_XMM0 + 16 * atoi(token + 2) + 8 * (token[1] == 'h'), &v, 8);
	} else if (!strcmp(token, "mxcsr")) {
		v32 = value(val, w);
		memcpy(c->fx + XS_MXCSR, &v32, 4);
	} else if (token[1] == '[' && (close = strchr(token, ']'))) {
		*close = 0;
		addr = value(token + 2, w) - MEM_BASE;
		size = token[0] == 'q' ? 8 : token[0] == 'd' ? 4 : token[0] == 'w' ? 2 : 1;
		if (addr > MEM_SIZE - size)
			bad_case(token);
		v = value(val, w);
		memcpy(m + addr, &v, size);
		if (e)
			memset(e->mem_any + addr, 0, size);
	} else if (!e) {
		bad_case(token);
	} else if (!strcmp(token, "mem")) {
		memset(e->mem_any, 1, MEM_SIZE);
	} else if (!strcmp(token, "fx")) {
		e->fx_any = true;
	} else if (!strcmp(token, "trap")) {
		c->trap = value(val, w);
		if (!e->rip_set)
			c->rip = w->start;
	} else if (!strcmp(token, "err")) {
		c->err = value(val, w);
	} else if (!strcmp(token, "cr2")) {
		c->cr2 = value(val, w);
	} else if (!strcmp(token, "rip")) {
		c->rip = value(val, w);
		e->rip_set = true;
	} else {
		bad_case(token);
	}
}

static void apply_all(const char *list, struct cpu *c, u8 *m, struct expect *e,
		      const struct where *w)
{
	char buf[256], *token, *save;

	snprintf(buf, sizeof(buf), "%s", list);
	for (token = strtok_r(buf, " ", &save); token; token = strtok_r(NULL, " ", &save))
		apply(token, c, m, e, w);
}

/* Bytes of a case; with @w NULL only the length counts. */
static int assemble(const char *text, u8 *out, const struct where *w)
{
	static const struct cpu no_regs;
	struct where none = { .in = &no_regs };
	char buf[256], *token, *save, *end;
	int n = 0;
	u64 v;

	snprintf(buf, sizeof(buf), "%s", text);
	if (!w)
		w = &none;
	for (token = strtok_r(buf, " ", &save); token; token = strtok_r(NULL, " ", &save)) {
		if (n + 8 > MAX_INSN)
			bad_case(text);
		switch (*token) {
		case '@':
			v = value(token + 1, w);
			memcpy(out + n, &v, 8);
			n += 8;
			break;
		case '=':
		case '$':
			v = value(token + 1, w) - (*token == '$' ? w->end : 0);
			memcpy(out + n, &v, 4);
			n += 4;
			break;
		default:
			out[n++] = strtoul(token, &end, 16);
			if (*end)
				bad_case(text);
		}
	}
	return n;
}

static bool hand_run(const struct hand_case *h, bool step, bool straddle, bool report)
{
	static struct expect e;
	struct cpu in, got;
	struct where w = { .in = &in };
	u8 insn[MAX_INSN];
	int len, i;
	bool ok = true;

	random_state(&in, mem_in);
	len = assemble(h->bytes, insn, NULL);
	w.end = random_end(straddle, len);
	w.start = w.end - len;
	assemble(h->bytes, insn, &w);
	apply_all(h->in, &in, mem_in, NULL, &w);

	memset(&e, 0, sizeof(e));
	e.cpu = in;
	e.cpu.trap = TRAP_NONE;
	e.cpu.rip = w.end;
	memcpy(mem_want, mem_in, MEM_SIZE);
	apply_all(h->out, &e.cpu, mem_want, &e, &w);

	if (!use_shim)
		run(w.end, insn, len, &in, mem_in, step, &got);
	else if (!shim_run(w.end, insn, len, &in, mem_in, step, &got))
		return true;

	for (i = 0; i < NR_GPR; i++)
		if (e.gpr_any >> i & 1)
			got.gpr[i] = e.cpu.gpr[i];
	got.rflags ^= (got.rflags ^ e.cpu.rflags) & e.flags_any;
	if (e.fx_any)
		memcpy(got.fx, e.cpu.fx, sizeof(got.fx));
	ok = same_regs(&e.cpu, &got) && got.trap == e.cpu.trap && got.err == e.cpu.err &&
	     got.cr2 == e.cpu.cr2 && got.rip == e.cpu.rip;
	for (i = 0; i < (int)MEM_SIZE; i++) {
		if (e.mem_any[i] || mem[i] == mem_want[i])
			continue;
		ok = false;
		if (!report)
			break;
		ktap_note("%s(%s): memory at M+%x is %02x, expected %02x", hex(insn, len),
			  h->name, i, mem[i], mem_want[i]);
		break;
	}
	if (!ok && report) {
		ktap_note("%s(%s) failed%s%s", hex(insn, len), h->name,
			  step ? ", single step" : "", straddle ? ", across pages" : "");
		print_diff("effect", &in, &e.cpu, &got);
	}
	return ok;
}

static bool have_feature(unsigned int flags)
{
	return !((flags & FSGSBASE && !cpu_bit(7, 0, 1, 0)) ||
		 (flags & RDRAND && !cpu_bit(1, 0, 2, 30)) ||
		 (flags & RDPID && !cpu_bit(7, 0, 2, 22)) ||
		 (flags & POPCNT && !cpu_bit(1, 0, 2, 23)));
}

static void test_hand(const struct hand_group *g)
{
	u32 i, t, failed = 0, cases = 0, skipped = 0;

	for (i = 0; i < g->nr; i++) {
		const struct hand_case *h = &g->cases[i];
		bool ok = true;

		if (!have_feature(h->flags) || (use_shim && h->flags & NOSHIM)) {
			skipped++;
			continue;
		}
		cases++;
		for (t = 0; ok && t < 8; t++) {
			bool step = t & 1;

			if (step ? h->flags & DIRECT : h->flags & STEP)
				continue;
			ok = hand_run(h, step, t & 2, failed < MAX_REPORTS);
		}
		failed += !ok;
	}
	if (use_shim && !cases)
		return ktap_skip(g->name, "nothing has a legacy counterpart");
	ktap_result(!failed && cases, "%s by hand: %u cases, %u failed, %u not applicable",
		    g->name, cases, failed, skipped);
}

/* Every register to and from RAX, the forms that a hypervisor's code uses. */
static void test_accessors(void)
{
	u32 failed = 0, i;

	for (i = 0; i < 16; i++) {
		const u8 get[4] = { 0xd5, 0x48 | (i >> 3) << 2, 0x89, 0xc0 | (i & 7) << 3 };
		const u8 put[4] = { 0xd5, 0x18 | i >> 3, 0x89, 0xc0 | (i & 7) };
		struct cpu in, want, got;

		random_state(&in, mem_in);
		want = in;
		want.gpr[0] = in.gpr[16 + i];
		run(random_end(false, 4), get, 4, &in, mem_in, false, &got);
		if (got.trap != TRAP_NONE || !same_regs(&want, &got)) {
			print_diff("mov from EGPR", &in, &want, &got);
			failed++;
		}
		want = in;
		want.gpr[16 + i] = in.gpr[0];
		run(random_end(false, 4), put, 4, &in, mem_in, false, &got);
		if (got.trap != TRAP_NONE || !same_regs(&want, &got)) {
			print_diff("mov to EGPR", &in, &want, &got);
			failed++;
		}
	}
	ktap_result(!failed, "each of R16-R31 to and from RAX: 32 cases, %u failed", failed);
}

/* ------------------------------------------------------------------------
 * 2. Sweep: REX form against REX2 form
 */
/* Renaming: pairs of registers that change places. */
struct renaming {
	int n, lo[4], hi[4];
};

static int rename_reg(struct renaming *rn, int lo, u32 which)
{
	int i, hi;

	for (i = 0; i < rn->n; i++)
		if (rn->lo[i] == lo)
			return rn->hi[i];
	if (!(which >> rn->n & 1)) {
		hi = lo;
	} else {
again:
		hi = 16 + rng_below(16);
		for (i = 0; i < rn->n; i++)
			if (rn->hi[i] == hi)
				goto again;
	}
	rn->lo[rn->n] = lo;
	rn->hi[rn->n++] = hi;
	return hi;
}

static void swap_regs(const struct renaming *rn, struct cpu *c)
{
	int i;
	u64 v;

	for (i = 0; i < rn->n; i++) {
		v = c->gpr[rn->lo[i]];
		c->gpr[rn->lo[i]] = c->gpr[rn->hi[i]];
		c->gpr[rn->hi[i]] = v;
	}
}

static bool same_outcome(const struct cpu *a, const struct cpu *b)
{
	return same_regs(a, b) && a->trap == b->trap && a->err == b->err && a->cr2 == b->cr2 &&
	       a->rip == b->rip;
}

/* RIP relative to the instruction, as its forms differ in length. */
static void normalize_rip(struct cpu *c, u64 end, int len)
{
	if (c->rip == end - len)
		c->rip = 0;
	else if (c->rip == end)
		c->rip = 1;
}

struct tally {
	u64 cases, failed, faults;
};

/* One pair: run @len bytes in state @in, compare with @want and mem_want. */
static bool compare_form(const char *what, u64 end, const u8 *insn, int len, const struct cpu *in,
			 const struct cpu *want, bool step, struct tally *t, const u8 *legacy,
			 int legacy_len)
{
	struct cpu got, too_long;
	bool same_mem;

	/* #UD and too long: which one comes first is not said */
	if (len > 15 && want->trap == TRAP_UD)
		return true;
	if (!use_shim)
		run(end, insn, len, in, mem_in, step, &got);
	else if (!shim_run(end, insn, len, in, mem_in, step, &got))
		return true;
	normalize_rip(&got, end, len);
	if (len > 15) {			/* the REX form is shorter */
		too_long = *in;
		too_long.trap = TRAP_GP;
		too_long.rip = too_long.err = too_long.cr2 = 0;
		want = &too_long;
	}
	same_mem = !memcmp(mem, len > 15 ? mem_in : mem_want, MEM_SIZE);
	t->cases++;
	t->faults += got.trap != TRAP_NONE;
	if (same_outcome(want, &got) && same_mem)
		return true;
	if (t->failed++ < MAX_REPORTS) {
		ktap_note("%s: %sagainst %s%s", what, hex(insn, len), hex(legacy, legacy_len),
			  step ? "(single step)" : "");
		print_diff("REX2", in, want, &got);
		if (!same_mem)
			ktap_note("  memory differs");
		if (t->failed == 1)
			print_input(in);
	}
	return false;
}

static void sweep_one(const struct row *row, int op, int pfx, bool w, int digit, bool is_mem,
		      struct tally *same, struct tally *renamed)
{
	u8 legacy[MAX_INSN], rex2[MAX_INSN], junk = use_shim ? 0 : rng();
	int llen, len;
	struct cpu in, in2, want, want2;
	struct renaming rn = { 0 };
	struct insn n;
	bool step = rng_below(16) == 0;
	u64 end = random_end(rng_below(8) == 0, 4);
	u32 which;

	/* TF shows in pushed flags, and in what a trap instruction does */
	if (row->map == 0 && (op == 0x9c || op == 0x9d || op == 0xcc || op == 0xf1))
		step = false;

	make_insn(row, op, pfx, w, digit, is_mem, &n, &in, mem_in);
	llen = encode(&n, false, end, 0, legacy);
	run(end, legacy, llen, &in, mem_in, step, &want);
	normalize_rip(&want, end, llen);
	memcpy(mem_want, mem, MEM_SIZE);

	len = encode(&n, true, end, junk & 0x15, rex2);	/* fourth bits only: R3 X3 B3 */
	compare_form("same registers", end, rex2, len, &in, &want, step, same, legacy, llen);

	/* Usually all, sometimes only some of the registers get a new name. */
	which = rng_below(2) ? 7 : rng_below(8);
	if (n.plusr || (n.modrm && !is_mem && row->rm == GPR))
		n.rm = rename_reg(&rn, n.rm, which);
	if (row->reg == GPR)
		n.reg = rename_reg(&rn, n.reg, which);
	if (n.base >= 0)
		n.base = rename_reg(&rn, n.base, which);
	if (n.index >= 0)
		n.index = rename_reg(&rn, n.index, which);
	in2 = in;
	swap_regs(&rn, &in2);
	want2 = want;
	swap_regs(&rn, &want2);
	len = encode(&n, true, end, junk, rex2);
	compare_form("renamed", end, rex2, len, &in2, &want2, step, renamed, legacy, llen);
}

static void sweep_row(const struct row *row, struct tally *same, struct tally *renamed)
{
	int op, pfx, digit, form, w;
	u32 t, n = trials;

	for (op = row->first; op <= row->last; op += row->flags & PLUSR ? 8 : 1) {
		for (pfx = 1; pfx <= P_F2; pfx <<= 1) {
			if (!(row->pfx & pfx))
				continue;
			for (digit = 0; digit < 8; digit++) {
				if (row->reg == DIG && !(row->digits >> digit & 1))
					continue;
				if (row->reg != DIG && digit)
					break;
				for (form = 0; form < 4; form++) {
					w = form & 1;
					if (form & 2 && (row->reg == NONE || row->flags & NOREG))
						continue;
					if (!(form & 2) && row->reg != NONE && row->flags & NOMEM)
						continue;
					/* rows of one form deserve as many trials */
					for (t = 0; t < n * (row->reg == DIG ? 1 : 3); t++)
						sweep_one(row, op, pfx, w, digit,
							  row->reg != NONE && !(form & 2),
							  same, renamed);
				}
			}
		}
	}
}

static void sweep_result(const char *what, const struct tally *t)
{
	ktap_result(!t->failed && t->cases, "sweep %s: %llu cases, %llu failed, %llu faulted",
		    what, (unsigned long long)t->cases, (unsigned long long)t->failed,
		    (unsigned long long)t->faults);
}

static void test_sweep(void)
{
	struct tally same[3] = { 0 }, renamed[3] = { 0 };
	static const char * const names[3] = { "map 0", "map 1 integer", "map 1 vector" };
	char what[64];
	size_t i;
	int k;

	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		const struct row *r = &rows[i];
		bool vector = r->reg >= XMM || r->rm >= XMM || r->first == 0x77;

		k = r->map == 0 ? 0 : vector ? 2 : 1;
		sweep_row(r, &same[k], &renamed[k]);
	}
	for (k = 0; k < 3; k++) {
		snprintf(what, sizeof(what), "%s, REX2 with the registers of REX", names[k]);
		sweep_result(what, &same[k]);
		snprintf(what, sizeof(what), "%s, REX2 with R16-R31", names[k]);
		sweep_result(what, &renamed[k]);
	}
}

/* ------------------------------------------------------------------------
 * 3. What must raise #UD
 */
static struct tally ud;

static void expect_ud(const u8 *insn, int len)
{
	u64 end = random_end(false, len);
	struct cpu in, want, got;

	random_state(&in, mem_in);
	in.gpr[0] = 0x80003;			/* EDX:EAX for XSAVE and friends */
	in.gpr[1] = 0;				/* ECX: MSR, port, count */
	in.gpr[2] = 0;
	in.gpr[6] = MEM_BASE + 0x100;
	in.gpr[7] = MEM_BASE + 0x200;
	want = in;
	want.trap = TRAP_UD;
	want.err = want.cr2 = 0;
	want.rip = end - len;
	run(end, insn, len, &in, mem_in, false, &got);
	ud.cases++;
	if (same_outcome(&want, &got) && !memcmp(mem, mem_in, MEM_SIZE))
		return;
	if (ud.failed++ < MAX_REPORTS) {
		ktap_note("%sshould be #UD", hex(insn, len));
		print_diff("#UD", &in, &want, &got);
		if (memcmp(mem, mem_in, MEM_SIZE))
			ktap_note("  memory changed");
	}
}

static void ud_result(const char *what)
{
	ktap_result(!ud.failed && ud.cases, "#UD: %s: %llu cases, %llu failed", what,
		    (unsigned long long)ud.cases, (unsigned long long)ud.failed);
	memset(&ud, 0, sizeof(ud));
}

/*
 * D5 payload opcode tail, for all payloads of one map, some of them also with
 * a prefix in front.  The tail makes the bytes harmless and complete if the
 * machine does execute them.
 */
static void ud_payloads(int map, u8 op, const char *tail, int tail_len)
{
	static const u8 prefixes[] = { 0x66, 0x67, 0xf2, 0xf3, 0x2e, 0x64, 0x65 };
	u8 insn[MAX_INSN] = { 0, 0xd5 };
	int p;

	insn[3] = op;
	memcpy(insn + 4, tail, tail_len);
	for (p = map << 7; p < (map + 1) << 7; p++) {
		insn[2] = p;
		expect_ud(insn + 1, 3 + tail_len);
		if (rng_below(4))
			continue;
		insn[0] = prefixes[rng_below(ARRAY_SIZE(prefixes))];
		expect_ud(insn, 4 + tail_len);
	}
}

static void test_ud_rows(void)
{
	/* What follows a prefix or escape byte when it is taken for one. */
	static const struct { u8 op; const char *tail; int len; } escapes[] = {
		{ 0x0f, "\x1f\xc0", 2 }, { 0x26, "\x90", 1 }, { 0x2e, "\x90", 1 },
		{ 0x36, "\x90", 1 }, { 0x3e, "\x90", 1 }, { 0x64, "\x90", 1 },
		{ 0x65, "\x90", 1 }, { 0x66, "\x90", 1 }, { 0x67, "\x90", 1 },
		{ 0xf0, "\x83\x06\x00", 3 }, { 0xf2, "\x90", 1 }, { 0xf3, "\x90", 1 },
		{ 0x62, "\xf1\x7c\x08\x28\xc0", 5 }, { 0xc4, "\xe1\x78\x77", 3 },
		{ 0xc5, "\xf8\x77", 2 }, { 0xd5, "\x18\x89\xc0", 3 },
	};
	/* #UD in 64-bit mode with any prefix. */
	static const u8 invalid[] = {
		0x06, 0x07, 0x0e, 0x16, 0x17, 0x1e, 0x1f, 0x27, 0x2f, 0x37, 0x3f, 0x60, 0x61,
		0x82, 0x9a, 0xce, 0xd4, 0xd6,
	};
	/* What follows A4-AF, E0-EF: immediates that lead to the next insn. */
	static const char zeros[8];
	int op;
	size_t i;

	for (op = 0x40; op <= 0x4f; op++)
		ud_payloads(0, op, "\x90", 1);
	ud_result("map 0 row 4 (REX)");
	for (op = 0x70; op <= 0x7f; op++)
		ud_payloads(0, op, zeros, 1);
	ud_result("map 0 row 7 (Jcc)");
	for (op = 0xa0; op <= 0xaf; op++) {
		int len = op < 0xa4 ? 8 : op == 0xa8 ? 1 : op == 0xa9 ? 4 : 0;

		if (op != 0xa1)
			ud_payloads(0, op, zeros, len);
	}
	ud_result("map 0 row A but JMPABS");
	for (op = 0xe0; op <= 0xef; op++)
		ud_payloads(0, op, zeros, op == 0xe8 || op == 0xe9 ? 4 :
			    op < 0xe8 || op == 0xeb ? 1 : op == 0xea ? 6 : 0);
	ud_result("map 0 row E");
	for (i = 0; i < ARRAY_SIZE(escapes); i++)
		ud_payloads(0, escapes[i].op, escapes[i].tail, escapes[i].len);
	ud_result("prefix and escape bytes behind REX2");
	for (i = 0; i < ARRAY_SIZE(invalid); i++)
		ud_payloads(0, invalid[i], "\xc0\0\0\0\0\0", 6);
	ud_result("opcodes invalid in 64-bit mode");

	for (op = 0x30; op <= 0x3f; op++) {
		if (op == 0x38)			/* 38 C8: SHA1NEXTE, 38 00: PSHUFB */
			ud_payloads(1, op, "\x00\xc0", 2);
		else if (op == 0x3a)		/* PALIGNR */
			ud_payloads(1, op, "\x0f\xc0\x00", 3);
		else
			ud_payloads(1, op, "", 0);
	}
	ud_result("map 1 row 3, with 38 and 3A");
	for (op = 0x80; op <= 0x8f; op++)
		ud_payloads(1, op, zeros, 4);
	ud_result("map 1 row 8 (Jcc)");
	ud_payloads(1, 0x0f, "\xc0\x9e", 2);
	ud_payloads(1, 0x0b, "", 0);
	ud_payloads(1, 0xb9, "\xc0", 1);
	ud_payloads(1, 0xff, "\xc0", 1);
	ud_payloads(1, 0x04, "", 0);
	ud_payloads(1, 0x0a, "", 0);
	ud_payloads(1, 0x0c, "", 0);
	ud_payloads(1, 0xa6, "\xc0", 1);
	ud_payloads(1, 0xa7, "\xc0", 1);
	ud_result("3DNow!, UD0-2 and empty opcodes of map 1");
}

/* Without a REX2 these would load or store state at the scratch page. */
static void test_ud_xsave(void)
{
	static const struct { u8 op, digit; } members[] = {
		{ 0xae, 4 }, { 0xae, 5 }, { 0xae, 6 },	/* XSAVE, XRSTOR, XSAVEOPT */
		{ 0xc7, 3 }, { 0xc7, 4 }, { 0xc7, 5 },	/* XRSTORS, XSAVEC, XSAVES */
	};
	/* M+140, absolute: no register is involved unless X says so */
	u8 insn[9] = { 0xd5, 0, 0, 0, 0x25, 0x40, 0x01, 0x00, 0x30 };
	size_t i;
	int p;

	for (i = 0; i < ARRAY_SIZE(members); i++) {
		for (p = 0x80; p < 0x100; p++) {
			insn[1] = p;
			insn[2] = members[i].op;
			insn[3] = members[i].digit << 3 | 6;		/* (%rsi) or kin */
			expect_ud(insn, 4);
			insn[3] = members[i].digit << 3 | 4;
			if (!(p & 0x22))
				expect_ud(insn, 9);
		}
	}
	ud_result("XSAVE family");
}

static void test_ud_prefixes(void)
{
	static const u8 bad[] = { 0x66, 0x67, 0xf2, 0xf3, 0xf0 };
	u8 insn[MAX_INSN];
	int rex, p, map;
	size_t i;

	/* REX directly in front of D5: mov and nop, all payloads */
	for (rex = 0x40; rex < 0x50; rex++) {
		for (p = 0; p < 0x100; p++) {
			map = p >> 7;
			insn[0] = rex;
			insn[1] = 0xd5;
			insn[2] = p;
			insn[3] = map ? 0x1f : 0x89;
			insn[4] = 0xc0;
			expect_ud(insn, 5);
		}
	}
	ud_result("REX directly before REX2");

	/* LOCK: register destinations, then opcodes that cannot be locked */
	for (p = 0; p < 0x100; p++) {
		static const u8 map0[][2] = {
			{ 0x01, 0xc0 }, { 0x03, 0xc0 }, { 0x39, 0xc0 }, { 0x87, 0xc0 },
			{ 0x89, 0x06 }, { 0x8b, 0x06 }, { 0x85, 0x06 }, { 0x8d, 0x06 },
			{ 0xff, 0xc0 }, { 0xff, 0x36 }, { 0xf7, 0xd0 }, { 0xd3, 0x26 },
		};
		static const u8 map1[][2] = {
			{ 0xb1, 0xc0 }, { 0xc1, 0xc0 }, { 0xab, 0xc0 }, { 0xa3, 0x06 },
			{ 0xaf, 0x06 }, { 0x44, 0x06 }, { 0xb6, 0x06 }, { 0x94, 0x06 },
			{ 0x1f, 0x06 }, { 0xa5, 0x06 }, { 0xbc, 0x06 }, { 0x6f, 0x06 },
		};

		insn[0] = 0xf0;
		insn[1] = 0xd5;
		insn[2] = p;
		for (i = 0; i < ARRAY_SIZE(map0); i++) {
			memcpy(insn + 3, p & 0x80 ? map1[i] : map0[i], 2);
			expect_ud(insn, 5);
		}
		insn[3] = p & 0x80 ? 0xc8 : 0x90;	/* BSWAP, XCHG or NOP */
		expect_ud(insn, 4);
	}
	ud_result("LOCK where it is not allowed");

	/* JMPABS: W=1 with all payloads, and the prefixes it does not take */
	memset(insn, 0, sizeof(insn));
	for (p = 0; p < 0x80; p++) {
		u64 pad = PAD_ADDR;

		insn[1] = 0xd5;
		insn[2] = p;
		insn[3] = 0xa1;
		memcpy(insn + 4, &pad, 8);
		if (p & 8) {
			expect_ud(insn + 1, 11);
			continue;
		}
		for (i = 0; i < ARRAY_SIZE(bad); i++) {
			insn[0] = bad[i];
			expect_ud(insn, 12);
		}
	}
	ud_result("JMPABS with W, 66, 67, F2, F3 or LOCK");
}

/* JMPABS itself with all payloads that are allowed. */
static void test_jmpabs_payloads(void)
{
	struct cpu in, want, got;
	u64 pad = PAD_ADDR, end;
	u32 failed = 0, cases = 0;
	u8 insn[11] = { 0xd5, 0, 0xa1 };
	int p;

	memcpy(insn + 3, &pad, 8);
	for (p = 0; p < 0x80; p++) {
		if (p & 8)
			continue;
		insn[1] = p;
		end = random_end(p & 1, 11);
		random_state(&in, mem_in);
		run(end, insn, 11, &in, mem_in, false, &got);
		want = in;
		want.trap = TRAP_NONE;
		want.err = want.cr2 = 0;
		want.rip = PAD_ADDR;
		cases++;
		if (!same_outcome(&want, &got) && failed++ < MAX_REPORTS) {
			ktap_note("%sfailed", hex(insn, 11));
			print_diff("JMPABS", &in, &want, &got);
		}
	}
	ktap_result(!failed, "JMPABS with all payloads: %u cases, %u failed", cases, failed);
}

/* An insn that reaches into a page that is not there: #PF, nothing done. */
static void test_cut_off(void)
{
	static const struct { u8 len, b[15]; } insns[] = {
		{ 11, { 0xd5, 0x18, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8 } },
		{ 4, { 0xd5, 0x18, 0x89, 0xc0 } },
		{ 3, { 0xd5, 0x10, 0x50 } },
		{ 5, { 0x66, 0xd5, 0x10, 0x89, 0xc0 } },
		{ 9, { 0xd5, 0x78, 0x8b, 0x94, 0xc8, 0, 0, 0, 0 } },
		{ 11, { 0xd5, 0x00, 0xa1 } },
		{ 4, { 0xd5, 0xd8, 0xaf, 0xc8 } },
	};
	u64 edge = CODE_BASE + CODE_SIZE;
	u32 failed = 0, cases = 0, i;
	struct cpu in, want, got;
	int k;

	for (i = 0; i < ARRAY_SIZE(insns); i++) {
		for (k = 1; k < insns[i].len; k++) {
			random_state(&in, mem_in);
			memcpy(mem, mem_in, MEM_SIZE);
			memcpy((u8 *)edge - k, insns[i].b, k);
			run_at(edge - k, 0, &in, false, &got);
			want = in;
			want.trap = TRAP_PF;
			want.rip = edge - k;
			want.cr2 = edge;
			want.err = 0x14;		/* user, instruction fetch */
			cases++;
			if (same_outcome(&want, &got) && !memcmp(mem, mem_in, MEM_SIZE))
				continue;
			if (failed++ < MAX_REPORTS) {
				ktap_note("%scut off by a page", hex(insns[i].b, k));
				print_diff("fetch", &in, &want, &got);
			}
		}
	}
	ktap_result(!failed, "cut off by a page that is not mapped: %u cases, %u failed", cases,
		    failed);
}

/* ------------------------------------------------------------------------
 * 4. Self-modifying code
 */
static bool smc_check(const struct cpu *got, const struct cpu *want, const char *what, int i,
		      u32 *failed)
{
	if (got->trap == TRAP_NONE && same_regs(want, got))
		return true;
	if ((*failed)++ < MAX_REPORTS) {
		ktap_note("%s, round %d", what, i);
		print_diff("smc", want, want, got);
	}
	return false;
}

/*
 * Rewrite an instruction through @alias (another mapping of the code, or the
 * code itself) and run it: its immediate, then its payload, then its opcode.
 */
static u32 smc_rounds(u64 start, u8 *alias, int rounds)
{
	static const u8 mov[11] = { 0xd5, 0x18, 0xb8 };
	struct cpu in, want, got;
	u32 failed = 0;
	int i, hi;
	u64 v;

	random_state(&in, mem_in);
	memcpy(alias, mov, sizeof(mov));
	put_jump(alias + sizeof(mov), run_exit);
	for (i = 0; i < rounds; i++) {
		/* the immediate, sometimes one byte of it only */
		if (i & 1) {
			v = rng();
			memcpy(alias + 3, &v, 8);
		} else {
			alias[3 + i / 2 % 8] = rng();
		}
		memcpy(&v, alias + 3, 8);
		hi = 16 + (alias[1] & 1) * 8 + (alias[2] & 7);
		run_at(start, start + sizeof(mov), &in, false, &got);
		want = in;
		want.gpr[hi] = v;
		smc_check(&got, &want, "immediate rewritten", i, &failed);

		/* one bit of the payload */
		alias[1] ^= 1;
		hi ^= 8;
		run_at(start, start + sizeof(mov), &in, false, &got);
		want = in;
		want.gpr[hi] = v;
		smc_check(&got, &want, "payload rewritten", i, &failed);

		/* B4: down to RAX.. and back */
		alias[1] ^= 0x10;
		run_at(start, start + sizeof(mov), &in, false, &got);
		want = in;
		want.gpr[hi - 16] = v;
		if (hi - 16 != RSP)
			smc_check(&got, &want, "B4 cleared", i, &failed);
		alias[1] ^= 0x10;

		/* a legacy instruction in its place: movabs $v,%rbx; nop */
		alias[0] = 0x90;
		alias[1] = 0x48;
		memcpy(&v, alias + 3, 8);
		alias[2] = 0xbb;
		run_at(start, start + sizeof(mov), &in, false, &got);
		want = in;
		want.gpr[3] = v;
		smc_check(&got, &want, "REX2 became REX", i, &failed);
		alias[0] = 0xd5;
		alias[1] = 0x18 | (i & 1);
		alias[2] = 0xb8 | (i >> 1 & 7);
	}
	return failed;
}

/* A store that begins in the line or page before, where no code has run. */
static void smc_store_from_before(u64 edge, u32 *failed)
{
	struct cpu in, want, got;
	u64 v, store;
	int i;

	random_state(&in, mem_in);
	memset((u8 *)edge - 8, 0xcc, 8);
	memcpy((u8 *)edge, "\xd5\x18\xb8", 3);
	memset((u8 *)edge + 3, 0x11, 8);
	put_jump((u8 *)edge + 11, run_exit);
	for (i = 0; i < 100; i++) {
		/* cc cc cc cc d5 18 b8+r 11: R16 to R23 in turn */
		v = 0x11b818d5ccccccccull | (u64)(i & 7) << 48;
		store = edge - 4;
		*(volatile u64 *)store = v;
		run_at(edge, edge + 11, &in, false, &got);
		want = in;
		want.gpr[16 + (i & 7)] = 0x1111111111111111;
		smc_check(&got, &want, "store from before", i, failed);
	}
}

static void test_smc(void)
{
	u64 page = CODE_BASE + 0x4000;
	u8 *alias;
	u32 failed = 0;
	int i;

	/* every offset to a 128-byte line in reach of the insn, and to a page */
	for (i = 0; i < 14; i++) {
		failed += smc_rounds(page + 0x400 + i, (u8 *)page + 0x400 + i, 100);
		failed += smc_rounds(page + 0x480 - i, (u8 *)page + 0x480 - i, 100);
	}
	smc_store_from_before(page + 0x800, &failed);
	ktap_result(!failed, "self-modifying: rewritten in place and across cache lines, %u failed",
		    failed);

	failed = 0;
	for (i = 0; i < 14; i++)
		failed += smc_rounds(page + 0x1000 - i, (u8 *)page + 0x1000 - i, 100);
	smc_store_from_before(page + 0x3000, &failed);
	ktap_result(!failed, "self-modifying: across pages, %u failed", failed);

	/* old size 0: one more mapping of the same shared pages */
	alias = mremap((void *)CODE_BASE, 0, CODE_SIZE, MREMAP_MAYMOVE);
	if (alias == MAP_FAILED) {
		ktap_result(false, "self-modifying: no second mapping of the code: %s",
			    strerror(errno));
		return;
	}
	failed = 0;
	for (i = 0; i < 14; i++) {
		failed += smc_rounds(page + 0x600 - i, alias + 0x4600 - i, 100);
		failed += smc_rounds(page + 0x1000 - i, alias + 0x5000 - i, 100);
	}
	munmap(alias, CODE_SIZE);
	ktap_result(!failed, "self-modifying: through a second mapping, %u failed", failed);
}

/*
 * An instruction that rewrites the one behind it, in the same run:
 *   d5 10 c6 00 imm8    movb $imm,(%r16)     R16 points to the second insn's
 *   [eb 00]             jmp .+2              byte, with or without a jump
 *   d5 18 b8 imm64      mov $imm,%r16..
 */
static void test_smc_ahead(void)
{
	struct cpu in, want, got;
	u32 failed = 0, cases = 0;
	int i, n, jump, gap;
	u8 insn[MAX_INSN + 64];
	u64 end;

	for (i = 0; i < 400; i++) {
		jump = i & 1;
		gap = i >> 1 & 31;		/* nops between: other lines */
		random_state(&in, mem_in);
		n = 0;
		memcpy(insn, "\xd5\x10\xc6\x00\x19", 5);
		n = 5;
		if (jump) {
			memcpy(insn + n, "\xeb\x00", 2);
			n += 2;
		}
		memset(insn + n, 0x90, gap);
		n += gap;
		memcpy(insn + n, "\xd5\x18\xbf\x88\x77\x66\x55\x44\x33\x22\x11", 11);
		n += 11;
		end = random_end(i & 64, n);
		in.gpr[16] = end - 10;		/* the payload byte: R23 becomes R31 */
		run(end, insn, n, &in, mem_in, false, &got);
		want = in;
		want.gpr[31] = 0x1122334455667788;
		cases++;
		smc_check(&got, &want, jump ? "ahead, jump" : "ahead", i, &failed);
	}
	ktap_result(!failed, "self-modifying: the insn ahead, %u cases, %u failed", cases, failed);
}

/*
 * JMPABS across a cache line or a page, and its target rewritten: nothing
 * behind the jump is decoded with it, so its own bytes must be watched.
 */
static void test_smc_jmpabs(void)
{
	static const u64 edges[] = { 0x480, 0x4c0, 0x1000 };
	/* these differ in one byte from the landing pad */
	const u64 others[] = { PAD_ADDR + 0x10, PAD_ADDR - 0x100 };
	u64 page = CODE_BASE + 0x6000, start, target, v;
	u32 failed = 0, cases = 0, e;
	struct cpu in, want, got;
	int k, i, b;

	put_jump((u8 *)others[0], run_exit);
	put_jump((u8 *)others[1], run_exit);
	random_state(&in, mem_in);
	for (e = 0; e < ARRAY_SIZE(edges); e++) {
		for (k = 0; k < 11; k++) {
			u8 *imm = (u8 *)page + edges[e] - k + 3;

			start = page + edges[e] - k;
			memcpy((u8 *)start, "\xd5\x00\xa1", 3);
			target = PAD_ADDR;
			memcpy(imm, &target, 8);
			for (i = 0; i < 100; i++) {
				target = i & 1 ? others[rng_below(2)] : PAD_ADDR;
				memcpy(&v, imm, 8);
				if (i & 4) {
					memcpy(imm, &target, 8);
				} else {
					for (b = 0; b < 8; b++)	/* what changes only */
						if ((target ^ v) >> 8 * b & 0xff)
							((volatile u8 *)imm)[b] = target >> 8 * b;
				}
				run_at(start, start + 11, &in, false, &got);
				want = in;
				want.trap = TRAP_NONE;
				want.err = want.cr2 = 0;
				want.rip = i & 1 ? start + 11 : PAD_ADDR;
				cases++;
				if (!same_outcome(&want, &got) && failed++ < MAX_REPORTS) {
					ktap_note("JMPABS %d bytes before +%llx, round %d", k,
						  (unsigned long long)edges[e], i);
					print_diff("smc", &in, &want, &got);
				}
			}
		}
	}
	ktap_result(!failed, "self-modifying: the target of JMPABS, %u cases, %u failed", cases,
		    failed);
}

int main(int argc, char **argv)
{
	const char *missing = apx_missing();
	struct timespec t0, t1;
	size_t g;
	int i;

	for (i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--shim")) {
			use_shim = true;
		} else if (!strcmp(argv[i], "-s") && i + 1 < argc) {
			seed = strtoull(argv[++i], NULL, 0);
		} else if (!strcmp(argv[i], "-n") && i + 1 < argc) {
			trials = strtoul(argv[++i], NULL, 0);
		} else {
			fprintf(stderr, "usage: rex2_insn [-s seed] [-n trials] [--shim]\n");
			return EXIT_FAIL;
		}
	}
	if (missing && !use_shim)
		return ktap_skip_all(missing);

	ktap_plan(ARRAY_SIZE(hand_groups) + (use_shim ? 6 : 1 + 6 + 13 + 2 + 5));
	ktap_note("seed %llu", (unsigned long long)seed);
	rng_seed(seed);
	run_init(!use_shim);
	clock_gettime(CLOCK_MONOTONIC, &t0);

	for (g = 0; g < ARRAY_SIZE(hand_groups); g++)
		test_hand(&hand_groups[g]);
	if (!use_shim)
		test_accessors();
	test_sweep();
	if (!use_shim) {
		test_ud_rows();
		test_ud_xsave();
		test_ud_prefixes();
		test_jmpabs_payloads();
		test_cut_off();
		test_smc();
		test_smc_ahead();
		test_smc_jmpabs();
	}
	clock_gettime(CLOCK_MONOTONIC, &t1);
	ktap_note("%llu instructions run in %llu ms", (unsigned long long)run_count,
		  (unsigned long long)((t1.tv_sec - t0.tv_sec) * 1000 +
				       (t1.tv_nsec - t0.tv_nsec) / 1000000));
	return ktap_exit();
}
