/* Which failure the launcher tells the user, lines of shims on other nodes, and mpirun's command.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "launch/cause.h"
#include "launch/mpirun.h"
#include "launch/output.h"
#include "launch/remote.h"

/* ---- the cause --------------------------------------------------------------------------- */

static xp_rank_outcome ended(int rank, int code, double ended_s, const char *text) {
    xp_rank_outcome f = {.ended = true, .ended_s = ended_s, .end = {.rank = rank, .code = code}};
    f.end.reported = text != NULL;
    snprintf(f.end.text, sizeof f.end.text, "%s", text ? text : "");
    return f;
}

static void expect_cause(const xp_rank_outcome *ranks, int n, int code, const char *text) {
    char found[1024];
    assert_int_equal(xp_launch_find_cause(ranks, n, found, sizeof found), code);
    assert_string_equal(found, text);
}

static void all_is_well(void **state) {
    (void)state;
    const xp_rank_outcome ranks[] = {ended(0, 0, 1, NULL), ended(1, 0, 2, NULL)};
    expect_cause(ranks, 2, 0, "");
}

static void own_failure_before_hearsay(void **state) {
    (void)state;
    xp_rank_outcome ranks[] = {ended(0, 1, 1, "rank 0 ends: rank 1 failed"),
                               ended(1, 1, 9, "no memory"),
                               ended(2, 1, 2, "rank 2 ends: rank 1 failed")};
    ranks[0].end.secondhand = ranks[2].end.secondhand = 1;
    expect_cause(ranks, 3, 1, "no memory");
    ranks[1].end.reported = 0; /* it ended without a word */
    ranks[1].end.code = 134;
    expect_cause(ranks, 3, 1, "rank 1 ended with exit code 134 and no message");
    ranks[1].end.code = 0;
    expect_cause(ranks, 3, 1, "rank 0 ends: rank 1 failed");
}

static void wrong_configuration_is_2(void **state) {
    (void)state;
    const xp_rank_outcome ranks[] = {ended(0, 2, 1, "model.dim"), ended(1, 2, 2, "model.dim")};
    expect_cause(ranks, 2, 2, "model.dim");
}

static void signals_come_first(void **state) {
    (void)state;
    xp_rank_outcome ranks[] = {ended(0, 1, 2, "rank 1 is gone"), ended(1, 1, 1, NULL),
                               ended(2, 1, 3, NULL)};
    ranks[1].end.signal = 9;
    ranks[2].end.signal = 15;
    expect_cause(ranks, 3, 1, "rank 1 was killed by signal 9 (Killed); rank 1 is gone");
    ranks[1].ended_by_launcher = true;
    expect_cause(ranks, 3, 1, "rank 2 was killed by signal 15 (Terminated); rank 1 is gone");
    ranks[2].vanished = true;
    ranks[0].end.secondhand = 1;
    expect_cause(ranks, 3, 1, "rank 2 was killed together with the process that watched it");
}

static void closed_pipe_is_named(void **state) {
    (void)state;
    xp_rank_outcome ranks[] = {ended(0, 1, 1, NULL), ended(1, 1, 2, "rank 0 is gone")};
    ranks[0].end.signal = SIGPIPE;
    expect_cause(ranks, 2, 1,
                 "rank 0 has written into a pipe that nobody reads any more: the program that this "
                 "run's output goes to has ended (SIGPIPE)");
}

/* ---- lines of other nodes ---------------------------------------------------------------- */

static void lines_survive_the_way(void **state) {
    (void)state;
    xp_launch_message sent = {.kind = XP_LAUNCH_END, .pid = 77}, got;
    sent.end = (xp_rank_end){.rank = 300, .code = 1, .reported = 1};
    memset(sent.end.text, 'x', sizeof sent.end.text - 1);
    char line[XP_REMOTE_LINE + 32];
    bool whole;
    const int n = xp_remote_print(&sent, line + 8);
    assert_true(n < XP_REMOTE_LINE);
    assert_int_equal(line[8 + n - 1], '\n');
    line[8 + n - 1] = '\0';
    assert_true(xp_remote_parse(line + 8, &got, &whole) && whole);
    assert_memory_equal(&sent, &got, sizeof sent);
    memcpy(line, "partial ", 8); /* a rank's line without its end may stand before it */
    assert_true(xp_remote_parse(line, &got, &whole) && whole);
    for (int at = 8; at < 8 + n - 1; at += 7) { /* a damaged one is no message and not shown */
        char damaged[sizeof line];
        memcpy(damaged, line, sizeof line);
        damaged[at] = damaged[at] == '#' ? '+' : '#';
        if (xp_remote_parse(damaged, &got, &whole))
            assert_false(whole);
    }
    assert_false(xp_remote_parse("step:  1  loss:  6.2", &got, &whole));
}

static void mpirun_noise(void **state) {
    (void)state;
    assert_true(xp_output_is_noise("-----------------------"));
    assert_true(xp_output_is_noise(""));
    assert_true(xp_output_is_noise("[vm:05068] PMIX ERROR: BAD-PARAM in file x.c at line 1033"));
    assert_false(xp_output_is_noise("step:  1"));
    assert_false(xp_output_is_noise("There are not enough slots available in the system"));
}

