/* Products of packed weights with columns: the terms that one output position sums, gathered from the image.
 *
 * One or two columns are filled (`qc_put`, `qc_fill`), and each is multiplied with four output channels at a time
 * (`qc_dot`). How a column lies in memory is private to this file:
 *
 * - portable and Helium: int8, one column after the other; Helium multiplies 16 terms an instruction;
 * - DSP: int16 in groups of four terms, the even two and then the odd two, as SXTB16 leaves them, the groups of both
 *   columns in turn; SMLAD multiplies two terms an instruction.
 */
#ifndef QC_DOT_H
#define QC_DOT_H

#include "qc_inline.h"

#ifdef QC_DSP

typedef int16_t __attribute__((may_alias)) qc_column_t; /* also read and written by pairs */

static inline qc_column_t *qc_column(qc_column_t *scratch, int32_t which, int32_t k) {
    (void)k;
    return scratch + 4 * which;
}

static inline qc_column_t *qc_slot(qc_column_t *column, int32_t columns, int32_t k) {
    return column + 4 * columns * (k >> 2) + ((k & 1) << 1 | (k >> 1 & 1));
}

static void qc_put(qc_column_t *column, int32_t columns, int32_t k, const int8_t *x, int32_t count) {
    int32_t end = k + count;
    uint32_t *to;
    for (; k < end && (k & 3) != 0; k++) *qc_slot(column, columns, k) = *x++;
    to = (uint32_t *)(void *)qc_slot(column, columns, k);
    for (int32_t words = (end - k) >> 2; words > 0; words--, k += 4, to += 2 * columns) {
        uint32_t word, even, odd;
        memcpy(&word, x, 4);
        x += 4;
        __asm__("sxtb16 %0, %1" : "=r"(even) : "r"(word));
        __asm__("sxtb16 %0, %1, ror #8" : "=r"(odd) : "r"(word));
        to[0] = even, to[1] = odd;
    }
    for (; k < end; k++) *qc_slot(column, columns, k) = *x++;
}

static void qc_fill(qc_column_t *column, int32_t columns, int32_t k, int32_t value, int32_t count) {
    for (int32_t end = k + count; k < end; k++) *qc_slot(column, columns, k) = (qc_column_t)value;
}

/* Arguments of qc_quick_1 and qc_quick_2, at the offsets that their instructions name. */
typedef struct {
    const int8_t *weight;      /* 0 */
    const qc_column_t *column; /* 4 */
    const qc_column_t *end;    /* 8: of both columns */
    const int32_t *bias;       /* 12 */
    const int32_t *multiplier; /* 16 */
    const int8_t *shift;       /* 20 */
    int8_t *y;                 /* 24 */
    const int8_t *y_end;       /* 28 */
    int32_t stride;            /* 32: from one position's outputs to the next one's */
    int32_t offset;            /* 36: 2 * zero point + 1 */
    int32_t back;              /* 40: from behind a pair of channels' weights to the next pair's */
    int32_t half;              /* 44: k is an odd multiple of eight */
} qc_quick_t;

/* clang-format off */
#define QC_FOUR_TERMS                \
    "ldrd r8, r9, [r0], #16\n\t"     /* four weights of each channel */ \
    "ldrd r12, lr, [r1], #8\n\t"     /* four terms of the first position */ \
    "sxtb16 r10, r8\n\t"             \
    "sxtb16 r8, r8, ror #8\n\t"      \
    "sxtb16 r11, r9\n\t"             \
    "sxtb16 r9, r9, ror #8\n\t"      \
    "smlad r4, r10, r12, r4\n\t"     \
    "smlad r5, r11, r12, r5\n\t"     \
    "smlad r4, r8, lr, r4\n\t"       \
    "smlad r5, r9, lr, r5\n\t"       \
    "ldrd r12, lr, [r1], #8\n\t"     /* and of the second */ \
    "smlad r6, r10, r12, r6\n\t"     \
    "smlad r7, r11, r12, r7\n\t"     \
    "smlad r6, r8, lr, r6\n\t"       \
    "smlad r7, r9, lr, r7\n\t"
