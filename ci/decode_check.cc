// SPDX-License-Identifier: GPL-2.0
//
// Compares Bochs's decoder with LLVM's disassembler and the kernel's insn.c over
// all encodings of some shape: is it an instruction, how long is it, which
// registers does it name?  Links the stand-alone decoder of a configured Bochs;
// LLVM's C interface comes from the library that is the first argument.
//
// Usage: decode_check LIBLLVM payloads|registers|rex2 MAP [OPCODE [LAST-OPCODE]]
//   payloads    EVEX: all of P2, and of P1 but for a choice of vvvv; registers 0-7
//   registers   EVEX: all of the register bits, with ND, W and pp
//   rex2        REX2: all payloads of map 0 or 1, with prefixes in front
// Output: a line for each kind of difference: "MAP OPCODE BOCHS OTHER COUNT"
//   with an example, BOCHS and OTHER being the instruction or "-"; OTHER is
//   "registers" if only these differ from LLVM's, and "insn.c:..." for insn.c,
//   which knows opcodes and lengths: "bad" what is an instruction to Bochs,
//   "length", or "good" if Bochs knows nothing of that opcode.
//   MAP is r0 or r1 with REX2.
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
	std::string good;
};
static std::map<std::string, opcode> opcodes;

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

// The registers of an AT&T text in their order, without their width.
static std::string registers(const char *p, bool vectors)
{
	static const char *const low[] = { "ax", "cx", "dx", "bx", "sp", "bp", "si", "di" };
	std::string all;
	int braces = 0;

	for (; *p; p++) {
		braces += (*p == '{') - (*p == '}');
		if (*p != '%' || braces)
			continue;
		std::string r;
		while (isalnum(p[1]))
			r += *++p;
		if (p[1] == ':' || r == "riz" || r == "eiz")	// segment, no index
			continue;
		if (r.size() > 3 && r.substr(1, 2) == "mm") {
			if (!vectors)
				continue;
			r = "v" + r.substr(3);
		} else if (r[0] == 'r' && isdigit(r[1])) {
			r = "r" + std::to_string(atoi(r.c_str() + 1));
		} else {
			for (int n = 0; n < 8; n++) {
				std::string l = low[n];
				if (r == l || r == "r" + l || r == "e" + l || r == l + "l" ||
				    (n < 4 && r == l.substr(0, 1) + "l"))
					r = "r" + std::to_string(n);
			}
		}
		all += r + " ";
	}
	return all;
}

// LLVM ignores fields that have to have one value.  With that value it prints
// the same.
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

static bool ignored_by_llvm(const Bit8u *b, int len, const char *text)
{
	Bit8u cur[32], next[32];
	bxInstruction_c i;
	char other[TEXT];

	memcpy(cur, b, sizeof(cur));
	for (int field = 0; field <= 8; field++) {
		memcpy(next, cur, sizeof(next));
		fix(next, field);
		if (!memcmp(next, cur, sizeof(next)) || llvm(next, other) != len || strcmp(text, other))
			continue;
		memcpy(cur, next, sizeof(cur));
		if (bochs(cur, &i) == len)
			return true;
	}
	return false;
}

// Where an opcode has no form with a prefix, or W=1 hides it, LLVM falls back to
// the form without.
static bool prefix_ignored_by_llvm(Bit8u *b, int len, const char *text)
{
	char other[TEXT];
	bxInstruction_c i;

	if (b[0] == 0xd5 || llvm(b + 1, other) != len - 1 || bochs(b + 1, &i) != len - 1)
		return false;
	const char *p = strstr(text, other + strspn(other, " \t"));
	return p && !p[strlen(other + strspn(other, " \t"))];
}

// An encoding: its bytes, the place of ModRM, and how to call the map.
struct encoding {
	Bit8u b[32];
	int modrm;
	const char *map;
	bool evex;
};

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

static void compare_kernel(const encoding &e, int len_bochs, const char *name, const char *mine, bool only_valid)
{
	int known = 0, len = insn_length(e.b, MAX_LEN, &known);
	char key[32];

	if (len_bochs && !len)
		differs(e, name, "insn.c:bad", mine, "");
	else if (len_bochs && len != len_bochs)
		differs(e, name, "insn.c:length", mine, std::to_string(len).c_str());
	if (only_valid)
		return;
	snprintf(key, sizeof(key), "%s %02x", e.map, e.b[e.modrm - 1]);
	opcode &o = opcodes[key];
	o.valid |= len_bochs != 0;
	if (len && known && o.good.empty())
		o.good = example(e.b, "", "");
}

static void compare(const encoding &e, bool only_valid)
{
	Bit8u b[32];
	bxInstruction_c i;
	char text[TEXT], mine[TEXT] = "", mnemonic[64] = "-";
	const char *name = "-";

	memcpy(b, e.b, sizeof(b));
	const Bit8u *modrm = b + e.modrm;
	bool reg = modrm[0] >= 0xc0, b4 = e.evex ? b[1] & 8 : modrm[-2] & 0x10;
	int len_bochs = bochs(b, &i);
	if (only_valid && !len_bochs)
		return;
	int len_llvm = llvm(b, text);
	if (only_valid && !len_llvm)
		return;
	if (len_bochs) {
		name = get_bx_opcode_name(i.getIaOpcode()) + 6;
		disasm(mine, &i, 0, 0, BX_DISASM_GAS);
	}
	compared++;
	compare_kernel(e, len_bochs, name, mine, only_valid);
	// LLVM takes R21 or R29 for a base where there is none, and LOCK for an
	// instruction of its own.
	if ((b4 && (modrm[0] & 0xc7) == 4 && (modrm[1] & 7) == 5) || b[0] == 0xf0)
		return;
	if (e.evex && len_llvm && !len_bochs && ignored_by_llvm(b, len_llvm, text))
		return;
	if (!e.evex && len_llvm && !len_bochs && prefix_ignored_by_llvm(b, len_llvm, text))
		return;
	if (len_bochs == len_llvm) {
		if (!e.evex)
			return;
		// LLVM takes B4 for a bit of a vector register.
		bool vectors = !(reg && b4);
		if (!len_bochs || registers(mine, vectors) == registers(text, vectors))
			return;
		strcpy(mnemonic, "registers");
	} else if (len_llvm) {
		const char *p = text + strspn(text, " \t");
		while (*p == '{')		// {evex}, {nf}
			p = strchr(p, '}') + 1, p += strspn(p, " \t");
		sscanf(p, "%60s", mnemonic);
	}
	differs(e, name, mnemonic, mine, text);
}

