/* Bilinear resize with 8-bit weights. */
#include "qc_inline.h"

void qc_resize(const qc_resize_t *d, const int8_t *x, int8_t *y) {
    for (int32_t n = 0; n < d->batch; n++, x += d->in_h * d->in_w * d->channels)
        for (int32_t i = 0; i < d->out_h; i++) {
            const int8_t *low = x + d->low_h[i] * d->in_w * d->channels;
            const int8_t *high = x + d->high_h[i] * d->in_w * d->channels;
            int32_t wh = d->weight_h[i];
            for (int32_t j = 0; j < d->out_w; j++) {
                int32_t left = d->low_w[j] * d->channels, right = d->high_w[j] * d->channels, ww = d->weight_w[j];
                for (int32_t c = 0; c < d->channels; c++) {
                    int32_t a = (low[left + c] - d->input_zero) * (256 - wh) + (high[left + c] - d->input_zero) * wh;
                    int32_t b = (low[right + c] - d->input_zero) * (256 - wh) + (high[right + c] - d->input_zero) * wh;
                    *y++ = (int8_t)qc_requantize(&d->requantize, a * (256 - ww) + b * ww, 0);
                }
            }
        }
}
