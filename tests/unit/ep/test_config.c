/* What xp_ep_config may hold: everything else is refused by name before anything is reserved. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>
#include "expar/ep.h"
#include "expar/status.h"

static const xp_ep_config good = {.max_tokens = 16,
                                  .dim = 8,
                                  .top_k = 2,
                                  .n_experts = 4,
                                  .dtype = XP_F32,
                                  .capacity_factor = 2.0};

static void expect_refused(const xp_ep_config *config, const char *text) {
    xp_ep_sizes sizes;
    assert_int_equal(xp_ep_query_sizes(config, 1, &sizes), XP_EINVAL);
    if (!strstr(xp_last_error(), text))
        fail_msg("\"%s\" is not in \"%s\"", text, xp_last_error());
}

static void numbers_out_of_range(void **state) {
    (void)state;
    xp_ep_sizes sizes;
    assert_int_equal(xp_ep_query_sizes(&good, 1, &sizes), XP_OK);
    xp_ep_config c = good;
    c.capacity_factor = 1e30;
    expect_refused(&c, "capacity_factor 1e+30 must be above 0 and at most 1e9");
    c.capacity_factor = NAN;
    expect_refused(&c, "capacity_factor");
    c = good;
    c.timeout_s = NAN;
    expect_refused(&c, "timeout_s nan");
    c = good;
    c.num_sms = -1;
    expect_refused(&c, "num_sms -1 must not be negative");
    c = good;
    c.dim = (int64_t)1 << 40; /* rows whose bytes do not fit 64 bits */
    expect_refused(&c, "dim 1099511627776 must be at most 16777216");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(numbers_out_of_range)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
