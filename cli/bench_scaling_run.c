/* Every run is a child process, so that one that fails does not end the table. Where ranks are processes the child launches them,
 * and rank 0 leaves the result in a file. */
#include "bench_scaling.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "bench_ranks.h"
#include "cli.h"
#include "core/file.h"
#include "launch/shim.h"
#include "step.h"
#include "train/complete.h"

/** Set for the ranks of a run: "RANKS BATCH GLOBAL_BATCH FOLDER". */
#define RANK_SHAPE "EXPAR_BENCH_SCALING"

/* ---- the run itself ---------------------------------------------------------------------- */

static xp_status set_number(xp_config_set *set, const char *key, int64_t value) {
    char text[32];
    snprintf(text, sizeof text, "%" PRId64, value);
    return xp_config_override(set, key, text);
}

static xp_status load(const scaling_options *o, const scaling_shape *shape, xp_config_set **set) {
    XP_TRY(xp_config_load(o->words.n, (char **)o->words.words, false, set));
    xp_status status = xp_config_complete(*set);
    if (status == XP_OK)
        status = set_number(*set, "job.ngpu", shape->ranks);
    if (status == XP_OK)
        status = set_number(*set, "training.local_batch_size", shape->batch);
    if (status == XP_OK)
        status = set_number(*set, "training.global_batch_size", shape->global_batch);
    if (status != XP_OK)
        xp_config_destroy(*set);
    return status;
}

static void fill_result(const xp_bench_step_report *report, scaling_result *result) {
    const xp_bench_step_result *v = &report->variants[0];
    result->ok = true;
    result->step_s = xp_bench_samples_median(&v->step_s);
    result->tokens = (double)v->tokens;
    result->flops = v->flops;
    result->memory = (double)report->memory_used;
    result->memory_total = (double)report->memory_total;
    result->on_gpus = report->on_gpus;
    result->ep_size = v->ep_size;
}

static xp_status measure(const scaling_options *o, xp_config_set *set, const xp_bench_host *host,
                         const char *folder, scaling_result *result) {
    const int n_ranks = (int)xp_config_get(set)->job.ngpu;
    const xp_bench_step_args args = {.host = host,
                                     .n_variants = 1,
                                     .configs = {set},
                                     .n_ranks = n_ranks,
                                     .n_warmup = (int)o->warmup,
                                     .n_steps = (int)o->steps,
                                     .without_sgemm = true};
    xp_bench_step_report *report = calloc(1, sizeof *report);
    if (!report)
        return xp_error(XP_ENOMEM, "no memory for the report");
    xp_status status = xp_bench_step_prepare(set, folder, n_ranks);
    if (status == XP_OK)
        status = xp_bench_step(&args, report);
    if (status == XP_OK)
        fill_result(report, result);
    free(report);
    return status;
}

static xp_status limit_memory(const scaling_options *o) {
    const struct rlimit limit = {.rlim_cur = (rlim_t)o->limit_bytes,
                                 .rlim_max = (rlim_t)o->limit_bytes};
    if (o->limit_bytes > 0 && setrlimit(RLIMIT_AS, &limit) != 0)
        return xp_error(XP_EINVAL, "--memory-limit %s: %s", o->memory_limit, strerror(errno));
    return XP_OK;
}

/* ---- ranks that are processes ------------------------------------------------------------ */

static xp_status result_path(const char *folder, char *path, size_t n_bytes) {
    const int n = snprintf(path, n_bytes, "%s/result", folder);
    return n > 0 && (size_t)n < n_bytes ? XP_OK
                                        : xp_error(XP_EINVAL, "%s: the path is too long", folder);
}

static xp_status run_processes(const scaling_options *o, const scaling_shape *shape,
                               const char *folder, scaling_result *result) {
    char text[4096], path[4096], *data;
    size_t n_bytes = 0;
    snprintf(text, sizeof text, "%" PRId64 " %" PRId64 " %" PRId64 " %s", shape->ranks,
             shape->batch, shape->global_batch, folder);
    XP_TRY(result_path(folder, path, sizeof path));
    if (setenv(RANK_SHAPE, text, 1) != 0)
        return xp_error(XP_ENOMEM, "no memory for the environment");
    unlink(path);
    XP_TRY(bench_ranks_launch((int)shape->ranks, o->argc, o->argv));
    XP_TRY(xp_file_read(path, sizeof *result, &data, &n_bytes));
    if (n_bytes == sizeof *result)
        memcpy(result, data, sizeof *result);
    free(data);
    return n_bytes == sizeof *result ? XP_OK : xp_error(XP_EIO, "%s: half a result", path);
}

