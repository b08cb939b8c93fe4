/* Blocks of four output channels: weights, biases and multipliers in one stream, read once from its start to its end.
 *
 * A word of weights holds two terms of two channels, and each of its halves one term's weights as the number
 * a + 256 * b. The DSP form multiplies it twice by the same pair of terms: as it is, into a sum S, and its even bytes,
 * which are the first channel's weights alone (SXTB16), into that channel's sum A. Then S - A is 256 times the second
 * channel's sum, modulo 2^32; because the code generator knows the interval of each sum and moves its middle to zero,
 * nothing is lost if the interval is narrower than 2^24. One SXTB16 so widens two channels' weights.
 *
 * An output is clamp((floor(sum * multiplier / 2^32) + offset) >> shift) with offset = (2 * zero point + 1) << (shift - 1):
 * the offset is a multiple of half of what the shift takes away, so nested floors make it
 * floor(sum * scale + 1/2) + zero point exactly, where scale = multiplier / 2^(32 + shift).
 *
 * Words of a block: {bias of A, of S} of channels 0 and 1 and of 2 and 3; for every four terms {even, odd terms} of both
 * pairs; {multiplier, multiplier, middle} of the first pair and {middle, multiplier, multiplier} of the second.
 */
#ifndef QC_BLOCKS_H
#define QC_BLOCKS_H

#include "qc_dot.h"

/* Arguments; the DSP form loads them in this order. */
typedef struct {
    const int32_t *block;
    const qc_column_t *column, *end; /* of all columns */
    int8_t *y;
    int32_t offset, shift;
    int32_t stride;              /* from one position's outputs to the next one's */
    int32_t back;                /* bytes from behind the first pair's constants to the second pair's biases */
    qc_column_t *column_1;       /* again: lost during a pair */
    const int8_t *y_end;
    const qc_column_t *end_1;
} qc_blocks_t;

#ifdef QC_DSP

/* clang-format off */
#define QC_FOUR_TERMS                 \
    "ldrd r8, r9, [r0], #16\n\t"      /* two channels' weights: even terms, odd terms */ \
    "ldm r1!, {r10-r12, lr}\n\t"      /* the terms of both positions */ \
    "smlad r5, r8, r10, r5\n\t"       \
    "smlad r7, r8, r12, r7\n\t"       \
    "sxtb16 r8, r8\n\t"               \
    "smlad r4, r8, r10, r4\n\t"       \
    "smlad r6, r8, r12, r6\n\t"       \
    "smlad r5, r9, r11, r5\n\t"       \
    "smlad r7, r9, lr, r7\n\t"        \
    "sxtb16 r9, r9\n\t"               \
    "smlad r4, r9, r11, r4\n\t"       \
    "smlad r6, r9, lr, r6\n\t"
#define QC_TWO_CHANNELS(constants, multiplier_0, multiplier_1, middle)     \
    "ldrd r4, r5, [r0], #16\n\t"                                           \
    "mov r6, r4\n\t"                                                       \
    "mov r7, r5\n"                                                         \
    "1:\n\t" QC_FOUR_TERMS QC_FOUR_TERMS                                   \
    "cmp r1, r2\n\t"                                                       \
    "bne 1b\n\t"                                                           \
    "ldm r0!, {" constants "}\n\t"                                         \
    "ldm sp, {r1, r12, lr}\n\t"              /* offset, shift, stride */   \
    "sub r5, r5, r4\n\t"                                                   \
    "sub r7, r7, r6\n\t"                                                   \
    "add r5, " middle ", r5, asr #8\n\t"                                   \
    "add r7, " middle ", r7, asr #8\n\t"                                   \
    "smmla r4, r4, " multiplier_0 ", r1\n\t"                               \
    "smmla r5, r5, " multiplier_1 ", r1\n\t"                               \
    "smmla r6, r6, " multiplier_0 ", r1\n\t"                               \
    "smmla r7, r7, " multiplier_1 ", r1\n\t"                               \
    QC_SHIFT_AND_SATURATE("r12")                                           \
    "bfi r6, r7, #8, #8\n\t"                                               \
    "bfi r4, r5, #8, #8\n\t"                                               \
    "strh r6, [r3, lr]\n\t"                                                \
    "strh r4, [r3], #2\n\t"
#define QC_SHIFT_AND_SATURATE(shift) \
    "asr r4, r4, " shift "\n\t"      \
    "asr r5, r5, " shift "\n\t"      \
    "asr r6, r6, " shift "\n\t"      \
    "asr r7, r7, " shift "\n\t"      \
    "ssat r4, #8, r4\n\t"            \
    "ssat r5, #8, r5\n\t"            \
    "ssat r6, #8, r6\n\t"            \
    "ssat r7, #8, r7\n\t"
/* clang-format on */

/* Two positions, two channels at a time: 24 instructions for 32 products and 2 for the turn, 28 for the four outputs. */
__attribute__((naked, noinline)) static void qc_blocks_2(qc_blocks_t *arguments __attribute__((unused))) {
    __asm__("push {r4-r11, lr}\n\t"
            "ldm r0, {r0-r10}\n\t"
            "push {r4-r10}\n"
            "0:\n\t" QC_TWO_CHANNELS("r8-r10", "r8", "r9", "r10")
            "ldrd r12, r1, [sp, #12]\n\t"
            "sub r0, r0, r12\n\t" QC_TWO_CHANNELS("r8-r11", "r10", "r11", "r9") /* r8: the first pair's middle */
            "ldrd r1, r12, [sp, #16]\n\t"
            "cmp r3, r12\n\t"
            "bne 0b\n\t"
            "add sp, #28\n\t"
            "pop {r4-r11, pc}");
}

