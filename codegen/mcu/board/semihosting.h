/* Calls into the debugger or emulator (Arm semihosting): files of the host, text, exit. */
#ifndef SEMIHOSTING_H
#define SEMIHOSTING_H

#include <stdint.h>
#include <string.h>

static inline int32_t semihosting_call(uint32_t operation, const void *arguments) {
    register uint32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = arguments;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return (int32_t)r0;
}

/* mode: 1 reads bytes, 5 writes bytes. Returns a handle, or -1. */
static inline int32_t semihosting_open(const char *path, uint32_t mode) {
    uint32_t arguments[3] = {(uint32_t)(uintptr_t)path, mode, (uint32_t)strlen(path)};
    return semihosting_call(0x01, arguments);
}

/* Both return how many bytes were not transferred. */
static inline int32_t semihosting_write(int32_t file, const void *data, uint32_t bytes) {
    uint32_t arguments[3] = {(uint32_t)file, (uint32_t)(uintptr_t)data, bytes};
    return semihosting_call(0x05, arguments);
}
static inline int32_t semihosting_read(int32_t file, void *data, uint32_t bytes) {
    uint32_t arguments[3] = {(uint32_t)file, (uint32_t)(uintptr_t)data, bytes};
    return semihosting_call(0x06, arguments);
}

static inline void semihosting_print(const char *text) {
    semihosting_call(0x04, text);
}

static inline void semihosting_exit(int status) {
    uint32_t arguments[2] = {0x20026u /* the application ended */, (uint32_t)status};
    for (;;) semihosting_call(0x20, arguments);
}

#endif
