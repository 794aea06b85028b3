#include <dlfcn.h>
#include <glob.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "device/plugin.h"
#include "doctor.h"
#include "peer_copies.h"

#define NEEDED_CUDA   13000 /* what the kernels are built with */
#define NEEDED_DRIVER "580"
#define SLOW_LINK     40e9 /* bytes a second: less than any NVLink */

static const char install_driver[] =
    "install the NVIDIA driver " NEEDED_DRIVER " or newer; in a container start it with the GPUs "
    "(docker run --gpus all); the CPU needs neither";

/* ---- driver ------------------------------------------------------------------------------ */

typedef struct driver {
    bool loads;
    int cuda;   /* 12040: it serves CUDA 12.4 */
    int n_gpus; /* that it shows; -1: it does not start */
} driver;

/* Only where the CUDA backend does not serve: the backend asks by itself, with its own settings. */
static driver ask_driver(void) {
    driver found = {.n_gpus = -1};
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return found;
    found.loads = true;
    int (*version)(int *) = (int (*)(int *))(uintptr_t)dlsym(library, "cuDriverGetVersion");
    int (*init)(unsigned) = (int (*)(unsigned))(uintptr_t)dlsym(library, "cuInit");
    int (*count)(int *) = (int (*)(int *))(uintptr_t)dlsym(library, "cuDeviceGetCount");
    if (version && version(&found.cuda) != 0)
        found.cuda = 0;
    if (init && count && init(0) == 0 && count(&found.n_gpus) != 0)
        found.n_gpus = -1;
    return found;
}

/* An NVIDIA GPU on the bus, whatever this process may do with it. */
static bool has_gpu_on_bus(void) {
    glob_t found;
    bool has = false;
    if (glob("/sys/bus/pci/devices/*", 0, NULL, &found) != 0)
        return false;
    for (size_t i = 0; i < found.gl_pathc && !has; i++) {
        char path[512];
        unsigned vendor = 0, kind = 0;
        static const char *const names[] = {"vendor", "class"};
        for (int k = 0; k < 2; k++) {
            snprintf(path, sizeof path, "%s/%s", found.gl_pathv[i], names[k]);
            FILE *file = fopen(path, "re");
            if (file && fscanf(file, "%x", k == 0 ? &vendor : &kind) != 1)
                vendor = 0;
            if (file)
                fclose(file);
        }
        has = vendor == 0x10de && kind >> 16 == 3; /* NVIDIA, display or 3D controller */
    }
    globfree(&found);
    return has;
}

/* Why no GPU serves. @return one is there for this process and must not be lost in silence */
static bool report_no_driver(doctor *d) {
    const driver found = ask_driver();
    if (!found.loads) {
        if (has_gpu_on_bus())
            doctor_report(d, MISSING, "NVIDIA driver", install_driver,
                          "this machine has an NVIDIA GPU, but no driver is found here "
                          "(libcuda.so.1)");
        else
            doctor_report(d, MISSING, "NVIDIA driver", "nothing to do: the CPU needs none",
                          "none, and no NVIDIA GPU");
        return false;
    }
    if (found.n_gpus <= 0) {
        const char *visible = getenv("CUDA_VISIBLE_DEVICES");
        doctor_report(d, MISSING, "NVIDIA driver",
                      "see nvidia-smi; CUDA_VISIBLE_DEVICES may hide GPUs, and a container must be "
                      "started with them (docker run --gpus all)",
                      "it is there (CUDA %d.%d), but %s%s%s", found.cuda / 1000,
                      found.cuda % 1000 / 10, found.n_gpus < 0 ? "does not start" : "shows no GPU",
                      visible ? "; CUDA_VISIBLE_DEVICES=" : "", visible ? visible : "");
        return false;
    }
    if (found.cuda < NEEDED_CUDA) {
        doctor_report(
            d, BROKEN, "NVIDIA driver", install_driver,
            "too old: it serves CUDA %d.%d, and %d.%d is needed (driver " NEEDED_DRIVER ")",
            found.cuda / 1000, found.cuda % 1000 / 10, NEEDED_CUDA / 1000, NEEDED_CUDA % 1000 / 10);
        return true;
    }
    doctor_report(d, FOUND, "NVIDIA driver", NULL, "CUDA %d.%d, %d GPU%s (needed: CUDA 13.0)",
                  found.cuda / 1000, found.cuda % 1000 / 10, found.n_gpus,
                  found.n_gpus == 1 ? "" : "s");
    return true;
}

/* ---- what was built and what it opens ---------------------------------------------------- */

