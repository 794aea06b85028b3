/** What the machine is called. */
#ifndef XP_TUNE_HARDWARE_H
#define XP_TUNE_HARDWARE_H

#include <stdbool.h>
#include <stddef.h>
#include "expar/status.h"

/** The CPU's model name ("unknown CPU" where the system does not say). */
void xp_cpu_model_name(char *text, size_t n_text);
/**
 * "NVIDIA H200" of the first GPU this process may use, or "AMD EPYC 7B13, 2 cores".
 * @param n_cores  of this process
 */
XP_NODISCARD xp_status xp_hardware_name(bool on_gpu, int n_cores, char *text, size_t n_text);

/** Multiprocessors of the first GPU this process may use; 0: none, or not known. */
int xp_hardware_n_sms(void);

#endif
