#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "cli.h"
#include "core/text.h"
#include "device/plugin.h"

int cli_exit_code(xp_status status) {
    return status == XP_ECONFIG || status == XP_EINVAL ? XP_EXIT_USAGE : XP_EXIT_FAILED;
}

int cli_fail(xp_status status) {
    const char *text = xp_last_error();
    bool color = isatty(fileno(stderr)) == 1;
    fflush(stdout);
    fprintf(stderr, "%serror:%s %s\n", color ? "\033[31m" : "", color ? "\033[0m" : "",
            text[0] ? text : xp_status_text(status));
    return cli_exit_code(status);
}

void cli_warn(void *context, const char *text) {
    (void)context;
    bool color = isatty(fileno(stderr)) == 1;
    fflush(stdout);
    fprintf(stderr, "%swarning:%s %s\n", color ? "\033[33m" : "", color ? "\033[0m" : "", text);
}

int cli_no_such(const char *what, const char *name, const char *(*name_at)(int i),
                const char *help) {
    const char *nearest = NULL;
    /* Farther than three edits, or most of the word, is no typing error. */
    int best = strlen(name) > 6 ? 4 : (int)(strlen(name) + 1) / 2;
    for (int i = 0; name_at(i); i++) {
        int distance = xp_edit_distance(name, name_at(i));
        if (distance < best) {
            best = distance;
            nearest = name_at(i);
        }
    }
    fflush(stdout);
    if (nearest)
        fprintf(stderr, "error: there is no %s \"%s\"; did you mean \"%s\"?\n", what, name,
                nearest);
    else
        fprintf(stderr, "error: there is no %s \"%s\"; `%s` lists them\n", what, name, help);
    return XP_EXIT_USAGE;
}

static bool is_one_of(const char *option, const char *word, const char *const *words) {
    for (int i = 0; words[i]; i++)
        if (!word || strcmp(word, words[i]) == 0)
            return true;
    fprintf(stderr, "error: %s: \"%s\" is not", option, word);
    for (int i = 0; words[i]; i++)
        fprintf(stderr, "%s %s", i > 0 ? " or" : "", words[i]);
    fprintf(stderr, "\n");
    return false;
}

bool cli_has_gpu(void) {
    const xp_cuda_backend *cuda;
    int n = 0;
    return xp_cuda_backend_get(&cuda) == XP_OK && cuda->device_count(&n) == XP_OK && n > 0;
}

bool cli_check_device(const char *device, const char *dtype) {
    static const char *const devices[] = {"auto", "cpu", "cuda", NULL};
    static const char *const dtypes[] = {"float32", "bfloat16", NULL};
    return is_one_of("--device", device, devices) && is_one_of("--dtype", dtype, dtypes);
}

xp_status cli_check_replaces(const char *path, const char *mark) {
    char line[256] = "";
    struct stat st;
    if (stat(path, &st) != 0)
        return XP_OK; /* not there, or writing it says why not */
    if (!S_ISREG(st.st_mode))
        return xp_error(XP_ECONFIG, "cannot write %s: a folder or device; give the name of a file",
                        path);
    FILE *file = fopen(path, "rbe");
    const bool ours = file && fgets(line, sizeof line, file) && strstr(line, mark);
    if (file)
        fclose(file);
    if (st.st_size == 0 || ours)
        return XP_OK;
    return xp_error(XP_ECONFIG,
                    "cannot write %s: another file is there, and would be lost; remove it, or "
                    "choose another name",
                    path);
}

bool cli_wants_help(int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            return true;
    return false;
}

char **cli_own_command(int argc, char **argv) {
    char **words = calloc((size_t)argc + 2, sizeof *words);
    char *exe = calloc(1, 4096);
    if (!words || !exe || readlink("/proc/self/exe", exe, 4095) <= 0) {
        free(words);
        free(exe);
        return NULL;
    }
    words[0] = exe;
    for (int i = 0; i < argc; i++)
        words[i + 1] = argv[i];
    return words;
}

void cli_command_free(char **command) {
    if (command)
        free(command[0]);
    free(command);
}
