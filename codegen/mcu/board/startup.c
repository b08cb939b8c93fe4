/* Vector table and start of a Cortex-M, for qemu's boards: FPU on, memory set up, main, exit through the debugger. */
#include <stdint.h>
#include <string.h>

#include "semihosting.h"

extern unsigned char board_stack_top[], board_data_source[], board_data[], board_data_end[], board_bss[], board_bss_end[];
int main(void);

static void reset(void) {
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* CPACR: coprocessors 10 and 11 */
    __asm__ volatile("dsb\n\tisb" ::: "memory");
    memcpy(board_data, board_data_source, (size_t)(board_data_end - board_data));
    memset(board_bss, 0, (size_t)(board_bss_end - board_bss));
    semihosting_exit(main());
}

static void fault(void) {
    semihosting_print("the emulated core took a fault\n");
    semihosting_exit(70);
}

__attribute__((section(".vectors"), used)) static void (*const vectors[16])(void) = {
    (void (*)(void))board_stack_top, reset, fault, fault, fault, fault, fault, fault, 0, 0, 0, fault, fault, 0, fault, fault,
};
