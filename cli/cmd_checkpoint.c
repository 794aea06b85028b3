/* expar checkpoint: the checkpoints of a run, what one holds, and whether its bytes are whole. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "checkpoint/manifest.h"
#include "checkpoint/publish.h"
#include "cli.h"
#include "core/file.h"
#include "core/text.h"
#include "options.h"
#include "train/inference.h"

typedef struct checkpoint_options {
    const char *folder; /* DIR as given */
    int64_t step;       /* -1: the newest */
    bool all, json;
} checkpoint_options;

/* One checkpoint of a list: opened, or the reason why it could not be. */
typedef struct entry {
    xp_ckpt *ckpt; /* NULL: error */
    int64_t step;
    char error[1024];
} entry;

static double mib(int64_t n_bytes) {
    return (double)n_bytes / (1 << 20);
}

static int64_t n_bytes_of(const xp_manifest *manifest) {
    int64_t n_bytes = 0;
    for (int64_t i = 0; i < manifest->n_files; i++)
        n_bytes += manifest->files[i].n_bytes;
    return n_bytes;
}

/* -1 when the checkpoint does not say. */
static long long tokens_seen(const xp_ckpt *ckpt) {
    const char *text = xp_ckpt_value_get(ckpt, "tokens_seen");
    int64_t n = -1;
    return text != NULL && xp_parse_i64(text, &n) ? (long long)n : -1;
}

/* ---- output ------------------------------------------------------------------------------- */

static void add_member(xp_text *out, const char *name, const char *value) {
    xp_text_printf(out, "\"%s\": ", name);
    xp_text_add_json(out, value, strlen(value));
}

/* The members that every object has; the caller closes it. */
static void begin_object(xp_text *out, const entry *e) {
    xp_text_printf(out, "{\"step\": %lld, ", (long long)e->step);
    if (e->ckpt == NULL) {
        add_member(out, "error", e->error);
        return;
    }
    const xp_manifest *m = xp_ckpt_manifest(e->ckpt);
    add_member(out, "path", xp_ckpt_path(e->ckpt));
    xp_text_puts(out, ", ");
    add_member(out, "expar", m->expar);
    xp_text_printf(out,
                   ", \"files\": %lld, \"tensors\": %lld, \"bytes\": %lld, \"tokens_seen\": %lld",
                   (long long)m->n_files, (long long)m->n_tensors, (long long)n_bytes_of(m),
                   tokens_seen(e->ckpt));
}

static void add_line(xp_text *out, const entry *e) {
    if (e->ckpt == NULL) {
        xp_text_printf(out, "step-%-10lld DAMAGED: %s\n", (long long)e->step, e->error);
        return;
    }
    const xp_manifest *m = xp_ckpt_manifest(e->ckpt);
    xp_text_printf(out, "step-%-10lld %12.1f MiB %6lld files %6lld tensors  %lld tokens seen\n",
                   (long long)e->step, mib(n_bytes_of(m)), (long long)m->n_files,
                   (long long)m->n_tensors, tokens_seen(e->ckpt));
}

static xp_status print_text(xp_text *out) {
    if (out->failed || out->data == NULL)
        return xp_error(XP_ENOMEM, "no memory for the output");
    fputs(out->data, stdout);
    return XP_OK;
}

/* ---- which checkpoints -------------------------------------------------------------------- */

static void keep_error(entry *e) {
    e->ckpt = NULL;
    snprintf(e->error, sizeof e->error, "%s", xp_last_error());
}

/* All complete checkpoints of the folder, ascending; those that cannot be opened hold the error. */
static xp_status open_all(const char *folder, entry **entries, int64_t *n) {
    int64_t *steps = NULL;
    bool found = false;
    char *inside = xp_path_join(folder, "checkpoint");
    if (inside == NULL)
        return xp_error(XP_ENOMEM, "no memory for a path");
    xp_status status = xp_path_is_folder(inside, &found);
    const char *holds_steps = found ? inside : folder;
    if (status == XP_OK)
        status = xp_steps_list(holds_steps, &steps, n);
    if (status == XP_OK && *n == 0)
        status = xp_ckpt_none_in(holds_steps);
    if (status == XP_OK && (*entries = calloc((size_t)*n, sizeof **entries)) == NULL)
        status = xp_error(XP_ENOMEM, "no memory for %lld checkpoints", (long long)*n);
    for (int64_t i = 0; status == XP_OK && i < *n; i++) {
        entry *e = &(*entries)[i];
        e->step = steps[i];
        if (xp_ckpt_open(holds_steps, steps[i], &e->ckpt) != XP_OK)
            keep_error(e);
    }
    free(steps);
    free(inside);
    return status;
}

