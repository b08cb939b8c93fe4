/* Data movement: strided copies (transposition, concatenation), constant indices, tables of rows. */
#include "qc_inline.h"

void qc_copy(const qc_copy_t *d, const void *x, void *y) {
    const int last = QC_RANK - 1;
    int32_t count = d->loops.extent[last], from = d->loops.step[0][last], to = d->loops.step[1][last];
    qc_cursor_t c = {{0}, {0}};
    do {
        const uint8_t *source = (const uint8_t *)x + c.at[0];
        uint8_t *target = (uint8_t *)y + c.at[1];
        if (from == d->size && to == d->size)
            memcpy(target, source, (size_t)(count * d->size));
        else
            for (int32_t i = 0; i < count; i++, source += from, target += to)
                for (int32_t byte = 0; byte < d->size; byte++) target[byte] = source[byte];
    } while (qc_next(&d->loops, last, &c));
}

void qc_gather(const qc_gather_t *d, const void *x, void *y) {
    uint8_t *target = (uint8_t *)y;
    int32_t index[QC_RANK] = {0};
    for (;;) {
        int32_t from = 0, axis;
        for (axis = 0; axis < QC_RANK && from >= 0; axis++) {
            int32_t step = d->offset[axis] != NULL ? d->offset[axis][index[axis]] : index[axis] * d->step[axis];
            from = step < 0 ? -1 : from + step;
        }
        if (from >= 0)
            memcpy(target, (const uint8_t *)x + from, (size_t)d->run);
        else
            for (int32_t i = 0; i < d->run; i += d->size) memcpy(target + i, d->fill, (size_t)d->size);
        target += d->run;
        for (axis = QC_RANK - 1; axis >= 0 && ++index[axis] == d->extent[axis]; axis--) index[axis] = 0;
        if (axis < 0) return;
    }
}

void qc_embedding(const qc_embedding_t *d, const void *table, const void *index, void *y) {
    for (int32_t i = 0; i < d->count; i++) {
        int64_t row;
        if (d->index_bytes == 8) {
            memcpy(&row, (const uint8_t *)index + 8 * i, 8);
        } else {
            int32_t narrow;
            memcpy(&narrow, (const uint8_t *)index + 4 * i, 4);
            row = narrow;
        }
        row = row < -d->rows ? -d->rows : row >= d->rows ? d->rows - 1 : row;
        if (row < 0) row += d->rows;
        memcpy((uint8_t *)y + i * d->row_bytes, (const uint8_t *)table + (int32_t)row * d->row_bytes,
               (size_t)d->row_bytes);
    }
}