// Each payload of a map, each opcode, each /digit with a register and with
// memory, all shapes of address, and what may stand in front.
static void sweep_rex2(int map, int first, int last)
{
	static const Bit8u modrms[][2] = { {0xc1, 0}, {0x01, 0}, {0x54, 0x51}, {0x94, 0x61}, {0x05, 0}, {0x14, 0x25} };
	static const Bit8u prefixes[] = { 0, 0x66, 0xf3, 0xf2, 0x67, 0xf0 };
	encoding e = { {}, 0, map ? "r1" : "r0", false };

	for (int op = first; op <= last; op++)
	for (int p = 0; p < 6; p++)
	for (int m = 0; m < 6; m++)
	for (int reg = 0; reg < (m < 2 ? 8 : 1); reg++)
	for (int payload = 0; payload < 128; payload++) {
		Bit8u *b = e.b;

		memset(b, 0, sizeof(e.b));
		if (p)
			*b++ = prefixes[p];
		*b++ = 0xd5;
		*b++ = map << 7 | payload;
		*b++ = op;
		e.modrm = b - e.b;
		*b++ = modrms[m][0] | reg << 3;
		*b++ = modrms[m][1];
		compare(e, false);
	}
}

static void compare_evex(const Bit8u *bytes, bool only_valid)
{
	static const char *const maps[] = { "0", "1", "2", "3", "4", "5", "6", "7" };
	encoding e = { {}, 5, maps[bytes[1] & 7], true };

	memcpy(e.b, bytes, 8);
	compare(e, only_valid);
}

int main(int argc, char **argv)
{
	void *lib = argc > 3 ? dlopen(argv[1], RTLD_NOW) : NULL;
	if (!lib) {
		fprintf(stderr, "decode_check: %s\n", argc > 3 ? dlerror() : "usage: LIBLLVM payloads|registers|rex2 MAP");
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

	bool payloads = !strcmp(argv[2], "payloads");
	int map = atoi(argv[3]);
	int first = argc > 4 ? strtol(argv[4], NULL, 16) : 0, last = argc > 5 ? strtol(argv[5], NULL, 16) : argc > 4 ? first : 255;
	// of other maps only general registers are compared: what else is legal
	// is not a matter of APX
	bool only_valid = !payloads && map != 4 && map != 7;

	// ModRM and SIB; each /digit in the first two
	static const Bit8u modrms[][2] = { {0xc1, 0}, {0x01, 0}, {0x54, 0x51}, {0x94, 0x61}, {0x15, 0}, {0x14, 0x25} };
	static const Bit8u vvvv[] = { 0x78, 0x50, 0x08, 0x70 };
	bool rex2 = !strcmp(argv[2], "rex2");
	if (rex2)
		sweep_rex2(map, first, last);
	for (int op = first; op <= last && !rex2; op++)
	for (int m = 0; m < 6; m++)
	for (int reg = 0; reg < (m < 1 + payloads ? 8 : 1); reg++) {
		Bit8u b[8] = { 0x62, Bit8u(0xf0 | map), 0, 0, Bit8u(op), Bit8u(modrms[m][0] | reg << 3), modrms[m][1], 0 };
		if (payloads) {
			for (int p1 = 0; p1 < 32; p1++)
			for (int p2 = 0; p2 < 256; p2++) {
				b[2] = (p1 & 16) << 3 | vvvv[p1 >> 2 & 3] | 4 | (p1 & 3);
				b[3] = p2;
				compare_evex(b, only_valid);
				if (p2 < 64) {
					b[2] &= ~4;
					compare_evex(b, only_valid);
				}
			}
			continue;
		}
		for (int p0 = 0; p0 < 32; p0++)
		for (int p1 = 0; p1 < 32; p1++)
		for (int p2 = 0; p2 < (only_valid ? 2 : 4); p2++) {
			b[1] = p0 << 3 | map;
			b[2] = (p1 & 16) << 3 | (p1 & 8 ? 0x78 : 0x50) | (p1 & 4) | (p1 & 3);
			b[3] = (p2 & 2) << 3 | (p2 & 1) << 3;
			// AVX10.2 gives U=0 another meaning with vector registers
			if (!only_valid || m || p1 & 4)
				compare_evex(b, only_valid);
		}
	}

	for (auto &o : opcodes) {
		if (o.second.valid || o.second.good.empty())
			continue;
		kind &k = kinds[o.first + " - insn.c:good"];
		k.count = 1;
		k.example = o.second.good;
	}
	for (auto &k : kinds)
		printf("%s %lu   %s\n", k.first.c_str(), k.second.count, k.second.example.c_str());
	printf("compared %lu\n", compared);
	return 0;
}
