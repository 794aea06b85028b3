/* What a run writes down, read back: the step line, metrics.jsonl, TensorBoard files. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <glob.h>

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/file.h"
#include "train/crc32c.h"
#include "train/metrics.h"
#include "train/progress.h"
#include "train/tfevents.h"

static const double loads[2] = {1.25, 1.0 / 3};
static const double shares[2] = {0.5, 0.625};

static xp_step_record sample(int64_t step) {
    return (xp_step_record){
        .step = step,
        .tokens_seen = 4096 * step,
        .rows_seen = 16 * step,
        .loss = 7.625,
        .grad_norm = 1.23450001,
        .lr = 1.0 / 3,
        .memory_gib = 12.34,
        .memory_percent = 56.78,
        .tps = 12345.4,
        .tflops = 123.45,
        .mfu_percent = 12.34,
        .time_s = 0.1,
        .validation_loss = NAN,
        .n_moe_layers = 2,
        .load_max_over_mean = loads,
        .load_busiest_rank_share = shares,
        .ep_bytes = 1 << 20,
    };
}

static void step_line(void **state) {
    (void)state;
    xp_step_record record = sample(1);
    xp_text text = {0};
    xp_metrics_line(&record, false, &text);
    assert_string_equal(text.data, "step:  1  loss:  7.62500  grad_norm:  1.2345  memory: "
                                   "12.34GiB(56.78%)  tps: 12,345  tflops: 123.45  mfu: 12.34%");
    record.mfu_percent = -1;
    xp_text_clear(&text);
    xp_metrics_line(&record, true, &text);
    assert_non_null(strstr(text.data, "mfu: n/a"));
    assert_non_null(strstr(text.data, "\033["));
    xp_text_free(&text);
}

static void numbers(void **state) {
    (void)state;
    char out[32];
    xp_format_thousands(0, out);
    assert_string_equal(out, "0");
    xp_format_thousands(999.6, out);
    assert_string_equal(out, "1,000");
    xp_format_thousands(1234567, out);
    assert_string_equal(out, "1,234,567");
    xp_format_duration(3725, out);
    assert_string_equal(out, "1h02m05s");
    xp_format_duration(65, out);
    assert_string_equal(out, "1m05s");
}

static void json_reads_back(void **state) {
    (void)state;
    xp_step_record record = sample(3);
    record.validation_loss = 6.5;
    xp_text text = {0};
    xp_metrics_json(&record, &text);
    assert_int_equal(text.data[text.length - 1], '\n');
    json_error_t error;
    json_t *root = json_loads(text.data, JSON_REJECT_DUPLICATES, &error);
    assert_non_null(root);
    assert_int_equal(json_integer_value(json_object_get(root, "step")), 3);
    assert_true(json_number_value(json_object_get(root, "lr")) == 1.0 / 3);
    assert_true(json_number_value(json_object_get(root, "grad_norm")) == 1.23450001);
    assert_true(json_number_value(json_object_get(root, "validation_loss")) == 6.5);
    json_t *load = json_object_get(root, "moe_load_max_over_mean");
    assert_int_equal(json_array_size(load), 2);
    assert_true(json_number_value(json_array_get(load, 1)) == 1.0 / 3);
    static const char *const keys[] = {"loss",        "memory_gib", "tps",         "tflops",  "mfu",
                                       "tokens_seen", "time_s",     "data_time_s", "ep_bytes"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        assert_non_null(json_object_get(root, keys[i]));
    json_decref(root);
    record.mfu_percent = -1;
    xp_text_clear(&text);
    xp_metrics_json(&record, &text);
    assert_non_null(strstr(text.data, "\"mfu\": null"));
    xp_text_free(&text);
}

static void add_steps(const char *path, int64_t resumed, int64_t first, int64_t last) {
    xp_metrics *metrics = NULL;
    xp_metrics_args args = {.jsonl_path = path, .resumed_step = resumed};
    assert_int_equal(xp_metrics_open(&args, &metrics), XP_OK);
    for (int64_t step = first; step <= last; step++) {
        xp_step_record record = sample(step);
        assert_int_equal(xp_metrics_add(metrics, &record), XP_OK);
    }
    xp_metrics_close(metrics);
}

static void count_steps(const char *path, int n) {
    FILE *file = fopen(path, "r");
    char line[4096];
    int step = 0;
    assert_non_null(file);
    while (fgets(line, sizeof line, file)) {
        char start[32];
        snprintf(start, sizeof start, "{\"step\": %d,", ++step);
        assert_int_equal(strncmp(line, start, strlen(start)), 0);
    }
    fclose(file);
    assert_int_equal(step, n);
}

static void resumed_file_has_each_step_once(void **state) {
    const char *folder = *state;
    char path[512];
    snprintf(path, sizeof path, "%s/m.jsonl", folder);
    add_steps(path, 0, 1, 12);
    /* Half a line, as a crash leaves it. */
    FILE *file = fopen(path, "a");
    assert_non_null(file);
    fputs("{\"step\": 13, \"loss\": 1.", file);
    fclose(file);
    add_steps(path, 10, 11, 15);
    count_steps(path, 15);
    add_steps(path, 0, 1, 2);
    count_steps(path, 2);
}