/* The one that DIR and --step name. */
static xp_status open_one(const checkpoint_options *o, entry *e) {
    XP_TRY(xp_inference_find_ckpt(o->folder, o->step, &e->ckpt));
    e->step = xp_ckpt_step(e->ckpt);
    return XP_OK;
}

static void close_all(entry *entries, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        xp_ckpt_close(entries[i].ckpt);
    free(entries);
}

/* ---- list, show, verify ------------------------------------------------------------------- */

static xp_status list(const checkpoint_options *o) {
    entry *entries = NULL;
    int64_t n = 0, n_damaged = 0;
    XP_TRY(open_all(o->folder, &entries, &n));
    xp_text out = {0};
    for (int64_t i = 0; i < n; i++) {
        n_damaged += entries[i].ckpt == NULL;
        if (o->json) {
            xp_text_puts(&out, i == 0 ? "[\n  " : ",\n  ");
            begin_object(&out, &entries[i]);
            xp_text_puts(&out, "}");
        } else {
            add_line(&out, &entries[i]);
        }
    }
    if (o->json)
        xp_text_puts(&out, "\n]\n");
    xp_status status = print_text(&out);
    xp_text_free(&out);
    close_all(entries, n);
    if (status == XP_OK && n_damaged > 0)
        status = xp_error(XP_EFORMAT, "%lld of %lld checkpoints cannot be read",
                          (long long)n_damaged, (long long)n);
    return status;
}

static void show_text(const xp_manifest *m, xp_text *out) {
    xp_text_printf(out, "written by expar %s\n\nfiles:\n", m->expar);
    for (int64_t i = 0; i < m->n_files; i++)
        xp_text_printf(out, "  %-28s %12.1f MiB  xxh64 %016llx\n", m->files[i].name,
                       mib(m->files[i].n_bytes), (unsigned long long)m->files[i].xxh64);
    xp_text_puts(out, "\nvalues:\n");
    for (int i = 0; i < m->n_values; i++) /* the configuration is a whole file */
        if (strchr(m->values[i].value, '\n') == NULL)
            xp_text_printf(out, "  %-28s %s\n", m->values[i].key, m->values[i].value);
    xp_text_puts(out, "\ntensors:\n");
    for (int64_t i = 0; i < m->n_tensors; i++)
        xp_text_printf(
            out, "  %-60s %s\n", m->tensors[i].name,
            xp_shape_format(m->tensors[i].dtype, m->tensors[i].n_dims, m->tensors[i].shape).text);
}

static void show_json(const xp_manifest *m, xp_text *out) {
    xp_text_puts(out, ",\n \"values\": {");
    for (int i = 0; i < m->n_values; i++) {
        xp_text_puts(out, i > 0 ? ", " : "");
        add_member(out, m->values[i].key, m->values[i].value);
    }
    xp_text_puts(out, "},\n \"file_list\": [");
    for (int64_t i = 0; i < m->n_files; i++) {
        xp_text_puts(out, i > 0 ? ", {" : "{");
        add_member(out, "name", m->files[i].name);
        xp_text_printf(out, ", \"bytes\": %lld, \"xxh64\": \"%016llx\"}",
                       (long long)m->files[i].n_bytes, (unsigned long long)m->files[i].xxh64);
    }
    xp_text_puts(out, "],\n \"tensor_list\": [\n  ");
    for (int64_t i = 0; i < m->n_tensors; i++) {
        const xp_manifest_tensor *t = &m->tensors[i];
        xp_text_puts(out, i > 0 ? ",\n  {" : "{");
        add_member(out, "name", t->name);
        xp_text_printf(out, ", \"dtype\": \"%s\", \"shape\": [", xp_dtype_name(t->dtype));
        for (int k = 0; k < t->n_dims; k++)
            xp_text_printf(out, "%s%lld", k > 0 ? ", " : "", (long long)t->shape[k]);
        xp_text_puts(out, "]}");
    }
    xp_text_puts(out, "]");
}

static xp_status show(const checkpoint_options *o) {
    entry e = {0};
    xp_text out = {0};
    XP_TRY(open_one(o, &e));
    if (o->json) {
        begin_object(&out, &e);
        show_json(xp_ckpt_manifest(e.ckpt), &out);
        xp_text_puts(&out, "}\n");
    } else {
        add_line(&out, &e);
        show_text(xp_ckpt_manifest(e.ckpt), &out);
    }
    xp_status status = print_text(&out);
    xp_text_free(&out);
    xp_ckpt_close(e.ckpt);
    return status;
}

