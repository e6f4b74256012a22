// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which instructions that REX2 goes with are in the tables of KVM's emulator, and
 * which of them are tested?  Built by ci/emulator-tested, which makes tables.h of
 * emulate.c.  The walk from an opcode to an entry of the tables is that of
 * x86_decode_insn().  NoRex2, which the test cannot see where the emulator lacks the
 * instruction anyway, is compared with what the architecture says.
 *
 * stdin:   op MAP FIRST LAST DIGIT DIGIT FLAGS    a row of the test's ops[]
 *          insn HH...                             the bytes of one instruction
 *          listed ENTRY                           not tested, for a reason
 * stdout:  a line per entry that is neither tested nor listed, or listed without
 *          need, or whose NoRex2 is wrong; the last is "entries N tested N listed N"
 * An entry is MAP.OPCODE, then what tells it from others of that opcode: the digit
 * of ModRM.reg, mem or reg, rmN, the prefix.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t u64;
typedef uint8_t u8;

#include "tables.h"

#define MAX_ENTRIES	4096
#define MAX_NAME	40

static struct entry {
	char name[MAX_NAME];
	bool tested, listed;
} entries[MAX_ENTRIES];
static int nr_entries;

static void add(char *name, const char *what)
{
	strcat(name, ".");
	strcat(name, what);
}

/* The flags, and the name of the entry. */
static u64 flags(int map, u8 op, u8 modrm, u8 prefix, char *name)
{
	const struct opcode *o = map ? &twobyte_table[op] : &opcode_table[op];
	bool is_mod3 = modrm >> 6 == 3;
	int digit = (modrm >> 3) & 7;
	u64 d = o->flags;
	char word[8];

	if (!map && op == 0xa1)
		o = &jmpabs, d = o->flags;
	sprintf(name, "%d.%02x", map, op);
	while (d & GroupMask) {
		sprintf(word, "/%d", digit);
		switch (d & GroupMask) {
		case Group:
			strcat(name, word);
			o = &o->u.group[digit];
			break;
		case GroupDual:
			strcat(name, word);
			add(name, is_mod3 ? "reg" : "mem");
			o = is_mod3 ? &o->u.gdual->mod3[digit] : &o->u.gdual->mod012[digit];
			break;
		case RMExt:
			sprintf(word, "rm%d", modrm & 7);
			add(name, word);
			o = &o->u.group[modrm & 7];
			break;
		case Prefix:
			sprintf(word, "%02x", prefix);
			if (prefix)
				add(name, word);
			o = prefix == 0x66 ? &o->u.gprefix->pfx_66 :
			    prefix == 0xf2 ? &o->u.gprefix->pfx_f2 :
			    prefix == 0xf3 ? &o->u.gprefix->pfx_f3 : &o->u.gprefix->pfx_no;
			break;
		case Escape:
			strcat(name, word);
			add(name, is_mod3 ? "reg" : "mem");
			sprintf(word, "rm%d", modrm & 7);
			if (is_mod3)
				add(name, word);
			o = is_mod3 ? &o->u.esc->high[modrm - 0xc0] : &o->u.esc->op[digit];
			break;
		case InstrDual:
			add(name, is_mod3 ? "reg" : "mem");
			o = is_mod3 ? &o->u.idual->mod3 : &o->u.idual->mod012;
			break;
		case ModeDual:
			o = &o->u.mdual->mode64;
			break;
		default:
			fprintf(stderr, "%s: unknown kind of table\n", name);
			exit(2);
		}
		d = (d & ~(u64)GroupMask) | o->flags;
	}
	return d;
}

/* False if REX2 doesn't go with it, or the emulator hasn't got it. */
static bool resolve(int map, u8 op, u8 modrm, u8 prefix, char *name)
{
	u64 d = flags(map, op, modrm, prefix, name);

	return d && !(d & (NotImpl | Undefined | No64 | NoRex2));
}

/* Intel's APX specification, 3.1.2.1 and the opcode maps of 3.1.5. */
static bool rex2_is_ud(int map, u8 op, u8 modrm, u8 prefix)
{
	bool is_mem = modrm >> 6 != 3;
	int digit = (modrm >> 3) & 7;

	if (!map) {
		switch (op) {
		case 0xa1:				/* JMPABS */
			return false;
		case 0x0f:				/* another map */
		case 0x26: case 0x2e: case 0x36: case 0x3e: case 0x64: case 0x65:
		case 0x66: case 0x67: case 0xf0: case 0xf2: case 0xf3:
		case 0x62: case 0xc4: case 0xc5: case 0xd5:	/* more prefixes */
			return true;
		}
		return op >> 4 == 4 || op >> 4 == 7 || op >> 4 == 0xa || op >> 4 == 0xe;
	}
	switch (op) {
	case 0x0f:					/* 3DNow! */
		return true;
	case 0xae:					/* XSAVE, XRSTOR, XSAVEOPT */
		return is_mem && digit >= 4 && digit <= 6 && !prefix;
	case 0xc7:					/* XRSTORS, XSAVEC, XSAVES */
		return is_mem && digit >= 3 && digit <= 5;
	}
	return op >> 4 == 3 || op >> 4 == 8;
}

