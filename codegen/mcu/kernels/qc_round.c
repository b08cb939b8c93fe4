/* Roundings of requantisation other than the common one, and the float32 addition. Linked only where they are used. */
#include "qc_inline.h"

int32_t qc_round_wide(const qc_requantize_t *r, int32_t acc, int32_t channel) {
    int32_t shift = r->shift[channel];
    int64_t product = (int64_t)acc * r->multiplier[channel];
    int64_t rounded = qc_asr64(product + (shift > 0 ? (int64_t)1 << (shift - 1) : 0), shift);
    return rounded < -1024 ? -1024 : rounded > 1024 ? 1024 : (int32_t)rounded;
}

int32_t qc_round_half_even(const qc_requantize_t *r, int32_t acc, int32_t channel) {
    volatile float product = (float)acc * r->scale[channel];
    float x = product;
    if (x < -1024.0f) x = -1024.0f;
    if (x > 1024.0f) x = 1024.0f;
    return qc_round_even(x);
}

int32_t qc_round_q31_double(const qc_requantize_t *r, int32_t acc, int32_t channel) {
    int32_t multiplier = r->multiplier[channel], shift = r->shift[channel];
    int32_t right = shift < 0 ? -shift : 0, result;
    /* The left shift wraps in 32 bits. */
    uint32_t wrapped = (uint32_t)acc << (shift > 0 ? shift : 0);
    int32_t x = wrapped <= INT32_MAX ? (int32_t)wrapped : (int32_t)(wrapped - INT32_MAX - 1) + INT32_MIN;
    int64_t product = (int64_t)x * multiplier;
    int64_t remainder, mask = ((int64_t)1 << right) - 1;
    product += product >= 0 ? (int32_t)1 << 30 : 1 - ((int32_t)1 << 30);
    result = (int32_t)(product / 2147483648); /* towards zero */
    remainder = result - (int64_t)qc_asr(result, right) * (mask + 1);
    return qc_clamp(qc_asr(result, right) + (remainder > mask / 2 + (result < 0)), -1024, 1024);
}

int32_t qc_add_real(const qc_add_t *d, int32_t a, int32_t b) {
    volatile float real_a = (float)(a - d->zero_a) * d->scale_a; /* volatile: no fused multiply-add */
    volatile float real_b = (float)(b - d->zero_b) * d->scale_b;
    volatile float sum = d->multiplier_b < 0 ? real_a - real_b : real_a + real_b;
    return qc_clamp(qc_quantize_one(sum, d->scale, d->zero), d->minimum, d->maximum);
}
