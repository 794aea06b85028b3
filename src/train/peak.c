#include "train/peak.h"

#include <string.h>

/* Dense bf16 without sparsity, from NVIDIA's data sheets; the first name that is part of the
 * product's counts. */
static const struct {
    const char *part;
    double tflops;
} peaks[] = {
    {"GB200", 2500}, {"B200", 2250},     {"B100", 1750},    {"GH200", 989},
    {"H200", 989},   {"H100 PCIe", 756}, {"H100 NVL", 835}, {"H100", 989},
    {"H800", 989},   {"A100", 312},      {"A800", 312},
};

double xp_peak_tflops(const char *product) {
    for (size_t i = 0; i < sizeof peaks / sizeof peaks[0]; i++)
        if (strstr(product, peaks[i].part))
            return peaks[i].tflops;
    return 0;
}
