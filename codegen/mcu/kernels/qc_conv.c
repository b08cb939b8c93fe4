/* Convolution and matrix product: columns of terms times packed weights, two output positions at a time. */
#include "qc_blocks.h"

/* An output position: its image, its place there, and the window's first line and column in the input. */
typedef struct {
    const int8_t *image;
    int32_t oy, ox, iy, ix;
} position_t;

static inline void advance(const qc_conv_t *d, position_t *at) {
    at->ix += d->stride_w;
    if (++at->ox < d->out_w) return;
    at->ox = 0, at->ix = -d->pad_left, at->iy += d->stride_h;
    if (++at->oy < d->out_h) return;
    at->oy = 0, at->iy = -d->pad_top, at->image += d->in_h * d->in_w * d->in_c;
}

/* Lines of a window that reaches beyond the image, or whose neighbours are not neighbours in memory: outside lies the
 * zero point. Returns where the column continues. */
static QC_APART int32_t gather_apart(const qc_conv_t *d, const position_t *at, int32_t g, qc_column_t *column,
                                     int32_t columns) {
    int32_t width = d->in_c / d->groups, k = 0;
    for (int32_t i = 0, iy = at->iy; i < d->kernel_h; i++, iy += d->dilation_h)
        for (int32_t j = 0, ix = at->ix; j < d->kernel_w; j++, ix += d->dilation_w, k += width) {
            if (iy < 0 || iy >= d->in_h || ix < 0 || ix >= d->in_w)
                qc_fill(column, columns, k, d->input_zero, width);
            else
                qc_put(column, columns, k, at->image + (iy * d->in_w + ix) * d->in_c + g * width, width);
        }
    return k;
}

/* The terms of one position of group g. */
static QC_APART void gather(const qc_conv_t *d, const position_t *at, int32_t g, qc_column_t *column, int32_t columns) {
    int32_t k = 0;
    if (d->groups == 1 && d->dilation_w == 1 && at->iy >= 0 && at->ix >= 0 && at->ix + d->kernel_w <= d->in_w &&
        at->iy + (d->kernel_h - 1) * d->dilation_h < d->in_h) {
        int32_t line = d->kernel_w * d->in_c, pitch = d->in_w * d->in_c;
        const int8_t *from = at->image + at->iy * pitch + at->ix * d->in_c;
        for (int32_t i = d->kernel_h; i > 0; i--, k += line, from += d->dilation_h * pitch)
            qc_put(column, columns, k, from, line);
    } else {
        k = gather_apart(d, at, g, column, columns);
    }
    if (k < d->k) qc_fill(column, columns, k, 0, d->k - k);
}

/* Outputs of group g that lie in no block, at one or two neighbouring positions, into y and y + out_c: clamped by int8
 * alone where the rounding is the common one, as asked for otherwise. */
static QC_APART void rest_of_outputs(const qc_conv_t *d, int32_t g, qc_column_t *scratch, int32_t columns,
                                     int8_t *y) {
    const qc_requantize_t *r = &d->requantize;
    int32_t rest = d->out_c / d->groups - d->block_channels, channel = g * rest;
    const int8_t *weight = d->weight + g * ((rest + 3) / 4 * 4 * d->k);
    for (; rest > 0; rest -= 4, channel += 4, weight += 4 * d->k, y += 4)
        for (int32_t p = 0; p < columns; p++) {
            int32_t acc[4];
            qc_dot(weight, qc_column(scratch, p, d->k), columns, d->k, d->bias + channel, acc);
            if (r->slow == NULL && rest >= 4)
                qc_requantize_four(r, acc, channel, 2 * r->zero_point + 1, y + p * d->out_c);
            else
                for (int32_t c = 0; c < 4 && c < rest; c++)
                    y[p * d->out_c + c] = (int8_t)qc_requantize(r, acc[c], channel + c);
        }
}

