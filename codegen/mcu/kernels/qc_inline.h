/* Arithmetic shared by the kernels. */
#ifndef QC_INLINE_H
#define QC_INLINE_H

#include <string.h>

#include "qc_kernels.h"

#if QC_LANES == 4 && defined(__ARM_FEATURE_DSP) && defined(__thumb2__) && defined(__GNUC__) && defined(__OPTIMIZE__) && \
    !defined(__ARM_BIG_ENDIAN)
#define QC_DSP 1
#endif
#if defined(__ARM_FEATURE_MVE) && QC_LANES == 16 && !defined(__ARM_BIG_ENDIAN)
#define QC_MVE 1
#include <arm_mve.h>
#endif

/* Of a function that is rarely called: kept out of the registers of the one that calls it. */
#ifdef __GNUC__
#define QC_APART __attribute__((noinline))
#else
#define QC_APART
#endif

/* floor(x / 2^n). C99 leaves the right shift of a negative number to the compiler; nearly all shift arithmetically, and
 * then the test vanishes. */
static inline int32_t qc_asr(int32_t x, int32_t n) {
    return -1 >> 1 == -1 || x >= 0 ? x >> n : ~(~x >> n);
}
static inline int64_t qc_asr64(int64_t x, int32_t n) {
    return -1 >> 1 == -1 || x >= 0 ? x >> n : ~(~x >> n);
}

/* The upper half of the product: SMMUL. */
static inline int32_t qc_mulhi(int32_t a, int32_t b) {
    return (int32_t)qc_asr64((int64_t)a * b, 32);
}

/* x / 2 rounded down, clamped to int8. */
static inline int8_t qc_saturate(int32_t x) {
#ifdef QC_DSP
    int32_t result;
    __asm__("ssat %0, #8, %1, asr #1" : "=r"(result) : "r"(x));
    return (int8_t)result;
#else
    x = qc_asr(x, 1);
    return (int8_t)(x < -128 ? -128 : x > 127 ? 127 : x);
#endif
}

static inline int32_t qc_clamp(int32_t x, int32_t low, int32_t high) {
    return x < low ? low : x > high ? high : x;
}

/* Four neighbouring channels from `channel`, by the common rounding, clamped by int8 alone; offset: 2 * zero point + 1.
 * Reads all sums and constants before it writes. */
static inline void qc_requantize_four(const qc_requantize_t *r, const int32_t *acc, int32_t channel, int32_t offset,
                                      int8_t *y) {
    const int32_t *multiplier = r->multiplier + channel;
    const int8_t *shift = r->shift + channel;
#ifdef QC_MVE
    int32x4_t v = vmulhq_s32(vldrwq_s32(acc), vldrwq_s32(multiplier));
    v = vshlq_s32(v, vnegq_s32(vldrbq_s32(shift)));
    v = vshrq_n_s32(vaddq_n_s32(v, offset), 1);
    vstrbq_s32(y, vmaxq_s32(vminq_s32(v, vdupq_n_s32(127)), vdupq_n_s32(-128)));
#else
    int8_t v0 = qc_saturate(qc_asr(qc_mulhi(acc[0], multiplier[0]), shift[0]) + offset);
    int8_t v1 = qc_saturate(qc_asr(qc_mulhi(acc[1], multiplier[1]), shift[1]) + offset);
    int8_t v2 = qc_saturate(qc_asr(qc_mulhi(acc[2], multiplier[2]), shift[2]) + offset);
    int8_t v3 = qc_saturate(qc_asr(qc_mulhi(acc[3], multiplier[3]), shift[3]) + offset);
    y[0] = v0, y[1] = v1, y[2] = v2, y[3] = v3;
#endif
}

/* Whether that is what a requantisation asks for. */
static inline int qc_is_plain(const qc_requantize_t *r) {
    return r->slow == NULL && r->minimum == -128 && r->maximum == 127;
}

static inline int32_t qc_requantize(const qc_requantize_t *r, int32_t acc, int32_t channel) {
    int32_t v;
    if (r->slow != NULL)
        v = r->slow(r, acc, channel) + r->zero_point;
    else
        v = qc_asr(qc_asr(qc_mulhi(acc, r->multiplier[channel]), r->shift[channel]) + 2 * r->zero_point + 1, 1);
    return qc_clamp(v, r->minimum, r->maximum);
}

static inline int32_t qc_add_one(const qc_add_t *d, int32_t a, int32_t b) {
    if (d->slow != NULL) return d->slow(d, a, b);
    return qc_clamp(qc_asr(a * d->multiplier_a + b * d->multiplier_b + d->bias, d->shift), d->minimum, d->maximum);
}

/* Rounds half to even; |x| < 2^24. */
static inline int32_t qc_round_even(float x) {
    int32_t whole = (int32_t)x;
    float rest = x - (float)whole;
    if (rest > 0.5f || (rest == 0.5f && whole % 2 != 0)) return whole + 1;
    if (rest < -0.5f || (rest == -0.5f && whole % 2 != 0)) return whole - 1;
    return whole;
}

/* ONNX QuantizeLinear; NaN becomes -128. */
static inline int32_t qc_quantize_one(float x, float scale, int32_t zero_point) {
    volatile float quotient = x / scale; /* volatile: rounded to float32 whatever the compiler's options */
    float q = quotient;
    if (!(q > -1024.0f)) q = -1024.0f;
    if (q > 1024.0f) q = 1024.0f;
    return qc_clamp(qc_round_even(q) + zero_point, -128, 127);
}

/* A place in nested loops; `at` are the operands' offsets. */
typedef struct {
    int32_t index[QC_RANK], at[2];
} qc_cursor_t;

/* Steps over the first `rank` axes; returns 0 when they are done. */
static inline int qc_next(const qc_loops_t *loops, int rank, qc_cursor_t *c) {
    for (int axis = rank - 1; axis >= 0; axis--) {
        c->at[0] += loops->step[0][axis];
        c->at[1] += loops->step[1][axis];
        if (++c->index[axis] < loops->extent[axis]) return 1;
        c->index[axis] = 0;
        c->at[0] -= loops->extent[axis] * loops->step[0][axis];
        c->at[1] -= loops->extent[axis] * loops->step[1][axis];
    }
    return 0;
}

#endif