/* The event of the TFRecord frame at `at`; checks both checksums. */
static const unsigned char *read_frame(const unsigned char *data, size_t n_bytes, size_t *at,
                                       size_t *n_event) {
    uint64_t n = 0;
    uint32_t crc = 0;
    assert_true(*at + 12 <= n_bytes);
    memcpy(&n, data + *at, 8);
    memcpy(&crc, data + *at + 8, 4);
    assert_int_equal(crc, xp_crc32c_masked(data + *at, 8));
    assert_true(*at + 12 + n + 4 <= n_bytes);
    memcpy(&crc, data + *at + 12 + n, 4);
    assert_int_equal(crc, xp_crc32c_masked(data + *at + 12, (size_t)n));
    const unsigned char *event = data + *at + 12;
    *at += 12 + (size_t)n + 4;
    *n_event = (size_t)n;
    return event;
}

/* The next frame holds `want`, at whatever time it was written (field 1, a double). */
static void expect_event(const unsigned char *data, size_t n_bytes, size_t *at, xp_tb_event want) {
    uint8_t bytes[256];
    size_t n = 0;
    const unsigned char *event = read_frame(data, n_bytes, at, &n);
    assert_true(n > 9 && event[0] == 0x09);
    memcpy(&want.wall_time, event + 1, 8);
    assert_true(want.wall_time > 1.6e9);
    assert_int_equal(n, xp_tb_event_encode(&want, NULL));
    assert_int_equal(n, xp_tb_event_encode(&want, bytes));
    assert_memory_equal(event, bytes, n);
}

static void events_read_back(void **state) {
    const char *folder = *state;
    char tb[512];
    snprintf(tb, sizeof tb, "%s/tb/deep", folder);
    xp_tfevents *events = NULL;
    assert_int_equal(xp_tfevents_create(tb, &events), XP_OK);
    const xp_tb_scalar scalars[2] = {{"loss", 7.5}, {"throughput(tps)", 1e6}};
    assert_int_equal(xp_tfevents_add(events, 41, scalars, 2), XP_OK);
    assert_int_equal(xp_tfevents_add(events, 42, scalars, 1), XP_OK);
    xp_tfevents_destroy(events);
    char pattern[600], *data = NULL;
    size_t n_bytes = 0, at = 0;
    glob_t files;
    snprintf(pattern, sizeof pattern, "%s/events.out.tfevents.*", tb);
    assert_int_equal(glob(pattern, 0, NULL, &files), 0);
    assert_int_equal(files.gl_pathc, 1);
    assert_int_equal(xp_file_read(files.gl_pathv[0], 1 << 20, &data, &n_bytes), XP_OK);
    globfree(&files);
    const unsigned char *bytes = (unsigned char *)data;
    expect_event(bytes, n_bytes, &at, (xp_tb_event){.file_version = "brain.Event:2"});
    expect_event(bytes, n_bytes, &at,
                 (xp_tb_event){.step = 41, .scalars = scalars, .n_scalars = 2});
    expect_event(bytes, n_bytes, &at,
                 (xp_tb_event){.step = 42, .scalars = scalars, .n_scalars = 1});
    assert_int_equal(at, n_bytes);
    free(data);
}

