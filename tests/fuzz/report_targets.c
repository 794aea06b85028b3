/* What a report reads: metrics.jsonl, a configuration beside it, traces. */
#include <stdlib.h>
#include <string.h>
#include "fuzz.h"
#include "report/data.h"
#include "report/terminal.h"
#include "report/trace.h"

static const char *const metrics_words[] = {"\"step\": ",
                                            "\"loss\": ",
                                            "\"tokens_seen\": ",
                                            "\"validation_loss\": ",
                                            "\"resumed_step\": ",
                                            "\"moe_load_max_over_mean\": [",
                                            "\"moe_load_busiest_rank_share\": [",
                                            "NaN",
                                            "-Infinity",
                                            "1e308",
                                            "-1e308",
                                            "9223372036854775807",
                                            "null",
                                            "[]",
                                            "}\n{\"step\": 2, ",
                                            "</script>",
                                            NULL};
static const char *const trace_words[] = {"\"ph\":\"X\"",
                                          "\"ph\":\"M\"",
                                          "\"ts\":",
                                          "\"dur\":",
                                          "\"tid\":",
                                          "\"name\":\"thread_name\"",
                                          "\"name\":\"dispatch\"",
                                          "\"args\":{\"layer\":1,\"pass\":\"backward\"}",
                                          "\"ops, compute stream\"",
                                          "1e308",
                                          "-1",
                                          "9223372036854775807",
                                          "4095",
                                          "null",
                                          "{}",
                                          "[]",
                                          NULL};

/* Whatever the lines hold, the page's numbers stay harmless inside HTML, and the curves inside their columns. */
static fuzz_verdict run_metrics(fuzz_state *s, const unsigned char *data, size_t n) {
    const xp_report_terminal terminal = {.columns = 60, .utf8 = true};
    xp_report_run *run = NULL;
    xp_text json = {0}, curves = {0};
    (void)data;
    (void)n;
    xp_status status = xp_report_run_open(s->path, false, &run);
    if (status != XP_OK)
        return fuzz_judge(s, status);
    status = xp_report_data(&run, 1, 0, &json);
    const bool harmless = status == XP_OK && strpbrk(json.data, "<>&") == NULL;
    if (status == XP_OK)
        status = xp_report_draw(run, &terminal, &curves);
    xp_text_free(&json);
    xp_text_free(&curves);
    xp_report_run_close(run);
    if (status != XP_OK)
        return fuzz_wrong(s, xp_last_error());
    return harmless ? FUZZ_ACCEPTED : fuzz_wrong(s, "markup in the numbers");
}

static fuzz_verdict run_trace(fuzz_state *s, const unsigned char *data, size_t n) {
    xp_trace_sums sums;
    xp_text out = {0};
    (void)data;
    (void)n;
    const xp_status status = xp_trace_sums_read(s->path, &sums);
    if (status != XP_OK)
        return fuzz_judge(s, status);
    bool good = sums.n_rows > 0 && sums.step_us >= 0;
    for (int i = 0; i < sums.n_layers; i++)
        good = good && sums.layers[i].exposed_us <= sums.layers[i].communication_us;
    xp_trace_sums_print(&sums, s->path, &out);
    xp_trace_sums_json(&sums, s->path, &out);
    good = good && !out.failed;
    xp_text_free(&out);
    xp_trace_sums_free(&sums);
    return good ? FUZZ_ACCEPTED : fuzz_wrong(s, "sums that cannot be");
}

const fuzz_target *fuzz_report_target(int i) {
    static const fuzz_target targets[] = {
        {.name = "metrics", .file = "metrics.jsonl", .words = metrics_words, .run = run_metrics},
        {.name = "trace", .file = "trace.json", .words = trace_words, .run = run_trace},
    };
    return i < (int)(sizeof targets / sizeof targets[0]) ? &targets[i] : NULL;
}
