/* expar plan: what the figures rest on. */
#include <stdio.h>
#include "plan.h"

static void explain_numbers(const plan *p) {
    const xp_hardware *h = &p->hardware;
    printf("\nWhat is assumed (%s):\n", h->name);
    printf("  limits: %.0f TFLOP/s, memory %.2f TB/s, link %.0f GB/s one way, network %.1f GB/s a "
           "GPU and %.0f us\n",
           h->limits.tflops, h->limits.memory_tbps, h->limits.link_gbps, p->cluster.network_gbps,
           p->cluster.latency_us);
    printf("  reached of them: dense GEMMs %.1f %% (k / (k + %.0f)), grouped GEMMs %.1f %% (k / (k "
           "+ %.0f); %.0f and %.0f %% of it at 2048 and 256 rows an expert),\n",
           100 * h->reached.dense, h->reached.dense_depth, 100 * h->reached.grouped,
           h->reached.grouped_depth, 100 * h->reached.grouped_2048_rows,
           100 * h->reached.grouped_256_rows);
    printf(
        "    attention %.1f and %.1f %% forward and backward (rows of s tokens: s / (s + %.0f)), "
        "memory-bound ops %.0f %%,\n",
        100 * h->reached.attention_forward, 100 * h->reached.attention_backward,
        h->reached.attention_length, 100 * h->reached.memory);
    printf("    link %.0f %% (p2p, reductions), %.0f %% (all-to-all), network %.0f %%\n",
           100 * h->reached.link, 100 * h->reached.all_to_all, 100 * h->reached.network);
    printf("  beside other work: %.0f %% of a gradient reduction's time, %.0f %% of the backward "
           "pass's exchange, %.0f %% of the forward pass's as long as GEMMs of own rows run,\n"
           "    %.0f %% of an exchange with expert_parallel_overlap = true\n",
           100 * h->reached.reductions_hide, 100 * h->reached.backward_hides,
           100 * h->reached.forward_hides, 100 * h->reached.overlap_hides);
    printf("  fixed: %.1f us a kernel (%.1f in a CUDA graph), %.1f us of the host to launch it, "
           "%.0f us a "
           "plan and %.1f ns "
           "an assignment, %.0f us a layer for ranks that wait for each other\n",
           h->costs.kernel_us, h->costs.graph_kernel_us, h->costs.launch_us, h->costs.plan_us,
           h->costs.plan_assignment_ns, h->costs.rendezvous_us);
    printf("  routing is even, or forced as configured; documents count as whole rows\n");
}

void plan_print_notes(const plan_output *out) {
    const plan *p = out->p;
    const xp_hardware *h = &p->hardware;
    printf(
        "\nGiB: what a run takes of a GPU, counted by the trainer's own allocation without one. "
        "tok/s: work over the hardware's limits\nand the shares of them that were measured, even "
        "routing. GB: sent by a GPU in a step; sharding: gradients reduced and\nparameters "
        "gathered. docs/explanation/planning.md says how far this has been checked; --explain "
        "lists every assumption.\n");
    if (!h->has_own_shares)
        printf("Not measured on %s: the shares of its limits that %s reaches are assumed.\n",
               h->name, h->like);
    if (out->overlap_without_ep)
        printf(
            "parallelism.expert_parallel_overlap changes nothing at EP 1: nothing is exchanged.\n");
    if (out->short_steps)
        printf(
            "Kernel launches take much of such small steps: their time is known to 15 %% only.\n");
    if (out->many_gpus && h->has_own_shares)
        printf("Not measured on more than 2 GPUs.\n");
    if (out->several_nodes)
        printf(
            "Not measured between nodes: %.0f %% of the network's rate and %.0f us are assumed.\n",
            100 * h->reached.network, p->cluster.latency_us);
    if (p->o->explain)
        explain_numbers(p);
}
