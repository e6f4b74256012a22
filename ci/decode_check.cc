// SPDX-License-Identifier: GPL-2.0
//
// Compares Bochs's decoder with LLVM's disassembler and the kernel's insn.c over
// all encodings of some shape: is it an instruction, how long is it, which
// registers, address and immediate does it have, and with EVEX which name?  Links
// the stand-alone decoder of a configured Bochs; LLVM's C interface comes from the
// library that is the first argument.
//
// Usage: decode_check LIBLLVM SWEEP MAP [OPCODE [LAST-OPCODE]]
//   payloads    EVEX: all of P2, and of P1 but for a choice of vvvv; registers 0-7
//   registers   EVEX: all of the register bits, with ND, W and pp; in the maps of
//               vector instructions all lengths instead of ND
//   forms       EVEX: every ModRM, index and base, what may stand in front
//   displacements EVEX: a displacement of a byte, with opcode, W, pp, /digit, vector
//               length, broadcast and a mask
//   rex2        REX2: all payloads of map 0 or 1, each with one prefix or none
//   rex2-forms  REX2: every ModRM, index and base, what may stand in front
// Output: a line for each kind of difference: "MAP OPCODE BOCHS OTHER COUNT"
//   with an example, BOCHS and OTHER being the instruction or "-".  OTHER is
//   "registers", "displacement", "scale", "segment", "immediate" or "mnemonic:LLVM'S"
//   if this differs from LLVM's and the length does not, "ignores:FIELD" or
//   "ignores:PREFIX" if LLVM takes what is none to Bochs, and prints the same
//   when that field has another value or that prefix is left out, with which it
//   is one to Bochs, too; "takes:FIELD" if it is one to both of them in spite of
//   that, in map 4 or 7; and "insn.c:..." for insn.c, which knows opcodes and
//   lengths: "bad" what is an instruction to Bochs, "length", or "good" if Bochs
//   knows nothing of that opcode.  MAP is r0 or r1 with REX2.
//
#include "bochs.h"
#include "cpu/decoder/decoder.h"
#include "cpu/decoder/instr.h"
#include "cpu/decoder/ia_opcodes.h"

#include <ctype.h>
#include <dlfcn.h>
#include <map>
#include <string>

extern int fetchDecode64(const Bit8u *fetchPtr, bxInstruction_c *i, unsigned remainingInPage, bool apx);
extern char *disasm(char *disbufptr, const bxInstruction_c *i, bx_address cs_base, bx_address rip, BxDisasmStyle style);

extern "C" int insn_length(const unsigned char *bytes, int len, int *known);

bx_address bx_asize_mask[4];

typedef void *(*create_fn)(const char *triple, const char *cpu, const char *features, void *, int, void *, void *);
typedef size_t (*disasm_fn)(void *, Bit8u *bytes, Bit64u n, Bit64u pc, char *out, size_t size);

static void *llvm_context;
static disasm_fn llvm_disasm;

struct kind {
	unsigned long count;
	std::string example;
};
static std::map<std::string, kind> kinds;
static unsigned long compared;

// For each opcode: what insn.c takes, and whether Bochs takes anything.
struct opcode {
	bool valid;
	const char *map;
	std::string good;
};
static struct opcode opcodes[256];

static const int MAX_LEN = 15, TEXT = 512;

static int bochs(const Bit8u *b, bxInstruction_c *i)
{
	memset((void *)i, 0, sizeof(*i));
	if (fetchDecode64(b, i, MAX_LEN, true) < 0 || i->getIaOpcode() == BX_IA_ERROR)
		return 0;
	return i->ilen();
}

static int llvm(Bit8u *b, char *text)
{
	text[0] = 0;
	return llvm_disasm(llvm_context, b, MAX_LEN, 0, text, TEXT);
}

enum { GENERAL = 1, VECTOR = 2 };

