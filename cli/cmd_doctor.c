/* expar doctor: what was built in, what this machine has, what works; each "no" says what to do
 * about it. */
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "cli.h"
#include "core/file.h"
#include "core/text.h"
#include "data/libraries.h"
#include "device/cpu/cpu_device.h"
#include "device/plugin.h"
#include "expar/comm.h"
#include "expar/version.h"
#include "ops/cpu/blas.h"
#include "ops/ops.h"
#include "options.h"
#include "self_test.h"
#include "train/trainer.h"

typedef enum finding { FOUND = 0, MISSING, BROKEN } finding; /* BROKEN: training here needs it */

typedef struct doctor {
    bool json, skip_mpirun;
    const char *section;
    int n_broken;
    xp_text out;
} doctor;

/* ---- findings ---------------------------------------------------------------------------- */

static void begin_section(doctor *d, const char *name) {
    d->section = name;
    if (!d->json)
        printf("\n%s\n", name);
}

/* One line: found, or not and why, and then what to do about it (NULL: nothing to do). */
static void report(doctor *d, finding state, const char *name, const char *advice,
                   const char *format, ...) XP_PRINTF(5, 6);
static void report(doctor *d, finding state, const char *name, const char *advice,
                   const char *format, ...) {
    static const char *const words[] = {"yes", "no", "NO"};
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    d->n_broken += state == BROKEN;
    if (!d->json) {
        printf("  %-4s %-22s %s\n", words[state], name, text);
        if (state != FOUND && advice)
            printf("       %-22s -> %s\n", "", advice);
        return;
    }
    xp_text_printf(&d->out, "%s\n  {\"section\": \"%s\", \"name\": \"%s\", \"ok\": %s, ",
                   d->out.length > 1 ? "," : "", d->section, name,
                   state == FOUND ? "true" : "false");
    xp_text_printf(&d->out, "\"needed\": %s, \"text\": ", state == BROKEN ? "true" : "false");
    xp_text_add_json(&d->out, text, strlen(text));
    if (state != FOUND && advice) {
        xp_text_puts(&d->out, ", \"advice\": ");
        xp_text_add_json(&d->out, advice, strlen(advice));
    }
    xp_text_puts(&d->out, "}");
}

/* ---- what was built in ------------------------------------------------------------------- */

static void report_cpu_ops(doctor *d) {
    const xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 1};
    xp_device *device = NULL;
    const xp_ops *ops = NULL;
    xp_status status = xp_device_create(&args, &device);
    if (status == XP_OK)
        status = xp_ops_get(device, &ops);
    if (status != XP_OK)
        report(d, BROKEN, "CPU ops", "free memory or raise ulimit -v", "%s", xp_last_error());
    else
        report(d, FOUND, "CPU ops", NULL, "%s", ops->name);
    xp_device_destroy(device);
}

static void report_cuda(doctor *d) {
    const xp_cuda_backend *cuda = NULL;
    int n = 0;
    if (xp_cuda_backend_get(&cuda) != XP_OK || cuda->device_count(&n) != XP_OK) {
        report(d, MISSING, "CUDA backend",
               "for GPUs install the NVIDIA driver, the CUDA toolkit, and build with cmake "
               "--preset cuda; the CPU needs neither",
               "%s", xp_last_error());
        return;
    }
    report(d, FOUND, "CUDA backend", NULL, "%d device%s", n, n == 1 ? "" : "s");
    char text[512];
    bool usable = false;
    for (int i = 0; cuda->library_describe && cuda->library_describe(i, &usable, text, sizeof text);
         i++)
        report(d, usable ? FOUND : MISSING, "CUDA library", "install it, then run this again", "%s",
               text);
}

static void report_plugin(doctor *d, const char *name, const char *file, const char *advice) {
    char why[512] = "not found";
    if (xp_plugin_open(file, why, sizeof why))
        report(d, FOUND, name, NULL, "%s loads", file);
    else
        report(d, MISSING, name, advice, "%s", why);
}

/* Whether it serves is the backend's to say. */
static void report_nccl(doctor *d) {
    const xp_cuda_backend *cuda = NULL;
    char text[512];
    if (xp_cuda_backend_get(&cuda) == XP_OK) {
        const bool serves = cuda->nccl(text, sizeof text) != NULL;
        report(d, serves ? FOUND : MISSING, "NCCL",
               "ranks that share one GPU, and CPU training, need none",
               serves ? "%s, for ranks that have a GPU each" : "%s", text);
        return;
    }
    xp_error_clear();
    report(d, MISSING, "NCCL", "needed for several GPUs only; CPU training needs none",
           dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL)
               ? "libnccl.so.2 loads, but there is no CUDA backend to use it"
               : "not used: there is no CUDA backend");
}

