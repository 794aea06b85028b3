/* The memory that a process may take: control groups of both versions, their parents, and none. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/file.h"
#include "core/memory_limit.h"

#define MACHINE ((int64_t)64 << 30)

static char root[64];

static void write_text(const char *name, const char *text) {
    char path[256], folder[256];
    snprintf(path, sizeof path, "%s/%s", root, name);
    snprintf(folder, sizeof folder, "%s", path);
    *strrchr(folder, '/') = '\0';
    assert_int_equal(xp_folder_create(folder), XP_OK);
    assert_int_equal(xp_file_write_atomic(path, text, strlen(text)), XP_OK);
}

static xp_memory_limit limit_of(const char *cgroups) {
    char path[256], mount[256];
    write_text("cgroup", cgroups);
    snprintf(path, sizeof path, "%s/cgroup", root);
    snprintf(mount, sizeof mount, "%s/fs", root);
    return xp_memory_limit_read(path, mount, MACHINE);
}

static int make_root(void **state) {
    (void)state;
    snprintf(root, sizeof root, "/tmp/expar_limit.XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int remove_root(void **state) {
    (void)state;
    return xp_folder_remove(root) == XP_OK ? 0 : -1;
}

static void of_the_machine(void **state) {
    (void)state;
    assert_int_equal(limit_of("0::/none\n").n_bytes, MACHINE);
    assert_false(limit_of("0::/none\n").is_of_group);
    assert_int_equal(xp_memory_limit_read("/nothing", "/nothing", MACHINE).n_bytes, MACHINE);
    assert_true(xp_memory_limit_get().n_bytes > 0);
}

static void of_version_2(void **state) {
    (void)state;
    write_text("fs/a/b/memory.max", "max\n");
    assert_int_equal(limit_of("0::/a/b\n").n_bytes, MACHINE);
    write_text("fs/a/memory.max", "2147483648\n"); /* the parent's counts */
    assert_int_equal(limit_of("0::/a/b\n").n_bytes, (int64_t)2 << 30);
    assert_true(limit_of("0::/a/b\n").is_of_group);
    write_text("fs/a/b/memory.max", "1073741824\n");
    assert_int_equal(limit_of("0::/a/b\n").n_bytes, (int64_t)1 << 30);
    write_text("fs/memory.max", "536870912\n"); /* a container sees its own group as the root */
    assert_int_equal(limit_of("0::/\n").n_bytes, (int64_t)512 << 20);
    assert_int_equal(limit_of("0::/../other\n").n_bytes, (int64_t)512 << 20);
}

static void of_version_1(void **state) {
    (void)state;
    const char *groups = "5:devices:/\n4:cpu,memory:/job\n3:cpuset:/memory\n";
    write_text("fs/memory/job/memory.limit_in_bytes", "9223372036854771712\n");
    assert_int_equal(limit_of(groups).n_bytes, MACHINE);
    assert_false(limit_of(groups).is_of_group);
    write_text("fs/memory/job/memory.limit_in_bytes", "3221225472\n");
    assert_int_equal(limit_of(groups).n_bytes, (int64_t)3 << 30);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(of_the_machine, make_root, remove_root),
        cmocka_unit_test_setup_teardown(of_version_2, make_root, remove_root),
        cmocka_unit_test_setup_teardown(of_version_1, make_root, remove_root),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
