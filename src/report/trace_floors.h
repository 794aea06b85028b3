/** The parts of a traced step beside the floors of their work (predict/step_work.h). */
#ifndef XP_REPORT_TRACE_FLOORS_H
#define XP_REPORT_TRACE_FLOORS_H

#include "report/trace.h"

typedef struct xp_trace_floors {
    char hardware[XP_HARDWARE_NAME];
    xp_step_work work; /* of one rank's step; nothing of parts without time */
    double part_us[XP_N_PARTS];
    double sum_us, floor_us; /* of all parts */
    double step_us;          /* by the host's clock; 0: the file does not say */
    bool documents;          /* attention does not see whole rows */
} xp_trace_floors;

/**
 * @param config    of the run
 * @param hardware  what it ran on. On a CPU the host is the device: time before the first op and after the last
 *                  counts as gaps
 * @param n_ranks, n_nodes  of the run
 * @return XP_OK; XP_EFORMAT: no ops of a compute stream; errors of xp_predict_step()
 */
XP_NODISCARD xp_status xp_trace_floors_fill(const xp_trace_sums *sums, const xp_config *config,
                                            const xp_hardware *hardware, int n_ranks, int n_nodes,
                                            xp_trace_floors *floors);

/** A table, the longest part first. Check out->failed. */
void xp_trace_floors_print(const xp_trace_floors *floors, const xp_trace_sums *sums,
                           const char *path, xp_text *out);
/** One JSON object. Check out->failed. */
void xp_trace_floors_json(const xp_trace_floors *floors, const xp_trace_sums *sums,
                          const char *path, xp_text *out);

#endif
