/**
 * What a GPU, or the cores of a machine, can do: limits, the shares of them that expar reaches, and fixed costs.
 * Read from TOML (configs/hardware/), for the planner and for what mfu divides by.
 */
#ifndef XP_PREDICT_HARDWARE_H
#define XP_PREDICT_HARDWARE_H

#include <stdbool.h>
#include "core/text.h"

#define XP_HARDWARE_NAME 64

/** Every number is a key of the file, by the same name: docs/explanation/planning.md. */
typedef struct xp_hardware {
    char name[XP_HARDWARE_NAME];  /* "h200": what users type */
    char model[XP_HARDWARE_NAME]; /* part of the GPU model name that the driver reports; "" none */
    char like[XP_HARDWARE_NAME];  /* whose values count where the file gives none; "" none */
    bool is_cpu;                  /* ranks share the cores, memory and its rate */
    bool has_own_shares;          /* [reached] stands in the file itself: measured, not assumed */
    struct {
        double memory_gib;   /* that the driver or the system reports */
        double reserved_gib; /* that driver and libraries take beside a run */
        double tflops;       /* dense GEMM: bf16 of a GPU, fp32 of all cores of a CPU */
        double memory_tbps;  /* TB/s, read and written bytes together */
        double link_gbps;    /* to the other GPUs of the node, GB/s one way; CPU: unused */
        double units;        /* SMs of a GPU, cores of a CPU */
    } limits;
    /* What programs reach that do nothing else: what floors are told by. 0: not measured. A file's own only, never
     * of the one that it leans on; a CPU's [limits] are measured. */
    struct {
        double gemm_tflops; /* bf16 8192^3 */
        double copy_tbps;   /* read and written bytes together */
        double link_gbps;   /* a plain copy to another GPU of the node, one way */
    } measured;
    struct {
        double gpus_per_node;
        double gbps; /* to other nodes, GB/s of each GPU, one way */
        double latency_us;
    } network;
    /* Shares of the limits, 0 to 1, unless said otherwise. */
    struct {
        double dense, dense_depth; /* GEMM of depth k: dense * k / (k + dense_depth) */
        double attention_forward, attention_backward;
        double attention_length;       /* rows of s tokens: s / (s + attention_length) */
        double grouped, grouped_depth; /* as dense, many rows an expert */
        double grouped_2048_rows, grouped_256_rows; /* of that, where an expert has so few rows */
        double wgrad;                               /* of the grouped rate; depth: the rows */
        double adding_16384_rows, adding_2048_rows, adding_256_rows; /* times longer, >= 1 */
        double memory;
        double link, link_backward; /* dispatch and combine beside GEMMs, on few SMs; beside weight
                                       gradients */
        double link_alone;          /* with the GPU to themselves */
        double all_to_all, collectives, network; /* collectives: reductions and gathers in a node */
        double collectives_cost; /* what other work loses beside collectives in a node, of the time
                                    that these need alone */
        double overlap_hides; /* of an exchange, with parallelism.expert_parallel_overlap = true */
    } reached;
    struct {
        double kernel_us;       /* of the device, for a kernel whatever its work */
        double launch_us;       /* of the host, for a kernel */
        double graph_kernel_us; /* as kernel_us, for a kernel of a CUDA graph */
        double plan_us, plan_assignment_ns;
        double rendezvous_us; /* ranks that wait for each other in an exchange, a layer */
    } costs;
} xp_hardware;

/**
 * Read a description.
 * @param name  a file (with '/' or ending in ".toml"), or the name of one that is installed, in any case
 * @return XP_OK; XP_ENOENT: no such name or file; XP_ECONFIG: file:line, the key, and the nearest name
 */
XP_NODISCARD xp_status xp_hardware_read(const char *name, xp_hardware *hardware);

/** The installed description whose `model` is the longest part of a GPU model name ("NVIDIA H200");
 * XP_ENOENT when none is. */
XP_NODISCARD xp_status xp_hardware_of_model(const char *model, xp_hardware *hardware);

/** Names of the installed descriptions, sorted, ", " between them; XP_ENOENT: no folder of them was found. */
XP_NODISCARD xp_status xp_hardware_names(xp_text *names);

/** All of it as TOML that xp_hardware_read() accepts. */
void xp_hardware_add_toml(const xp_hardware *hardware, xp_text *text);

#endif