/* What is left to do with requantised values: a clamp, an addition. */
static QC_APART void finish(const qc_conv_t *d, const int8_t *x, const int8_t *other, int32_t count, int8_t *y) {
    for (int32_t i = 0; i < count; i++) {
        int32_t v = qc_clamp(x[i], d->requantize.minimum, d->requantize.maximum);
        if (d->add != NULL) v = qc_add_one(d->add, v, other[i]);
        y[i] = (int8_t)v;
    }
}

static inline int is_plain(const qc_conv_t *d) {
    return d->add == NULL && d->requantize.minimum == -128 && d->requantize.maximum == 127;
}

/* Arguments of the blocks but where they lie and go. */
static inline void prepare(const qc_conv_t *d, qc_column_t *column, qc_blocks_t *blocks) {
    blocks->offset = d->block_offset;
    blocks->shift = d->block_shift;
    blocks->stride = d->out_c;
    blocks->back = 4 * d->k + 20;
    blocks->column = blocks->column_1 = column;
}

/* The outputs of a group from its gathered columns. */
static inline void outputs(const qc_conv_t *d, int32_t g, qc_blocks_t *blocks, const int32_t *block, int32_t columns,
                           int32_t width, int8_t *y) {
    int32_t fours = QC_BLOCKS ? d->block_channels : 0;
    if (fours > 0) {
        blocks->block = block;
        blocks->end = blocks->end_1 = blocks->column_1 + columns * d->k;
        blocks->y = y;
        blocks->y_end = y + fours;
        qc_blocks(blocks, columns, d->k);
    }
    if (fours < width) rest_of_outputs(d, g, blocks->column_1, columns, y + fours);
}

void qc_conv(const qc_conv_t *d, const int8_t *x, const int8_t *other, int8_t *y, void *scratch) {
    qc_column_t *column = (qc_column_t *)scratch;
    int32_t width = d->out_c / d->groups, group_words = d->block_channels / 4 * (d->k + 10);
    int32_t left = d->batch * d->out_h * d->out_w;
    position_t at = {x, 0, 0, -d->pad_top, -d->pad_left};
    qc_blocks_t blocks;
    prepare(d, column, &blocks);
    for (; left > 0; left -= 2) {
        int32_t columns = left == 1 ? 1 : 2;
        /* An addition's other operand may be where its result goes. */
        int8_t *results = d->add == NULL ? y : (int8_t *)(column + 2 * d->k);
        position_t start = at;
        for (int32_t g = 0; g < d->groups; g++) {
            at = start;
            for (int32_t i = 0; i < columns; i++) {
                gather(d, &at, g, qc_column(column, i, d->k), columns);
                advance(d, &at);
            }
            outputs(d, g, &blocks, d->block + g * group_words, columns, width, results + g * width);
        }
        if (!is_plain(d)) {
            finish(d, results, other, columns * d->out_c, y);
            if (d->add != NULL) other += columns * d->out_c;
        }
        y += columns * d->out_c;
    }
}

void qc_dense(const qc_conv_t *d, const int8_t *x, const int8_t *other, int8_t *y, void *scratch) {
    qc_column_t *column = (qc_column_t *)scratch;
    int32_t left = d->batch * d->out_h * d->out_w;
    qc_blocks_t blocks;
    prepare(d, column, &blocks);
    for (; left > 0; left -= 2) {
        int32_t columns = left == 1 ? 1 : 2;
        int8_t *results = d->add == NULL ? y : (int8_t *)(column + 2 * d->k);
        for (int32_t i = 0; i < columns; i++, x += d->in_c) {
            qc_column_t *to = qc_column(column, i, d->k);
            if (d->in_c == d->k) {
                qc_put_all(to, columns, d->k, x);
            } else {
                qc_put(to, columns, 0, x, d->in_c);
                qc_fill(to, columns, d->in_c, 0, d->k - d->in_c);
            }
        }
        outputs(d, 0, &blocks, d->block, columns, d->out_c, results);
        if (!is_plain(d)) {
            finish(d, results, other, columns * d->out_c, y);
            if (d->add != NULL) other += columns * d->out_c;
        }
        y += columns * d->out_c;
    }
}
