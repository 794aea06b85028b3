/* expar bench --write-profile FILE: a hardware description of this machine for expar plan. */
#include <stdio.h>
#include <string.h>
#include "bench.h"
#include "cli.h"
#include "core/file.h"
#include "options.h"
#include "profile.h"

typedef struct profile_options {
    const char *file, *device, *like, *name;
    int64_t steps;
} profile_options;

/* In the first line of every description that was measured. */
#define MARK "measured by `expar bench --write-profile`"

static xp_status write_file(const profile_options *o, xp_bench_profile *p) {
    xp_text text = {0};
    snprintf(p->hardware.name, sizeof p->hardware.name, "%s", o->name);
    xp_text_printf(
        &text,
        "# %s: " MARK ". A step took %.1f ms, planned "
        "before its shares were measured %.1f ms.\n# [network] and [costs] are not measured: "
        "put yours in.\n",
        p->machine, p->step_s * 1e3, p->planned_s * 1e3);
    xp_hardware_add_toml(&p->hardware, &text);
    const xp_status status = text.failed ? xp_error(XP_ENOMEM, "no memory for the description")
                                         : xp_file_write_atomic(o->file, text.data, text.length);
    xp_text_free(&text);
    return status;
}

int bench_profile(int argc, char **argv) {
    profile_options o = {.name = "this machine", .steps = 5};
    bool done;
    const cli_option options[] = {
        {"--write-profile", CLI_STRING, &o.file, "FILE", "where to write it", 0, 0},
        {"--device", CLI_STRING, &o.device, "NAME", "cpu or cuda (a GPU where there is one)", 0, 0},
        {"--steps", CLI_INT, &o.steps, "N", "measured steps (5)", 1, XP_BENCH_MAX_SAMPLES},
        {"--like", CLI_STRING, &o.like, "NAME|FILE",
         "the description for what cannot be measured (the GPU's own, or cpu)", 0, 0},
        {"--name", CLI_STRING, &o.name, "NAME", "its name in the tables (this machine)", 0, 0},
    };
    const cli_syntax command = {
        .usage = "expar bench --write-profile FILE [options]",
        .about =
            "Measures this machine for `expar plan --gpu FILE`: whole training steps, on the "
            "CPU by phase, beside sgemm and\na copy by all cores. Needs 1 GiB of memory, or 30 "
            "GiB of a GPU. Measure when nothing else runs.",
        .examples = "  expar bench --write-profile machine.toml\n"
                    "  expar plan configs/debug_moe.toml --gpu ./machine.toml --gpus-per-node 2\n",
        .options = options,
        .n_options = sizeof options / sizeof options[0]};
    int code = cli_parse(&command, argc, argv, NULL, &done);
    if (code != 0 || done)
        return code;
    if (!o.file) {
        fputs("error: --write-profile FILE is missing\n", stderr);
        return XP_EXIT_USAGE;
    }
    if (!cli_check_device(o.device, NULL))
        return XP_EXIT_USAGE;
    xp_bench_profile p;
    const bool on_gpu = o.device ? strcmp(o.device, "cuda") == 0 : cli_has_gpu();
    xp_status status = cli_check_replaces(o.file, MARK);
    if (status == XP_OK)
        status = xp_bench_profile_measure(on_gpu, (int)o.steps, o.like, &p);
    if (status == XP_OK)
        status = write_file(&o, &p);
    if (status != XP_OK)
        return cli_fail(status);
    printf("measured %s: a step of %.1f ms; wrote %s\n", p.machine, p.step_s * 1e3, o.file);
    return XP_EXIT_OK;
}