static xp_status verify(const checkpoint_options *o) {
    entry *entries = NULL;
    int64_t n = 1, n_damaged = 0;
    if (o->all) {
        XP_TRY(open_all(o->folder, &entries, &n));
    } else {
        if ((entries = calloc(1, sizeof *entries)) == NULL)
            return xp_error(XP_ENOMEM, "no memory for a checkpoint");
        const xp_status status = open_one(o, &entries[0]);
        if (status != XP_OK) {
            free(entries);
            return status;
        }
    }
    for (int64_t i = 0; i < n; i++) {
        entry *e = &entries[i];
        if (e->ckpt != NULL && xp_ckpt_verify(e->ckpt) != XP_OK)
            snprintf(e->error, sizeof e->error, "%s", xp_last_error());
        const bool whole = e->error[0] == '\0';
        n_damaged += !whole;
        xp_text out = {0};
        if (o->json) {
            xp_text_puts(&out, i == 0 ? "[\n  " : ",\n  ");
            begin_object(&out, e);
            xp_text_printf(&out, ", \"whole\": %s", whole ? "true" : "false");
            if (!whole && e->ckpt != NULL) {
                xp_text_puts(&out, ", ");
                add_member(&out, "error", e->error);
            }
            xp_text_puts(&out, i == n - 1 ? "}\n]\n" : "}");
        } else if (whole) {
            const xp_manifest *m = xp_ckpt_manifest(e->ckpt);
            xp_text_printf(&out, "step-%lld: whole (%lld files, %.1f MiB)\n", (long long)e->step,
                           (long long)m->n_files, mib(n_bytes_of(m)));
        } else {
            xp_text_printf(&out, "step-%lld: DAMAGED: %s\n", (long long)e->step, e->error);
        }
        const xp_status status = print_text(&out); /* as it goes: a checkpoint can take minutes */
        fflush(stdout);
        xp_text_free(&out);
        if (status != XP_OK)
            n_damaged++;
    }
    close_all(entries, n);
    return n_damaged == 0 ? XP_OK
                          : xp_error(XP_EFORMAT, "%lld of %lld checkpoints are damaged",
                                     (long long)n_damaged, (long long)n);
}

static const struct action {
    const char *name;
    xp_status (*run)(const checkpoint_options *o);
    bool takes_step, takes_all;
} actions[] = {
    {"list", list, false, false}, {"show", show, true, false}, {"verify", verify, true, true}};
#define N_ACTIONS (sizeof actions / sizeof actions[0])

static const char *action_at(int i) {
    return i >= 0 && (size_t)i < N_ACTIONS ? actions[i].name : NULL;
}

static int wrong_usage(const char *message, const char *usage) {
    fprintf(stderr, "error: %s\nusage: %s\n", message, usage);
    return XP_EXIT_USAGE;
}

int cmd_checkpoint(int argc, char **argv) {
    checkpoint_options o = {.step = -1};
    const char *words[3] = {0};
    bool done;
    const cli_option options[] = {
        {"--step", CLI_INT, &o.step, "N", "show, verify: which one; default the newest", 0, 1e15},
        {"--all", CLI_FLAG, &o.all, NULL, "verify: every complete checkpoint of the run", 0, 0},
        {"--json", CLI_FLAG, &o.json, NULL, "JSON instead of text", 0, 0},
    };
    const cli_syntax command = {
        .usage = "expar checkpoint (list | show | verify) DIR [options]",
        .about = "The checkpoints of a run. DIR is its dump folder, its checkpoint folder or "
                 "(show, verify) one\n"
                 "step-N folder.\n"
                 "  list    every complete checkpoint: step, size, tokens seen\n"
                 "  show    one checkpoint: files, values, tensors with shapes\n"
                 "  verify  reads every byte and compares it with the checksums in the manifest\n"
                 "exit codes: 0 fine, 1 damaged or not there, 2 wrong usage",
        .examples = "  expar checkpoint list outputs/debug_moe\n"
                    "  expar checkpoint show outputs/debug_moe --step 300\n"
                    "  expar checkpoint verify outputs/debug_moe --all\n"
                    "  expar checkpoint verify outputs/debug_moe/checkpoint/step-400 --json\n",
        .options = options,
        .n_options = sizeof options / sizeof options[0],
        .max_positionals = 2};
    int code = cli_parse(&command, argc, argv, words, &done);
    if (code != 0 || done)
        return code;
    if (words[0] == NULL || words[1] == NULL)
        return wrong_usage(words[0] == NULL ? "say list, show or verify" : "DIR is missing",
                           command.usage);
    o.folder = words[1];
    for (size_t i = 0; i < N_ACTIONS; i++) {
        if (strcmp(words[0], actions[i].name) != 0)
            continue;
        if ((o.step >= 0 && (!actions[i].takes_step || o.all)) || (o.all && !actions[i].takes_all))
            return wrong_usage(o.all && !actions[i].takes_all
                                   ? "--all belongs to verify"
                                   : "--step belongs to show and verify, without --all",
                               command.usage);
        const xp_status status = actions[i].run(&o);
        return status == XP_OK ? XP_EXIT_OK : cli_fail(status);
    }
    return cli_no_such("action", words[0], action_at, "expar checkpoint --help");
}
