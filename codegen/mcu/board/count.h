/* Included in front of model.c: counts the instructions of each step, for qemu -icount shift=6 (64 ns an instruction). */
void board_step(int step);
#define QC_STEP(i) board_step(i);
