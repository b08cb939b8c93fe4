/* Depthwise convolution: one filter a channel. Windows are clipped at the image; the zero point is subtracted. */
#include "qc_inline.h"

typedef struct {
    const int8_t *x, *w; /* of the first position inside the image */
    int32_t rows, columns, x_row, x_column, w_row, channels, zero;
} window_t;

static void store(const qc_conv_t *d, int32_t acc, int32_t channel, const int8_t *other, int8_t *y) {
    int32_t v = qc_requantize(&d->requantize, acc, channel);
    if (d->add != NULL) v = qc_add_one(d->add, v, *other);
    *y = (int8_t)v;
}

#ifdef QC_DSP
#define FOUR 1
/* Four neighbouring channels: pairs of even and of odd ones, centred by SXTAB16. */
static void sum_four(const window_t *t, int32_t *acc) {
    int32_t a0 = acc[0], a1 = acc[1], a2 = acc[2], a3 = acc[3];
    int32_t centre = (int32_t)((uint32_t)(-t->zero & 0xffff) * 0x10001u);
    for (int32_t i = 0; i < t->rows; i++) {
        const int8_t *x = t->x + i * t->x_row, *w = t->w + i * t->w_row;
        for (int32_t j = t->columns; j > 0; j--) {
            int32_t terms, weights, even, odd, weights_even, weights_odd;
            memcpy(&terms, x, 4);
            memcpy(&weights, w, 4);
            x += t->x_column;
            w += t->channels;
            __asm__("sxtab16 %0, %1, %2" : "=r"(even) : "r"(centre), "r"(terms));
            __asm__("sxtab16 %0, %1, %2, ror #8" : "=r"(odd) : "r"(centre), "r"(terms));
            __asm__("sxtb16 %0, %1" : "=r"(weights_even) : "r"(weights));
            __asm__("sxtb16 %0, %1, ror #8" : "=r"(weights_odd) : "r"(weights));
            __asm__("smlabb %0, %1, %2, %0" : "+r"(a0) : "r"(even), "r"(weights_even));
            __asm__("smlabb %0, %1, %2, %0" : "+r"(a1) : "r"(odd), "r"(weights_odd));
            __asm__("smlatt %0, %1, %2, %0" : "+r"(a2) : "r"(even), "r"(weights_even));
            __asm__("smlatt %0, %1, %2, %0" : "+r"(a3) : "r"(odd), "r"(weights_odd));
        }
    }
    acc[0] = a0, acc[1] = a1, acc[2] = a2, acc[3] = a3;
}
#elif defined(QC_MVE)
#define FOUR 1
static void sum_four(const window_t *t, int32_t *acc) {
    int32x4_t sum = vldrwq_s32(acc);
    for (int32_t i = 0; i < t->rows; i++) {
        const int8_t *x = t->x + i * t->x_row, *w = t->w + i * t->w_row;
        for (int32_t j = t->columns; j > 0; j--, x += t->x_column, w += t->channels)
            sum = vaddq_s32(sum, vmulq_s32(vsubq_n_s32(vldrbq_s32(x), t->zero), vldrbq_s32(w)));
    }
    vstrwq_s32(acc, sum);
}
#endif

static int32_t sum_one(const window_t *t, int32_t acc) {
    for (int32_t i = 0; i < t->rows; i++) {
        const int8_t *x = t->x + i * t->x_row, *w = t->w + i * t->w_row;
        for (int32_t j = 0; j < t->columns; j++) acc += (x[j * t->x_column] - t->zero) * w[j * t->channels];
    }
    return acc;
}

/* The positions i with 0 <= begin + i * dilation < size: the first, and how many. */
static int32_t inside(int32_t begin, int32_t dilation, int32_t kernel, int32_t size, int32_t *first) {
    int32_t i = 0, count = 0;
    while (i < kernel && begin + i * dilation < 0) i++;
    *first = i;
    for (; i < kernel && begin + i * dilation < size; i++) count++;
    return count;
}

void qc_depthwise(const qc_conv_t *d, const int8_t *x, const int8_t *other, int8_t *y) {
    int32_t channels = d->out_c;
    window_t t;
    if (d->add == NULL) other = y; /* not read */
    t.x_row = d->dilation_h * d->in_w * channels;
    t.x_column = d->dilation_w * channels;
    t.w_row = d->kernel_w * channels;
    t.channels = channels;
    t.zero = d->input_zero;
    for (int32_t n = 0; n < d->batch; n++, x += d->in_h * d->in_w * channels)
        for (int32_t oy = 0; oy < d->out_h; oy++)
            for (int32_t ox = 0; ox < d->out_w; ox++, y += channels, other += channels) {
                int32_t iy = oy * d->stride_h - d->pad_top, ix = ox * d->stride_w - d->pad_left, i, j, c = 0;
                t.rows = inside(iy, d->dilation_h, d->kernel_h, d->in_h, &i);
                t.columns = inside(ix, d->dilation_w, d->kernel_w, d->in_w, &j);
                if (t.rows == 0 || t.columns == 0) i = j = t.rows = iy = ix = 0; /* nothing to point at */
                t.x = x + ((iy + i * d->dilation_h) * d->in_w + ix + j * d->dilation_w) * channels;
                t.w = d->weight + (i * d->kernel_w + j) * channels;
#ifdef FOUR
                for (; c + 4 <= channels; c += 4, t.x += 4, t.w += 4) {
                    int32_t acc[4];
                    memcpy(acc, d->bias + c, sizeof acc);
                    sum_four(&t, acc);
                    for (int32_t p = 0; p < 4; p++) store(d, acc[p], c + p, other + c + p, y + c + p);
                }
#endif
                for (; c < channels; c++, t.x++, t.w++)
                    store(d, sum_one(&t, d->bias[c]), c, other + c, y + c);
            }
}