// The registers of an AT&T text in their order, without their width.
static const char *registers(const char *p, int kinds, char *all)
{
	static const char *const low[] = { "ax", "cx", "dx", "bx", "sp", "bp", "si", "di" };
	char r[16], *end = all;
	int braces = 0, n;

	for (; *p && *p != '#'; p++) {			// comment
		braces += (*p == '{') - (*p == '}');
		if (*p != '%' || braces)
			continue;
		for (n = 0; isalnum(p[1]) && n < 15; n++)
			r[n] = *++p;
		r[n] = 0;
		bool vector = n > 3 && r[1] == 'm' && r[2] == 'm';
		// segment, no index
		if (p[1] == ':' || !strcmp(r + 1, "iz") || !(kinds & (vector ? VECTOR : GENERAL)))
			continue;
		if (vector) {
			end += sprintf(end, "v%s ", r + 3);
		} else if (r[0] == 'r' && isdigit(r[1])) {
			end += sprintf(end, "r%d ", atoi(r + 1));
		} else {
			const char *q = n == 3 && (*r == 'r' || *r == 'e') ? r + 1 : r;
			for (n = 0; n < 8; n++)
				if (!strncmp(q, low[n], 2) && (!q[2] || (q == r && q[2] == 'l' && !q[3])))
					break;
				else if (n < 4 && q[0] == low[n][0] && q[1] == 'l' && !q[2])
					break;
			end += n < 8 ? sprintf(end, "r%d ", n) : sprintf(end, "%s ", r);
		}
	}
	*end = 0;
	return all;
}

static bool same_text_registers(const char *mine, const char *text, int kinds)
{
	char a[TEXT], b[TEXT];

	return !strcmp(registers(mine, kinds, a), registers(text, kinds, b));
}

// The address in LLVM's text, of which there is one at most: segment, displacement,
// and scale; scale 0: there is no index.
struct address {
	bool is;
	int segment;
	Bit32u displacement;
	unsigned scale;
};

static address address_of(const char *text)
{
	address a = { false, BX_SEG_REG_DS, 0, 0 };
	const char *p = text, *end, *index;

	// Where it begins: with a number, which the hash of a comment or the dollar of
	// an immediate is not in front of, or a parenthesis, but not that of %st(1).
	for (; *p && *p != '#'; p++) {
		bool first = p > text && strchr(" \t,:*", p[-1]);
		if ((first && (isdigit(*p) || (*p == '-' && isdigit(p[1])))) || (*p == '(' && !isdigit(p[1])))
			break;
	}
	if (!*p || *p == '#')
		return a;
	a.is = true;
	if (p - text > 3 && p[-1] == ':' && p[-2] == 's')
		a.segment = strcspn("ecsdfg", std::string(1, p[-3]).c_str()); // as Bochs counts them
	a.displacement = strtoll(p, (char **)&p, 10);
	if (*p != '(')
		return a;
	end = strchr(p, ')');
	index = strchr(p, ',');
	if (!end || !index || index > end || !strncmp(index + 3, "iz", 2))
		return a;
	index = strchr(index + 1, ',');
	a.scale = index && index < end ? atoi(index + 1) : 1;
	return a;
}

// What differs between the address of an instruction and LLVM's, or NULL.  That
// there is an index is up to the registers.
static const char *different_address(const bxInstruction_c *i, const char *text)
{
	address a = address_of(text);
	auto base = [](int segment) { return segment < BX_SEG_REG_FS ? 0 : segment; };

	if (!a.is)
		return i->modC0() ? NULL : "displacement";
	// The address of INS, which no prefix changes.
	if (i->modC0() && a.segment == BX_SEG_REG_ES)
		return NULL;
	// In 64-bit mode only FS and GS have a base.
	if (base(a.segment) != base(i->seg()))
		return "segment";
	// Without ModRM it is a mere register.
	if (i->modC0())
		return NULL;
	if (a.displacement != Bit32u(i->displ32s()))
		return "displacement";
	return a.scale && a.scale != 1u << i->sibScale() ? "scale" : NULL;
}

static const char *immediate(const char *p)
{
	while (*p && *p != '$' && *p != '#')
		p++;
	return *p == '$' ? p + 1 : NULL;
}

// Bochs prints as many digits as an immediate has after its extension, LLVM a
// decimal number with a sign or without.
static bool same_immediates(const char *mine, const char *text)
{
	for (;;) {
		char *end;

		mine = immediate(mine);
		text = immediate(text);
		if (!mine || !text)
			return !mine && !text;
		Bit64u a = strtoull(mine, &end, 16), b = *text == '-' ? strtoll(text, NULL, 10) : strtoull(text, NULL, 10);
		int digits = end - mine - 2;
		if (digits < 16)
			b &= (1ULL << 4 * digits) - 1;
		if (a != b)
			return false;
		mine = end;
	}
}

