#include "predict/gpus.h"

#include <stddef.h>
#include <string.h>
#include <strings.h>

/* NVIDIA's data sheets, without sparsity. Memory as the driver reports it of H100 and H200; of the
 * others the data sheet's figure less 1 %, as with those two. The first model name that is part of a
 * name counts. */
static const xp_gpu gpus[] = {
    {"gb200", "GB200", 184.1, 2500, 8.0, 900, false},
    {"b200", "B200", 178.2, 2250, 8.0, 900, false},
    {"b100", "B100", 178.2, 1750, 8.0, 900, false},
    {"gh200", "GH200", 95.0, 989, 4.0, 450, false},
    {"h200", "H200", 139.81, 989, 4.8, 450, true},
    {"h100-pcie", "H100 PCIe", 79.18, 756, 2.0, 64, false}, /* bridges join pairs only: PCIe 5 */
    {"h100-nvl", "H100 NVL", 93.1, 835, 3.9, 64, false},
    {"h100", "H100", 79.18, 989, 3.35, 450, true},
    {"h800", "H800", 79.18, 989, 3.35, 200, false},
    {"a100-40gb", "A100-SXM4-40GB", 39.5, 312, 1.555, 300, false},
    {"a100-pcie-40gb", "A100-PCIE-40GB", 39.5, 312, 1.555, 32, false},
    {"a100", "A100", 79.2, 312, 2.04, 300, false},
    {"a800", "A800", 79.2, 312, 2.04, 200, false},
};

const xp_gpu *xp_gpu_at(int i) {
    return i >= 0 && (size_t)i < sizeof gpus / sizeof gpus[0] ? &gpus[i] : NULL;
}

const xp_gpu *xp_gpu_named(const char *name) {
    for (int i = 0; xp_gpu_at(i); i++)
        if (strcasecmp(gpus[i].name, name) == 0)
            return &gpus[i];
    return NULL;
}

const xp_gpu *xp_gpu_of_model(const char *model) {
    for (int i = 0; xp_gpu_at(i); i++)
        if (strstr(model, gpus[i].model))
            return &gpus[i];
    return NULL;
}
