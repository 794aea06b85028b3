/** Where a step's time goes: the work of one rank's device, sorted into phases. */
#ifndef XP_BENCH_PHASES_H
#define XP_BENCH_PHASES_H

#include <pthread.h>
#include "device/cpu/cpu_device.h"
#include "model/arch.h"

typedef enum xp_bench_phase {
    XP_BENCH_ATTENTION_FORWARD = 0,
    XP_BENCH_ATTENTION_BACKWARD,
    XP_BENCH_DENSE_GEMM,
    XP_BENCH_EXPERT_GEMM,
    XP_BENCH_EXPERT_ACTIVATION,
    XP_BENCH_ROUTER,
    XP_BENCH_NORMS,
    XP_BENCH_EMBEDDING,
    XP_BENCH_HEAD_GEMM,
    XP_BENCH_LOSS,
    XP_BENCH_EXCHANGE,   /* EP: plan, dispatch, combine, and their gradients */
    XP_BENCH_COLLECTIVE, /* gradients and parameters between ranks */
    XP_BENCH_OPTIMIZER,
    XP_BENCH_COPIES,
    XP_BENCH_N_PHASES
} xp_bench_phase;

/** "attention forward" */
const char *xp_bench_phase_name(xp_bench_phase phase);

typedef struct xp_bench_phase_total {
    double seconds, flops; /* flops: of GEMMs, 0 elsewhere */
    int64_t n_calls;
} xp_bench_phase_total;

typedef struct xp_bench_phases {
    const xp_arch *arch;
    pthread_mutex_t lock; /* worker streams report from their own threads */
    xp_bench_phase_total totals[XP_BENCH_N_PHASES];
} xp_bench_phases;

/** Listen to a CPU device from now on; `phases` stays where it is until xp_bench_phases_stop(). */
void xp_bench_phases_start(xp_bench_phases *phases, xp_device *device, const xp_arch *arch);
void xp_bench_phases_stop(xp_bench_phases *phases, xp_device *device);
/** Totals since the last call, which start again at zero. */
void xp_bench_phases_take(xp_bench_phases *phases, xp_bench_phase_total totals[XP_BENCH_N_PHASES]);

#endif
