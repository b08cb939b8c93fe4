/* Convolution and matrix product: columns of terms times packed weights, two output positions at a time. */
#include "qc_dot.h"

/* Gathers the terms of output position (oy, ox) of group g. Outside the image lies the zero point. */
static void gather(const qc_conv_t *d, const int8_t *image, int32_t g, int32_t oy, int32_t ox, qc_column_t *column,
                   int32_t columns) {
    int32_t width = d->groups == 1 ? d->in_c : d->in_c / d->groups, k = 0, zero = d->input_zero;
    int32_t ix = ox * d->stride_w - d->pad_left;
    image += g * width;
    for (int32_t i = 0; i < d->kernel_h; i++) {
        int32_t iy = oy * d->stride_h - d->pad_top + i * d->dilation_h, line = d->kernel_w * width;
        int32_t row = iy * d->in_w * d->in_c;
        if (iy < 0 || iy >= d->in_h) {
            qc_fill(column, columns, k, zero, line);
            k += line;
        } else if (d->dilation_w == 1 && d->groups == 1) { /* one run of neighbours */
            int32_t before = ix < 0 ? -ix : 0, end = d->in_w - ix < d->kernel_w ? d->in_w - ix : d->kernel_w;
            if (before >= end) before = end = d->kernel_w;
            if (before > 0) qc_fill(column, columns, k, zero, before * width);
            if (end > before) qc_put(column, columns, k + before * width, image + row + (ix + before) * width,
                                     (end - before) * width);
            if (end < d->kernel_w) qc_fill(column, columns, k + end * width, zero, (d->kernel_w - end) * width);
            k += line;
        } else {
            for (int32_t j = 0; j < d->kernel_w; j++, k += width) {
                int32_t x = ix + j * d->dilation_w;
                if (x < 0 || x >= d->in_w)
                    qc_fill(column, columns, k, zero, width);
                else
                    qc_put(column, columns, k, image + row + x * d->in_c, width);
            }
        }
    }
    if (k < d->k) qc_fill(column, columns, k, 0, d->k - k);
}

/* Requantises one or two neighbouring positions, `count` channels from `channel`, into y and y + stride: clamped by int8
 * alone where the rounding is the common one, as asked for otherwise. */
static void outputs(const qc_conv_t *d, const int8_t *weight, qc_column_t *scratch, int32_t columns, int32_t channel,
                    int32_t count, int8_t *y, int32_t stride) {
    const qc_requantize_t *r = &d->requantize;
#ifdef QC_DSP
    if (r->slow == NULL && count >= 4) {
        int32_t fours = count & ~3;
        qc_quick_t arguments = {
            weight, scratch, scratch + columns * d->k, d->bias + channel, r->multiplier + channel, r->shift + channel,
            y, y + fours, stride, 2 * r->zero_point + 1, 4 * d->k - 8, d->k & 8};
        (columns == 2 ? qc_quick_2 : qc_quick_1)(&arguments);
        weight += fours * d->k, channel += fours, count -= fours, y += fours;
    }
#endif
    for (; count > 0; count -= 4, channel += 4, weight += 4 * d->k, y += 4)
        for (int32_t p = 0; p < columns; p++) {
            int32_t acc[4];
            qc_dot(weight, qc_column(scratch, p, d->k), columns, d->k, d->bias + channel, acc);
            if (r->slow == NULL && count >= 4)
                qc_requantize_four(r, acc, channel, 2 * r->zero_point + 1, y + p * stride);
            else
                for (int32_t c = 0; c < 4 && c < count; c++)
                    y[p * stride + c] = (int8_t)qc_requantize(r, acc[c], channel + c);
        }
}

/* What is left to do with requantised values: a clamp, an addition. */
static void finish(const qc_conv_t *d, const int8_t *x, const int8_t *other, int32_t count, int8_t *y) {
    for (int32_t i = 0; i < count; i++) {
        int32_t v = qc_clamp(x[i], d->requantize.minimum, d->requantize.maximum);
        if (d->add != NULL) v = qc_add_one(d->add, v, other[i]);
        y[i] = (int8_t)v;
    }
}

void qc_conv(const qc_conv_t *d, const int8_t *x, const int8_t *other, int8_t *y, void *scratch) {
    qc_column_t *column = (qc_column_t *)scratch;
    int32_t width = d->out_c / d->groups, positions = d->batch * d->out_h * d->out_w;
    int32_t group_weights = (width + 3) / 4 * 4 * d->k, image = 0, oy = 0, ox = 0;
    int8_t *sums = (int8_t *)(column + 2 * d->k); /* of an addition; `other` may be where its result goes */
    int plain = d->add == NULL && d->requantize.minimum == -128 && d->requantize.maximum == 127;
    if (d->add == NULL) other = y; /* not read */
    for (int32_t p = 0; p < positions; p += 2) {
        int32_t columns = positions - p < 2 ? 1 : 2, at[2][3];
        for (int32_t i = 0; i < columns; i++) {
            at[i][0] = image, at[i][1] = oy, at[i][2] = ox;
            if (++ox == d->out_w) {
                ox = 0;
                if (++oy == d->out_h) oy = 0, image += d->in_h * d->in_w * d->in_c;
            }
        }
        for (int32_t g = 0; g < d->groups; g++) {
            for (int32_t i = 0; i < columns; i++)
                gather(d, x + at[i][0], g, at[i][1], at[i][2], qc_column(column, i, d->k), columns);
            if (d->add == NULL)
                outputs(d, d->weight + g * group_weights, column, columns, g * width, width,
                        y + p * d->out_c + g * width, d->out_c);
            else
                outputs(d, d->weight + g * group_weights, column, columns, g * width, width, sums + g * width,
                        d->out_c);
        }
        if (!plain)
            finish(d, d->add == NULL ? y + p * d->out_c : sums, other + p * d->out_c, columns * d->out_c,
                   y + p * d->out_c);
    }
}
