/* Whether a run's passes are launched as CUDA graphs: training.cuda_graph. */
#include "comm/provider.h"
#include "device/device_internal.h"
#include "model/model.h"
#include "predict/step_time.h"
#include "train/run_state.h"

/* What was measured on another GPU tells small models from large ones as well. */
static const char *const any_hardware = "h100";

/* By the prediction that `expar plan` prints; no prediction, no graphs. */
static bool pays(const xp_trainer *t) {
    xp_hardware hardware;
    xp_step_prediction p;
    if (xp_hardware_of_model(xp_device_model_name(t->device), &hardware) != XP_OK &&
        xp_hardware_read(any_hardware, &hardware) != XP_OK)
        return false;
    const xp_cluster cluster = {.hardware = &hardware,
                                .gpus_per_node = t->n_local_ranks,
                                .network_gbps = hardware.network.gbps,
                                .latency_us = hardware.network.latency_us};
    return xp_predict_step(t->config, &t->run.mesh, &cluster, &p) == XP_OK && p.uses_graphs;
}

/* Rank threads with GPUs share the driver's locks, and to make a graph takes memory: one thread would hold
 * the lock that another needs to launch the collective for which the first one's GPU waits. */
static xp_status use_graphs(xp_trainer *t) {
    if (t->world && xp_device_get_kind(t->device) == XP_DEVICE_CUDA &&
        xp_comm_same_process(t->world))
        return xp_error(XP_ENOTSUP, "ranks are threads of one process");
    return xp_model_use_graphs(t->run.model);
}

/* By itself, one rank alone: graphs between reductions have not been measured. */
static bool is_chosen(const xp_trainer *t) {
    return !t->world && xp_device_get_kind(t->device) == XP_DEVICE_CUDA && pays(t);
}

xp_status xp_trainer_choose_graphs(xp_trainer *t) {
    const int64_t asked = t->config->training.cuda_graph;
    if (asked == 0)
        return XP_OK;
    if (asked < 0 && !is_chosen(t)) {
        xp_error_clear();
        return XP_OK;
    }
    const xp_status status = use_graphs(t);
    if (status == XP_ENOTSUP) {
        if (asked > 0)
            xp_trainer_warn(t, "training.cuda_graph has no effect: %s", xp_last_error());
        xp_error_clear();
        return XP_OK;
    }
    if (status == XP_OK)
        xp_trainer_say(t, "passes are launched as CUDA graphs, once they have run twice");
    return status;
}

void xp_trainer_check_graphs(xp_trainer *t) {
    const char *failure = xp_model_graph_failure(t->run.model);
    if (!failure || t->graphs_failed)
        return;
    t->graphs_failed = true;
    xp_trainer_warn(t,
                    "training.cuda_graph: a pass could not be launched as a graph (%s); passes are "
                    "launched kernel by kernel, which gives the same results",
                    failure);
}
