/* A persistent pool of worker threads, one pool a model.
 *
 * One caller at a time has the pool; a caller that finds it taken computes alone, so that callers never wait for
 * each other and the number of busy threads stays near the number of callers. Between the steps of a run the workers
 * spin for a bounded time (a step follows within a microsecond), then they sleep.
 *
 * Each thread begins with a share of the step's tasks of its own, a contiguous one and the same in every step, and helps
 * the others when it is done. Tasks are in the order of positions, or of channels where the weights are the larger part:
 * so a thread mostly finds its activations in its core's cache, or reads weights that the others do not.
 *
 * A run of a step publishes one word: a sequence number and the number of threads that take part. A worker that takes
 * part is waited for, so the job it reads cannot change under it; one that does not looks at nothing else.
 */
#include "qc_runtime.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#define SPINS 1000 /* 20 to 60 microseconds: a pause is 40 to 140 cycles */
#define MAX_THREADS 256

struct worker {
    pthread_t thread;
    unsigned char *scratch;
    int index;
    uint64_t seen; /* the word when the worker was started: older jobs are not for it */
};

struct share {
    _Alignas(64) _Atomic int next; /* first task not handed out yet */
    int end;
};

static struct {
    pthread_mutex_t taken; /* held by the caller that has the pool */
    pthread_mutex_t lock;  /* guards the sleepers */
    pthread_cond_t wake, done;
    _Atomic uint64_t word;   /* sequence << 9 | threads that take part */
    _Atomic int sleepers;    /* workers in, or on their way into, `wake` */
    _Atomic int pending;     /* workers that have not finished the step */
    _Atomic int waiting;     /* the caller sleeps in `done` */
    _Atomic int stop;
    _Atomic int wanted;      /* threads, the caller included */
    int running;             /* workers started */
    size_t scratch_bytes;
    struct worker workers[MAX_THREADS];
    struct share shares[MAX_THREADS]; /* of the step's tasks, by thread; the caller has the first */
    const struct qc_step *step;
    const struct qc_call *call;
    int threads, chunk; /* that take part in the step; tasks handed out at a time */
} pool = {.taken = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER,
          .done = PTHREAD_COND_INITIALIZER, .wanted = 1};

static void pause_cpu(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
    __asm__ volatile("yield");
#endif
}

/* The thread's own share, then what the others have left of theirs. */
static void work(int self, unsigned char *scratch) {
    for (int i = 0; i < pool.threads; i++) {
        struct share *share = &pool.shares[(self + i) % pool.threads];
        for (;;) {
            int begin = atomic_fetch_add_explicit(&share->next, pool.chunk, memory_order_relaxed);
            if (begin >= share->end) break;
            pool.step->run(pool.call, begin, begin + pool.chunk < share->end ? begin + pool.chunk : share->end, scratch);
        }
    }
}

static uint64_t next_word(uint64_t seen) {
    uint64_t word;
    for (int i = 0; i < SPINS; i++) {
        word = atomic_load_explicit(&pool.word, memory_order_acquire);
        if (word != seen || atomic_load_explicit(&pool.stop, memory_order_acquire)) return word;
        pause_cpu();
    }
    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add(&pool.sleepers, 1);
    while ((word = atomic_load(&pool.word)) == seen && !atomic_load(&pool.stop))
        pthread_cond_wait(&pool.wake, &pool.lock);
    atomic_fetch_sub(&pool.sleepers, 1);
    pthread_mutex_unlock(&pool.lock);
    return word;
}

static void *serve(void *argument) {
    struct worker *self = argument;
    uint64_t seen = self->seen;
    while (!atomic_load_explicit(&pool.stop, memory_order_acquire)) {
        uint64_t word = next_word(seen);
        if (word == seen) continue;
        seen = word;
        if (self->index >= (int)(word & 511)) continue;
        work(self->index, self->scratch);
        if (atomic_fetch_sub(&pool.pending, 1) == 1 && atomic_load(&pool.waiting)) {
            pthread_mutex_lock(&pool.lock);
            pthread_cond_signal(&pool.done);
            pthread_mutex_unlock(&pool.lock);
        }
    }
    return NULL;
}

