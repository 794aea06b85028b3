/* One line of metrics.jsonl, and the columns that lines become. Lines as `expar train` writes them are scanned; what is
 * different goes through Jansson, which takes five times as long. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "core/json_text.h"
#include "core/text.h"
#include "report/run.h"

static const char *const column_keys[XP_N_COLUMNS] = {
    [XP_COLUMN_STEP] = "step",
    [XP_COLUMN_LOSS] = "loss",
    [XP_COLUMN_GRAD_NORM] = "grad_norm",
    [XP_COLUMN_LR] = "lr",
    [XP_COLUMN_AUX_LOSS] = "aux_loss",
    [XP_COLUMN_Z_LOSS] = "z_loss",
    [XP_COLUMN_MEMORY_GIB] = "memory_gib",
    [XP_COLUMN_TPS] = "tps",
    [XP_COLUMN_TFLOPS] = "tflops",
    [XP_COLUMN_MFU] = "mfu",
    [XP_COLUMN_TOKENS] = "tokens_seen",
    [XP_COLUMN_TIME] = "time_s",
    [XP_COLUMN_DATA] = "data_time_s",
    [XP_COLUMN_FORWARD_BACKWARD] = "forward_backward_s",
    [XP_COLUMN_OPTIMIZER] = "optimizer_s",
    [XP_COLUMN_CHECKPOINT] = "checkpoint_s",
    [XP_COLUMN_VALIDATION] = "validation_s",
    [XP_COLUMN_VALIDATION_LOSS] = "validation_loss",
    [XP_COLUMN_EP_BYTES] = "ep_bytes",
    [XP_COLUMN_EP_OVERFLOW] = "ep_overflow_rows",
    [XP_COLUMN_EP_WAIT] = "ep_wait_s",
    [XP_COLUMN_RECOMPUTED] = "moe_recomputed_rounds",
    [XP_COLUMN_RESUMED] = "resumed_step",
};

static const char *const load_keys[XP_N_LOADS] = {
    [XP_LOAD_MAX] = "moe_load_max_over_mean",
    [XP_LOAD_SHARE] = "moe_load_busiest_rank_share",
};

const char *xp_report_column_key(xp_report_column column) {
    return column_keys[column];
}

const char *xp_report_load_key(xp_report_load load) {
    return load_keys[load];
}

/* ---- lines as they are written: numbers, null, lists of numbers ------------------------------- */

typedef struct scanner {
    const char *at, *end;
    int last; /* keys come in the same order in all lines */
} scanner;

static void skip_space(scanner *s) {
    while (s->at < s->end && (*s->at == ' ' || *s->at == '\t' || *s->at == '\r'))
        s->at++;
}

static bool take(scanner *s, char wanted) {
    skip_space(s);
    if (s->at == s->end || *s->at != wanted)
        return false;
    s->at++;
    return true;
}

static bool take_number(scanner *s, double *value, bool *integer) {
    skip_space(s);
    const size_t left = (size_t)(s->end - s->at);
    const size_t n = xp_json_number(s->at, left, integer);
    char *end;
    *value = NAN;
    if (n == 0 && left > 4 && memcmp(s->at, "null", 4) == 0) {
        s->at += 4;
        return true;
    }
    if (n == 0 || n == left) /* the closing bracket is missing, and strtod() would read on */
        return false;
    *value = strtod(s->at, &end);
    const bool whole = end == s->at + n;
    s->at = end;
    return whole;
}

/* "key": the column, XP_N_COLUMNS + load, or -1 for another key. */
static bool take_key(scanner *s, int *which) {
    if (!take(s, '"'))
        return false;
    const char *quote = memchr(s->at, '"', (size_t)(s->end - s->at));
    if (!quote || memchr(s->at, '\\', (size_t)(quote - s->at)))
        return false;
    const size_t n = (size_t)(quote - s->at);
    *which = -1;
    for (int i = 0; i < XP_N_COLUMNS + XP_N_LOADS && *which < 0; i++) {
        const int k = (s->last + 1 + i) % (XP_N_COLUMNS + XP_N_LOADS);
        const char *key = k < XP_N_COLUMNS ? column_keys[k] : load_keys[k - XP_N_COLUMNS];
        if (key && strlen(key) == n && memcmp(key, s->at, n) == 0)
            s->last = *which = k;
    }
    s->at = quote + 1;
    return take(s, ':');
}

/* @param values  [XP_REPORT_MAX_LAYERS], or NULL: nobody wants them */
static bool take_list(scanner *s, float *values, int *n) {
    double value;
    bool integer;
    *n = 0;
    if (!take(s, '['))
        return false;
    if (take(s, ']'))
        return true;
    do {
        if (*n == XP_REPORT_MAX_LAYERS || !take_number(s, &value, &integer))
            return false;
        if (values)
            values[*n] = (float)value;
        (*n)++;
    } while (take(s, ','));
    return take(s, ']');
}

static bool take_value(scanner *s, int which, float loads[XP_N_LOADS][XP_REPORT_MAX_LAYERS],
                       int n_values[XP_N_LOADS], xp_report_row *row) {
    double value;
    bool integer = false;
    int n;
    skip_space(s);
    if (s->at < s->end && *s->at == '[')
        return which >= XP_N_COLUMNS
                   ? take_list(s, loads[which - XP_N_COLUMNS], &n_values[which - XP_N_COLUMNS])
                   : which < 0 && take_list(s, NULL, &n);
    if (which >= XP_N_COLUMNS || !take_number(s, &value, &integer) ||
        (which == XP_COLUMN_STEP && !integer))
        return false;
    if (which >= 0)
        row->values[which] = value;
    return true;
}

