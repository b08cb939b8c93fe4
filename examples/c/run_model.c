/* Runs a compiled model on raw files: one file an input, one an output, in the order of model.h.
 *
 *   gcc run_model.c -I OUT OUT/libmodel.a -lm -pthread -o run_model        (or OUT/model.so for the shared library)
 *   ./run_model x.bin y.bin
 *
 * Nothing else is needed: no Python, no TVM, no runtime package.
 */
#include "model.h"

#include <stdio.h>
#include <stdlib.h>

static const size_t input_bytes[] = {MODEL_INPUT_0_BYTES};
static const size_t output_bytes[] = {MODEL_OUTPUT_0_BYTES};

static unsigned char *allocate(size_t bytes) {
    unsigned char *memory = malloc(bytes);
    if (memory == NULL) {
        perror("malloc");
        exit(1);
    }
    return memory;
}

int main(int count, char **arguments) {
    void *inputs[1], *outputs[1];
    void *workspace = allocate(MODEL_WORKSPACE_BYTES);
    FILE *file;
    int status;
    if (count != 3) {
        fprintf(stderr, "usage: %s INPUT OUTPUT\n", arguments[0]);
        return 2;
    }
    inputs[0] = allocate(input_bytes[0]);
    outputs[0] = allocate(output_bytes[0]);
    file = fopen(arguments[1], "rb");
    if (file == NULL || fread(inputs[0], 1, input_bytes[0], file) != input_bytes[0]) {
        fprintf(stderr, "%s does not hold the %zu bytes of the input\n", arguments[1], input_bytes[0]);
        return 1;
    }
    fclose(file);
    status = model_run((const void *const *)inputs, outputs, workspace);
    if (status != MODEL_OK) {
        fprintf(stderr, "%s\n", model_error(status));
        return 1;
    }
    fprintf(stderr, "computed with %s\n", model_isa());
    file = fopen(arguments[2], "wb");
    if (file == NULL || fwrite(outputs[0], 1, output_bytes[0], file) != output_bytes[0] || fclose(file) != 0) {
        perror(arguments[2]);
        return 1;
    }
    free(inputs[0]);
    free(outputs[0]);
    free(workspace);
    return 0;
}
