// SPDX-License-Identifier: GPL-2.0
/* Sorts numbers and strings in several ways; hashes, with a table and without. */
#include <stdbool.h>

#include "program.h"

#define N 3000

static void quicksort(int64_t *a, long low, long high)
{
	while (low < high) {
		int64_t pivot = a[low + (high - low) / 2], swap;
		long i = low, j = high;

		while (i <= j) {
			while (a[i] < pivot)
				i++;
			while (a[j] > pivot)
				j--;
			if (i <= j) {
				swap = a[i];
				a[i++] = a[j];
				a[j--] = swap;
			}
		}
		quicksort(a, low, j);
		low = i;
	}
}

static void heapsort_u16(uint16_t *a, int n)
{
	for (int start = n / 2 - 1, end = n; end > 1;) {
		int root, child;
		uint16_t value;

		if (start >= 0) {
			root = start--;
			value = a[root];
		} else {
			root = 0;
			value = a[--end];
			a[end] = a[0];
		}
		for (; (child = 2 * root + 1) < end; root = child) {
			if (child + 1 < end && a[child + 1] > a[child])
				child++;
			if (a[child] <= value)
				break;
			a[root] = a[child];
		}
		a[root] = value;
	}
}

static void radixsort(uint32_t *a, uint32_t *other, int n)
{
	for (int shift = 0; shift < 32; shift += 8) {
		int count[257] = { 0 };
		uint32_t *swap;

		for (int i = 0; i < n; i++)
			count[(a[i] >> shift & 255) + 1]++;
		for (int i = 0; i < 256; i++)
			count[i + 1] += count[i];
		for (int i = 0; i < n; i++)
			other[count[a[i] >> shift & 255]++] = a[i];
		swap = a;
		a = other;
		other = swap;
	}
}

struct record {
	char name[12];
	int8_t small;
	bool odd;
	double value;
};

static int by_all(const struct record *a, const struct record *b)
{
	int order = strcmp(a->name, b->name);

	if (!order)
		order = (a->small > b->small) - (a->small < b->small);
	if (!order && a->odd != b->odd)
		order = a->odd ? 1 : -1;
	return order ? order : (a->value > b->value) - (a->value < b->value);
}

static void mergesort_records(struct record *a, struct record *tmp, int n)
{
	int half = n / 2, i = 0, j = half, k = 0;

	if (n < 2)
		return;
	mergesort_records(a, tmp, half);
	mergesort_records(a + half, tmp, n - half);
	while (i < half || j < n)
		tmp[k++] = j == n || (i < half && by_all(&a[i], &a[j]) <= 0) ? a[i++] : a[j++];
	memcpy(a, tmp, n * sizeof(*a));
}

/* Loads and stores that a condition guards: what CFCMOVcc is for. */
static int64_t __attribute__((noinline)) guarded(const int64_t *p, int64_t *q, int64_t v)
{
	int64_t r = v;

	if (v & 1)
		r = *p;
	if (v & 2)
		*q = r + v;
	return r;
}

static uint32_t __attribute__((noinline)) compare_chain(int a, int b, unsigned int c, int64_t d)
{
	if (a == 3 || b > 7 || (c < 100 && d != -1))
		return a == b;
	return (a > 0 && b < 0 && c > 5) ? 2 : 3 * (d < a);
}

#define ROTATE(x, n) ((x) << (n) | (x) >> (64 - (n)))