// The name behind {evex}, {nf} and prefixes.
static std::string mnemonic_of(const char *p)
{
	for (;;) {
		p += strspn(p, " \t");
		if (*p == '{') {
			p += strcspn(p, "}") + 1;
			continue;
		}
		size_t n = strcspn(p, " \t");
		if (strncmp(p, "rep", 3) && strncmp(p, "lock ", 5) && strncmp(p, "lock\t", 5) && strncmp(p, "addr32", 6))
			return std::string(p, n);
		p += n;
	}
}

// One of them may have a letter for the width at its end, and LLVM has names of its
// own for some conditions.
static bool same_mnemonic(const char *mine, const char *text)
{
	static const char *const with_condition[] = { "setzu", "set", "cfcmov", "cmov", "ccmp", "ctest", "cmp" };
	static const char *const conditions[][2] = { {"nbe", "a"}, {"nle", "g"}, {"nb", "ae"}, {"nl", "ge"}, {"nz", "ne"}, {"z", "e"} };
	std::string a = mnemonic_of(mine), b = mnemonic_of(text);
	auto longer = [](const std::string &s, const std::string &by) {
		return by.size() == s.size() + 1 && !by.compare(0, s.size(), s) && strchr("bwlqxyz", by.back());
	};

	if (a == b || longer(a, b) || longer(b, a))
		return true;
	for (const char *w : with_condition) {
		size_t n = strlen(w);
		if (a.compare(0, n, w))
			continue;
		for (auto c : conditions)
			if (!a.compare(n, strlen(c[0]), c[0])) {
				a.replace(n, strlen(c[0]), c[1]);
				break;
			}
		break;
	}
	return a == b || longer(a, b) || longer(b, a);
}

static bool is_rex(Bit8u b) { return (b & 0xf0) == 0x40; }

// An encoding: its bytes, how many prefixes there are, the place of ModRM, and how
// to call the map.
struct encoding {
	Bit8u b[32];
	int prefixes, modrm;
	const char *map;
	bool evex;

	Bit8u *at() { return b + prefixes; }
	void without_b4()
	{
		if (evex)
			at()[1] &= ~8;
		else
			at()[1] &= ~0x10;
	}
	void without_prefix(int n)
	{
		memmove(b + n, b + n + 1, sizeof(b) - n - 1);
		prefixes--;
		modrm--;
	}
	// A REX that does not stand last does nothing.
	int without_rex()
	{
		int n = prefixes - 2, dropped = 0;

		for (; n >= 0; n--)
			if (is_rex(b[n]))
				without_prefix(n), dropped++;
		return dropped;
	}
	int prefix(Bit8u p) const
	{
		for (int n = 0; n < prefixes; n++)
			if (b[n] == p)
				return n;
		return -1;
	}
};

// LLVM takes any instruction with LOCK in front: is it one that may have it?
static bool lockable(const char *text)
{
	static const char *const names[] = { "adc", "add", "and", "btc", "btr", "bts", "cmpxchg", "cmpxchg8b",
		"cmpxchg16b", "dec", "inc", "neg", "not", "or", "sbb", "sub", "xadd", "xchg", "xor" };
	const char *end = text + strcspn(text, "#");

	while (end > text && isspace(end[-1]))
		end--;
	// The destination: with a base or an index, a segment, or a mere number.
	const char *last = end;
	while (last > text && !isspace(last[-1]))
		last--;
	if (end == text || (end[-1] != ')' && !isdigit(*last) && *last != '-' && !strchr(last, ':')))
		return false;
	for (const char *word = text; word < end; word += strcspn(word, "\t ")) {
		word += strspn(word, "\t ");
		std::string w(word, strcspn(word, "\t "));
		for (const char *n : names)
			if (w == n || (w.substr(0, w.size() - 1) == n && strchr("bwlq", w.back())))
				return true;
	}
	return false;
}