/* What protobuf's own encoder writes for the same messages. */
static void events_are_protobuf(void **state) {
    (void)state;
    char long_tag[201];
    memset(long_tag, 'x', 200), long_tag[200] = '\0';
    const xp_tb_scalar scalars[] = {{"loss", 7.5},        {"throughput(tps)", 1e6}, {"zero", 0},
                                    {"nan", (double)NAN}, {"minus zero", -0.0},     {"", 1},
                                    {long_tag, 3}};
    const double time = 1700000000.25;
    const struct {
        xp_tb_event event;
        const char *bytes; /* "x200": the long tag */
    } cases[] = {
        {{.wall_time = time, .file_version = "brain.Event:2"},
         "0900001040fc54d9411a0d627261696e2e4576656e743a32"},
        {{.wall_time = time, .step = 41, .scalars = scalars, .n_scalars = 7},
         "0900001040fc54d94110292aa1020a0b0a046c6f7373150000f0400a160a0f7468726f7567687075742874707"
         "329"
         "15002474490a060a047a65726f0a0a0a036e616e150000c07f0a0c0a0a6d696e7573207a65726f0a051500008"
         "03f"
         "0ad0010ac801x2001500004040"},
        {{.scalars = scalars, .n_scalars = 2},
         "2a250a0b0a046c6f7373150000f0400a160a0f7468726f75676870757428747073291500247449"},
        {{.wall_time = time, .step = (int64_t)1 << 40, .scalars = scalars, .n_scalars = 2},
         "0900001040fc54d941108080808080202a250a0b0a046c6f7373150000f0400a160a0f7468726f75676870757"
         "428"
         "747073291500247449"},
        {{.wall_time = time, .step = -1}, "0900001040fc54d94110ffffffffffffffffff012a00"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t got[512];
        const size_t n = xp_tb_event_encode(&cases[i].event, got);
        size_t at = 0;
        for (const char *p = cases[i].bytes; *p != '\0';) {
            if (*p == 'x') {
                for (int k = 0; k < 200; k++)
                    assert_int_equal(got[at++], 'x');
                p += strlen("x200");
                continue;
            }
            unsigned byte = 0;
            assert_int_equal(sscanf(p, "%2x", &byte), 1);
            assert_true(at < n);
            assert_int_equal(got[at++], byte);
            p += 2;
        }
        assert_int_equal(at, n);
    }
}

static void known_checksums(void **state) {
    (void)state;
    unsigned char zeros[32] = {0};
    assert_int_equal(xp_crc32c("123456789", 9), 0xE3069283u);
    assert_int_equal(xp_crc32c(zeros, 32), 0x8A9136AAu); /* RFC 3720 B.4 */
    assert_int_equal(xp_crc32c("", 0), 0);
}

static void says_what_cannot_be_written(void **state) {
    (void)state;
    xp_metrics *metrics = NULL;
    xp_metrics_args args = {.jsonl_path = "/nowhere/at/all/m.jsonl"};
    assert_int_equal(xp_metrics_open(&args, &metrics), XP_EIO);
    assert_non_null(strstr(xp_last_error(), "/nowhere/at/all/m.jsonl"));
    /* A full disk: the line is lost, and the run is told. */
    args.jsonl_path = "/dev/full";
    assert_int_equal(xp_metrics_open(&args, &metrics), XP_OK);
    xp_step_record record = sample(1);
    assert_int_equal(xp_metrics_add(metrics, &record), XP_EIO);
    xp_metrics_close(metrics);
}

static int make_folder(void **state) {
    char template[] = "/tmp/expar_metrics_XXXXXX";
    if (!mkdtemp(template))
        return -1;
    *state = strdup(template);
    return *state ? 0 : -1;
}

static int remove_folder(void **state) {
    xp_status status = xp_folder_remove(*state);
    free(*state);
    return status == XP_OK ? 0 : -1;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(step_line),        cmocka_unit_test(numbers),
        cmocka_unit_test(json_reads_back),  cmocka_unit_test(resumed_file_has_each_step_once),
        cmocka_unit_test(events_read_back), cmocka_unit_test(events_are_protobuf),
        cmocka_unit_test(known_checksums),  cmocka_unit_test(says_what_cannot_be_written),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
