/* Between the caller's float32 and int8, with the swap of channels and positions that images need. */
#include "qc_inline.h"

void qc_quantize(const qc_boundary_t *d, const float *x, int8_t *y) {
    for (int32_t outer = 0; outer < d->outer; outer++, x += d->planes * d->inner)
        for (int32_t i = 0; i < d->inner; i++)
            for (int32_t plane = 0; plane < d->planes; plane++)
                *y++ = (int8_t)qc_quantize_one(x[plane * d->inner + i], d->scale, d->zero_point);
}

void qc_dequantize(const qc_boundary_t *d, const int8_t *x, float *y) {
    for (int32_t outer = 0; outer < d->outer; outer++, x += d->planes * d->inner)
        for (int32_t plane = 0; plane < d->planes; plane++)
            for (int32_t i = 0; i < d->inner; i++)
                *y++ = (float)(x[i * d->planes + plane] - d->zero_point) * d->scale;
}