// What LLVM should say.  It takes R21 or R29 for a base where there is none, LOCK
// for an instruction of its own, and whatever stands in front of EVEX, or REX in
// front of REX2.
static int llvm_of(encoding e, char *text)
{
	Bit8u modrm = e.b[e.modrm];
	int lock = e.prefix(0xf0), len;

	text[0] = 0;
	for (int n = 0; n < e.prefixes; n++) {
		bool rex = is_rex(e.b[n]) && n == e.prefixes - 1;
		if (rex || (e.evex && (e.b[n] == 0x66 || e.b[n] == 0xf0 || (e.b[n] & 0xfe) == 0xf2 || e.b[n] == 0xd5)))
			return 0;
	}
	if (lock >= 0)
		e.without_prefix(lock);
	len = llvm(e.b, text);
	if (modrm < 0x40 && (modrm & 7) == 4 && (e.b[e.modrm + 1] & 7) == 5) {
		char other[TEXT];
		encoding none = e;
		none.without_b4();
		int longer = len ? llvm(none.b, other) : 0;
		if (len && (!longer || longer == len + 4))
			strcpy(text, other), len = longer;
	}
	if (lock < 0)
		return len;
	return len && len < MAX_LEN && lockable(text) ? len + 1 : 0;
}

// LLVM ignores fields that have to have one value.  With that value it prints
// the same.
static const char *const fields[] = { "zL", "aaa", "V", "U", "pp", "ND", "NF", "W", "R" };
static const int FIELDS = sizeof(fields) / sizeof(*fields);

static void fix(Bit8u *b, int field)
{
	switch (field) {
	case 0: b[3] &= ~0xe0; break;			// z, L'L
	case 1: b[3] &= ~3; break;			// aaa without NF
	case 2: b[2] |= 0x78, b[3] |= 8; break;		// V
	case 3: b[2] |= 4; break;			// U
	case 4: b[2] &= ~3; break;			// pp
	case 5: b[3] &= ~0x10; break;			// ND
	case 6: b[3] &= ~4; break;			// NF
	case 7: b[2] &= 0x7f; break;			// W
	case 8: b[1] |= 0x90; break;			// R
	}
}

// Sets which fields those are; 0: none.
static unsigned ignored_fields(const encoding &e, int len, const char *text)
{
	encoding next = e;
	unsigned set = 0;
	bxInstruction_c i;
	char other[TEXT];
	int field;

	for (field = 0; field < FIELDS; field++) {
		encoding one = next;
		fix(one.at(), field);
		if (!memcmp(one.b, next.b, sizeof(one.b)) || llvm_of(one, other) != len || strcmp(text, other))
			continue;
		next = one;
		set |= 1 << field;
		if (bochs(next.b, &i) == len)
			break;
	}
	if (field == FIELDS)
		return 0;
	// No more of them than it takes.
	for (int leave = 0; leave < FIELDS; leave++) {
		next = e;
		for (field = 0; field < FIELDS; field++)
			if (field != leave && set & 1 << field)
				fix(next.at(), field);
		if (set & 1 << leave && bochs(next.b, &i) == len)
			set &= ~(1 << leave);
	}
	return set;
}

// Where an opcode has no form with a prefix, or W=1 hides it, LLVM falls back to
// the form without.
static const Bit8u mandatory[] = { 0x66, 0xf3, 0xf2 };

static unsigned ignored_prefixes(const encoding &e, int len, const char *text)
{
	bxInstruction_c i;
	char other[TEXT];

	for (int size = 1; size <= 3; size++)
	for (unsigned set = 1; set < 8; set++) {
		encoding next = e;
		int n, p;

		if (__builtin_popcount(set) != size)
			continue;
		for (p = 0; p < 3; p++) {
			if (!(set & 1 << p))
				continue;
			if ((n = next.prefix(mandatory[p])) < 0)
				break;
			next.without_prefix(n);
		}
		if (p < 3 || llvm_of(next, other) != len - size || bochs(next.b, &i) != len - size)
			continue;
		const char *rest = other + strspn(other, " \t"), *same = strstr(text, rest);
		if (same && !same[strlen(rest)])
			return set;
	}
	return 0;
}

static std::string example(const Bit8u *b, const char *mine, const char *theirs)
{
	std::string text;
	char hex[8];

	for (int n = 0; n < MAX_LEN; n++) {
		snprintf(hex, sizeof(hex), "%02x ", b[n]);
		text += hex;
	}
	text += std::string("| ") + mine + " | " + theirs;
	for (char &c : text)
		if (c == '\t') c = ' ';
	return text;
}

