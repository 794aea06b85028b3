#include "scratch.h"

#include <dirent.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/file.h"

int xp_scratch_setup(void **state) {
    const char *base = getenv("TMPDIR");
    char *path;
    if (asprintf(&path, "%s/xp-ckpt-XXXXXX", base != NULL ? base : "/tmp") < 0)
        return -1;
    *state = path;
    return mkdtemp(path) == NULL ? -1 : 0;
}

int xp_scratch_teardown(void **state) {
    xp_status status = xp_folder_remove(*state);
    free(*state);
    return status == XP_OK ? 0 : -1;
}

xp_scratch_path xp_scratch_join(const char *folder, const char *name) {
    xp_scratch_path path;
    int n = snprintf(path.text, sizeof path.text, "%s/%s", folder, name);
    assert_in_range(n, 1, sizeof path.text - 1);
    return path;
}

void xp_scratch_write(const char *path, const void *data, size_t n_bytes) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, n_bytes, file), n_bytes);
    assert_int_equal(fclose(file), 0);
}

char *xp_scratch_read(const char *path, size_t *n_bytes) {
    char *data;
    assert_int_equal(xp_file_read(path, (size_t)1 << 30, &data, n_bytes), XP_OK);
    return data;
}

int xp_scratch_count(const char *folder) {
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    int n = 0;
    while (readdir(dir) != NULL)
        n++;
    closedir(dir);
    return n - 2;
}

bool xp_scratch_error_has(const char *part) {
    bool found = strstr(xp_last_error(), part) != NULL;
    if (!found)
        print_error("expected \"%s\" in: %s\n", part, xp_last_error());
    return found;
}
