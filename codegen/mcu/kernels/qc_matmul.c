/* Products of two activations. */
#include "qc_inline.h"

void qc_matmul(const qc_matmul_t *d, const int8_t *a, const int8_t *b, int8_t *y) {
    qc_cursor_t c = {{0}, {0}};
    do {
        for (int32_t i = 0; i < d->m; i++) {
            const int8_t *row = a + c.at[0] + i * d->k;
            for (int32_t j = 0; j < d->n; j++) {
                const int8_t *column = b + c.at[1] + j * d->b_step_n;
                int32_t acc = 0;
                for (int32_t k = 0; k < d->k; k++) acc += (row[k] - d->zero_a) * (column[k * d->b_step_k] - d->zero_b);
                *y++ = (int8_t)qc_requantize(&d->requantize, acc, 0);
            }
        }
    } while (qc_next(&d->batch, QC_RANK, &c));
}