static void differs(const encoding &e, const char *bochs, const char *other, const char *mine, const char *theirs)
{
	char op[8];

	snprintf(op, sizeof(op), "%02x", e.b[e.modrm - 1]);
	kind &k = kinds[std::string(e.map) + " " + op + " " + bochs + " " + other];
	if (!k.count++)
		k.example = example(e.b, mine, theirs);
}

static void compare_kernel(const encoding &e, int len_bochs, const char *name, const char *mine)
{
	int known = 0, len = insn_length(e.b, MAX_LEN, &known);

	if (len_bochs && !len)
		differs(e, name, "insn.c:bad", mine, "");
	else if (len_bochs && len != len_bochs)
		differs(e, name, "insn.c:length", mine, std::to_string(len).c_str());
	// What is VEX only to others is good with EVEX, too, to insn.c.
	if (e.evex && strchr("12356", *e.map))
		return;
	opcode &o = opcodes[e.b[e.modrm - 1]];
	o.valid |= len_bochs != 0;
	if (len && known && !e.prefixes && o.good.empty()) {
		o.good = example(e.b, "", "");
		o.map = e.map;
	}
}

static int words(const char *p)
{
	int n = 0;

	for (; *p; p++)
		n += *p == ' ';
	return n;
}

// LLVM takes B4, and R4 of REX2, for bits of vector registers, too.  If it has no
// name for that number, ModRM.rm is no general register.  Behind REX2 with W=1 it
// forgets a mandatory prefix.
static bool same_registers(encoding e, int len, const char *mine, const char *text)
{
	char without_w[TEXT], other[TEXT], a[TEXT], b[TEXT];

	if (!strstr(mine, "mm"))
		return same_text_registers(mine, text, GENERAL);
	if (!e.evex && e.prefixes && strstr(mine, "xmm")) {
		e.at()[1] &= ~8;
		if (llvm_of(e, without_w) != len)
			return false;
		text = without_w;
	}
	if (e.b[e.modrm] >= 0xc0)
		e.without_b4();
	if (!e.evex)
		e.at()[1] &= ~0x40;
	if (llvm_of(e, other) != len || !same_text_registers(mine, other, VECTOR))
		return false;
	bool no_name = words(registers(text, VECTOR, a)) < words(registers(other, VECTOR, b));
	return same_text_registers(mine, no_name ? other : text, GENERAL);
}

// What LLVM ignores has one value in the maps of general instructions, but for W
// and R: an instruction with another value is none.
static void compare_fields(const encoding &e, int len, const char *name, const char *mine, const char *text)
{
	char other[TEXT], takes[16];

	for (int field = 0; field < FIELDS && strcmp(fields[field], "W"); field++) {
		encoding one = e;
		Bit8u p1 = one.at()[2];
		// Without an index U is ignored, and 66 with W=1.
		if ((!strcmp(fields[field], "U") && e.b[e.modrm] < 0xc0) ||
		    (!strcmp(fields[field], "pp") && (p1 & 0x83) == 0x81))
			continue;
		fix(one.at(), field);
		if (!memcmp(one.b, e.b, sizeof(one.b)) || llvm_of(one, other) != len || strcmp(text, other))
			continue;
		snprintf(takes, sizeof(takes), "takes:%s", fields[field]);
		differs(e, name, takes, mine, text);
	}
}

