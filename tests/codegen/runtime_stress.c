/* The runtime alone, with kernels in C, for sanitizers: callers that share a pool, resizing, fork, the profile. */
#include "qc_runtime.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ELEMENTS = 1000, STEPS = 12, CALLERS = 4, CALLS = 25 };

/* Each task adds the step's number to its elements; scratch must be the thread's own. */
static void add(const struct qc_call *call, int32_t begin, int32_t end, unsigned char *scratch) {
    int *values = (int *)call->arena;
    const int *input = call->inputs[0];
    int *mine = (int *)scratch;
    for (int i = begin; i < end; i++) mine[i % 64] = input[i] + 1;
    for (int i = begin; i < end; i++) values[i] += end - begin <= 64 ? mine[i % 64] - input[i] : 1;
}

static void copy_in(const struct qc_call *call, int32_t begin, int32_t end, unsigned char *scratch) {
    (void)scratch;
    memcpy((int *)call->arena + begin, (const int *)call->inputs[0] + begin, (size_t)(end - begin) * sizeof(int));
}

static void copy_out(const struct qc_call *call, int32_t begin, int32_t end, unsigned char *scratch) {
    (void)scratch;
    memcpy((int *)call->outputs[0] + begin, (const int *)call->arena + begin, (size_t)(end - begin) * sizeof(int));
}

static struct qc_step steps[STEPS + 2];
static struct qc_level level = {"any", 0, steps, STEPS + 2};
static const struct qc_model model = {&level, 1, 1, 1, (ELEMENTS * sizeof(int) + 63) / 64 * 64, 256};

static long often(int calls) {
    int input[ELEMENTS], output[ELEMENTS];
    void *workspace = malloc(model.arena_bytes + model.scratch_bytes + 64);
    const void *inputs[1] = {input};
    void *outputs[1] = {output};
    long wrong = 0;
    for (int c = 0; c < calls; c++) {
        for (int i = 0; i < ELEMENTS; i++) input[i] = i * 3 + c;
        if (qc_run(&model, inputs, outputs, workspace) != QC_OK) wrong++;
        for (int i = 0; i < ELEMENTS; i++) wrong += output[i] != input[i] + STEPS;
    }
    free(workspace);
    return wrong;
}

static void *caller(void *unused) {
    (void)unused;
    return (void *)often(CALLS);
}

int main(int count, char **arguments) {
    pthread_t threads[CALLERS];
    uint64_t times[STEPS + 2] = {0};
    long wrong = 0;
    int with_fork = count > 1 && strcmp(arguments[1], "fork") == 0;
    steps[0] = (struct qc_step){copy_in, ELEMENTS, 4, "in"};
    for (int i = 1; i <= STEPS; i++) steps[i] = (struct qc_step){add, ELEMENTS, 1 + i % 4, "add"};
    steps[STEPS + 1] = (struct qc_step){copy_out, ELEMENTS, 4, "out"};
    for (int size = 1; size <= 4; size++) {
        if (qc_set_threads(size, model.scratch_bytes) != QC_OK) return 3;
        for (int i = 0; i < CALLERS; i++) pthread_create(&threads[i], NULL, caller, NULL);
        if (qc_set_threads(5 - size, model.scratch_bytes) != QC_OK) return 3; /* while they run */
        for (int i = 0; i < CALLERS; i++) {
            void *result;
            pthread_join(threads[i], &result);
            wrong += (long)result;
        }
    }
    qc_set_threads(3, model.scratch_bytes);
    usleep(20000); /* let the workers fall asleep */
    qc_profile(times);
    wrong += often(3);
    qc_profile(NULL);
    for (int i = 0; i < STEPS + 2; i++) wrong += times[i] == 0;
    if (with_fork) {
        int status;
        pid_t child = fork();
        if (child == 0) _exit(often(10) != 0);
        if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 0) return 4;
        wrong += often(10);
    }
    if (qc_run(&model, NULL, NULL, NULL) != QC_ERROR_ARGUMENT) return 5;
    printf("%ld wrong\n", wrong);
    return wrong != 0;
}
