/* Runs a model on inputs from one pipe, outputs into another, until the inputs end. With BOARD, on an emulated core. */
#include "model.h"

#ifdef BOARD
#include "semihosting.h"
static int32_t source, sink;
static int open_pipes(void) {
    source = semihosting_open("inputs", 1);
    sink = semihosting_open("outputs", 5);
    return source >= 0 && sink >= 0;
}
static int take(void *data, uint32_t bytes) {
    while (bytes > 0) {
        uint32_t left = (uint32_t)semihosting_read(source, data, bytes);
        if (left >= bytes) return 0;
        data = (unsigned char *)data + (bytes - left);
        bytes = left;
    }
    return 1;
}
static int give(const void *data, uint32_t bytes) {
    return semihosting_write(sink, data, bytes) == 0;
}
static void complain(const char *text) {
    semihosting_print(text);
}
#else
#include <stdio.h>
static int open_pipes(void) {
    return 1;
}
static int take(void *data, uint32_t bytes) {
    return fread(data, 1, bytes, stdin) == bytes;
}
static int give(const void *data, uint32_t bytes) {
    return fwrite(data, 1, bytes, stdout) == bytes && fflush(stdout) == 0;
}
static void complain(const char *text) {
    fputs(text, stderr);
}
#endif

#ifdef COUNT
/* SysTick counts down at the clock of the core; its 24 bits suffice for ten million instructions a step. */
#define SYSTICK ((volatile uint32_t *)0xE000E010u)
static uint32_t ticks[COUNT], before;
void board_step(int step);
void board_step(int step) {
    ticks[step] = (before - SYSTICK[2]) & 0xFFFFFFu;
    before = SYSTICK[2];
}
static void begin(void) {
    SYSTICK[1] = 0xFFFFFFu; /* reload */
    SYSTICK[2] = 0;
    SYSTICK[0] = 5; /* on, at the core's clock */
    before = SYSTICK[2];
}
#endif

static unsigned char workspace[@UPPER@_WORKSPACE_BYTES];
@BUFFERS@

int main(void) {
    static void *const in[] = {@INPUTS@}, *const out[] = {@OUTPUTS@};
    static const uint32_t in_bytes[] = {@INPUT_BYTES@}, out_bytes[] = {@OUTPUT_BYTES@};
    if (!open_pipes()) return 71;
    for (;;) {
        int status;
        for (unsigned i = 0; i < @UPPER@_INPUT_COUNT; i++)
            if (!take(in[i], in_bytes[i])) return 0;
#ifdef COUNT
        begin();
#endif
        status = @PREFIX@_run((const void *const *)in, out, workspace);
        if (status != @UPPER@_OK) {
            complain(@PREFIX@_error(status));
            return status;
        }
        for (unsigned i = 0; i < @UPPER@_OUTPUT_COUNT; i++)
            if (!give(out[i], out_bytes[i])) return 72;
#ifdef COUNT
        if (!give(ticks, sizeof ticks)) return 72;
#endif
    }
}