// With both: only what both take for an instruction.
static void compare(encoding e, bool both = false)
{
	bxInstruction_c i;
	char text[TEXT], mine[TEXT] = "", ignores[16];
	const char *name = "-", *what;
	unsigned ignored;

	int len_bochs = bochs(e.b, &i);
	// The others take what follows such a REX for the opcode, or forget a prefix.
	int dropped = e.without_rex();
	if (len_bochs)
		len_bochs -= dropped;
	int len_llvm = llvm_of(e, text);
	if (len_llvm + dropped > MAX_LEN)
		len_llvm = 0;
	if (both && (!len_bochs || !len_llvm))
		return;
	if (len_bochs) {
		name = get_bx_opcode_name(i.getIaOpcode()) + 6;
		disasm(mine, &i, 0, 0, BX_DISASM_GAS);
	}
	compared++;
	compare_kernel(e, len_bochs, name, mine);
	if (len_bochs == len_llvm) {
		if (!len_bochs)
			return;
		if (!same_registers(e, len_llvm, mine, text))
			differs(e, name, "registers", mine, text);
		if ((what = different_address(&i, text)))
			differs(e, name, what, mine, text);
		if (!same_immediates(mine, text))
			differs(e, name, "immediate", mine, text);
		// Behind REX2 the names would say little but what prefix LLVM forgets.
		if (e.evex && !same_mnemonic(mine, text))
			differs(e, name, ("mnemonic:" + mnemonic_of(text)).c_str(), mine, text);
		if (e.evex && strchr("47", *e.map))
			compare_fields(e, len_llvm, name, mine, text);
		return;
	}
	if (len_llvm && !len_bochs) {
		ignored = e.evex ? ignored_fields(e, len_llvm, text) : ignored_prefixes(e, len_llvm, text);
		for (int n = 0; ignored >> n; n++) {
			if (!(ignored & 1 << n))
				continue;
			if (e.evex)
				snprintf(ignores, sizeof(ignores), "ignores:%s", fields[n]);
			else
				snprintf(ignores, sizeof(ignores), "ignores:%02x", mandatory[n]);
			differs(e, name, ignores, mine, text);
		}
		if (ignored)
			return;
	}
	differs(e, name, len_llvm ? mnemonic_of(text).c_str() : "-", mine, text);
}

// What stands in front: up to three bytes.
struct front {
	int n;
	Bit8u b[3];
};

static const front rex2_fronts[] = {
	{ 0, {} }, { 1, {0x66} }, { 1, {0xf3} }, { 1, {0xf2} }, { 1, {0x67} }, { 1, {0xf0} },
	// behind these not every ModRM
	{ 1, {0x64} }, { 1, {0x2e} }, { 1, {0x40} }, { 1, {0x4f} }, { 2, {0x48, 0x66} }, { 2, {0x66, 0x48} },
	{ 2, {0x67, 0x66} }, { 2, {0x66, 0xf3} }, { 2, {0xf2, 0x66} }, { 2, {0xf3, 0xf2} }, { 2, {0xf2, 0xf3} },
	{ 2, {0x66, 0xf0} }, { 2, {0x67, 0xf0} }, { 2, {0xf0, 0xf3} }, { 2, {0xf2, 0xf0} }, { 2, {0x65, 0x67} },
	{ 3, {0x66, 0x67, 0xf2} }, { 3, {0x3e, 0xf3, 0x66} }, { 3, {0x4d, 0xf0, 0x36} },
};
static const int SINGLE = 6, MANDATORY = 4;

static const front evex_fronts[] = {
	{ 0, {} }, { 1, {0x67} }, { 1, {0x64} }, { 2, {0x65, 0x67} }, { 2, {0x48, 0x64} }, { 1, {0x66} }, { 1, {0xf3} },
	{ 1, {0xf2} }, { 1, {0xf0} }, { 1, {0x40} }, { 1, {0x4f} }, { 2, {0xd5, 0x00} }, { 2, {0x67, 0x66} },
};

// Every ModRM, and for each that has a SIB some: base, index, none of them.
template <typename F> static void each_form(F f)
{
	static const Bit8u sibs[] = { 0x00, 0x25, 0x61, 0xe4, 0xed, 0xbc };

	for (int modrm = 0; modrm < 256; modrm++)
		for (int s = 0; s < (modrm < 0xc0 && (modrm & 7) == 4 ? 6 : 1); s++)
			f(Bit8u(modrm), sibs[s]);
}

// A register, and the ways to say an address, with each /digit in those of set.
template <typename F> static void each_shape(unsigned set, F f)
{
	static const Bit8u shapes[][2] = { {0xc1, 0}, {0x01, 0}, {0x54, 0x51}, {0x94, 0x61}, {0x05, 0}, {0x14, 0x25} };

	for (int n = 0; n < 6; n++)
		for (int digit = 0; digit < 8; digit++)
			if (set & 1 << n || digit == (shapes[n][0] >> 3 & 7))
				f(Bit8u((shapes[n][0] & 0xc7) | digit << 3), shapes[n][1]);
}

// What follows ModRM: the SIB if there is one, then a displacement and an immediate
// of which no two bytes are the same.
static void finish(encoding &e, Bit8u modrm, Bit8u sib)
{
	static const Bit8u rest[] = { 0x81, 0xf2, 0x63, 0xd4, 0x45, 0xb6, 0x27, 0x98, 0x19, 0x8a, 0x3b, 0xcc };
	Bit8u *b = e.b + e.modrm;

	*b++ = modrm;
	if (modrm < 0xc0 && (modrm & 7) == 4)
		*b++ = sib;
	memcpy(b, rest, sizeof(rest));
}