static void built_in(doctor *d) {
    char text[256];
    begin_section(d, "built in");
    report(d, FOUND, "expar", NULL, XP_VERSION ", compiler " __VERSION__);
    report_cpu_ops(d);
    report(d, FOUND, "BLAS", NULL, "%s, kernel %s", xp_cpu_blas_config(), xp_cpu_blas_kernel());
    xp_data_libraries(text, sizeof text);
    report(d, FOUND, "text libraries", NULL, "%s", text);
    report_plugin(d, "MPI provider", "libexpar_mpi.so",
                  "for ranks as processes and several nodes install openmpi-bin and "
                  "libopenmpi-dev, and build again; ranks as threads (NGPU=n) need no MPI");
    report_cuda(d);
    report_nccl(d);
}

/* ---- what this machine has --------------------------------------------------------------- */

/* The value after "key   : " in a file of such lines; false when there is none. */
static bool read_key(const char *path, const char *key, char *value, size_t n_value) {
    char line[512];
    bool found = false;
    FILE *file = fopen(path, "re");
    if (!file)
        return false;
    while (!found && fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, key, strlen(key)) != 0 || !colon)
            continue;
        colon += 1 + strspn(colon + 1, " \t");
        colon[strcspn(colon, "\n")] = '\0';
        snprintf(value, n_value, "%s", colon);
        found = true;
    }
    fclose(file);
    return found;
}

static double read_gib(const char *key) {
    char value[64];
    return read_key("/proc/meminfo", key, value, sizeof value) ? atof(value) / (1024 * 1024) : 0;
}

static bool is_there(const char *path) {
    bool exists = false;
    return xp_path_exists(path, &exists) == XP_OK && exists;
}

static int count_numa_nodes(void) {
    int n = 0;
    char path[64];
    do
        snprintf(path, sizeof path, "/sys/devices/system/node/node%d", n);
    while (is_there(path) && ++n < 1024);
    return n > 0 ? n : 1;
}

static void report_memory(doctor *d) {
    char limit[64] = "";
    FILE *file = fopen("/sys/fs/cgroup/memory.max", "re");
    if (file) {
        double bytes = 0;
        if (fscanf(file, "%lf", &bytes) == 1)
            snprintf(limit, sizeof limit, ", this container may use %.1f GiB",
                     bytes / (1024.0 * 1024 * 1024));
        fclose(file);
    }
    report(d, FOUND, "memory", NULL, "%.1f GiB, %.1f GiB free%s", read_gib("MemTotal"),
           read_gib("MemAvailable"), limit);
}

/* Expert parallelism between GPUs (deepep) writes into the other's memory. */
static void report_peer_access(doctor *d, const xp_cuda_backend *cuda, int n) {
    xp_text missing = {0};
    for (int from = 0; from < n; from++)
        for (int to = 0; to < n; to++) {
            bool reaches = from == to;
            if (from != to && cuda->peer_access->can_reach(from, to, &reaches) != XP_OK)
                xp_error_clear();
            if (!reaches)
                xp_text_printf(&missing, "%s%d to %d", missing.length > 0 ? ", " : "", from, to);
        }
    if (missing.length == 0)
        report(d, FOUND, "peer access", NULL, "all %d GPUs can use each other's memory", n);
    else
        report(d, MISSING, "peer access",
               "between these set parallelism.expert_parallel_comm_backend = \"standard\"; "
               "nvidia-smi topo -p2p r tells more",
               "GPUs that cannot use each other's memory: %s", missing.data);
    xp_text_free(&missing);
}

static void report_gpus(doctor *d) {
    const xp_cuda_backend *cuda = NULL;
    int n = 0;
    if (xp_cuda_backend_get(&cuda) == XP_OK && cuda->device_count(&n) == XP_OK) {
        for (int i = 0; i < n; i++) {
            char text[512] = "";
            if (cuda->describe(i, text, sizeof text) == XP_OK)
                report(d, FOUND, "GPU", NULL, "%d: %s", i, text);
            else
                report(d, MISSING, "GPU", "see nvidia-smi", "%d: %s", i, xp_last_error());
        }
        if (n > 1)
            report_peer_access(d, cuda, n);
        return;
    }
    if (is_there("/proc/driver/nvidia/version"))
        report(d, MISSING, "GPU", "see the line about the CUDA backend above",
               "there is an NVIDIA driver, but the CUDA backend is not in use");
    else
        report(d, MISSING, "GPU", "none is needed: expar train uses the CPU", "none found");
}

static void machine(doctor *d) {
    char model[256] = "unknown CPU";
    begin_section(d, "this machine");
    (void)!read_key("/proc/cpuinfo", "model name", model, sizeof model);
    report(d, FOUND, "cores", NULL, "%d for this process (%s), %d NUMA node%s", xp_train_n_cores(),
           model, count_numa_nodes(), count_numa_nodes() == 1 ? "" : "s");
    report_memory(d);
    report_gpus(d);
}

/* ---- what works -------------------------------------------------------------------------- */

static void report_test(doctor *d, xp_status status, const char *name, const char *text,
                        const char *advice) {
    if (status == XP_OK)
        report(d, FOUND, name, NULL, "%s", text);
    else
        report(d, BROKEN, name, advice, "%s", xp_last_error());
}

