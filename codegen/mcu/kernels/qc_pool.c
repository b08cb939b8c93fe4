/* Maxima and averages over windows, means over axes. Padding is never stored: windows are clipped at the image. */
#include "qc_inline.h"

/* The first and one past the last of `kernel` positions begin + i * dilation that lie in 0..size-1. */
static void clip(int32_t begin, int32_t dilation, int32_t kernel, int32_t size, int32_t *first, int32_t *end) {
    int32_t i = 0;
    while (i < kernel && begin + i * dilation < 0) i++;
    *first = i;
    while (i < kernel && begin + i * dilation < size) i++;
    *end = i;
}

void qc_max_pool(const qc_pool_t *d, const int8_t *x, int8_t *y) {
    for (int32_t n = 0; n < d->batch; n++, x += d->in_h * d->in_w * d->channels)
        for (int32_t oy = 0; oy < d->out_h; oy++)
            for (int32_t ox = 0; ox < d->out_w; ox++, y += d->channels) {
                int32_t iy = oy * d->stride_h - d->pad_top, ix = ox * d->stride_w - d->pad_left, y0, y1, x0, x1;
                clip(iy, d->dilation_h, d->kernel_h, d->in_h, &y0, &y1);
                clip(ix, d->dilation_w, d->kernel_w, d->in_w, &x0, &x1);
                memset(y, 0x80, (size_t)d->channels); /* -128 */
                for (int32_t i = y0; i < y1; i++)
                    for (int32_t j = x0; j < x1; j++) {
                        const int8_t *p =
                            x + ((iy + i * d->dilation_h) * d->in_w + ix + j * d->dilation_w) * d->channels;
                        for (int32_t c = 0; c < d->channels; c++)
                            if (p[c] > y[c]) y[c] = p[c];
                    }
            }
}

void qc_average_pool(const qc_pool_t *d, const int8_t *x, int8_t *y) {
    for (int32_t n = 0; n < d->batch; n++, x += d->in_h * d->in_w * d->channels)
        for (int32_t oy = 0; oy < d->out_h; oy++)
            for (int32_t ox = 0; ox < d->out_w; ox++) {
                int32_t iy = oy * d->stride_h - d->pad_top, ix = ox * d->stride_w - d->pad_left, y0, y1, x0, x1;
                int32_t count, c0, c1;
                clip(iy + d->inside_top, d->dilation_h, d->kernel_h, d->inside_h, &c0, &c1);
                count = c1 - c0;
                clip(ix + d->inside_left, d->dilation_w, d->kernel_w, d->inside_w, &c0, &c1);
                count *= c1 - c0;
                clip(iy, d->dilation_h, d->kernel_h, d->in_h, &y0, &y1);
                clip(ix, d->dilation_w, d->kernel_w, d->in_w, &x0, &x1);
                for (int32_t c = 0; c < d->channels; c++) {
                    int32_t acc = 0;
                    for (int32_t i = y0; i < y1; i++) {
                        const int8_t *p = x + (iy + i * d->dilation_h) * d->in_w * d->channels + c;
                        for (int32_t j = x0; j < x1; j++)
                            acc += p[(ix + j * d->dilation_w) * d->channels] - d->input_zero;
                    }
                    *y++ = (int8_t)qc_requantize(
                        &d->requantize, acc, count > d->first_count ? count - d->first_count : 0);
                }
            }
}

void qc_mean(const qc_mean_t *d, const int8_t *x, int8_t *y) {
    qc_cursor_t kept = {{0}, {0}};
    do {
        qc_cursor_t reduced = {{0}, {0}};
        int32_t acc = 0;
        do {
            acc += x[kept.at[0] + reduced.at[0]] - d->input_zero;
        } while (qc_next(&d->reduced, QC_RANK, &reduced));
        *y++ = (int8_t)qc_requantize(&d->requantize, acc, 0);
    } while (qc_next(&d->kept, QC_RANK, &kept));
}
