/* The most int8 multiply-accumulates a second that one core does, by kind of instruction: registers only, no memory.
 *
 *   gcc -O2 -o peak peak.c && ./peak     {"amx": 2600.1, "avx512-vnni": 330.2, ...} in GMAC/s
 *
 * Independent accumulators hide latency; results are kept, operands are opaque to the compiler. What the CPU lacks is
 * left out. The names are those of qcompiler's instruction-set levels.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define REPEATS 20
#define LOOPS 200000L

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Twelve accumulators: registers 0 to 11; 12 to 15 hold operands. */
#define EACH(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11)
#define CLOBBERS                                                                                                       \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",        \
        "xmm13", "xmm14", "xmm15"

#define VNNI512(r) "vpdpbusd %%zmm12, %%zmm13, %%zmm" #r "\n\t"
__attribute__((target("avx512f,avx512vnni"))) static void vnni512(void) {
    for (long i = 0; i < LOOPS; i++) __asm__ volatile(EACH(VNNI512)::: CLOBBERS);
}

#define VNNI256(r) "%{vex%} vpdpbusd %%ymm12, %%ymm13, %%ymm" #r "\n\t"
__attribute__((target("avx2"))) static void vnni256(void) {
    for (long i = 0; i < LOOPS; i++) __asm__ volatile(EACH(VNNI256)::: CLOBBERS);
}

/* Exact pairs of 16-bit words: VPMADDWD and VPADDD; bytes are taken to be widened before. */
#define PAIRS(r) "vpmaddwd %%ymm12, %%ymm13, %%ymm14\n\tvpaddd %%ymm14, %%ymm" #r ", %%ymm" #r "\n\t"
__attribute__((target("avx2"))) static void pairs(void) {
    for (long i = 0; i < LOOPS; i++) __asm__ volatile(EACH(PAIRS)::: CLOBBERS);
}

/* What saturates, and is therefore not used by qcompiler: VPMADDUBSW, VPMADDWD, VPADDD. For comparison only. */
#define SATURATING(r)                                                                                                  \
    "vpmaddubsw %%ymm12, %%ymm13, %%ymm14\n\tvpmaddwd %%ymm15, %%ymm14, %%ymm14\n\tvpaddd %%ymm14, %%ymm" #r           \
    ", %%ymm" #r "\n\t"
__attribute__((target("avx2"))) static void saturating(void) {
    for (long i = 0; i < LOOPS; i++) __asm__ volatile(EACH(SATURATING)::: CLOBBERS);
}

#define TILE_LOOPS (LOOPS / 8)
static const struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } tiles
    __attribute__((aligned(64))) = {
        1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
static void amx(void) {
    __asm__ volatile("ldtilecfg %0" ::"m"(tiles));
    __asm__ volatile("tilezero %%tmm0\n\ttilezero %%tmm1\n\ttilezero %%tmm2\n\ttilezero %%tmm3\n\t"
                     "tilezero %%tmm4\n\ttilezero %%tmm5\n\ttilezero %%tmm6\n\ttilezero %%tmm7" ::);
    for (long i = 0; i < TILE_LOOPS; i++)
        __asm__ volatile("tdpbusd %%tmm6, %%tmm4, %%tmm0\n\ttdpbusd %%tmm6, %%tmm5, %%tmm1\n\t"
                         "tdpbusd %%tmm7, %%tmm4, %%tmm2\n\ttdpbusd %%tmm7, %%tmm5, %%tmm3" ::);
    __asm__ volatile("tilerelease" ::);
}

static int first = 1;

static void report(const char *name, void (*work)(void), double macs) {
    double best = 1e9;
    for (int i = 0; i < REPEATS; i++) {
        double start = now(), seconds;
        work();
        seconds = now() - start;
        if (seconds < best) best = seconds;
    }
    printf("%s\"%s\": %.1f", first ? "{" : ", ", name, macs / best * 1e-9);
    first = 0;
}

static int leaf7(int sub, int word, int bit) {
    unsigned int r[4] = {0};
    if (!__get_cpuid_count(7, (unsigned)sub, &r[0], &r[1], &r[2], &r[3])) return 0;
    return r[word] >> bit & 1;
}

int main(void) {
    enum { EBX = 1, ECX = 2, EDX = 3, ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18 };
    int avx2 = __builtin_cpu_supports("avx2");
    if (leaf7(0, EDX, 25) && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0)
        report("amx", amx, TILE_LOOPS * 4.0 * 16 * 16 * 64);
    if (__builtin_cpu_supports("avx512f") && leaf7(0, ECX, 11)) report("avx512-vnni", vnni512, LOOPS * 12.0 * 64);
    if (avx2 && leaf7(1, 0, 4)) report("avx-vnni", vnni256, LOOPS * 12.0 * 32);
    if (avx2) report("avx2", pairs, LOOPS * 12.0 * 16);
    if (avx2) report("avx2, saturating", saturating, LOOPS * 12.0 * 32);
    printf("%s}\n", first ? "{" : "");
    return 0;
}