/* ---- the command ------------------------------------------------------------------------- */

static const char *joined(char **words, char *text, size_t n_bytes) {
    size_t n = 0;
    text[0] = '\0';
    for (int i = 0; words[i]; i++)
        n += (size_t)snprintf(text + n, n_bytes - n, "%s%s", i ? " " : "", words[i]);
    assert_true(n < n_bytes);
    return text;
}

static bool among(char **words, const char *word) {
    for (int i = 0; words[i]; i++)
        if (strcmp(words[i], word) == 0)
            return true;
    return false;
}

static void versions(void **state) {
    (void)state;
    assert_int_equal(xp_mpirun_parse_version("mpirun (Open MPI) 4.1.4"), 4);
    assert_int_equal(xp_mpirun_parse_version("mpirun (Open MPI) 5.0.6"), 5);
    assert_int_equal(xp_mpirun_parse_version("HYDRA build details:"), 0);
    assert_int_equal(xp_mpirun_parse_version(""), 0);
}

static void one_machine(void **state) {
    (void)state;
    char text[1024], *rank[] = {"/opt/expar", "train", "--training.steps", "3", NULL};
    const xp_mpirun_job job = {.n_ranks = 8,
                               .local = true,
                               .argv = rank,
                               .socket = "name",
                               .folder = "/tmp/f",
                               .memory = "/dev/shm/f"};
    const xp_mpirun four = {"/usr/bin/mpirun", 4}, five = {"/usr/bin/mpirun", 5};
    char **words = xp_mpirun_command(&four, &job, NULL);
    assert_string_equal(joined(words, text, sizeof text),
                        "/usr/bin/mpirun -n 8 --bind-to none --enable-recovery --map-by "
                        "slot:OVERSUBSCRIBE /opt/expar train --training.steps 3");
    xp_words_free(words);
    words = xp_mpirun_command(&five, &job, NULL);
    assert_string_equal(joined(words, text, sizeof text),
                        "/usr/bin/mpirun -n 8 --bind-to none --map-by slot:OVERSUBSCRIBE "
                        "/opt/expar train --training.steps 3");
    xp_words_free(words);
    char *environment[] = {"HOME=/root", "SLURM_JOB_ID=7", "PMIX_RANK=0", "OMPI_MCA_pml=ucx", NULL};
    words = xp_mpirun_environment(&four, &job, environment);
    assert_true(among(words, "HOME=/root"));
    assert_true(among(words, "OMPI_MCA_pml=ucx")); /* the user's */
    assert_false(among(words, "OMPI_MCA_pml=ob1"));
    assert_false(among(words, "SLURM_JOB_ID=7"));
    assert_false(among(words, "PMIX_RANK=0"));
    assert_true(among(words, XP_LAUNCH_SOCKET "=name"));
    assert_true(among(words, XP_LAUNCH_FOLDER "=/tmp/f"));
    assert_true(among(words, "OMPI_MCA_orte_tmpdir_base=/tmp/f"));
    assert_true(among(words, "OMPI_MCA_btl_vader_backing_directory=/dev/shm/f"));
    xp_words_free(words);
}

static void several_nodes(void **state) {
    (void)state;
    char text[4096], *rank[] = {"/opt/expar", "train", NULL};
    const xp_mpirun_job job = {.n_ranks = 16,
                               .hostfile = "nodes.txt",
                               .ranks_per_node = 8,
                               .argv = rank,
                               .socket = "name"};
    const xp_mpirun four = {"/usr/bin/mpirun", 4};
    char *environment[] = {"SLURM_JOB_ID=7", "NCCL_DEBUG=INFO", "SOMETHING_ELSE=1",
                           XP_LAUNCH_SOCKET "=name", NULL};
    char **words = xp_mpirun_command(&four, &job, environment);
    joined(words, text, sizeof text);
    assert_non_null(strstr(text, " -n 16 "));
    assert_non_null(strstr(text, " --hostfile nodes.txt "));
    assert_non_null(strstr(text, " -x NCCL_DEBUG "));
    assert_non_null(strstr(text, " -x " XP_LAUNCH_SOCKET " "));
    assert_null(strstr(text, "SOMETHING_ELSE"));
    assert_non_null(strstr(text, " --map-by ppr:8:node:OVERSUBSCRIBE /opt/expar train"));
    xp_words_free(words);
    words = xp_mpirun_environment(&four, &job, environment);
    assert_true(among(words, "SLURM_JOB_ID=7")); /* mpirun finds its nodes by it */
    xp_words_free(words);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_is_well),
        cmocka_unit_test(own_failure_before_hearsay),
        cmocka_unit_test(wrong_configuration_is_2),
        cmocka_unit_test(signals_come_first),
        cmocka_unit_test(closed_pipe_is_named),
        cmocka_unit_test(lines_survive_the_way),
        cmocka_unit_test(mpirun_noise),
        cmocka_unit_test(versions),
        cmocka_unit_test(one_machine),
        cmocka_unit_test(several_nodes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