/* What the others do without: dense GEMMs cannot, attention and one GPU can. */
static void report_libraries(doctor *d, const xp_cuda_backend *cuda) {
    char text[512];
    bool usable = false;
    for (int i = 0; cuda->library_describe && cuda->library_describe(i, &usable, text, sizeof text);
         i++) {
        const bool is_blas = strncmp(text, "cuBLASLt", 8) == 0;
        const char *advice =
            is_blas ? "install cuBLAS of CUDA 13 (apt-get install libcublas-13-0), or "
                      "put its folder on LD_LIBRARY_PATH"
                    : "install cuDNN 9 (apt-get install libcudnn9-cuda-13), or put its "
                      "folder on LD_LIBRARY_PATH";
        doctor_report(d,
                      usable    ? FOUND
                      : is_blas ? BROKEN
                                : MISSING,
                      is_blas ? "cuBLASLt" : "cuDNN", advice, "%s%s", text,
                      !usable   ? ""
                      : is_blas ? " (needed: 12 or 13)"
                                : " (needed: 9)");
    }
}

static void report_nccl(doctor *d, const xp_cuda_backend *cuda) {
    char text[512] = "not built in";
    const bool serves = cuda->nccl && cuda->nccl(text, sizeof text) != NULL;
    doctor_report(d,
                  serves          ? FOUND
                  : d->n_gpus > 1 ? BROKEN
                                  : MISSING,
                  "NCCL",
                  "install NCCL 2.28 or newer (apt-get install libnccl2), or put its folder on "
                  "LD_LIBRARY_PATH; one GPU and the CPU need none",
                  serves ? "%s (needed: 2.28, with several GPUs)" : "%s", text);
}

/* The last error says why the backend does not serve. */
static void report_no_backend(doctor *d) {
    static const char prefix[] = "no CUDA backend: ";
    char text[512], ignored[512];
    const char *why = text;
    snprintf(text, sizeof text, "%s", xp_last_error());
    if (strncmp(text, prefix, sizeof prefix - 1) == 0)
        why += sizeof prefix - 1;
    const bool has_driver = report_no_driver(d);
    if (xp_plugin_open("libexpar_cuda.so", ignored, sizeof ignored))
        doctor_report(d, MISSING, "CUDA backend",
                      "it is built in: see the line about the driver above", "%s", why);
    else
        doctor_report(d, has_driver ? BROKEN : MISSING, "CUDA backend",
                      has_driver
                          ? "install the CUDA toolkit 13, remove the build folder, and build "
                            "again (scripts/build.sh release)"
                          : "nothing to do for the CPU; for GPUs install the driver and the "
                            "CUDA toolkit 13, remove the build folder, and build again "
                            "(scripts/build.sh release)",
                      "%s", why);
    xp_error_clear();
}

void doctor_gpu_libraries(doctor *d) {
    const xp_cuda_backend *cuda = NULL;
    int n = 0;
    if (xp_cuda_backend_get(&cuda) == XP_OK && cuda->device_count(&n) == XP_OK) {
        d->n_gpus = n;
        doctor_report(d, FOUND, "CUDA backend", NULL, "%d GPU%s", n, n == 1 ? "" : "s");
        report_libraries(d, cuda);
        report_nccl(d, cuda);
        return;
    }
    report_no_backend(d);
}

/* ---- between GPUs ------------------------------------------------------------------------ */

/* Active NVLinks of a GPU by NVML; -1: it cannot be asked. */
static int count_nvlinks(void *nvml, unsigned index) {
    int (*handle)(unsigned, void **) =
        (int (*)(unsigned, void **))(uintptr_t)dlsym(nvml, "nvmlDeviceGetHandleByIndex_v2");
    int (*link)(void *, unsigned, int *) =
        (int (*)(void *, unsigned, int *))(uintptr_t)dlsym(nvml, "nvmlDeviceGetNvLinkState");
    void *device = NULL;
    int n = 0, active = 0;
    if (!handle || !link || handle(index, &device) != 0)
        return -1;
    for (unsigned i = 0; i < 18; i++)
        if (link(device, i, &active) == 0)
            n += active != 0;
    return n;
}

static void report_nvlink(doctor *d) {
    void *nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    int (*init)(void) = nvml ? (int (*)(void))(uintptr_t)dlsym(nvml, "nvmlInit_v2") : NULL;
    int least = -1, most = -1;
    for (int i = 0; init && init() == 0 && i < d->n_gpus; i++) {
        const int n = count_nvlinks(nvml, (unsigned)i);
        least = i == 0 || n < least ? n : least;
        most = n > most ? n : most;
    }
    if (least > 0)
        doctor_report(d, FOUND, "NVLink", NULL,
                      least == most ? "%d links on each GPU" : "%d links or more on each GPU",
                      least);
    else if (least < 0)
        doctor_report(d, MISSING, "NVLink", "nvidia-smi nvlink -s tells",
                      "not known: the driver's NVML (libnvidia-ml.so.1) does not say");
    else
        doctor_report(d, MISSING, "NVLink",
                      "rows go over PCIe: see nvidia-smi topo -m; choose a small "
                      "parallelism.expert_parallel_degree",
                      "not on every GPU");
}