static void compare_rex2(int map, const front &f, Bit8u payload, Bit8u op, Bit8u modrm, Bit8u sib)
{
	encoding e = { {}, f.n, f.n + 3, map ? "r1" : "r0", false };
	const Bit8u bytes[] = { 0xd5, Bit8u(map << 7 | payload), op };

	memcpy(e.b, f.b, f.n);
	memcpy(e.b + f.n, bytes, sizeof(bytes));
	finish(e, modrm, sib);
	compare(e);
}

static void rex2(int map, int op)
{
	for (int n = 0; n < SINGLE; n++)
		each_shape(0x3f, [&](Bit8u modrm, Bit8u sib) {
			for (int payload = 0; payload < 128; payload++)
				compare_rex2(map, rex2_fronts[n], payload, op, modrm, sib);
		});
}

static void rex2_forms(int map, int op)
{
	for (auto &f : rex2_fronts) {
		auto some = [&](Bit8u modrm, Bit8u sib) {
			for (Bit8u payload : { 0x00, 0x7f, 0x18, 0x45, 0x2a })
				compare_rex2(map, f, payload, op, modrm, sib);
		};
		if (&f - rex2_fronts < MANDATORY)
			each_form(some);
		else
			each_shape(0x3f, some);
	}
}

static encoding evex(int map, const front &f, Bit8u p0, Bit8u p1, Bit8u p2, Bit8u op, Bit8u modrm, Bit8u sib)
{
	static const char *const maps[] = { "0", "1", "2", "3", "4", "5", "6", "7" };
	encoding e = { {}, f.n, f.n + 5, maps[map], true };
	const Bit8u bytes[] = { 0x62, Bit8u((p0 & 0xf8) | map), p1, p2, op };

	memcpy(e.b, f.b, f.n);
	memcpy(e.b + f.n, bytes, sizeof(bytes));
	finish(e, modrm, sib);
	return e;
}

static void payloads(int map, int op)
{
	static const Bit8u vvvv[] = { 0x78, 0x50, 0x08, 0x70 };

	each_shape(0x3, [&](Bit8u modrm, Bit8u sib) {
		for (int p1 = 0; p1 < 32; p1++)
		for (int p2 = 0; p2 < 256; p2++) {
			Bit8u b2 = (p1 & 16) << 3 | vvvv[p1 >> 2 & 3] | (p1 & 3);
			compare(evex(map, evex_fronts[0], 0xf0, b2 | 4, p2, op, modrm, sib));
			if (p2 < 64)
				compare(evex(map, evex_fronts[0], 0xf0, b2, p2, op, modrm, sib));
		}
	});
}

// Has either of them anything at this opcode, with registers below 8?
static bool anything(int map, int op)
{
	bxInstruction_c i;
	char text[TEXT];
	bool is = false;

	each_shape(0x3, [&](Bit8u modrm, Bit8u sib) {
		for (int p1 = 0; p1 < 8 && !is; p1++)
		for (Bit8u p2 : { 0x08, 0x18, 0x28, 0x48 }) {
			encoding e = evex(map, evex_fronts[0], 0xf0, (p1 & 4) << 5 | 0x7c | (p1 & 3), p2, op, modrm, sib);
			is |= bochs(e.b, &i) || llvm(e.b, text);
		}
	});
	return is;
}

static void evex_registers(int map, int op)
{
	static const Bit8u nd[] = { 0x08, 0x00, 0x18, 0x10 }, lengths[] = { 0x08, 0x00, 0x28, 0x48 };
	bool general = map == 4 || map == 7;

	if (!anything(map, op))
		return;
	each_shape(0x5, [&](Bit8u modrm, Bit8u sib) {
		for (int p0 = 0; p0 < 32; p0++)
		for (int p1 = 0; p1 < 32; p1++)
		for (int p2 : general ? nd : lengths) {
			// AVX10.2 gives U=0 another meaning with vector registers
			if (!general && modrm >= 0xc0 && !(p1 & 4))
				continue;
			Bit8u b2 = (p1 & 16) << 3 | (p1 & 8 ? 0x78 : 0x50) | (p1 & 7);
			compare(evex(map, evex_fronts[0], p0 << 3, b2, p2, op, modrm, sib));
		}
	});
}

