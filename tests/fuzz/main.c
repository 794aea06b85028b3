/* fuzz TARGET [--seconds S] [--runs N] [--seed K] [FILE...]: mutates tests/fuzz/corpus/TARGET, or runs the files given as they
 * are. The same seed tries the same inputs. The input under test lies in the path that the first line names, also after a crash. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/file.h"
#include "fuzz.h"

#define MAX_INPUTS 64

typedef struct corpus {
    char *data[MAX_INPUTS];
    size_t n_bytes[MAX_INPUTS];
    int n;
} corpus;

typedef struct options {
    double seconds;
    int64_t n_runs, seed; /* n_runs 0: by time */
    int n_files;
    char **files;
} options;

static const fuzz_target *target_at(int i) {
    const fuzz_target *(*const lists[])(int) = {fuzz_config_target, fuzz_data_target,
                                                fuzz_checkpoint_target, fuzz_report_target};
    for (int list = 0; list < 4; list++) {
        int n = 0;
        while (lists[list](n) != NULL)
            n++;
        if (i < n)
            return lists[list](i);
        i -= n;
    }
    return NULL;
}

static xp_status add_input(void *context, const char *folder, const char *name) {
    corpus *c = context;
    if (c->n == MAX_INPUTS)
        return XP_OK;
    char *path = xp_path_join(folder, name);
    xp_status status = path == NULL
                           ? XP_ENOMEM
                           : xp_file_read(path, FUZZ_MAX_BYTES, &c->data[c->n], &c->n_bytes[c->n]);
    free(path);
    c->n += status == XP_OK;
    return status;
}

static xp_status write_input(const fuzz_state *s, const unsigned char *data, size_t n) {
    FILE *file = fopen(s->path, "wb");
    if (file == NULL || fwrite(data, 1, n, file) != n || fclose(file) != 0)
        return xp_error(XP_EIO, "cannot write %s", s->path);
    return XP_OK;
}

static fuzz_verdict try_input(fuzz_state *s, const fuzz_target *t, unsigned char *data, size_t n,
                              bool repair) {
    if (repair && t->repair != NULL)
        n = t->repair(s, data, n);
    if (write_input(s, data, n) != XP_OK)
        return fuzz_wrong(s, xp_last_error());
    xp_error_clear();
    return t->run(s, data, n);
}

static void tell_wrong(const fuzz_state *s, const fuzz_target *t) {
    fprintf(stderr, "fuzz %s: handled wrongly: %s (%s)\n", t->name, s->path, s->why);
}

static int run_files(fuzz_state *s, const fuzz_target *t, const options *o) {
    for (int i = 0; i < o->n_files; i++) {
        char *data;
        size_t n;
        if (xp_file_read(o->files[i], (size_t)1 << 30, &data, &n) != XP_OK) {
            fprintf(stderr, "error: %s\n", xp_last_error());
            return 1;
        }
        fuzz_verdict verdict = try_input(s, t, (unsigned char *)data, n, false);
        printf("%s: %s %s\n", o->files[i],
               verdict == FUZZ_ACCEPTED ? "accepted" : "refused:", xp_last_error());
        free(data);
        if (verdict == FUZZ_WRONG) {
            tell_wrong(s, t);
            return 1;
        }
    }
    return 0;
}

/* The corpus as it is, then mutations until the time or the number is reached. */
static int fuzz(fuzz_state *s, const fuzz_target *t, const options *o, corpus *c) {
    static unsigned char data[FUZZ_MAX_BYTES + 1];
    int64_t n_by[3] = {0}, done = 0;
    double start = xp_time_s(), slowest = 0;
    for (; o->n_runs > 0 ? done < o->n_runs : xp_time_s() - start < o->seconds; done++) {
        int which = (int)(done < c->n ? (uint64_t)done : fuzz_draw(s, (uint64_t)c->n));
        int other = (int)fuzz_draw(s, (uint64_t)c->n);
        size_t n = c->n_bytes[which];
        memcpy(data, c->data[which], n);
        if (done >= c->n)
            n = fuzz_mutate(s, t, data, n, (const unsigned char *)c->data[other],
                            c->n_bytes[other]);
        double before = xp_time_s();
        fuzz_verdict verdict = try_input(s, t, data, n, done < c->n || fuzz_draw(s, 4) > 0);
        slowest = xp_time_s() - before > slowest ? xp_time_s() - before : slowest;
        n_by[verdict]++;
        if (verdict == FUZZ_WRONG) {
            tell_wrong(s, t);
            return 1;
        }
    }
    printf("fuzz %s: %lld inputs, %lld accepted, %lld refused, %.1f s, the slowest %.3f s\n",
           t->name, (long long)done, (long long)n_by[FUZZ_ACCEPTED], (long long)n_by[FUZZ_REFUSED],
           xp_time_s() - start, slowest);
    if (n_by[FUZZ_ACCEPTED] == 0 || n_by[FUZZ_REFUSED] == 0) {
        fprintf(stderr,
                "fuzz %s: all inputs went one way: the corpus or the mutator does not fit\n",
                t->name);
        return 1;
    }
    return 0;
}

