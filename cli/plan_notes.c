/* expar plan: what the figures rest on. */
#include <stdio.h>
#include <string.h>
#include "parallel/shard.h"
#include "plan.h"

static void explain_hidden(const xp_hardware *h) {
    if (h->is_cpu) {
        printf("  beside other work: nothing; a CPU's cores do one thing after the other\n");
        return;
    }
    printf("  beside GEMMs: an exchange takes 16 SMs of %.0f (combine's send 24), or "
           "deepep.overlap_num_sms, and the GEMMs take so much longer; its rate is that of as many "
           "SMs on %s;\n"
           "    with expert_parallel_overlap = true %.0f %% of it hides\n",
           h->limits.units, h->has_own_shares ? "this GPU" : h->like,
           100 * h->reached.overlap_hides);
    printf(
        "  reductions beside the backward pass, layer by layer, gathers beside the next forward "
        "pass: others lose %.1f times what these need inside a node, and at least %d of %.0f SMs "
        "as long as they run\n",
        h->reached.collectives_cost, XP_SHARD_BESIDE_CTAS, h->limits.units);
    printf(
        "  between nodes: NCCL's rings use all network adapters of a node, %d thread blocks reach "
        "that rate, one collective over all ranks of a group (not inside a node first), latency "
        "once a node and collective\n",
        XP_SHARD_BESIDE_CTAS);
}

static void explain_numbers(const plan *p) {
    const xp_hardware *h = &p->hardware;
    printf("\nWhat is assumed (%s):\n", h->name);
    printf("  limits: %.3g TFLOP/s, memory %.3g TB/s, link %.0f GB/s one way, network %.3g GB/s a "
           "%s and %.0f us\n",
           h->limits.tflops, h->limits.memory_tbps, h->limits.link_gbps, p->cluster.network_gbps,
           plan_unit(p), p->cluster.latency_us);
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
    printf("    link %.0f %% (p2p beside GEMMs of the forward pass), %.0f %% (beside weight "
           "gradients), %.0f %% (p2p alone), %.0f %% (all-to-all), %.0f %% (reductions, gathers), "
           "network %.0f %%\n",
           100 * h->reached.link, 100 * h->reached.link_backward, 100 * h->reached.link_alone,
           100 * h->reached.all_to_all, 100 * h->reached.collectives, 100 * h->reached.network);
    explain_hidden(h);
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
        "\nGiB: what %s, counted by the trainer's own allocation%s. "
        "tok/s: work over the hardware's limits\nand the shares of them that were measured, even "
        "routing. GB: sent by a %s in a step; sharding: gradients reduced and\nparameters "
        "gathered. docs/explanation/planning.md says how far this has been checked; --explain "
        "lists every assumption.\n",
        h->is_cpu ? "a rank takes of the memory" : "a run takes of a GPU",
        h->is_cpu ? "" : " without one", plan_unit(p));
    if (h->is_cpu && strcmp(h->name, "cpu") == 0)
        printf("\"cpu\" is an example, two cores of an EPYC. For this machine: `expar bench "
               "--write-profile FILE`, then --gpu FILE.\n");
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