#define QC_REQUANTIZE(acc, multiplier, shift) \
    "smmul " acc ", " acc ", " multiplier "\n\t" \
    "asr " acc ", " acc ", " shift "\n\t"        \
    "add " acc ", " acc ", r12\n\t"              \
    "ssat " acc ", #8, " acc ", asr #1\n\t"
#define QC_TWO_CHANNELS                                   \
    "ldr r12, [r3, #12]\n\t"                              \
    "ldrd r4, r5, [r12], #8\n\t"                          \
    "str r12, [r3, #12]\n\t"                              \
    "mov r6, r4\n\t"                                      \
    "mov r7, r5\n\t"                                      \
    "ldr r1, [r3, #4]\n"                                  \
    "1:\n\t" QC_FOUR_TERMS QC_FOUR_TERMS                  \
    "cmp r1, r2\n\t"                                      \
    "bne 1b\n\t"                                          \
    "ldr r12, [r3, #16]\n\t"                              \
    "ldrd r8, r9, [r12], #8\n\t"                          \
    "str r12, [r3, #16]\n\t"                              \
    "ldr r12, [r3, #20]\n\t"                              \
    "ldrh r10, [r12], #2\n\t" /* a shift by register takes its lowest byte */ \
    "str r12, [r3, #20]\n\t"                              \
    "lsr r11, r10, #8\n\t"                                \
    "ldr r12, [r3, #36]\n\t"                              \
    QC_REQUANTIZE("r4", "r8", "r10")                      \
    QC_REQUANTIZE("r5", "r9", "r11")                      \
    QC_REQUANTIZE("r6", "r8", "r10")                      \
    QC_REQUANTIZE("r7", "r9", "r11")                      \
    "ldr lr, [r3, #24]\n\t"                               \
    "ldr r12, [r3, #32]\n\t"                              \
    "strb r4, [lr], #1\n\t"                               \
    "strb r5, [lr], #1\n\t"                               \
    "str lr, [r3, #24]\n\t"                               \
    "add r12, r12, lr\n\t"                                \
    "strb r6, [r12, #-2]\n\t"                             \
    "strb r7, [r12, #-1]\n\t"
/* clang-format on */

/* Channels by fours, two positions: 32 instructions for 32 products, and 42 for the four sums of each pair of channels.
 * r0: weights, r1: columns, r2: their end, r3: arguments, r4-r7: sums. */
__attribute__((naked, noinline)) static void qc_quick_2(qc_quick_t *arguments __attribute__((unused))) {
    __asm__("push {r4-r11, lr}\n\t"
            "mov r3, r0\n\t"
            "ldr r0, [r3, #0]\n\t"
            "ldr r2, [r3, #8]\n"
            "0:\n\t" QC_TWO_CHANNELS
            "ldr r12, [r3, #40]\n\t"
            "sub r0, r0, r12\n\t" QC_TWO_CHANNELS
            "sub r0, r0, #8\n\t"
            "ldr r12, [r3, #28]\n\t"
            "cmp lr, r12\n\t"
            "bne 0b\n\t"
            "pop {r4-r11, pc}");
}

/* clang-format off */
#define QC_ONE_PAIR(first, second)            \
    "ldrd r8, r9, [r0], #8\n\t"               \
    "sxtb16 r10, r8\n\t"                      \
    "sxtb16 r8, r8, ror #8\n\t"               \
    "smlad " first ", r10, r12, " first "\n\t" \
    "sxtb16 r10, r9\n\t"                      \
    "smlad " first ", r8, lr, " first "\n\t"   \
    "sxtb16 r9, r9, ror #8\n\t"               \
    "smlad " second ", r10, r12, " second "\n\t" \
    "smlad " second ", r9, lr, " second "\n\t"