/* Expert parallelism between GPUs (deepep) writes into the other's memory. */
static void report_peer_access(doctor *d, const xp_cuda_backend *cuda) {
    xp_text missing = {0};
    for (int from = 0; from < d->n_gpus; from++)
        for (int to = 0; to < d->n_gpus; to++) {
            bool reaches = from == to;
            if (from != to && cuda->peer_access->can_reach(from, to, &reaches) != XP_OK)
                xp_error_clear();
            if (!reaches)
                xp_text_printf(&missing, "%s%d to %d", missing.length > 0 ? ", " : "", from, to);
        }
    if (missing.length == 0)
        doctor_report(d, FOUND, "peer access", NULL, "all %d GPUs can use each other's memory",
                      d->n_gpus);
    else
        doctor_report(d, MISSING, "peer access",
                      "between these set parallelism.expert_parallel_comm_backend = \"standard\"; "
                      "nvidia-smi topo -p2p r tells more",
                      "GPUs that cannot use each other's memory: %s", missing.data);
    xp_text_free(&missing);
}

static void print_matrix(const doctor *d, const xp_peer_copies *c) {
    char line[16 + 8 * XP_PEER_COPIES_MAX];
    int n = snprintf(line, sizeof line, "from\\to");
    for (int to = 0; to < c->n; to++)
        n += snprintf(line + n, sizeof line - (size_t)n, "%7d", to);
    doctor_add_line(d, "%s", line);
    for (int from = 0; from < c->n; from++) {
        n = snprintf(line, sizeof line, "%7d", from);
        for (int to = 0; to < c->n; to++)
            n += from == to || c->bytes_per_s[from][to] == 0
                     ? snprintf(line + n, sizeof line - (size_t)n, "%7s", from == to ? "." : "-")
                     : snprintf(line + n, sizeof line - (size_t)n, "%7.0f",
                                c->bytes_per_s[from][to] / 1e9);
        doctor_add_line(d, "%s", line);
    }
}

static void report_copies(doctor *d) {
    xp_peer_copies copies;
    double least = 0;
    int worst[2] = {0, 0};
    if (xp_measure_peer_copies(d->n_gpus, &copies) != XP_OK) {
        doctor_report(d, MISSING, "copies",
                      "see nvidia-smi: another program may hold the memory of a GPU",
                      "cannot be measured: %s", xp_last_error());
        return;
    }
    for (int from = 0; from < copies.n; from++)
        for (int to = 0; to < copies.n; to++) {
            const double rate = copies.bytes_per_s[from][to];
            if (from == to || rate == 0 || (least > 0 && rate >= least))
                continue;
            least = rate;
            worst[0] = from;
            worst[1] = to;
        }
    if (least == 0)
        return; /* none reaches another: said above */
    doctor_report(d, least < SLOW_LINK ? MISSING : FOUND, "copies",
                  "this is PCIe, not NVLink: nvidia-smi topo -m shows the paths",
                  "GB/s of each GPU into each other's memory, one pair at a time; least %.0f (%d "
                  "to %d)",
                  least / 1e9, worst[0], worst[1]);
    print_matrix(d, &copies);
}

/* GPUs of one kind on one line. */
static void report_each(doctor *d, const xp_cuda_backend *cuda) {
    char first[512] = "", text[512] = "";
    int from = 0;
    for (int i = 0; i <= d->n_gpus; i++) {
        if (i < d->n_gpus && cuda->describe(i, text, sizeof text) != XP_OK) {
            snprintf(text, sizeof text, "does not answer: %.400s", xp_last_error());
            xp_error_clear();
        }
        if (i == 0)
            snprintf(first, sizeof first, "%s", text);
        if (i < d->n_gpus && strcmp(first, text) == 0)
            continue;
        const bool answers = strncmp(first, "does not", 8) != 0;
        if (from == i - 1)
            doctor_report(d, answers ? FOUND : BROKEN, "GPU", "see nvidia-smi", "%d: %s", from,
                          first);
        else
            doctor_report(d, answers ? FOUND : BROKEN, "GPUs", "see nvidia-smi", "%d to %d: %s",
                          from, i - 1, first);
        snprintf(first, sizeof first, "%s", text);
        from = i;
    }
}

void doctor_gpus(doctor *d) {
    const xp_cuda_backend *cuda = NULL;
    if (d->n_gpus == 0 || xp_cuda_backend_get(&cuda) != XP_OK) {
        xp_error_clear();
        doctor_report(d, MISSING, "GPU", "nothing to do: `expar train` uses the CPU",
                      "none in use");
        return;
    }
    report_each(d, cuda);
    if (d->n_gpus == 1)
        return;
    report_nvlink(d);
    report_peer_access(d, cuda);
    report_copies(d);
}
