/* Depthwise convolution: one filter a channel. Windows are clipped at the image; the zero point is subtracted. */
#include "qc_inline.h"

/* The part of a window inside the image: its extent, the steps between its columns, and from the end of a row to the
 * next. */
typedef struct {
    int32_t rows, columns, x_column, x_skip, w_skip, channels, zero;
} window_t;

static void store(const qc_conv_t *d, int32_t acc, int32_t channel, const int8_t *other, int8_t *y) {
    int32_t v = qc_requantize(&d->requantize, acc, channel);
    if (d->add != NULL) v = qc_add_one(d->add, v, *other);
    *y = (int8_t)v;
}

#ifdef QC_DSP
#define FOUR 1
/* Four neighbouring channels: pairs of even and of odd ones, centred by SXTAB16. Not inlined: it takes every register. */
__attribute__((noinline)) static void sum_four(const window_t *t, const int8_t *x, const int8_t *w, int32_t *acc) {
    int32_t a0 = acc[0], a1 = acc[1], a2 = acc[2], a3 = acc[3], terms, weights, even, even_weights;
    int32_t centre = (int32_t)((uint32_t)(-t->zero & 0xffff) * 0x10001u);
    for (int32_t i = t->rows; i > 0; i--, x += t->x_skip, w += t->w_skip) {
        int32_t count = t->columns;
        __asm__("1:\n\t"
                "ldr %[terms], [%[x]]\n\t"
                "ldr %[weights], [%[w]]\n\t"
                "add %[x], %[x_step]\n\t"
                "add %[w], %[w_step]\n\t"
                "sxtab16 %[even], %[centre], %[terms]\n\t"
                "sxtb16 %[even_weights], %[weights]\n\t"
                "sxtab16 %[terms], %[centre], %[terms], ror #8\n\t"
                "sxtb16 %[weights], %[weights], ror #8\n\t"
                "smlabb %[a0], %[even], %[even_weights], %[a0]\n\t"
                "smlatt %[a2], %[even], %[even_weights], %[a2]\n\t"
                "smlabb %[a1], %[terms], %[weights], %[a1]\n\t"
                "smlatt %[a3], %[terms], %[weights], %[a3]\n\t"
                "subs %[count], #1\n\t"
                "bne 1b"
                : [x] "+r"(x), [w] "+r"(w), [a0] "+r"(a0), [a1] "+r"(a1), [a2] "+r"(a2), [a3] "+r"(a3),
                  [count] "+r"(count), [terms] "=&r"(terms), [weights] "=&r"(weights), [even] "=&r"(even),
                  [even_weights] "=&r"(even_weights)
                : [x_step] "r"(t->x_column), [w_step] "r"(t->channels), [centre] "r"(centre)
                : "cc", "memory");
    }
    acc[0] = a0, acc[1] = a1, acc[2] = a2, acc[3] = a3;
}
#elif defined(QC_MVE)
#define FOUR 1
static void sum_four(const window_t *t, const int8_t *x, const int8_t *w, int32_t *acc) {
    int32x4_t sum = vldrwq_s32(acc);
    for (int32_t i = t->rows; i > 0; i--, x += t->x_skip, w += t->w_skip)
        for (int32_t j = t->columns; j > 0; j--, x += t->x_column, w += t->channels)
            sum = vaddq_s32(sum, vmulq_s32(vsubq_n_s32(vldrbq_s32(x), t->zero), vldrbq_s32(w)));
    vstrwq_s32(acc, sum);
}
#endif

static int32_t sum_one(const window_t *t, const int8_t *x, const int8_t *w, int32_t acc) {
    for (int32_t i = t->rows; i > 0; i--, x += t->x_skip, w += t->w_skip)
        for (int32_t j = t->columns; j > 0; j--, x += t->x_column, w += t->channels) acc += (*x - t->zero) * *w;
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

/* All channels of one position; x and w: of the first position inside the image. */
static void outputs(const qc_conv_t *d, const window_t *t, const int8_t *x, const int8_t *w, const int8_t *other,
                    int8_t *y) {
    const qc_requantize_t *r = &d->requantize;
    int32_t c = 0, offset = 2 * r->zero_point + 1;
    int plain = qc_is_plain(r) && d->add == NULL;
#ifdef FOUR
    for (; c + 4 <= t->channels; c += 4, x += 4, w += 4) {
        int32_t acc[4];
        memcpy(acc, d->bias + c, sizeof acc);
        sum_four(t, x, w, acc);
        if (plain) {
            qc_requantize_four(r, acc, c, offset, y + c);
        } else {
            for (int32_t p = 0; p < 4; p++) store(d, acc[p], c + p, other + c + p, y + c + p);
        }
    }
#endif
    for (; c < t->channels; c++, x++, w++) {
        int32_t acc = sum_one(t, x, w, d->bias[c]);
        if (plain)
            y[c] = qc_saturate(qc_asr(qc_mulhi(acc, r->multiplier[c]), r->shift[c]) + offset);
        else
            store(d, acc, c, other + c, y + c);
    }
}

void qc_depthwise(const qc_conv_t *d, const int8_t *x, const int8_t *other, int8_t *y) {
    int32_t channels = d->out_c;
    window_t t;
    if (d->add == NULL) other = y; /* not read */
    t.x_column = d->dilation_w * channels;
    t.channels = channels;
    t.zero = d->input_zero;
    for (int32_t n = 0; n < d->batch; n++, x += d->in_h * d->in_w * channels)
        for (int32_t oy = 0; oy < d->out_h; oy++) {
            int32_t iy = oy * d->stride_h - d->pad_top, i;
            t.rows = inside(iy, d->dilation_h, d->kernel_h, d->in_h, &i);
            for (int32_t ox = 0; ox < d->out_w; ox++, y += channels, other += channels) {
                int32_t ix = ox * d->stride_w - d->pad_left, j, first, first_weight;
                t.columns = inside(ix, d->dilation_w, d->kernel_w, d->in_w, &j);
                t.x_skip = d->dilation_h * d->in_w * channels - t.columns * t.x_column;
                t.w_skip = (d->kernel_w - t.columns) * channels;
                first = ((iy + i * d->dilation_h) * d->in_w + ix + j * d->dilation_w) * channels;
                first_weight = (i * d->kernel_w + j) * channels;
                if (t.rows == 0 || t.columns == 0) { /* all padding: nothing to point at */
                    window_t nothing = t;
                    nothing.rows = 0;
                    outputs(d, &nothing, x, d->weight, other, y);
                } else {
                    outputs(d, &t, x + first, d->weight + first_weight, other, y);
                }
            }
        }
}
