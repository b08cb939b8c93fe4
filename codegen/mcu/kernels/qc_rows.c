/* Softmax and layer normalisation over rows, in integers. The output may be the input. */
#include "qc_inline.h"

static int32_t bit_length(uint64_t x) {
    int32_t bits = 0;
    for (; x != 0; x >>= 1) bits++;
    return bits;
}

/* 2**16 * exp(-distance * scale), from factors for its upper and its lower four bits */
static inline uint32_t power(const uint16_t *factors, int32_t distance) {
    return ((uint32_t)factors[distance >> 4] * factors[16 + (distance & 15)]) >> 16;
}

void qc_softmax(const qc_softmax_t *d, const int8_t *x, int8_t *y) {
    for (int32_t row = 0; row < d->rows; row++, x += d->length, y += d->length) {
        int32_t largest = -128, bits, shift;
        uint32_t sum = 2, reciprocal;
        for (int32_t i = 0; i < d->length; i++)
            if (x[i] > largest) largest = x[i];
        for (int32_t i = 0; i < d->length; i++) sum += power(d->factors, largest - x[i]);
        bits = bit_length(sum);
        reciprocal = (uint32_t)((((uint64_t)1 << (bits + 15)) - 1) / sum);
        shift = bits - 2 - d->fraction_bits;
        for (int32_t i = 0; i < d->length; i++) {
            uint32_t q = (((power(d->factors, largest - x[i]) * reciprocal >> 16) >> shift) + 1) >> 1;
            y[i] = (int8_t)((int32_t)(q > 255 ? 255 : q) - 128);
        }
    }
}

/* floor(sqrt(x)) */
static uint32_t square_root(uint32_t x) {
    uint32_t root = 0;
    for (uint32_t bit = (uint32_t)1 << 15; bit != 0; bit >>= 1)
        if ((root + bit) * (root + bit) <= x) root += bit;
    return root;
}

void qc_layer_norm(const qc_layer_norm_t *d, const int8_t *x, int8_t *y) {
    for (int32_t row = 0; row < d->rows; row++, x += d->length, y += d->length) {
        int32_t sum = 0, squares = 0, mean, rho, m, e;
        uint64_t variance;
        for (int32_t i = 0; i < d->length; i++) {
            sum += x[i];
            squares += x[i] * x[i];
        }
        variance = (uint64_t)((int64_t)d->length * squares - (int64_t)sum * sum + d->epsilon);
        mean = sum * 128 + d->length / 2; /* floor of the quotient: C rounds towards zero */
        mean = mean >= 0 ? mean / d->length : -((-mean + d->length - 1) / d->length);
        m = qc_asr(bit_length(variance) - 31, 1);
        variance = m >= 0 ? variance >> (2 * m) : variance << (-2 * m);
        rho = (int32_t)square_root((uint32_t)(((uint64_t)1 << 60) / variance));
        rho = rho < 32767 ? rho : 32767;
        e = qc_clamp(m + d->exponent, -15, 15);
        for (int32_t i = 0; i < d->length; i++) {
            int32_t z = qc_asr((x[i] * 128 - mean) * rho + 16384, 15);
            z = e <= 0 ? z * (1 << -e) : qc_asr(qc_asr(z, e - 1) + 1, 1);
            z = qc_clamp(qc_asr(z * d->gain[i] + 16384, 15) + d->bias[i], -32768, 32767);
            y[i] = (int8_t)qc_clamp(qc_asr(z, d->shift), d->minimum, d->maximum);
        }
    }
}
