/* Integer kernels of qcompiler: one function a family, steered by a constant descriptor. No heap, no state, no libm.
 *
 * Activations are int8 in NHWC order; every result equals the integer program's definition to the last bit. Portable
 * C99: no alignment, byte order or arithmetic right shift is assumed. Where the compiler announces Arm's DSP or
 * Helium instructions (ACLE), the inner loops use them; results are the same.
 */
#ifndef QC_KERNELS_H
#define QC_KERNELS_H

#include <stdint.h>

/* Reduction terms that lie together in packed weights; the code generator packed for this. */
#ifndef QC_LANES
#define QC_LANES 4
#endif
/* Whether there are blocks of four channels (qc_blocks.h). */
#ifndef QC_BLOCKS
#define QC_BLOCKS 0
#endif
#define QC_RANK 6

/* Packed weights are read by words. */
#ifdef __GNUC__
#define QC_ALIGNED __attribute__((aligned(8)))
#else
#define QC_ALIGNED
#endif

/* int32 accumulator to int8: clamp(round(acc * scale) + zero_point). With `slow` NULL,
 * round(acc * scale) = (acc * multiplier + 2^(s-1)) >> s, s = 33 + shift; otherwise `slow` computes it. */
typedef struct qc_requantize {
    int32_t (*slow)(const struct qc_requantize *r, int32_t acc, int32_t channel);
    const int32_t *multiplier;
    const int8_t *shift;
    const float *scale; /* of qc_round_half_even alone */
    int32_t zero_point, minimum, maximum;
} qc_requantize_t;

int32_t qc_round_wide(const qc_requantize_t *r, int32_t acc, int32_t channel);      /* s = shift: 0..62 */
int32_t qc_round_half_even(const qc_requantize_t *r, int32_t acc, int32_t channel); /* float32 product */
int32_t qc_round_q31_double(const qc_requantize_t *r, int32_t acc, int32_t channel); /* gemmlowp */

/* clamp((a * multiplier_a + b * multiplier_b + bias) >> shift); with `slow`, a float32 addition. */
typedef struct qc_add {
    int32_t (*slow)(const struct qc_add *d, int32_t a, int32_t b);
    int32_t multiplier_a, multiplier_b, bias, shift, minimum, maximum;
    int32_t zero_a, zero_b, zero; /* these and the scales: of qc_add_real alone */
    float scale_a, scale_b, scale;
} qc_add_t;

int32_t qc_add_real(const qc_add_t *d, int32_t a, int32_t b);

/* Loops over up to QC_RANK axes, outermost first, and the steps of two operands along each. */
typedef struct {
    int32_t extent[QC_RANK];
    int32_t step[2][QC_RANK];
} qc_loops_t;

/* Convolution and matrix product with constant weights. Of each group's outputs, the first block_channels (a multiple of
 * 4) lie in blocks, [groups][block_channels / 4][k + 10], which qc_blocks.h explains; the rest in weight,
 * [groups][outputs / 4][k / QC_LANES][4][QC_LANES], filled up with zeros to a multiple of 4, and bias and requantize have
 * their constants alone. k: kernel_h * kernel_w * channels of a group, filled up to a multiple of 8 or QC_LANES.
 * Biases: less input_zero times the sum of the weights. Scratch: 2 * k of int16, aligned to 4, and with an addition
 * 2 * out_c bytes. add: the result's sum with `other`, which may be the output itself. */
typedef struct {
    const int32_t *block;
    int32_t block_channels, block_offset, block_shift;
    const int8_t *weight;
    const int32_t *bias;
    qc_requantize_t requantize;
    const qc_add_t *add;
    int32_t k;
    int32_t batch, in_h, in_w, in_c, out_h, out_w, out_c, groups;
    int32_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
    int32_t input_zero;
} qc_conv_t;

void qc_conv(const qc_conv_t *d, const int8_t *x, const int8_t *other, int8_t *y, void *scratch);
/* Windows of one pixel, one group, an output for every pixel: a matrix product. */
void qc_dense(const qc_conv_t *d, const int8_t *x, const int8_t *other, int8_t *y, void *scratch);

/* One filter a channel; weight [kernel_h][kernel_w][channels], bias as it is. Other fields as above. */
void qc_depthwise(const qc_conv_t *d, const int8_t *x, const int8_t *other, int8_t *y);