/* clang-format off */
#define QC_FOUR_TERMS_OF_FOUR         \
    "ldm r0!, {r8-r11}\n\t"           \
    "ldrd r12, lr, [r1], #8\n\t"      \
    "smlad r5, r8, r12, r5\n\t"       \
    "smlad r7, r10, r12, r7\n\t"      \
    "sxtb16 r8, r8\n\t"               \
    "sxtb16 r10, r10\n\t"             \
    "smlad r4, r8, r12, r4\n\t"       \
    "smlad r6, r10, r12, r6\n\t"      \
    "smlad r5, r9, lr, r5\n\t"        \
    "smlad r7, r11, lr, r7\n\t"       \
    "sxtb16 r9, r9\n\t"               \
    "sxtb16 r11, r11\n\t"             \
    "smlad r4, r9, lr, r4\n\t"        \
    "smlad r6, r11, lr, r6\n\t"
/* clang-format on */

/* One position, four channels: 28 instructions for 32 products and 2 for the turn of 16 terms, 29 for the four outputs.
 * r11: where a block's first turn begins, behind eight terms where k is an odd multiple of eight. */
__attribute__((naked, noinline)) static void qc_blocks_1(qc_blocks_t *arguments __attribute__((unused))) {
    __asm__("push {r4-r11, lr}\n\t"
            "ldm r0, {r0-r10}\n\t"
            "sub r11, r2, r1\n\t"
            "tst r11, #16\n\t"
            "ite eq\n\t"
            "adreq r11, 1f\n\t"
            "adrne r11, 2f\n\t"
            "add r11, #1\n\t" /* Thumb */
            "push {r4-r11}\n"
            "0:\n\t"
            "ldm r0!, {r4-r7}\n\t"
            "ldr pc, [sp, #28]\n\t"
            ".p2align 2\n"
            "1:\n\t" QC_FOUR_TERMS_OF_FOUR QC_FOUR_TERMS_OF_FOUR
            ".p2align 2\n"
            "2:\n\t" QC_FOUR_TERMS_OF_FOUR QC_FOUR_TERMS_OF_FOUR
            "cmp r1, r2\n\t"
            "bne 1b\n\t"
            "ldm r0!, {r8-r12, lr}\n\t"
            "ldrd r1, r2, [sp]\n\t" /* offset, shift */
            "sub r5, r5, r4\n\t"
            "sub r7, r7, r6\n\t"
            "add r5, r10, r5, asr #8\n\t"
            "add r7, r11, r7, asr #8\n\t"
            "smmla r4, r4, r8, r1\n\t"
            "smmla r5, r5, r9, r1\n\t"
            "smmla r6, r6, r12, r1\n\t"
            "smmla r7, r7, lr, r1\n\t"
            QC_SHIFT_AND_SATURATE("r2")
            "bfi r4, r5, #8, #8\n\t"
            "bfi r6, r7, #8, #8\n\t"
            "pkhbt r4, r4, r6, lsl #16\n\t"
            "str r4, [r3], #4\n\t"
            "ldrd r1, r12, [sp, #16]\n\t"
            "ldr r2, [sp, #24]\n\t"
            "cmp r3, r12\n\t"
            "bne 0b\n\t"
            "add sp, #32\n\t"
            "pop {r4-r11, pc}");
}

static inline void qc_blocks(qc_blocks_t *arguments, int32_t columns, int32_t k) {
    (void)k;
    if (columns == 2)
        qc_blocks_2(arguments);
    else
        qc_blocks_1(arguments);
}

#undef QC_FOUR_TERMS
#undef QC_TWO_CHANNELS
#undef QC_SHIFT_AND_SATURATE
#undef QC_FOUR_TERMS_OF_FOUR

#else

/* The lowest bits of x as a signed number. */
static inline int32_t qc_signed(uint32_t x, int32_t bits) {
    uint32_t sign = (uint32_t)1 << (bits - 1);
    x &= 2 * sign - 1;
    return x & sign ? -(int32_t)(2 * sign - x - 1) - 1 : (int32_t)x;
}

/* Two channels of a block, which begins with its biases at `block`, and one column. */
static void qc_two_channels(const int32_t *block, const int32_t *end, const qc_column_t *x, int32_t middle, int32_t *acc) {
    acc[0] = block[0];
    acc[1] = middle + qc_asr(qc_signed((uint32_t)block[1] - (uint32_t)block[0], 32), 8);
    for (block += 4; block < end; block += 4, x += 4)
        for (int odd = 0; odd < 2; odd++)
            for (int half = 0; half < 2; half++) {
                uint32_t weights = (uint32_t)block[odd] >> (16 * half);
                int32_t first = qc_signed(weights, 8), term = x[odd + 2 * half];
                acc[0] += first * term;
                acc[1] += qc_signed((weights >> 8) + (first < 0), 8) * term;
            }
}

/* What the DSP form does, for other compilers and other cores. */
static inline void qc_blocks(const qc_blocks_t *a, int32_t columns, int32_t k) {
    const int32_t *block = a->block;
    for (int8_t *y = a->y; y < a->y_end; y += 4, block += k + 10) {
        const int32_t *constants = block + 4 + k;
        int32_t multiplier[4] = {constants[0], constants[1], constants[4], constants[5]};
        for (int32_t p = 0; p < columns; p++) {
            int32_t acc[4];
            qc_two_channels(block, constants, a->column + p * k, constants[2], acc);
            qc_two_channels(block + 2, constants, a->column + p * k, constants[3], acc + 2);
            for (int32_t c = 0; c < 4; c++)
                y[p * a->stride + c] = (int8_t)qc_clamp(
                    qc_asr(qc_mulhi(acc[c], multiplier[c]) + a->offset, a->shift), -128, 127);
        }
    }
}

#endif
#endif
