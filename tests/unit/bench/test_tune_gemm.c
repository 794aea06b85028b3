/* [gemm] of a tuned file: taken where GPU and library are the same and nowhere else; kept by a resumed run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "config/tuned.h"
#include "expar/version.h"
#include "train/gemms.h"
#include "tune/adopt.h"

#define HERE "Fake GPU; cuBLASLt 13.0.0; expar " XP_VERSION
#define LIST "[\"64x32x32:nt:bf16:bf16:3\", \"512x32x64:tn:bf16:f32+:1\"]"

static char folder[] = "/tmp/expar-gemm-XXXXXX";

static void write_file(const char *name, const char *text) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

/* A tuned file with this [gemm]; NULL: none. */
static void write_tuned(const char *gemm) {
    char path[256], text[2048];
    snprintf(path, sizeof path, "%s/run.tuned.toml", folder);
    unlink(path);
    if (!gemm)
        return;
    snprintf(text, sizeof text, "[deepep]\ntuned_for = \"x\"\n[gemm]\n%s", gemm);
    write_file("run.tuned.toml", text);
}

/* The configuration `run.toml` on that backend, after it has looked for tuned values. */
static xp_config_set *adopt(const char *config, const char *backend, const char *option,
                            const char *value, xp_status expected) {
    char path[256];
    xp_config_set *set = NULL;
    write_file("run.toml", config);
    snprintf(path, sizeof path, "%s/run.toml", folder);
    char *argv[] = {"--job.config_file", path,           "--training.backend",
                    (char *)backend,     (char *)option, (char *)value};
    if (xp_config_load(option ? 6 : 4, argv, false, &set) != XP_OK)
        fail_msg("%s", xp_last_error());
    const xp_status status = xp_tune_adopt(set, &(xp_adopt_args){.n_ranks = 1, .n_cores = 1});
    if (status != expected)
        fail_msg("%s: %s", xp_status_name(status), xp_last_error());
    return set;
}

static void expect(xp_config_set *set, int n, const char *note, const char *warning) {
    const xp_config *c = xp_config_get(set);
    const char *told = xp_config_tuned_note(set);
    int n_warnings = 0;
    while (xp_config_warning(set, n_warnings))
        n_warnings++;
    assert_int_equal(c->gemm.algorithms.n, n);
    assert_true(note ? told && strstr(told, note) : !told);
    assert_int_equal(n_warnings, warning ? 1 : 0);
    if (warning && !strstr(xp_config_warning(set, 0), warning))
        fail_msg("'%s' not in: %s", warning, xp_config_warning(set, 0));
    xp_config_destroy(set);
}

static void test_adopt(void **state) {
    (void)state;
    write_tuned("tuned_for = \"" HERE "\"\nalgorithms = " LIST "\n");
    xp_config_set *set = adopt("", "cuda", NULL, NULL, XP_OK);
    assert_string_equal(xp_config_get(set)->gemm.algorithms.items[1], "512x32x64:tn:bf16:f32+:1");
    assert_string_equal(xp_config_get(set)->gemm.tuned_for, HERE);
    expect(set, 2, "fits this GPU and library: algorithms of 2 GEMM shapes", NULL);
    expect(adopt("", "cpu", NULL, NULL, XP_OK), 0, NULL, NULL);
    expect(adopt("", "cuda", "--deepep.tuned_file", "none", XP_OK), 0, NULL, NULL);
    expect(adopt("", "cuda", "--gemm.algorithms", "1x1x1:nn:f32:f32:1", XP_OK), 1,
           "but gemm.algorithms is set already", NULL);
    write_tuned("tuned_for = \"NVIDIA H200; cuBLASLt 13.0.0\"\nalgorithms = " LIST "\n");
    expect(adopt("", "cuda", NULL, NULL, XP_OK), 0, NULL,
           "was measured for \"NVIDIA H200\", this run has \"Fake GPU\"");
    write_tuned(NULL);
    expect(adopt("", "cuda", NULL, NULL, XP_OK), 0, NULL, NULL);
}

/* The saved config.toml of a tuned run has both. */
static void test_own(void **state) {
    (void)state;
    write_tuned("tuned_for = \"" HERE "\"\nalgorithms = []\n");
    expect(adopt("[gemm]\ntuned_for = \"" HERE "\"\nalgorithms = " LIST "\n", "cuda", NULL, NULL,
                 XP_OK),
           2, "run.toml:2 fits this GPU and library: algorithms of 2 GEMM shapes", NULL);
    expect(
        adopt("[gemm]\ntuned_for = \"x; y\"\nalgorithms = " LIST "\n", "cuda", NULL, NULL, XP_OK),
        0, NULL, "was measured for \"x\", this run has \"Fake GPU\"");
}

static void test_damaged(void **state) {
    static const char *const damaged[] = {"algorithms = [1]\n",       "algorithms = 3\n",
                                          "tuned_for = 3\n",          "tuned_for = \"\"\n",
                                          "algorithms = [\"a,b\"]\n", "speed = 1\n",
                                          "algorithms = [\"a\"]\n"};
    char path[256];
    (void)state;
    snprintf(path, sizeof path, "%s/run.tuned.toml", folder);
    for (size_t i = 0; i < sizeof damaged / sizeof damaged[0]; i++) {
        write_tuned(damaged[i]);
        expect(adopt("", "cuda", NULL, NULL, XP_OK), 0, NULL, "the defaults are used");
        xp_config_destroy(adopt("", "cuda", "--deepep.tuned_file", path, XP_ECONFIG));
    }
    write_tuned(NULL);
    xp_config_destroy(adopt("", "cuda", "--deepep.tuned_file", path, XP_ECONFIG));
}

static void test_resume(void **state) {
    const xp_gemms_in_force a = {"x", "gpu"}, b = {"y", "gpu"}, none = {"", "gpu"},
                            other = {"x", "other"}, other_none = {"", "other"}, cpu = {"x", ""},
                            old = {NULL, NULL};
    (void)state;
    assert_int_equal(xp_gemms_judge(&a, &a), XP_GEMMS_SAME);
    assert_int_equal(xp_gemms_judge(&a, &b), XP_GEMMS_KEEP);
    assert_int_equal(xp_gemms_judge(&a, &none), XP_GEMMS_KEEP);
    assert_int_equal(xp_gemms_judge(&none, &a), XP_GEMMS_KEEP);
    assert_int_equal(xp_gemms_judge(&a, &other), XP_GEMMS_LOST);
    assert_int_equal(xp_gemms_judge(&none, &other), XP_GEMMS_LOST);
    assert_int_equal(xp_gemms_judge(&none, &other_none), XP_GEMMS_SAME);
    assert_int_equal(xp_gemms_judge(&a, &cpu), XP_GEMMS_SAME);
    assert_int_equal(xp_gemms_judge(&old, &a), XP_GEMMS_SAME);
}

static int open_folder(void **state) {
    (void)state;
    return mkdtemp(folder) ? 0 : 1;
}

static int remove_folder(void **state) {
    char path[256];
    (void)state;
    write_tuned(NULL);
    snprintf(path, sizeof path, "%s/run.toml", folder);
    unlink(path);
    return rmdir(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_adopt),
        cmocka_unit_test(test_own),
        cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_resume),
    };
    return cmocka_run_group_tests(tests, open_folder, remove_folder);
}
