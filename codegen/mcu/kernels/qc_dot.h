/* Products of packed weights with columns: the terms that one output position sums, gathered from the image.
 *
 * One or two columns are filled (`qc_put`, `qc_fill`), and each is multiplied with four output channels at a time
 * (`qc_dot`). How a column lies in memory is known to this file and to qc_blocks.h alone:
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

/* clang-format off */
#define QC_PUT_FOUR(step)                  \
    "ldr %[even], [%[x]], #4\n\t"          \
    "sxtb16 %[odd], %[even], ror #8\n\t"   \
    "sxtb16 %[even], %[even]\n\t"          \
    "strd %[even], %[odd], [%[to]], #" step "\n\t"
#define QC_PUT(step)                       \
    "tst %[groups], #1\n\t"                 \
    "beq 2f\n\t"                           \
    QC_PUT_FOUR(step)                      \
    "subs %[groups], #1\n\t"                \
    "beq 3f\n"                             \
    "2:\n\t" QC_PUT_FOUR(step) QC_PUT_FOUR(step) \
    "subs %[groups], #2\n\t"                \
    "bne 2b\n"                             \
    "3:\n\t"
/* clang-format on */

/* Groups of four terms to where a column has its next ones. */
__attribute__((noinline)) static void qc_put_fours(qc_column_t *to, int32_t columns, const int8_t *x, int32_t groups) {
    int32_t even, odd;
    if (columns == 1)
        __asm__ volatile(QC_PUT("8") : [x] "+r"(x), [to] "+r"(to), [groups] "+r"(groups), [even] "=&r"(even), [odd] "=&r"(odd)
                : : "cc", "memory");
    else
        __asm__ volatile(QC_PUT("16") : [x] "+r"(x), [to] "+r"(to), [groups] "+r"(groups), [even] "=&r"(even), [odd] "=&r"(odd)
                : : "cc", "memory");
}

#undef QC_PUT_FOUR
#undef QC_PUT

static void qc_put(qc_column_t *column, int32_t columns, int32_t k, const int8_t *x, int32_t count) {
    int32_t end = k + count;
    for (; k < end && (k & 3) != 0; k++) *qc_slot(column, columns, k) = *x++;
    if (end - k >= 4) {
        int32_t groups = (end - k) >> 2;
        qc_put_fours(column + columns * k, columns, x, groups);
        k += 4 * groups, x += 4 * groups;
    }
    for (; k < end; k++) *qc_slot(column, columns, k) = *x++;
}

/* A whole column of neighbours. */
static inline void qc_put_all(qc_column_t *column, int32_t columns, int32_t k, const int8_t *x) {
    qc_put_fours(column, columns, x, k >> 2);
}

static void qc_fill(qc_column_t *column, int32_t columns, int32_t k, int32_t value, int32_t count) {
    for (int32_t end = k + count; k < end; k++) *qc_slot(column, columns, k) = (qc_column_t)value;
}

/* clang-format off */
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
#define QC_FOUR_TERMS(step)                                \
    "ldrd %[x0], %[x1], [%[x]], #" step "\n\t" QC_TWO_CHANNELS("a0", "a1") QC_TWO_CHANNELS("a2", "a3")
#define QC_DOT(step)                                                                                     \
    __asm__("1:\n\t" QC_FOUR_TERMS(step) QC_FOUR_TERMS(step)                                             \
            "cmp %[x], %[end]\n\t"                                                                       \
            "bne 1b"                                                                                     \
            : [w] "+r"(w), [x] "+r"(x), [a0] "+r"(a0), [a1] "+r"(a1), [a2] "+r"(a2), [a3] "+r"(a3),      \
              [w0] "=&r"(w0), [w1] "=&r"(w1), [e] "=&r"(e), [x0] "=&r"(x0), [x1] "=&r"(x1)               \
            : [end] "r"(end)                                                                             \
            : "cc", "memory")
/* clang-format on */

/* Four channels and one column of `columns`, eight terms a turn: 40 instructions for 32 products. */
static void qc_dot(const int8_t *w, const qc_column_t *x, int32_t columns, int32_t k, const int32_t *bias,
                   int32_t *acc) {
    const qc_column_t *end = x + columns * k;
    int32_t a0 = bias[0], a1 = bias[1], a2 = bias[2], a3 = bias[3], w0, w1, e, x0, x1;
    if (columns == 1)
        QC_DOT("8");
    else
        QC_DOT("16");
    acc[0] = a0, acc[1] = a1, acc[2] = a2, acc[3] = a3;
}

#undef QC_TWO_CHANNELS
#undef QC_FOUR_TERMS
#undef QC_DOT

#else

typedef int8_t qc_column_t;

static inline qc_column_t *qc_column(qc_column_t *scratch, int32_t which, int32_t k) {
    return scratch + which * k;
}

static inline void qc_put(qc_column_t *column, int32_t columns, int32_t k, const int8_t *x, int32_t count) {
    (void)columns;
    memcpy(column + k, x, (size_t)count);
}

static inline void qc_put_all(qc_column_t *column, int32_t columns, int32_t k, const int8_t *x) {
    qc_put(column, columns, 0, x, k);
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
