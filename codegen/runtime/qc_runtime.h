/* The runtime inside a compiled model: the run loop, a thread pool and the choice of instruction set.
 *
 * It is linked into every model with all of its symbols local, so that any number of models live side by side in one
 * program. It needs a C11 compiler and POSIX threads, nothing else.
 */
#ifndef QC_RUNTIME_H
#define QC_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

enum qc_status {
    QC_OK = 0,
    QC_ERROR_ARGUMENT = 1,      /* a null pointer among the arguments */
    QC_ERROR_ISA = 2,           /* this CPU has none of the instruction sets compiled in, or lacks the forced one */
    QC_ERROR_ISA_NAME = 3,      /* QCOMPILER_ISA names an instruction set that is not compiled in */
    QC_ERROR_THREADS = 4        /* a worker thread could not be started */
};

/* What one model_run works on: private to the call. */
struct qc_call {
    const void *const *inputs;
    void *const *outputs;
    unsigned char *arena;
};

/* A kernel call over the tasks begin..end; scratch is private to the thread. */
typedef void (*qc_task)(const struct qc_call *call, int32_t begin, int32_t end, unsigned char *scratch);

struct qc_step {
    qc_task run;
    int32_t tasks;
    int32_t threads; /* more threads than this cost more than they gain */
    const char *name;
};

struct qc_level {
    const char *name;
    uint64_t features; /* bits of qc_cpu.h that the CPU must have */
    const struct qc_step *steps;
    int step_count;
};

struct qc_model {
    const struct qc_level *levels; /* best first */
    int level_count;
    int input_count, output_count;
    size_t arena_bytes;   /* the workspace holds the arena, then the caller's scratch, both 64-byte aligned */
    size_t scratch_bytes; /* of one thread */
};

/* run.c */
int qc_run(const struct qc_model *model, const void *const inputs[], void *const outputs[], void *workspace);
int qc_select(const struct qc_model *model, const struct qc_level **level);
void qc_profile(uint64_t *nanoseconds);
const char *qc_error(int status);

/* cpu.c */
uint64_t qc_cpu_features(void);
int qc_cpu_permit(uint64_t features); /* whether the system lets this process use them: it may have to be asked */

/* threads.c */
int qc_set_threads(int threads, size_t scratch_bytes);
int qc_pool_enter(void); /* threads at the caller's disposal, itself included; 1 when another caller has the pool */
void qc_pool_leave(void);
void qc_pool_run(const struct qc_step *step, const struct qc_call *call, unsigned char *scratch, int threads);

#endif