void qc_pool_run(const struct qc_step *step, const struct qc_call *call, unsigned char *scratch, int threads) {
    uint64_t sequence = (atomic_load_explicit(&pool.word, memory_order_relaxed) >> 9) + 1;
    pool.step = step;
    pool.call = call;
    pool.threads = threads;
    pool.chunk = step->tasks / (threads * 4) > 0 ? step->tasks / (threads * 4) : 1;
    for (int i = 0; i < threads; i++) {
        atomic_store_explicit(&pool.shares[i].next, (int)((int64_t)step->tasks * i / threads), memory_order_relaxed);
        pool.shares[i].end = (int)((int64_t)step->tasks * (i + 1) / threads);
    }
    atomic_store_explicit(&pool.pending, threads - 1, memory_order_relaxed);
    atomic_store(&pool.word, sequence << 9 | (uint64_t)threads);
    if (atomic_load(&pool.sleepers) > 0) {
        pthread_mutex_lock(&pool.lock);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.lock);
    }
    work(0, scratch);
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&pool.pending, memory_order_acquire) == 0) return;
        pause_cpu();
    }
    pthread_mutex_lock(&pool.lock);
    atomic_store(&pool.waiting, 1);
    while (atomic_load(&pool.pending) > 0) pthread_cond_wait(&pool.done, &pool.lock);
    atomic_store(&pool.waiting, 0);
    pthread_mutex_unlock(&pool.lock);
}

/* Called with the pool taken, or with no other thread left that could take it. */
static void stop_workers(void) {
    pthread_mutex_lock(&pool.lock);
    atomic_store(&pool.stop, 1);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    for (int i = 0; i < pool.running; i++) {
        pthread_join(pool.workers[i].thread, NULL);
        free(pool.workers[i].scratch);
    }
    pool.running = 0;
    atomic_store(&pool.stop, 0);
}

static int start_workers(int count) {
    while (pool.running < count) {
        struct worker *worker = &pool.workers[pool.running];
        size_t bytes = (pool.scratch_bytes + 127) & ~(size_t)63;
        worker->index = pool.running + 1;
        worker->seen = atomic_load(&pool.word);
        worker->scratch = aligned_alloc(64, bytes);
        if (worker->scratch == NULL) return QC_ERROR_THREADS;
        if (pthread_create(&worker->thread, NULL, serve, worker) != 0) {
            free(worker->scratch);
            return QC_ERROR_THREADS;
        }
        pool.running++;
    }
    return QC_OK;
}

/* Only the thread that called fork lives on in the child: forget the workers, start new ones when they are needed. */
static void after_fork(void) {
    pthread_mutex_init(&pool.taken, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pthread_cond_init(&pool.done, NULL);
    pool.running = 0;
    atomic_store(&pool.sleepers, 0);
    atomic_store(&pool.waiting, 0);
    atomic_store(&pool.stop, 0);
}

static pthread_once_t once = PTHREAD_ONCE_INIT;

static void watch_forks(void) { pthread_atfork(NULL, NULL, after_fork); }

int qc_set_threads(int threads, size_t scratch_bytes) {
    int status;
    if (threads < 1) return QC_ERROR_THREADS;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&pool.taken);
    if (pool.running > threads - 1) stop_workers();
    pool.scratch_bytes = scratch_bytes;
    status = start_workers(threads - 1);
    atomic_store(&pool.wanted, pool.running + 1);
    pthread_mutex_unlock(&pool.taken);
    return status;
}

int qc_pool_enter(void) {
    int wanted = atomic_load_explicit(&pool.wanted, memory_order_acquire);
    if (wanted == 1 || pthread_mutex_trylock(&pool.taken) != 0) return 1;
    if (pool.running < wanted - 1) start_workers(wanted - 1); /* after fork */
    if (pool.running == 0) {
        pthread_mutex_unlock(&pool.taken);
        return 1;
    }
    return pool.running + 1;
}

void qc_pool_leave(void) { pthread_mutex_unlock(&pool.taken); }

/* Before the code of the workers is unmapped by dlclose, or the program ends. */
__attribute__((destructor)) static void shut_down(void) {
    if (pool.running > 0) stop_workers();
}
