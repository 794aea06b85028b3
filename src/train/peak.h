/** What accelerators can do at best: the number that mfu divides by. */
#ifndef XP_TRAIN_PEAK_H
#define XP_TRAIN_PEAK_H

/** Dense bf16 peak in TFLOP/s of a product ("NVIDIA H200"); 0 when it is not in the table. */
double xp_peak_tflops(const char *product);

#endif
