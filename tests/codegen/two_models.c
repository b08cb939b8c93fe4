/* Two statically linked models, many callers of each at once, calls after fork: every output is compared. */
#include "first.h"
#include "second.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CALLERS = 8 };
typedef int (*run_function)(const void *const *, void *const *, void *);

struct model {
    run_function run;
    size_t input_bytes, output_bytes, workspace_bytes;
    unsigned char *input, *wanted;
};

static struct model models[2];
static int calls;

static unsigned char *read_file(const char *path, size_t bytes) {
    unsigned char *data = malloc(bytes);
    FILE *file = fopen(path, "rb");
    if (file == NULL || fread(data, 1, bytes, file) != bytes) exit(9);
    fclose(file);
    return data;
}

static long call_often(const struct model *m, int times) {
    void *workspace = malloc(m->workspace_bytes);
    unsigned char *output = malloc(m->output_bytes);
    const void *inputs[1] = {m->input};
    void *outputs[1] = {output};
    long wrong = 0;
    for (int i = 0; i < times; i++) {
        memset(output, 0xA5, m->output_bytes);
        if (m->run(inputs, outputs, workspace) != 0 || memcmp(output, m->wanted, m->output_bytes) != 0) wrong++;
    }
    free(output);
    free(workspace);
    return wrong;
}

static void *caller(void *argument) {
    return (void *)(call_often(argument, calls));
}

static int in_child(void) {
    int status;
    pid_t child = fork();
    if (child == 0) _exit(call_often(&models[0], 20) + call_often(&models[1], 20) != 0);
    if (child < 0 || waitpid(child, &status, 0) != child) return 1;
    return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

int main(int count, char **arguments) {
    pthread_t threads[2 * CALLERS];
    long wrong = 0;
    if (count != 6) return 2;
    calls = atoi(arguments[1]);
    models[0] = (struct model){first_run, FIRST_INPUT_0_BYTES, FIRST_OUTPUT_0_BYTES, FIRST_WORKSPACE_BYTES, NULL, NULL};
    models[1] = (struct model){second_run, SECOND_INPUT_0_BYTES, SECOND_OUTPUT_0_BYTES, SECOND_WORKSPACE_BYTES, NULL, NULL};
    for (int i = 0; i < 2; i++) {
        models[i].input = read_file(arguments[2 + 2 * i], models[i].input_bytes);
        models[i].wanted = read_file(arguments[3 + 2 * i], models[i].output_bytes);
    }
    if (first_set_threads(2) != 0 || second_set_threads(3) != 0) return 3;
    if (first_set_threads(0) != FIRST_ERROR_THREADS) return 4;
    for (int i = 0; i < 2 * CALLERS; i++) pthread_create(&threads[i], NULL, caller, &models[i % 2]);
    if (in_child()) return 5; /* while the callers run */
    for (int i = 0; i < 2 * CALLERS; i++) {
        void *result;
        pthread_join(threads[i], &result);
        wrong += (long)result;
    }
    if (in_child()) return 6;
    wrong += call_often(&models[0], 10) + call_often(&models[1], 10);
    if (first_set_threads(1) != 0) return 7; /* stops the worker */
    wrong += call_often(&models[0], 10);
    printf("%ld wrong\n", wrong);
    return wrong != 0;
}
