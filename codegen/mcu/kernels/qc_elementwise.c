/* Addition, multiplication and tables, element by element. */
#include "qc_inline.h"

void qc_add(const qc_add_loops_t *d, const int8_t *a, const int8_t *b, int8_t *y) {
    const int last = QC_RANK - 1;
    int32_t count = d->loops.extent[last], step_a = d->loops.step[0][last], step_b = d->loops.step[1][last];
    qc_cursor_t c = {{0}, {0}};
    do {
        const int8_t *pa = a + c.at[0], *pb = b + c.at[1];
        for (int32_t i = 0; i < count; i++) {
            *y++ = (int8_t)qc_add_one(&d->add, *pa, *pb);
            pa += step_a;
            pb += step_b;
        }
    } while (qc_next(&d->loops, last, &c));
}

void qc_mul(const qc_mul_t *d, const int8_t *a, const int8_t *b, int8_t *y) {
    const int last = QC_RANK - 1;
    int32_t count = d->loops.extent[last], step_a = d->loops.step[0][last], step_b = d->loops.step[1][last];
    qc_cursor_t c = {{0}, {0}};
    do {
        const int8_t *pa = a + c.at[0], *pb = b + c.at[1];
        for (int32_t i = 0; i < count; i++) {
            *y++ = (int8_t)qc_requantize(&d->requantize, (*pa - d->zero_a) * (*pb - d->zero_b), 0);
            pa += step_a;
            pb += step_b;
        }
    } while (qc_next(&d->loops, last, &c));
}

void qc_table(const qc_table_t *d, const int8_t *x, int8_t *y) {
    for (int32_t i = 0, channel = 0; i < d->count; i++) {
        y[i] = d->table[256 * channel + x[i] + 128];
        if (++channel == d->channels) channel = 0;
    }
}
