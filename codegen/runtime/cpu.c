/* What the CPU has and the operating system saves: cpuid and xgetbv on x86, the kernel's word for it on ARM.
 * Source of the x86 part: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapters 14.3 and 15.2. */
#include "qc_cpu.h"
#include "qc_runtime.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

static uint64_t saved_state(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((uint64_t)high << 32) | low;
}

uint64_t qc_cpu_features(void) {
    enum { OSXSAVE = 1 << 27, YMM_STATE = 0x6, ZMM_STATE = 0xe6, TILE_STATE = 0x60000 };
    uint32_t a, b, c, d, a1, b1, c1, d1;
    uint64_t features = 0, state;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & OSXSAVE)) return 0;
    state = saved_state();
    if ((state & YMM_STATE) != YMM_STATE) return 0;
    if (c & (1u << 12)) features |= QC_CPU_FMA;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return features;
    if (b & (1u << 5)) features |= QC_CPU_AVX2;
    if (a >= 1 && __get_cpuid_count(7, 1, &a1, &b1, &c1, &d1) && (a1 & (1u << 4))) features |= QC_CPU_AVX_VNNI;
    if ((state & ZMM_STATE) != ZMM_STATE) return features;
    if (b & (1u << 16)) features |= QC_CPU_AVX512F;
    if (b & (1u << 17)) features |= QC_CPU_AVX512DQ;
    if (b & (1u << 28)) features |= QC_CPU_AVX512CD;
    if (b & (1u << 30)) features |= QC_CPU_AVX512BW;
    if (b & (1u << 31)) features |= QC_CPU_AVX512VL;
    if (c & (1u << 1)) features |= QC_CPU_AVX512VBMI;
    if (c & (1u << 11)) features |= QC_CPU_AVX512_VNNI;
    if ((state & TILE_STATE) != TILE_STATE) return features;
    if (d & (1u << 24)) features |= QC_CPU_AMX_TILE;
    if (d & (1u << 25)) features |= QC_CPU_AMX_INT8;
    return features;
}

/* Source: Linux, Documentation/arch/x86/xstate.rst. The permission holds for every thread of the process. */
int qc_cpu_permit(uint64_t features) {
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    return !(features & QC_CPU_AMX_TILE) || syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

#elif defined(__aarch64__)
#include <sys/auxv.h>

/* Bits of AT_HWCAP and AT_HWCAP2. Source: Linux, Documentation/arch/arm64/elf_hwcaps.rst. */
uint64_t qc_cpu_features(void) {
    enum { ASIMD = 1 << 1, ASIMDDP = 1 << 20, I8MM = 1 << 13 };
    unsigned long words = getauxval(AT_HWCAP), more = getauxval(AT_HWCAP2);
    return (words & ASIMD ? QC_CPU_ASIMD : 0) | (words & ASIMDDP ? QC_CPU_ASIMDDP : 0) |
           (more & I8MM ? QC_CPU_I8MM : 0);
}

int qc_cpu_permit(uint64_t features) {
    (void)features;
    return 1;
}

#elif defined(__arm__)
#include <sys/auxv.h>

/* Bits of AT_HWCAP of 32-bit ARM. Source: Linux, arch/arm/include/uapi/asm/hwcap.h. */
uint64_t qc_cpu_features(void) {
    enum { NEON = 1 << 12, VFPV4 = 1 << 16 };
    unsigned long words = getauxval(AT_HWCAP);
    return (words & NEON ? QC_CPU_NEON : 0) | (words & VFPV4 ? QC_CPU_VFPV4 : 0);
}

int qc_cpu_permit(uint64_t features) {
    (void)features;
    return 1;
}

#else

uint64_t qc_cpu_features(void) { return 0; }

int qc_cpu_permit(uint64_t features) {
    (void)features;
    return 1;
}

#endif