bool scaling_is_rank(void) {
    return getenv(RANK_SHAPE) != NULL && xp_mpi_launched();
}

static xp_status run_rank(const scaling_options *o) {
    scaling_shape shape = {.weak = false};
    char folder[4096], own[4200], path[4096];
    xp_bench_host host;
    xp_config_set *set = NULL;
    scaling_result result;
    memset(&result, 0, sizeof result);
    if (sscanf(getenv(RANK_SHAPE), "%" SCNd64 " %" SCNd64 " %" SCNd64 " %4095s", &shape.ranks,
               &shape.batch, &shape.global_batch, folder) != 4)
        return xp_error(XP_EINVAL, "%s is not a run of bench scaling", RANK_SHAPE);
    XP_TRY(limit_memory(o));
    XP_TRY(xp_bench_host_open(&host));
    snprintf(own, sizeof own, "%s/rank-%d", folder, xp_comm_rank(host.world));
    xp_status status = xp_folder_create(own);
    if (status == XP_OK)
        status = load(o, &shape, &set);
    if (status == XP_OK)
        status = measure(o, set, &host, own, &result);
    result.processes = true;
    if (status == XP_OK)
        status = result_path(folder, path, sizeof path);
    if (status == XP_OK && xp_bench_host_leads(&host))
        status = xp_file_write_atomic(path, &result, sizeof result);
    xp_config_destroy(set);
    if (status != XP_OK)
        bench_rank_report(cli_exit_code(status), NULL);
    xp_bench_host_close(&host);
    return status;
}

int scaling_run_rank(const scaling_options *o) {
    const xp_status status = run_rank(o);
    return status == XP_OK ? XP_EXIT_OK : cli_exit_code(status);
}

/* ---- the child --------------------------------------------------------------------------- */

static xp_status run(const scaling_options *o, const scaling_shape *shape, const char *folder,
                     scaling_result *result) {
    const xp_bench_host host = {0};
    xp_config_set *set = NULL;
    xp_start start;
    XP_TRY(load(o, shape, &set));
    xp_status status = xp_start_choose(xp_config_get(set), 1, false, &start);
    if (status == XP_OK && start.kind == XP_START_PROCESSES)
        status = run_processes(o, shape, folder, result);
    else if (status == XP_OK && (status = limit_memory(o)) == XP_OK)
        status = measure(o, set, &host, folder, result);
    xp_config_destroy(set);
    return status;
}

static _Noreturn void run_child(const scaling_options *o, const scaling_shape *shape,
                                const char *folder, int pipe_end) {
    scaling_result result;
    memset(&result, 0, sizeof result);
    const xp_status status = run(o, shape, folder, &result);
    if (status != XP_OK) {
        result.ok = false;
        snprintf(result.error, sizeof result.error, "%s", xp_last_error());
    }
    const ssize_t n = write(pipe_end, &result, sizeof result);
    _exit(n == (ssize_t)sizeof result ? 0 : 1);
}

static void fail_result(scaling_result *result, const char *format, int number) {
    result->ok = false;
    snprintf(result->error, sizeof result->error, format, number);
}

void scaling_run(const scaling_options *o, const scaling_shape *shape, const char *folder,
                 scaling_result *result) {
    int ends[2];
    memset(result, 0, sizeof *result);
    if (pipe(ends) != 0) {
        fail_result(result, "cannot make a pipe (error %d)", errno);
        return;
    }
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        close(ends[0]);
        run_child(o, shape, folder, ends[1]);
    }
    close(ends[1]);
    ssize_t n = -1;
    do
        n = child > 0 ? read(ends[0], result, sizeof *result) : -1;
    while (n < 0 && errno == EINTR);
    close(ends[0]);
    int how = 0;
    if (child < 0) {
        fail_result(result, "cannot start a process (error %d)", errno);
        return;
    }
    waitpid(child, &how, 0);
    if (n == (ssize_t)sizeof *result)
        return;
    if (WIFSIGNALED(how))
        fail_result(result, "the run was killed by signal %d (9: most likely out of memory)",
                    WTERMSIG(how));
    else
        fail_result(result, "the run ended with code %d and no result", WEXITSTATUS(how));
}