/* a [batch, m, k] times b [batch, k, n]; steps in elements, the batch steps by loops (extent, step of a, step of b). */
typedef struct {
    qc_requantize_t requantize;
    qc_loops_t batch;
    int32_t m, k, n, b_step_k, b_step_n;
    int32_t zero_a, zero_b;
} qc_matmul_t;

void qc_matmul(const qc_matmul_t *d, const int8_t *a, const int8_t *b, int8_t *y);

typedef struct {
    qc_add_t add;
    qc_loops_t loops; /* steps of a and of b */
} qc_add_loops_t;

void qc_add(const qc_add_loops_t *d, const int8_t *a, const int8_t *b, int8_t *y);

typedef struct {
    qc_requantize_t requantize;
    qc_loops_t loops;
    int32_t zero_a, zero_b;
} qc_mul_t;

void qc_mul(const qc_mul_t *d, const int8_t *a, const int8_t *b, int8_t *y);

/* y[i] = table[x[i] + 128], of the channel i % channels where there are several tables. */
typedef struct {
    const int8_t *table;
    int32_t count, channels;
} qc_table_t;

void qc_table(const qc_table_t *d, const int8_t *x, int8_t *y);

/* Windows over an image. first_count: requantize has entries for averages over first_count positions and more;
 * inside_h, inside_w: extent with the padding that counts, which begins at -inside_top, -inside_left. */
typedef struct {
    qc_requantize_t requantize;
    int32_t first_count;
    int32_t batch, in_h, in_w, channels, out_h, out_w;
    int32_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
    int32_t inside_top, inside_left, inside_h, inside_w;
    int32_t input_zero;
} qc_pool_t;

void qc_max_pool(const qc_pool_t *d, const int8_t *x, int8_t *y);
void qc_average_pool(const qc_pool_t *d, const int8_t *x, int8_t *y);

typedef struct {
    qc_requantize_t requantize;
    qc_loops_t kept, reduced; /* first steps: of x */
    int32_t input_zero;
} qc_mean_t;

void qc_mean(const qc_mean_t *d, const int8_t *x, int8_t *y);

typedef struct {
    qc_requantize_t requantize;
    const int16_t *low_h, *high_h, *weight_h, *low_w, *high_w, *weight_w;
    int32_t batch, in_h, in_w, channels, out_h, out_w;
    int32_t input_zero;
} qc_resize_t;

void qc_resize(const qc_resize_t *d, const int8_t *x, int8_t *y);

/* Over rows of `length`. table: round(2^15 * exp(-distance * scale)). */
typedef struct {
    const uint16_t *factors; /* [2][16] */
    int32_t rows, length;
    int32_t fraction_bits;
} qc_softmax_t;

void qc_softmax(const qc_softmax_t *d, const int8_t *x, int8_t *y);

typedef struct {
    const int16_t *gain, *bias;
    int64_t epsilon;
    int32_t rows, length;
    int32_t shift, minimum, maximum;
    int32_t exponent; /* 22 - ceil(log2(length)) - fraction bits of the normalised value */
} qc_layer_norm_t;

void qc_layer_norm(const qc_layer_norm_t *d, const int8_t *x, int8_t *y);

/* Elements of `size` bytes; steps of source and destination in bytes. */
typedef struct {
    qc_loops_t loops;
    int32_t size;
} qc_copy_t;

void qc_copy(const qc_copy_t *d, const void *x, void *y);

/* Runs of `run` bytes by constant indices: offset[axis][i] is a byte offset, or -1 for the element at `fill`;
 * where it is NULL, i * step. */
typedef struct {
    const int32_t *offset[QC_RANK];
    int32_t extent[QC_RANK], step[QC_RANK];
    const void *fill;
    int32_t run, size;
} qc_gather_t;

void qc_gather(const qc_gather_t *d, const void *x, void *y);

/* Rows of a table by indices of 4 or 8 bytes; one outside is clamped, a negative one counts from the end. */
typedef struct {
    int32_t rows, row_bytes, count, index_bytes;
} qc_embedding_t;

void qc_embedding(const qc_embedding_t *d, const void *table, const void *index, void *y);

/* x [outer, planes, inner] to y [outer, inner, planes]; planes is 1 where nothing moves. */
typedef struct {
    int32_t outer, planes, inner;
    float scale;
    int32_t zero_point;
} qc_boundary_t;

void qc_quantize(const qc_boundary_t *d, const float *x, int8_t *y);
/* x [outer, inner, planes] to y [outer, planes, inner] */
void qc_dequantize(const qc_boundary_t *d, const int8_t *x, float *y);

#endif