static bool scan(const char *line, size_t n_bytes, float loads[XP_N_LOADS][XP_REPORT_MAX_LAYERS],
                 xp_report_row *row) {
    scanner s = {line, line + n_bytes, -1};
    int n_values[XP_N_LOADS] = {0}, which;
    for (int c = 0; c < XP_N_COLUMNS; c++)
        row->values[c] = NAN;
    if (!take(&s, '{'))
        return false;
    do {
        if (!take_key(&s, &which) || !take_value(&s, which, loads, n_values, row))
            return false;
    } while (take(&s, ','));
    if (!take(&s, '}'))
        return false;
    skip_space(&s);
    if (s.at != s.end || !(row->values[XP_COLUMN_STEP] >= 1))
        return false;
    row->n_layers = n_values[XP_LOAD_MAX] == n_values[XP_LOAD_SHARE] ? n_values[XP_LOAD_MAX] : 0;
    for (int k = 0; k < XP_N_LOADS; k++)
        row->loads[k] = loads[k];
    return true;
}

/* ---- any JSON ------------------------------------------------------------------------------ */

static double number_of(const json_t *value) {
    return json_is_number(value) ? json_number_value(value) : NAN;
}

/* Two lists of the same length, or no layers. */
static void read_loads(const json_t *object, float loads[XP_N_LOADS][XP_REPORT_MAX_LAYERS],
                       xp_report_row *row) {
    row->n_layers = -1;
    for (int k = 0; k < XP_N_LOADS; k++) {
        const json_t *list = json_object_get(object, load_keys[k]);
        size_t n = json_array_size(list); /* 0 when it is none */
        if (n > XP_REPORT_MAX_LAYERS || (k > 0 && (int)n != row->n_layers))
            n = 0;
        row->n_layers = k == 0 || n > 0 ? (int)n : 0;
        for (size_t i = 0; i < n; i++)
            loads[k][i] = (float)number_of(json_array_get(list, i));
        row->loads[k] = loads[k];
    }
}

/* NaN and infinities are no JSON; other programs write them. */
static json_t *load(const char *line, size_t n_bytes) {
    json_t *object = json_loadb(line, n_bytes, 0, NULL);
    if (object)
        return object;
    xp_text softened = {0};
    bool changed = false;
    xp_json_soften_numbers(line, n_bytes, &softened, &changed);
    if (changed && !softened.failed)
        object = json_loadb(softened.data, softened.length, 0, NULL);
    xp_text_free(&softened);
    return object;
}

bool xp_report_parse_line(const char *line, size_t n_bytes,
                          float loads[XP_N_LOADS][XP_REPORT_MAX_LAYERS], xp_report_row *row) {
    if (scan(line, n_bytes, loads, row))
        return true;
    json_t *object = load(line, n_bytes);
    const json_t *step = json_object_get(object, "step");
    const bool is_step = json_is_integer(step) && json_integer_value(step) >= 1;
    if (is_step) {
        for (int c = 0; c < XP_N_COLUMNS; c++)
            row->values[c] =
                column_keys[c] ? number_of(json_object_get(object, column_keys[c])) : NAN;
        read_loads(object, loads, row);
    }
    json_decref(object);
    return is_step;
}

/* ---- columns ----------------------------------------------------------------------------- */

static xp_status grow(xp_report_run *run) {
    const int64_t capacity = run->capacity == 0 ? 1024 : 2 * run->capacity;
    for (int c = 0; c < XP_N_COLUMNS; c++) {
        double *column = realloc(run->columns[c], (size_t)capacity * sizeof *column);
        if (!column)
            return xp_error(XP_ENOMEM, "no memory for %lld steps", (long long)capacity);
        run->columns[c] = column;
    }
    for (int k = 0; k < XP_N_LOADS && run->n_layers > 0; k++) {
        const size_t n = (size_t)capacity * (size_t)run->n_layers;
        float *load = realloc(run->loads[k], n * sizeof *load);
        if (!load)
            return xp_error(XP_ENOMEM, "no memory for %lld steps", (long long)capacity);
        run->loads[k] = load;
    }
    run->capacity = capacity;
    return XP_OK;
}

static double or_zero(double value) {
    return isfinite(value) ? value : 0;
}

xp_status xp_report_add_row(xp_report_run *run, const xp_report_row *row) {
    while (run->n_steps > 0 &&
           run->columns[XP_COLUMN_STEP][run->n_steps - 1] >= row->values[XP_COLUMN_STEP])
        run->n_steps--;
    if (run->n_steps == 0 && run->n_layers != row->n_layers) {
        run->n_layers = row->n_layers;
        run->capacity = 0;
    }
    const int64_t i = run->n_steps;
    if (i == run->capacity)
        XP_TRY(grow(run));
    for (int c = 0; c < XP_N_COLUMNS; c++)
        run->columns[c][i] = row->values[c];
    const double before = i > 0 ? run->columns[XP_COLUMN_ELAPSED][i - 1] : 0;
    run->columns[XP_COLUMN_ELAPSED][i] = before + or_zero(row->values[XP_COLUMN_TIME]);
    for (int k = 0; k < XP_N_LOADS; k++)
        for (int l = 0; l < run->n_layers; l++)
            run->loads[k][i * run->n_layers + l] = l < row->n_layers ? row->loads[k][l] : NAN;
    run->n_steps++;
    return XP_OK;
}