static struct entry *find(const char *name)
{
	int i;

	for (i = 0; i < nr_entries; i++) {
		if (!strcmp(entries[i].name, name))
			return &entries[i];
	}
	return NULL;
}

static const u8 prefixes[] = { 0, 0x66, 0xf2, 0xf3 };

/* Says so once of an entry. */
static void compare(int map, u8 op, u8 modrm, u8 prefix)
{
	bool is_ud = rex2_is_ud(map, op, modrm, prefix);
	static char last[MAX_NAME];
	char name[MAX_NAME];

	if (!(flags(map, op, modrm, prefix, name) & NoRex2) != is_ud || !strcmp(name, last))
		return;
	strcpy(last, name);
	printf("%s: %s\n", name, is_ud ? "lacks NoRex2" : "has NoRex2, but REX2 goes with it");
}

static void collect(void)
{
	int map, op, modrm, p;
	char name[MAX_NAME];

	for (map = 0; map < 2; map++) {
		for (op = 0; op < 256; op++) {
			for (modrm = 0; modrm < 256; modrm++) {
				for (p = 0; p < 4; p++) {
					compare(map, op, modrm, prefixes[p]);
					if (!resolve(map, op, modrm, prefixes[p], name) || find(name))
						continue;
					if (nr_entries == MAX_ENTRIES)
						exit(2);
					strcpy(entries[nr_entries++].name, name);
				}
			}
		}
	}
}

static void test(int map, u8 op, u8 modrm, u8 prefix)
{
	struct entry *entry;
	char name[MAX_NAME];

	if (!resolve(map, op, modrm, prefix, name))
		return;
	entry = find(name);
	if (entry)
		entry->tested = true;
}

/* As generate() of the test chooses, but for what doesn't matter here. */
static void test_op(int map, int first, int last, int digit_first, int digit_last, const char *flags)
{
	bool has_reg, has_mem, has_modrm, has_none, has_66, has_f3;
	int op, modrm, digit;

	if (strstr(flags, "OP_NOREX2"))
		return;
	has_reg = strstr(flags, "OP_RM") || strstr(flags, "OP_R ");
	has_mem = strstr(flags, "OP_RM") || strstr(flags, "OP_M ");
	has_modrm = has_reg || has_mem;
	has_none = !strstr(flags, "OP_P66F3") && !strstr(flags, "OP_ONLY66");
	has_66 = !strstr(flags, "OP_NO66");
	has_f3 = strstr(flags, "OP_P66F3");

	for (op = first; op <= last; op++) {
		for (modrm = 0; modrm < 256; modrm++) {
			digit = (modrm >> 3) & 7;
			if (has_modrm && digit_first >= 0 && (digit < digit_first || digit > digit_last))
				continue;
			if (has_modrm && !(modrm >> 6 == 3 ? has_reg : has_mem))
				continue;
			if (has_none)
				test(map, op, modrm, 0);
			if (has_66)
				test(map, op, modrm, 0x66);
			if (has_f3)
				test(map, op, modrm, 0xf3);
		}
	}
}

static void test_insn(const char *hex)
{
	u8 bytes[32] = {}, prefix = 0;
	unsigned int byte;
	int i, n;

	for (n = 0; n < 15 && sscanf(hex + 2 * n, "%2x", &byte) == 1; n++)
		bytes[n] = byte;
	for (i = 0; i < n; i++) {
		if (bytes[i] == 0xd5) {
			test(bytes[i + 1] >> 7, bytes[i + 2], bytes[i + 3], prefix);
			return;
		}
		if (bytes[i] == 0x66 || bytes[i] == 0xf2 || bytes[i] == 0xf3)
			prefix = bytes[i];
	}
}

int main(void)
{
	int map, first, last, digit_first, digit_last, end, i;
	int nr_tested = 0, nr_listed = 0;
	struct entry *entry;
	char line[512], word[64];

	collect();
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = '\0';
		if (sscanf(line, "op %d %i %i %d %d %n", &map, &first, &last,
			   &digit_first, &digit_last, &end) == 5) {
			/* A flag ends with a blank. */
			strcat(line, " ");
			test_op(map, first, last, digit_first, digit_last, line + end);
		} else if (sscanf(line, "insn %63s", word) == 1) {
			test_insn(word);
		} else if (sscanf(line, "listed %63s", word) == 1) {
			entry = find(word);
			if (!entry)
				printf("%s: listed, but the emulator has no such entry\n", word);
			else
				entry->listed = true;
		} else {
			fprintf(stderr, "What is '%s'?\n", line);
			return 2;
		}
	}

	for (i = 0; i < nr_entries; i++) {
		entry = &entries[i];
		if (entry->tested && entry->listed)
			printf("%s: listed as not tested, but it is\n", entry->name);
		else if (!entry->tested && !entry->listed)
			printf("%s: neither tested nor listed\n", entry->name);
		nr_tested += entry->tested;
		nr_listed += entry->listed;
	}
	printf("entries %d tested %d listed %d\n", nr_entries, nr_tested, nr_listed);
	return 0;
}
