/* The run loop and the choice of the instruction-set level. */
#include "qc_runtime.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static _Atomic(const struct qc_level *) chosen;
static _Atomic(uint64_t *) profile;

/* QCOMPILER_ISA=name takes that level if the CPU has it; name! takes it unasked, for CPUs that hide what they have. */
static int force(const struct qc_model *model, const char *name, const struct qc_level **level) {
    size_t length = strlen(name);
    int unasked = length > 0 && name[length - 1] == '!';
    if (unasked) length--;
    for (int i = 0; i < model->level_count; i++) {
        const struct qc_level *candidate = &model->levels[i];
        if (strlen(candidate->name) != length || strncmp(candidate->name, name, length) != 0) continue;
        if (!unasked && (candidate->features & ~qc_cpu_features()) != 0) return QC_ERROR_ISA;
        if (!qc_cpu_permit(candidate->features)) return QC_ERROR_ISA;
        *level = candidate;
        return QC_OK;
    }
    return QC_ERROR_ISA_NAME;
}

int qc_select(const struct qc_model *model, const struct qc_level **level) {
    const char *name;
    uint64_t features;
    *level = atomic_load_explicit(&chosen, memory_order_acquire);
    if (*level != NULL) return QC_OK;
    name = getenv("QCOMPILER_ISA");
    if (name != NULL && name[0] != '\0') {
        int status = force(model, name, level);
        if (status != QC_OK) return status;
    } else {
        features = qc_cpu_features();
        for (int i = 0; i < model->level_count && *level == NULL; i++)
            if ((model->levels[i].features & ~features) == 0 && qc_cpu_permit(model->levels[i].features))
                *level = &model->levels[i];
        if (*level == NULL) return QC_ERROR_ISA;
    }
    atomic_store_explicit(&chosen, *level, memory_order_release);
    return QC_OK;
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static unsigned char *aligned(void *pointer) {
    return (unsigned char *)(((uintptr_t)pointer + 63) & ~(uintptr_t)63);
}

int qc_run(const struct qc_model *model, const void *const inputs[], void *const outputs[], void *workspace) {
    const struct qc_level *level;
    struct qc_call call;
    unsigned char *scratch;
    uint64_t *times;
    int status, threads;
    if (inputs == NULL || outputs == NULL || workspace == NULL) return QC_ERROR_ARGUMENT;
    for (int i = 0; i < model->input_count; i++)
        if (inputs[i] == NULL) return QC_ERROR_ARGUMENT;
    for (int i = 0; i < model->output_count; i++)
        if (outputs[i] == NULL) return QC_ERROR_ARGUMENT;
    status = qc_select(model, &level);
    if (status != QC_OK) return status;
    call = (struct qc_call){inputs, outputs, aligned(workspace)};
    scratch = call.arena + model->arena_bytes;
    times = atomic_load_explicit(&profile, memory_order_acquire);
    threads = qc_pool_enter();
    for (int i = 0; i < level->step_count; i++) {
        const struct qc_step *step = &level->steps[i];
        uint64_t start = times != NULL ? now() : 0;
        int useful = step->threads < threads ? step->threads : threads;
        if (useful > step->tasks) useful = step->tasks;
        if (useful > 1)
            qc_pool_run(step, &call, scratch, useful);
        else
            step->run(&call, 0, step->tasks, scratch);
        if (times != NULL) times[i] += now() - start;
    }
    if (threads > 1) qc_pool_leave();
    return QC_OK;
}

void qc_profile(uint64_t *nanoseconds) { atomic_store_explicit(&profile, nanoseconds, memory_order_release); }

const char *qc_error(int status) {
    switch (status) {
    case QC_OK: return "no error";
    case QC_ERROR_ARGUMENT: return "an input, an output or the workspace is a null pointer";
    case QC_ERROR_ISA: return "this CPU lacks the instruction set that the model was compiled for";
    case QC_ERROR_ISA_NAME: return "QCOMPILER_ISA names an instruction set that is not in this model";
    case QC_ERROR_THREADS: return "a thread could not be started, or fewer than one was asked for";
    default: return "unknown error";
    }
}
