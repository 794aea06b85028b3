/* expar doctor: what was built in, what this machine has, what works; each "no" says what to do
 * about it. */
#include <stdio.h>
#include <string.h>
#include "cli.h"
#include "data/libraries.h"
#include "device/plugin.h"
#include "doctor_child.h"
#include "expar/comm.h"
#include "expar/version.h"
#include "ops/cpu/blas.h"
#include "ops/ops.h"
#include "options.h"

/* "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH ...": name and version. */
static int config_length(const char *config) {
    const size_t name = strcspn(config, " ");
    return (int)(config[name] ? name + 1 + strcspn(config + name + 1, " ") : name);
}

static void report_blas(doctor *d) {
    const char *better = xp_cpu_blas_better_kernel(), *config = xp_cpu_blas_config();
    char advice[64];
    snprintf(advice, sizeof advice, "export OPENBLAS_CORETYPE=%s", better ? better : "");
    doctor_report(d, better ? MISSING : FOUND, "BLAS", advice, "%.*s, kernel %s%s",
                  config_length(config), config, xp_cpu_blas_kernel(),
                  better ? ": it does not know this CPU, and its GEMMs are several times too slow"
                         : "");
}

static void report_cpu(doctor *d) {
    const xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 1};
    xp_device *device = NULL;
    const xp_ops *ops = NULL;
    xp_status status = xp_device_create(&args, &device);
    if (status == XP_OK)
        status = xp_ops_get(device, &ops);
    if (status != XP_OK)
        doctor_report(d, BROKEN, "CPU ops", "free memory or raise ulimit -v", "%s",
                      xp_last_error());
    else
        doctor_report(d, FOUND, "CPU ops", NULL, "%s", ops->name);
    report_blas(d);
    xp_device_destroy(device);
}

/* After the GPUs have been counted: with several each rank is a process. */
static void report_mpi(doctor *d) {
    static const char file[] = "libexpar_mpi.so";
    char why[512] = "not found";
    if (xp_plugin_open(file, why, sizeof why))
        doctor_report(d, FOUND, "MPI provider", NULL, "%s loads", file);
    else
        doctor_report(d, d->n_gpus > 1 ? BROKEN : MISSING, "MPI provider",
                      "for ranks as processes and several nodes install openmpi-bin and "
                      "libopenmpi-dev, and build again; ranks as threads (NGPU=n) need no MPI",
                      "%s", why);
}

static void built_in(doctor *d) {
    char text[256];
    doctor_begin_section(d, "built in");
    doctor_report(d, FOUND, "expar", NULL, XP_VERSION ", compiler " __VERSION__);
    report_cpu(d);
    xp_data_libraries(text, sizeof text);
    doctor_report(d, FOUND, "text libraries", NULL, "%s", text);
    doctor_gpu_libraries(d);
    report_mpi(d);
}

static void print_end(const doctor *d) {
    if (d->json)
        printf("{\"version\": \"%s\", \"can_train\": %s, \"n_gpus\": %d, \"findings\": %s\n]}\n",
               XP_VERSION, d->n_broken == 0 ? "true" : "false", d->n_gpus,
               d->out.failed ? "[" : d->out.data);
    else if (d->n_broken > 0)
        printf("\nSomething that is needed here does not work: see the line%s with NO.\n",
               d->n_broken == 1 ? "" : "s");
    else if (d->n_gpus > 0)
        printf("\nThis machine can train on %d GPU%s: expar train CONFIG\n", d->n_gpus,
               d->n_gpus == 1 ? "" : "s");
    else
        printf("\nThis machine can train on the CPU: expar train CONFIG, or ./run_train.sh in a "
               "checkout\n");
}

static int examine(doctor *d) {
    doctor_tries tries;
    if (d->json)
        xp_text_puts(&d->out, "[");
    built_in(d);
    doctor_run_tries(d, &tries);
    doctor_begin_section(d, "this machine");
    doctor_machine(d);
    doctor_gpus(d);
    doctor_begin_section(d, "what works");
    doctor_works(d, &tries);
    print_end(d);
    xp_text_free(&d->out);
    return d->n_broken == 0 ? XP_EXIT_OK : XP_EXIT_FAILED;
}

int cmd_doctor(int argc, char **argv) {
    doctor d = {.folder = "./outputs"};
    bool done, on_gpus = false;
    const cli_option options[] = {
        {"--job.dump_folder", CLI_STRING, &d.folder, "DIR",
         "where runs will write: tried and timed (./outputs)", 0, 0},
        {"--ranks", CLI_INT, &d.n_ranks, "N",
         "processes that mpirun starts for a try (the GPUs, at least 2)", 1, 1024},
        {"--no-mpirun", CLI_FLAG, &d.skip_mpirun, NULL, "do not start processes to try MPI", 0, 0},
        {"--no-gpus", CLI_FLAG, &d.skip_gpus, NULL, "compute nothing on GPUs", 0, 0},
        {"--on-gpus", CLI_FLAG, &on_gpus, NULL,
         "only what each GPU computes (the doctor starts this itself, with a time limit)", 0, 0},
        {"--json", CLI_FLAG, &d.json, NULL, "one JSON object", 0, 0},
    };
    const cli_syntax command = {
        .usage = "expar doctor [options]",
        .about = "What was built in, what this machine has, and what works, by short tests. Each "
                 "\"no\" that can be mended says how\n(->); \"NO\" is something that training here "
                 "needs. Exit code 0: all that is needed works; 1: something is broken.",
        .examples = "  expar doctor\n"
                    "  expar doctor --job.dump_folder /data/runs --ranks 8\n"
                    "  expar doctor --json\n"
                    "  mpirun -n 4 expar doctor            # do the processes, and their GPUs, "
                    "reach each other?\n",
        .options = options,
        .n_options = sizeof options / sizeof options[0]};
    const int code = cli_parse(&command, argc, argv, NULL, &done);
    if (code != 0 || done)
        return code;
    if (on_gpus)
        return doctor_on_gpus();
    return xp_mpi_launched() ? doctor_as_rank(d.skip_gpus) : examine(&d);
}