static int usage(void) {
    fprintf(stderr, "usage: fuzz TARGET [--seconds S] [--runs N] [--seed K] [FILE...]\ntargets:");
    for (int i = 0; target_at(i) != NULL; i++)
        fprintf(stderr, " %s", target_at(i)->name);
    fprintf(stderr, "\n");
    return 2;
}

static bool parse(int argc, char **argv, options *o) {
    for (int i = 2; i < argc; i++) {
        if (strncmp(argv[i], "--", 2) != 0) {
            o->files = argv + i;
            o->n_files = argc - i;
            return true;
        }
        if (i + 1 == argc)
            return false;
        const char *value = argv[++i];
        bool good = strcmp(argv[i - 1], "--seconds") == 0 ? xp_parse_f64(value, &o->seconds)
                    : strcmp(argv[i - 1], "--runs") == 0  ? xp_parse_i64(value, &o->n_runs)
                    : strcmp(argv[i - 1], "--seed") == 0  ? xp_parse_i64(value, &o->seed)
                                                          : false;
        if (!good)
            return false;
    }
    return true;
}

static xp_status prepare(fuzz_state *s, const fuzz_target *t, corpus *c) {
    char *folder = xp_path_join(XP_SOURCE_DIR "/tests/fuzz/corpus", t->name);
    xp_status status = folder == NULL ? XP_ENOMEM : xp_folder_each(folder, add_input, c);
    free(folder);
    XP_TRY(status);
    if (c->n == 0)
        return xp_error(XP_ENOENT, "the corpus of %s is empty", t->name);
    return t->set_up != NULL ? t->set_up(s) : XP_OK;
}

int main(int argc, char **argv) {
    const fuzz_target *t = NULL;
    options o = {.seconds = 5, .seed = 1};
    for (int i = 0; argc > 1 && target_at(i) != NULL; i++)
        if (strcmp(argv[1], target_at(i)->name) == 0)
            t = target_at(i);
    if (t == NULL || !parse(argc, argv, &o))
        return usage();
    if (getenv("XP_FUZZ_SECONDS") != NULL && !xp_parse_f64(getenv("XP_FUZZ_SECONDS"), &o.seconds))
        return usage();
    char folder[64];
    snprintf(folder, sizeof folder, "%s/xp-fuzz-XXXXXX",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    if (mkdtemp(folder) == NULL) {
        perror(folder);
        return 1;
    }
    fuzz_state s = {.seed = (uint64_t)o.seed, .folder = folder};
    snprintf(s.path, sizeof s.path, "%s/%s", folder, t->file);
    corpus c = {0};
    printf("fuzz %s: seed %lld, inputs in %s\n", t->name, (long long)o.seed, s.path);
    fflush(stdout);
    int code = 1;
    if (prepare(&s, t, &c) != XP_OK)
        fprintf(stderr, "error: %s\n", xp_last_error());
    else
        code = o.n_files > 0 ? run_files(&s, t, &o) : fuzz(&s, t, &o, &c);
    xp_tokenizer_destroy(s.tokenizer);
    for (int i = 0; i < c.n; i++)
        free(c.data[i]);
    if (code == 0 && xp_folder_remove(folder) != XP_OK)
        fprintf(stderr, "warning: %s\n", xp_last_error());
    return code;
}