/* Two processes under mpirun run this program, which makes a sum (see launched()). */
static void test_mpirun(doctor *d) {
    static const char advice[] = "run it by hand: mpirun -n 2 expar doctor; ranks as threads "
                                 "(NGPU=n) work without it";
    char exe[2048] = "", command[4096], last[512] = "no answer within 30 s";
    const ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n <= 0 || system("command -v mpirun > /dev/null 2>&1") != 0) {
        report(d, MISSING, "processes (mpirun)", "install openmpi-bin", "there is no mpirun");
        return;
    }
    snprintf(command, sizeof command,
             "timeout 30 mpirun %s --oversubscribe -n 2 '%s' doctor 2>&1 < /dev/null",
             geteuid() == 0 ? "--allow-run-as-root" : "", exe);
    fflush(stdout);
    FILE *pipe = popen(command, "r");
    char line[512];
    while (pipe && fgets(line, sizeof line, pipe)) {
        line[strcspn(line, "\n")] = '\0';
        if (line[0])
            snprintf(last, sizeof last, "%s", line);
    }
    const int how = pipe ? pclose(pipe) : -1;
    const bool ok = how != -1 && WIFEXITED(how) && WEXITSTATUS(how) == 0;
    report(d, ok ? FOUND : MISSING, "processes (mpirun)", advice, "%s", last);
}

static void works(doctor *d) {
    static const char bug[] = "this is a fault of expar or of the build: build again, run "
                              "./run_tests.sh, and report it";
    char text[256] = "", cwd[4096] = ".", why[512];
    begin_section(d, "what works");
    xp_status status = xp_self_test_ops(text, sizeof text);
    report_test(d, status, "ops", text, bug);
    status = xp_self_test_all_reduce(text, sizeof text);
    report_test(d, status, "all-reduce (threads)", text, bug);
    status = xp_self_test_ep(text, sizeof text);
    report_test(d, status, "expert exchange", text, bug);
    if (!d->skip_mpirun && xp_plugin_open("libexpar_mpi.so", why, sizeof why))
        test_mpirun(d);
    if (!getcwd(cwd, sizeof cwd))
        snprintf(cwd, sizeof cwd, ".");
    status = xp_self_test_folder(".", text, sizeof text);
    report_test(d, status, "writing here", text,
                "change to a folder you may write to, or set --job.dump_folder to one");
    if (status == XP_OK && !d->json)
        printf("       %-22s (%s)\n", "", cwd);
}

/* As a rank of a launcher there is one thing to try: the ranks reach each other. */
static int launched(void) {
    xp_comm *comm = NULL;
    xp_status status = xp_mpi_world_comm(20, 20, &comm);
    if (status == XP_OK)
        status = xp_self_test_comm(comm);
    if (status == XP_OK && xp_comm_rank(comm) == 0)
        printf("%d processes on %d node%s agree on a sum\n", xp_comm_size(comm),
               xp_comm_n_nodes(comm), xp_comm_n_nodes(comm) == 1 ? "" : "s");
    const int code = status == XP_OK ? XP_EXIT_OK : cli_fail(status);
    xp_comm_destroy(comm);
    return code;
}

static int examine(doctor *d) {
    if (d->json)
        xp_text_puts(&d->out, "[");
    built_in(d);
    machine(d);
    works(d);
    if (d->json)
        printf("{\"version\": \"%s\", \"can_train\": %s, \"findings\": %s\n]}\n", XP_VERSION,
               d->n_broken == 0 ? "true" : "false", d->out.failed ? "[" : d->out.data);
    else if (d->n_broken == 0)
        printf("\nThis machine can train: ./run_train.sh\n");
    else
        printf("\nThis machine cannot train yet: see the line%s with NO.\n",
               d->n_broken == 1 ? "" : "s");
    xp_text_free(&d->out);
    return d->n_broken == 0 ? XP_EXIT_OK : XP_EXIT_FAILED;
}

int cmd_doctor(int argc, char **argv) {
    doctor d = {0};
    bool done;
    const cli_option options[] = {
        {"--no-mpirun", CLI_FLAG, &d.skip_mpirun, NULL, "do not start processes to try MPI", 0, 0},
        {"--json", CLI_FLAG, &d.json, NULL, "one JSON object", 0, 0},
    };
    const cli_syntax command = {
        .usage = "expar doctor [options]",
        .about = "What was built in, what this machine has, and what works, by short tests. Each "
                 "\"no\" says what to do about it;\n\"NO\" is something that training here needs. "
                 "Exit code 0 when this machine can train.",
        .examples = "  expar doctor\n"
                    "  expar doctor --json\n"
                    "  mpirun -n 4 expar doctor            # do the processes reach each other?\n",
        .options = options,
        .n_options = sizeof options / sizeof options[0]};
    const int code = cli_parse(&command, argc, argv, NULL, &done);
    if (code != 0 || done)
        return code;
    return xp_mpi_launched() ? launched() : examine(&d);
}
