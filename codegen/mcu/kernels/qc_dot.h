/* Products of packed weights with columns: the terms that one output position sums, gathered from the image.
 *
 * Two columns are filled (`qc_put`, `qc_fill`) and then multiplied with four output channels at a time (`qc_dot_2`), a
 * lone one likewise (`qc_dot_1`). How a column lies in memory is private to this file:
 *
 * - portable and Helium: int8, one column after the other; Helium multiplies 16 terms an instruction;
 * - DSP: int16 in groups of four terms, the even two and then the odd two, as SXTB16 leaves them, the groups of both
 *   columns in turn; SMLAD multiplies two terms an instruction.
 */
#ifndef QC_DOT_H
#define QC_DOT_H

#include "qc_inline.h"

#ifdef QC_DSP

typedef int16_t qc_column_t;

static inline qc_column_t *qc_column(qc_column_t *scratch, int32_t which, int32_t k) {
    (void)k;
    return scratch + 4 * which;
}

static inline qc_column_t *qc_slot(qc_column_t *column, int32_t columns, int32_t k) {
    return column + 4 * columns * (k >> 2) + ((k & 1) << 1 | (k >> 1 & 1));
}

static void qc_put(qc_column_t *column, int32_t columns, int32_t k, const int8_t *x, int32_t count) {
    int32_t end = k + count;
    for (; k < end && (k & 3) != 0; k++) *qc_slot(column, columns, k) = *x++;
    for (qc_column_t *to = qc_slot(column, columns, k); k + 4 <= end; k += 4, x += 4, to += 4 * columns) {
        int32_t word, even, odd;
        memcpy(&word, x, 4);
        __asm__("sxtb16 %0, %1" : "=r"(even) : "r"(word));
        __asm__("sxtb16 %0, %1, ror #8" : "=r"(odd) : "r"(word));
        memcpy(to, &even, 4);
        memcpy(to + 2, &odd, 4);
    }
    for (; k < end; k++) *qc_slot(column, columns, k) = *x++;
}

static void qc_fill(qc_column_t *column, int32_t columns, int32_t k, int32_t value, int32_t count) {
    for (int32_t end = k + count; k < end; k++) *qc_slot(column, columns, k) = (qc_column_t)value;
}

/* Two channels and two columns, eight terms a turn: 32 instructions for 32 products. */
static inline void qc_dot_2x2(const int8_t *w, const qc_column_t *x, int32_t k, int32_t bias0, int32_t bias1,
                              int32_t *acc) {
    const qc_column_t *end = x + 2 * k;
    int32_t a0 = bias0, a1 = bias1, b0 = bias0, b1 = bias1, w0, w1, e0, e1, x0, x1;
#define QC_FOUR_TERMS                          \
    "ldrd %[w0], %[w1], [%[w]], #16\n\t"       \
    "ldrd %[x0], %[x1], [%[x]], #8\n\t"        \
    "sxtb16 %[e0], %[w0]\n\t"                  \
    "sxtb16 %[w0], %[w0], ror #8\n\t"          \
    "sxtb16 %[e1], %[w1]\n\t"                  \
    "sxtb16 %[w1], %[w1], ror #8\n\t"          \
    "smlad %[a0], %[e0], %[x0], %[a0]\n\t"     \
    "smlad %[a1], %[e1], %[x0], %[a1]\n\t"     \
    "smlad %[a0], %[w0], %[x1], %[a0]\n\t"     \
    "smlad %[a1], %[w1], %[x1], %[a1]\n\t"     \
    "ldrd %[x0], %[x1], [%[x]], #8\n\t"        \
    "smlad %[b0], %[e0], %[x0], %[b0]\n\t"     \
    "smlad %[b1], %[e1], %[x0], %[b1]\n\t"     \
    "smlad %[b0], %[w0], %[x1], %[b0]\n\t"     \
    "smlad %[b1], %[w1], %[x1], %[b1]\n\t"
    __asm__("1:\n\t" QC_FOUR_TERMS QC_FOUR_TERMS
            "cmp %[x], %[end]\n\t"
            "bne 1b"
            : [w] "+r"(w), [x] "+r"(x), [a0] "+r"(a0), [a1] "+r"(a1), [b0] "+r"(b0), [b1] "+r"(b1), [w0] "=&r"(w0),
              [w1] "=&r"(w1), [e0] "=&r"(e0), [e1] "=&r"(e1), [x0] "=&r"(x0), [x1] "=&r"(x1)
            : [end] "r"(end)
            : "cc", "memory");
#undef QC_FOUR_TERMS
    acc[0] = a0, acc[1] = a1, acc[4] = b0, acc[5] = b1;
}

static inline void qc_dot_2(const int8_t *w, const qc_column_t *x, int32_t k, const int32_t *bias, int32_t *acc) {
    qc_dot_2x2(w, x, k, bias[0], bias[1], acc);
    qc_dot_2x2(w + 8, x, k, bias[2], bias[3], acc + 2);
}

/* Four channels and one column, eight terms a turn: 40 instructions for 32 products. */
static inline void qc_dot_1(const int8_t *w, const qc_column_t *x, int32_t k, const int32_t *bias, int32_t *acc) {
    const qc_column_t *end = x + k;
    int32_t a0 = bias[0], a1 = bias[1], a2 = bias[2], a3 = bias[3], w0, w1, e, x0, x1;
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
    __asm__("1:\n\t"
            "ldrd %[x0], %[x1], [%[x]], #8\n\t" QC_TWO_CHANNELS("a0", "a1") QC_TWO_CHANNELS("a2", "a3")
            "ldrd %[x0], %[x1], [%[x]], #8\n\t" QC_TWO_CHANNELS("a0", "a1") QC_TWO_CHANNELS("a2", "a3")
            "cmp %[x], %[end]\n\t"
            "bne 1b"
            : [w] "+r"(w), [x] "+r"(x), [a0] "+r"(a0), [a1] "+r"(a1), [a2] "+r"(a2), [a3] "+r"(a3), [w0] "=&r"(w0),
              [w1] "=&r"(w1), [e] "=&r"(e), [x0] "=&r"(x0), [x1] "=&r"(x1)
            : [end] "r"(end)
            : "cc", "memory");
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

static inline void qc_dot_1(const int8_t *w, const qc_column_t *x, int32_t k, const int32_t *bias, int32_t *acc) {
    int32_t a0 = bias[0], a1 = bias[1], a2 = bias[2], a3 = bias[3];
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

static inline void qc_dot_1(const int8_t *w, const qc_column_t *x, int32_t k, const int32_t *bias, int32_t *acc) {
    int32_t a0 = bias[0], a1 = bias[1], a2 = bias[2], a3 = bias[3];
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

static inline void qc_dot_2(const int8_t *w, const qc_column_t *x, int32_t k, const int32_t *bias, int32_t *acc) {
    qc_dot_1(w, x, k, bias, acc);
    qc_dot_1(w, x + k, k, bias, acc + 4);
}

#endif
#endif
