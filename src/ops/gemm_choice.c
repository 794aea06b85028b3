#include "ops/gemm_choice.h"

#include <stdio.h>
#include <string.h>
#include "core/error.h"
#include "device/device_internal.h"
#include "device/plugin.h"

/* ---- as text ----------------------------------------------------------------------------- */

static const char *name_of(xp_dtype dtype) {
    return dtype == XP_BF16 ? "bf16" : "f32";
}

void xp_gemm_choice_print(const xp_gemm_choice *c, char text[XP_GEMM_CHOICE_TEXT]) {
    snprintf(text, XP_GEMM_CHOICE_TEXT, "%lldx%lldx%lld:%c%c:%s:%s%s:%d", (long long)c->m,
             (long long)c->n, (long long)c->k, c->trans_a ? 't' : 'n', c->trans_b ? 't' : 'n',
             name_of(c->ab_dtype), name_of(c->c_dtype), c->acc ? "+" : "", c->index);
}

static bool read_dtype(const char *text, xp_dtype *dtype) {
    *dtype = strcmp(text, "bf16") == 0 ? XP_BF16 : XP_F32;
    return *dtype == XP_BF16 || strcmp(text, "f32") == 0;
}

xp_status xp_gemm_choice_parse(const char *text, xp_gemm_choice *choice) {
    long long m = 0, n = 0, k = 0;
    char operands[3] = "", ab[5] = "", c[6] = "", again[XP_GEMM_CHOICE_TEXT];
    xp_gemm_choice made = {0};
    const int n_read = sscanf(text, "%18lldx%18lldx%18lld:%2[nt]:%4[a-z0-9]:%5[a-z0-9+]:%d", &m, &n,
                              &k, operands, ab, c, &made.index);
    const size_t length = strlen(c);
    made.acc = length > 0 && c[length - 1] == '+';
    if (made.acc)
        c[length - 1] = '\0';
    made.m = m;
    made.n = n;
    made.k = k;
    made.trans_a = operands[0] == 't';
    made.trans_b = operands[0] && operands[1] == 't';
    bool right = n_read == 7 && read_dtype(ab, &made.ab_dtype) && read_dtype(c, &made.c_dtype) &&
                 m > 0 && n > 0 && k > 0 && made.index >= 0 && made.index < XP_GEMM_CANDIDATES;
    if (right) {
        xp_gemm_choice_print(&made, again);
        right = strcmp(again, text) == 0;
    }
    if (!right)
        return xp_error(XP_ECONFIG,
                        "\"%.80s\" is no GEMM algorithm; one is \"M x N x K:nt:bf16:bf16:INDEX\" "
                        "without blanks, as `expar tune` writes it",
                        text);
    *choice = made;
    return XP_OK;
}

/* ---- of a device ------------------------------------------------------------------------- */

static const xp_gemm_choice_calls *calls_of(const xp_device *device) {
    const xp_cuda_backend *backend;
    if (xp_device_get_kind(device) != XP_DEVICE_CUDA || xp_cuda_backend_get(&backend) != XP_OK)
        return NULL;
    return backend->gemm_choices;
}

xp_status xp_ops_gemm_choose(xp_device *device, const xp_gemm_choice *choices, int n) {
    const xp_gemm_choice_calls *calls = calls_of(device);
    return calls ? calls->choose(device, choices, n) : XP_OK;
}

xp_status xp_ops_gemm_tune(xp_device *device) {
    const xp_gemm_choice_calls *calls = calls_of(device);
    if (!calls)
        return xp_error(XP_ENOTSUP, "%s: no library to choose GEMM algorithms of",
                        xp_device_name(device));
    return calls->tune(device);
}

int xp_ops_gemm_tuned(xp_device *device, xp_gemm_choice *choices, int capacity) {
    const xp_gemm_choice_calls *calls = calls_of(device);
    return calls ? calls->tuned(device, choices, capacity) : 0;
}

void xp_ops_gemm_library(char *text, size_t n_text) {
    const xp_cuda_backend *backend;
    bool usable = false;
    text[0] = '\0';
    if (xp_cuda_backend_get(&backend) != XP_OK || !backend->library_describe ||
        !backend->gemm_choices) {
        xp_error_clear();
        return;
    }
    if (!backend->library_describe(0, &usable, text, n_text) || !usable)
        text[0] = '\0';
}
