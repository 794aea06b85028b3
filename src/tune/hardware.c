#include "tune/hardware.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "device/plugin.h"

/* The file is the same for every process, the names are the system's. */
void xp_cpu_model_name(char *text, size_t n_text) {
    static const char key[] = "model name";
    char line[512];
    FILE *file = fopen("/proc/cpuinfo", "re");
    snprintf(text, n_text, "unknown CPU");
    while (file && fgets(line, sizeof line, file)) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, key, sizeof key - 1) != 0 || !colon)
            continue;
        colon += 1 + strspn(colon + 1, " \t");
        snprintf(text, n_text, "%.*s", (int)strcspn(colon, "\n"), colon);
        break;
    }
    if (file)
        fclose(file);
}

xp_status xp_hardware_name(bool on_gpu, int n_cores, char *text, size_t n_text) {
    char name[256];
    if (!on_gpu) {
        xp_cpu_model_name(name, sizeof name);
        snprintf(text, n_text, "%s, %d core%s", name, n_cores, n_cores == 1 ? "" : "s");
    } else {
        const xp_cuda_backend *cuda;
        XP_TRY(xp_cuda_backend_get(&cuda));
        XP_TRY(cuda->describe(0, name, sizeof name));
        name[strcspn(name, ",")] = '\0'; /* behind it memory, multiprocessors, driver */
        snprintf(text, n_text, "%s", name);
    }
    for (char *c = text; *c; c++) /* deepep.tuned_for is parted by them */
        *c = *c == ';' ? ',' : *c;
    return XP_OK;
}

/* "NVIDIA H200, 139.8 GiB, 132 SMs, ..." */
int xp_hardware_n_sms(void) {
    char text[256];
    const xp_cuda_backend *cuda;
    if (xp_cuda_backend_get(&cuda) != XP_OK || cuda->describe(0, text, sizeof text) != XP_OK) {
        xp_error_clear();
        return 0;
    }
    const char *end = strstr(text, " SMs");
    while (end && end > text && end[-1] >= '0' && end[-1] <= '9')
        end--;
    return end ? atoi(end) : 0;
}
