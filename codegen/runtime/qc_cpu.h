/* CPU features by the names that Linux's /proc/cpuinfo uses, one bit each. */
#ifndef QC_CPU_H
#define QC_CPU_H

#define QC_CPU_AVX2 (1ull << 0)
#define QC_CPU_FMA (1ull << 1)
#define QC_CPU_AVX_VNNI (1ull << 2)
#define QC_CPU_AVX512F (1ull << 3)
#define QC_CPU_AVX512BW (1ull << 4)
#define QC_CPU_AVX512CD (1ull << 5)
#define QC_CPU_AVX512DQ (1ull << 6)
#define QC_CPU_AVX512VL (1ull << 7)
#define QC_CPU_AVX512_VNNI (1ull << 8)
#define QC_CPU_AVX512VBMI (1ull << 9)
#define QC_CPU_AMX_TILE (1ull << 10)
#define QC_CPU_AMX_INT8 (1ull << 11)

#define QC_CPU_ASIMD (1ull << 32)
#define QC_CPU_ASIMDDP (1ull << 33)
#define QC_CPU_I8MM (1ull << 34)

#define QC_CPU_NEON (1ull << 40)
#define QC_CPU_VFPV4 (1ull << 41)

#endif