#define QC_EIGHT_TERMS_OF_FOUR                                                                 \
    "ldrd r12, lr, [r1], #8\n\t" QC_ONE_PAIR("r4", "r5") QC_ONE_PAIR("r6", "r7")               \
    "ldrd r12, lr, [r1], #8\n\t" QC_ONE_PAIR("r4", "r5") QC_ONE_PAIR("r6", "r7")
/* clang-format on */

/* Channels by fours, one position: 78 instructions for 64 products, and 42 for the four sums. */
__attribute__((naked, noinline)) static void qc_quick_1(qc_quick_t *arguments __attribute__((unused))) {
    __asm__("push {r4-r11, lr}\n\t"
            "mov r3, r0\n\t"
            "ldr r0, [r3, #0]\n\t"
            "ldr r2, [r3, #8]\n"
            "0:\n\t"
            "ldr r12, [r3, #12]\n\t"
            "ldm r12!, {r4-r7}\n\t"
            "str r12, [r3, #12]\n\t"
            "ldr r12, [r3, #44]\n\t"
            "ldr r1, [r3, #4]\n\t"
            "cmp r12, #0\n\t"
            "bne 2f\n"
            "1:\n\t" QC_EIGHT_TERMS_OF_FOUR
            "2:\n\t" QC_EIGHT_TERMS_OF_FOUR
            "cmp r1, r2\n\t"
            "bne 1b\n\t"
            "ldr r12, [r3, #16]\n\t"
            "ldm r12!, {r8-r11}\n\t"
            "str r12, [r3, #16]\n\t"
            "smmul r4, r4, r8\n\t"
            "smmul r5, r5, r9\n\t"
            "smmul r6, r6, r10\n\t"
            "smmul r7, r7, r11\n\t"
            "ldr r12, [r3, #20]\n\t"
            "ldr r8, [r12], #4\n\t"
            "str r12, [r3, #20]\n\t"
            "lsr r9, r8, #8\n\t" /* a shift by register takes its lowest byte */
            "lsr r10, r8, #16\n\t"
            "lsr r11, r8, #24\n\t"
            "ldr r12, [r3, #36]\n\t"
            "asr r4, r4, r8\n\t"
            "asr r5, r5, r9\n\t"
            "asr r6, r6, r10\n\t"
            "asr r7, r7, r11\n\t"
            "add r4, r4, r12\n\t"
            "add r5, r5, r12\n\t"
            "add r6, r6, r12\n\t"
            "add r7, r7, r12\n\t"
            "ldr lr, [r3, #24]\n\t"
            "ssat r4, #8, r4, asr #1\n\t"
            "ssat r5, #8, r5, asr #1\n\t"
            "ssat r6, #8, r6, asr #1\n\t"
            "ssat r7, #8, r7, asr #1\n\t"
            "strb r4, [lr], #1\n\t"
            "strb r5, [lr], #1\n\t"
            "strb r6, [lr], #1\n\t"
            "strb r7, [lr], #1\n\t"
            "str lr, [r3, #24]\n\t"
            "ldr r12, [r3, #28]\n\t"
            "cmp lr, r12\n\t"
            "bne 0b\n\t"
            "pop {r4-r11, pc}");
}

#undef QC_FOUR_TERMS
#undef QC_REQUANTIZE
#undef QC_TWO_CHANNELS
#undef QC_ONE_PAIR
#undef QC_EIGHT_TERMS_OF_FOUR