static void evex_forms(int map, int op)
{
	for (auto &f : evex_fronts) {
		auto some = [&](Bit8u modrm, Bit8u sib) {
			for (Bit8u p0 : { 0xf0, 0x98, 0x28 })
			for (int p1 = 0; p1 < 8; p1++) {
				Bit8u b2 = (p1 & 4) << 5 | (p1 & 3) | 0x7c, nd = map == 4 ? 0x18 : 0x48;
				compare(evex(map, f, p0, b2, 0x08, op, modrm, sib));
				if (f.n)
					continue;
				compare(evex(map, f, p0, b2 & ~0x28, nd, op, modrm, sib));
				if (map != 4)
					continue;
				compare(evex(map, f, p0, b2, 0x0c, op, modrm, sib));
				compare(evex(map, f, p0, b2 & ~0x28, nd | 0x04, op, modrm, sib));
			}
		};
		if (f.n)
			each_shape(0x3f, some);
		else
			each_form(some);
	}
}

// A displacement of a byte counts in units of what the instruction accesses: with
// all that this may depend on.  Where a broadcast or a mask is allowed is not looked
// at: LLVM knows that from the opcode, Bochs not before it runs.
static void displacements(int map, int op)
{
	for (int digit = 0; digit < 8; digit++)
	for (Bit8u rm : { 0, 4 })
	for (int p1 = 0; p1 < 8; p1++)
	for (int length_b = 0; length_b < 6; length_b++)
	for (Bit8u aaa : { 0, 1 }) {
		Bit8u b2 = (p1 & 4) << 5 | (p1 & 3) | 0x7c;
		compare(evex(map, evex_fronts[0], 0xf0, b2, length_b << 4 | 8 | aaa, op, 0x40 | digit << 3 | rm, 0x51), true);
	}
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(int map, int op);
	} sweeps[] = {
		{ "payloads", payloads }, { "registers", evex_registers }, { "forms", evex_forms },
		{ "displacements", displacements },
		{ "rex2", rex2 }, { "rex2-forms", rex2_forms },
	};
	void (*run)(int map, int op) = NULL;
	for (auto &s : sweeps)
		if (argc > 3 && !strcmp(argv[2], s.name))
			run = s.run;
	void *lib = run ? dlopen(argv[1], RTLD_NOW) : NULL;
	if (!lib) {
		fprintf(stderr, "decode_check: %s\n", run ? dlerror() : "usage: LIBLLVM SWEEP MAP [OPCODE [LAST-OPCODE]]");
		return 2;
	}
	static const char *const init[] = { "LLVMInitializeX86TargetInfo", "LLVMInitializeX86TargetMC", "LLVMInitializeX86Disassembler" };
	for (auto f : init)
		((void (*)())dlsym(lib, f))();
	llvm_context = ((create_fn)dlsym(lib, "LLVMCreateDisasmCPUFeatures"))("x86_64-linux-gnu", "",
		"+egpr,+ndd,+nf,+ccmp,+cf,+zu,+push2pop2,+ppx", NULL, 0, NULL, NULL);
	llvm_disasm = (disasm_fn)dlsym(lib, "LLVMDisasmInstruction");
	if (!llvm_context || !llvm_disasm) {
		fprintf(stderr, "decode_check: no disassembler in %s\n", argv[1]);
		return 2;
	}

	int map = atoi(argv[3]);
	int first = argc > 4 ? strtol(argv[4], NULL, 16) : 0, last = argc > 5 ? strtol(argv[5], NULL, 16) : argc > 4 ? first : 255;
	for (int op = first; op <= last; op++)
		run(map, op);

	for (int op = first; op <= last; op++) {
		if (opcodes[op].valid || opcodes[op].good.empty())
			continue;
		char key[64];
		snprintf(key, sizeof(key), "%s %02x - insn.c:good", opcodes[op].map, op);
		kinds[key] = { 1, opcodes[op].good };
	}
	for (auto &k : kinds)
		printf("%s %lu   %s\n", k.first.c_str(), k.second.count, k.second.example.c_str());
	printf("compared %lu\n", compared);
	return 0;
}
