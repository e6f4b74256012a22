// SPDX-License-Identifier: GPL-2.0
//
// Compares Bochs's decoder with LLVM's disassembler over all EVEX encodings of
// some shape: is it an instruction, how long is it, which registers does it
// name?  Links the stand-alone decoder of a configured Bochs; LLVM's C
// interface comes from the library that is the first argument.
//
// Usage: decode_check LIBLLVM payloads|registers MAP [OPCODE [LAST-OPCODE]]
//   payloads    all of P2, and of P1 but for a choice of vvvv; registers 0-7
//   registers   all of the register bits, with ND, W and pp
// Output: a line for each kind of difference: "MAP OPCODE BOCHS LLVM COUNT"
//   with an example, BOCHS and LLVM being the instruction or "-"; "registers"
//   in place of LLVM if these differ only.
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

static void compare(const Bit8u *bytes, bool only_valid)
{
	Bit8u b[32] = { 0 };
	bxInstruction_c i;
	char text[TEXT], mine[TEXT] = "", hex[64] = "", mnemonic[64] = "-";
	std::string key;

	memcpy(b, bytes, 8);
	bool reg = b[5] >= 0xc0, b4 = b[1] & 8;
	// LLVM takes R21 or R29 for a base where there is none.
	if (b4 && (b[5] & 0xc7) == 4 && (b[6] & 7) == 5)
		return;
	int len_bochs = bochs(b, &i);
	if (only_valid && !len_bochs)
		return;
	int len_llvm = llvm(b, text);
	if (only_valid && !len_llvm)
		return;
	compared++;
	if (len_llvm && !len_bochs && ignored_by_llvm(b, len_llvm, text))
		return;
	if (len_bochs)
		disasm(mine, &i, 0, 0, BX_DISASM_GAS);
	if (len_bochs == len_llvm) {
		// LLVM takes B4 for a bit of a vector register.
		bool vectors = !(reg && b4);
		if (!len_bochs || registers(mine, vectors) == registers(text, vectors))
			return;
		strcpy(mnemonic, "registers");
	} else if (len_llvm) {
		const char *p = text + strspn(text, " \t");
		if (*p == '{')			// {evex}, {nf}
			p = strchr(p, '}') + 1, p += strspn(p, " \t");
		sscanf(p, "%60s", mnemonic);
	}
	snprintf(hex, sizeof(hex), "%d %02x ", b[1] & 7, b[4]);
	key = std::string(hex) + (len_bochs ? get_bx_opcode_name(i.getIaOpcode()) + 6 : "-") + " " + mnemonic;
	kind &k = kinds[key];
	if (k.count++)
		return;
	for (int n = 0; n < MAX_LEN; n++) {
		snprintf(hex, sizeof(hex), "%02x ", b[n]);
		k.example += hex;
	}
	for (char *p = text; *p; p++)
		if (*p == '\t') *p = ' ';
	k.example += std::string("| ") + mine + " |" + text;
}

int main(int argc, char **argv)
{
	void *lib = argc > 3 ? dlopen(argv[1], RTLD_NOW) : NULL;
	if (!lib) {
		fprintf(stderr, "decode_check: %s\n", argc > 3 ? dlerror() : "usage: LIBLLVM payloads|registers MAP");
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
	for (int op = first; op <= last; op++)
	for (int m = 0; m < 6; m++)
	for (int reg = 0; reg < (m < 1 + payloads ? 8 : 1); reg++) {
		Bit8u b[8] = { 0x62, Bit8u(0xf0 | map), 0, 0, Bit8u(op), Bit8u(modrms[m][0] | reg << 3), modrms[m][1], 0 };
		if (payloads) {
			for (int p1 = 0; p1 < 32; p1++)
			for (int p2 = 0; p2 < 256; p2++) {
				b[2] = (p1 & 16) << 3 | vvvv[p1 >> 2 & 3] | 4 | (p1 & 3);
				b[3] = p2;
				compare(b, only_valid);
				if (p2 < 64) {
					b[2] &= ~4;
					compare(b, only_valid);
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
				compare(b, only_valid);
		}
	}

	for (auto &k : kinds)
		printf("%s %lu   %s\n", k.first.c_str(), k.second.count, k.second.example.c_str());
	printf("compared %lu\n", compared);
	return 0;
}