/* Four channels and one column of `columns`, eight terms a turn: 40 instructions for 32 products. */
static void qc_dot(const int8_t *w, const qc_column_t *x, int32_t columns, int32_t k, const int32_t *bias,
                   int32_t *acc) {
    const qc_column_t *end = x + columns * k;
    int32_t a0 = bias[0], a1 = bias[1], a2 = bias[2], a3 = bias[3], step = 8 * columns, w0, w1, e, x0, x1;
#define QC_TWO_CHANNELS(first, second)                     \
    "ldrd %[w0], %[w1], [%[w]], #8\n\t"                    \
    "sxtb16 %[e], %[w0]\n\t"                               \
    "smlad %[" first "], %[e], %[x0], %[" first "]\n\t"    \
    "sxtb16 %[w0], %[w0], ror #8\n\t"                      \
    "sxtb16 %[e], %[w1]\n\t"                               \
    "smlad %[" first "], %[w0], %[x1], %[" first "]\n\t"   \
    "sxtb16 %[w1], %[w1], ror #8\n\t"                      \
    "smlad %[" second "], %[e], %[x0], %[" second "]\n\t"  \
    "smlad %[" second "], %[w1], %[x1], %[" second "]\n\t"
#define QC_FOUR_TERMS                                      \
    "ldrd %[x0], %[x1], [%[x]]\n\t"                        \
    "add %[x], %[step]\n\t" QC_TWO_CHANNELS("a0", "a1") QC_TWO_CHANNELS("a2", "a3")
    __asm__("1:\n\t" QC_FOUR_TERMS QC_FOUR_TERMS
            "cmp %[x], %[end]\n\t"
            "bne 1b"
            : [w] "+r"(w), [x] "+r"(x), [a0] "+r"(a0), [a1] "+r"(a1), [a2] "+r"(a2), [a3] "+r"(a3), [w0] "=&r"(w0),
              [w1] "=&r"(w1), [e] "=&r"(e), [x0] "=&r"(x0), [x1] "=&r"(x1)
            : [end] "r"(end), [step] "r"(step)
            : "cc", "memory");
#undef QC_FOUR_TERMS
#undef QC_TWO_CHANNELS
    acc[0] = a0, acc[1] = a1, acc[2] = a2, acc[3] = a3;
}

#else

typedef int8_t qc_column_t;

static inline qc_column_t *qc_column(qc_column_t *scratch, int32_t which, int32_t k) {
    return scratch + which * k;
}

static inline void qc_put(qc_column_t *column, int32_t columns, int32_t k, const int8_t *x, int32_t count) {
    (void)columns;
    memcpy(column + k, x, (size_t)count);
}

static inline void qc_fill(qc_column_t *column, int32_t columns, int32_t k, int32_t value, int32_t count) {
    (void)columns;
    memset(column + k, (int)value, (size_t)count);
}

#ifdef QC_MVE

static void qc_dot(const int8_t *w, const qc_column_t *x, int32_t columns, int32_t k, const int32_t *bias,
                   int32_t *acc) {
    int32_t a0 = bias[0], a1 = bias[1], a2 = bias[2], a3 = bias[3];
    (void)columns;
    for (int32_t i = 0; i < k; i += 16, w += 64, x += 16) {
        int8x16_t terms = vldrbq_s8(x);
        a0 = vmladavaq_s8(a0, vldrbq_s8(w), terms);
        a1 = vmladavaq_s8(a1, vldrbq_s8(w + 16), terms);
        a2 = vmladavaq_s8(a2, vldrbq_s8(w + 32), terms);
        a3 = vmladavaq_s8(a3, vldrbq_s8(w + 48), terms);
    }
    acc[0] = a0, acc[1] = a1, acc[2] = a2, acc[3] = a3;
}

#else

static void qc_dot(const int8_t *w, const qc_column_t *x, int32_t columns, int32_t k, const int32_t *bias,
                   int32_t *acc) {
    int32_t a0 = bias[0], a1 = bias[1], a2 = bias[2], a3 = bias[3];
    (void)columns;
    for (int32_t i = 0; i < k; i += QC_LANES, w += 4 * QC_LANES, x += QC_LANES)
        for (int32_t j = 0; j < QC_LANES; j++) {
            int32_t term = x[j];
            a0 += w[j] * term;
            a1 += w[j + QC_LANES] * term;
            a2 += w[j + 2 * QC_LANES] * term;
            a3 += w[j + 3 * QC_LANES] * term;
        }
    acc[0] = a0, acc[1] = a1, acc[2] = a2, acc[3] = a3;
}

#endif
#endif
#endif