static uint64_t siphash(const unsigned char *p, size_t size, uint64_t k0, uint64_t k1)
{
	uint64_t v0 = k0 ^ 0x736f6d6570736575, v1 = k1 ^ 0x646f72616e646f6d;
	uint64_t v2 = k0 ^ 0x6c7967656e657261, v3 = k1 ^ 0x7465646279746573, m;
	size_t left = size;
	int rounds = 2;

	for (;;) {
		m = (uint64_t)size << 56;
		memcpy(&m, p, left < 8 ? left : 8);
		if (left < 8)
			m |= (uint64_t)size << 56;
last:
		v3 ^= m;
		while (rounds--) {
			v0 += v1; v1 = ROTATE(v1, 13); v1 ^= v0; v0 = ROTATE(v0, 32);
			v2 += v3; v3 = ROTATE(v3, 16); v3 ^= v2;
			v0 += v3; v3 = ROTATE(v3, 21); v3 ^= v0;
			v2 += v1; v1 = ROTATE(v1, 17); v1 ^= v2; v2 = ROTATE(v2, 32);
		}
		v0 ^= m;
		if (left == (size_t)-1)
			return v0 ^ v1 ^ v2 ^ v3;
		rounds = 2;
		if (left < 8) {
			left = -1;
			v2 ^= 0xff;
			rounds = 4;
			m = 0;
			goto last;
		}
		p += 8;
		left -= 8;
	}
}

static uint32_t crc32(const unsigned char *p, size_t size)
{
	uint32_t crc = ~0u;

	while (size--) {
		crc ^= *p++;
		for (int i = 0; i < 8; i++)
			crc = crc & 1 ? crc >> 1 ^ 0xedb88320 : crc >> 1;
	}
	return ~crc;
}

/* Open addressing, to count how often a number comes. */
static uint64_t count_in_table(void)
{
	static struct { uint64_t key; uint32_t count; bool used; } table[1024];
	uint64_t sum = 0;

	memset(table, 0, sizeof(table));
	for (int i = 0; i < N; i++) {
		uint64_t key = next_random() % 700;
		unsigned int at = (unsigned __int128)key * 0x9e3779b97f4a7c15 >> 54 & 1023;

		while (table[at].used && table[at].key != key)
			at = (at + 1) & 1023;
		table[at].key = key;
		table[at].used = true;
		table[at].count++;
	}
	for (int i = 0; i < 1024; i++)
		sum = sum * 31 + (table[i].used ? table[i].key * table[i].count : i % 7);
	return sum;
}

int main(void)
{
	static int64_t a[N];
	static uint16_t h[N];
	static uint32_t u[N], v[N];
	static struct record r[N], tmp[N];
	static unsigned char text[8 * N];
	int64_t sum = 0;

	for (int i = 0; i < N; i++) {
		a[i] = next_random();
		h[i] = next_random();
		u[i] = next_random();
		fill((unsigned char *)r[i].name, 3 + next_random() % 9);
		r[i].small = next_random();
		r[i].odd = next_random() & 1;
		r[i].value = (double)(int64_t)next_random() / 3;
	}
	quicksort(a, 0, N - 1);
	heapsort_u16(h, N);
	radixsort(u, v, N);
	mergesort_records(r, tmp, N);
	for (int i = 1; i < N; i++)
		if (a[i - 1] > a[i] || h[i - 1] > h[i] || u[i - 1] > u[i] || by_all(&r[i - 1], &r[i]) > 0)
			return 1;
	printf("sorted %016llx %016llx %016llx\n", (unsigned long long)fnv1a(a, sizeof(a)),
	       (unsigned long long)fnv1a(h, sizeof(h)), (unsigned long long)fnv1a(u, sizeof(u)));
	printf("records %s ... %s %.17g\n", r[0].name, r[N - 1].name, r[N / 2].value);

	fill(text, sizeof(text));
	printf("siphash");
	for (int i = 0; i < 20; i++)
		printf(" %016llx", (unsigned long long)siphash(text + i, 100 * i + i, i, next_random()));
	printf("\ncrc32 %08x\ntable %llu\n", crc32(text, sizeof(text)), (unsigned long long)count_in_table());

	for (int i = 0; i < N; i++) {
		sum += guarded(a[i] & 1 ? &a[i] : NULL, a[i] & 2 ? &a[N - 1 - i] : NULL, a[i]);
		sum = sum * 3 + compare_chain(a[i] % 9, u[i] % 17, h[i] % 200, a[i] % 3);
	}
	printf("conditions %lld %016llx\n", (long long)sum, (unsigned long long)fnv1a(a, sizeof(a)));
	return 0;
}
