#include "train/arch_values.h"

#include <stdio.h>
#include <string.h>
#include "core/text.h"

/* The one list of keys: writing, reading and comparing all walk it. */
typedef struct entry {
    const char *key;
    int64_t *integer;
    double *real;
} entry;

/* Fields of other types, widened, in the order in which spread() and gather() know them. */
typedef struct wide {
    int64_t n_heads, n_kv_heads, head_dim, tie_embeddings, qk_norm;
    int64_t n_experts, top_k, score_func, route_norm;
} wide;

static void spread(const xp_arch *arch, wide *w) {
    *w = (wide){
        .n_heads = arch->n_heads,
        .n_kv_heads = arch->n_kv_heads,
        .head_dim = arch->head_dim,
        .tie_embeddings = arch->tie_embeddings,
        .qk_norm = arch->qk_norm,
        .n_experts = arch->n_experts,
        .top_k = arch->top_k,
        .score_func = arch->score_func,
        .route_norm = arch->route_norm,
    };
}

static void gather(const wide *w, xp_arch *arch) {
    arch->n_heads = (int)w->n_heads;
    arch->n_kv_heads = (int)w->n_kv_heads;
    arch->head_dim = (int)w->head_dim;
    arch->tie_embeddings = w->tie_embeddings != 0;
    arch->qk_norm = w->qk_norm != 0;
    arch->n_experts = (int)w->n_experts;
    arch->top_k = (int)w->top_k;
    arch->score_func = (xp_score_func)w->score_func;
    arch->route_norm = w->route_norm != 0;
}

static int list_entries(xp_arch *arch, wide *w, entry entries[XP_ARCH_VALUES]) {
    int n = 0;
    entries[n++] = (entry){"model.dim", &arch->dim, NULL};
    entries[n++] = (entry){"model.n_layers", &arch->n_layers, NULL};
    entries[n++] = (entry){"model.vocab_size", &arch->vocab_size, NULL};
    entries[n++] = (entry){"model.n_heads", &w->n_heads, NULL};
    entries[n++] = (entry){"model.n_kv_heads", &w->n_kv_heads, NULL};
    entries[n++] = (entry){"model.head_dim", &w->head_dim, NULL};
    entries[n++] = (entry){"model.hidden_dim", &arch->hidden_dim, NULL};
    entries[n++] = (entry){"model.rope_theta", NULL, &arch->rope_theta};
    entries[n++] = (entry){"model.norm_eps", NULL, &arch->norm_eps};
    entries[n++] = (entry){"model.tie_embeddings", &w->tie_embeddings, NULL};
    entries[n++] = (entry){"model.qk_norm", &w->qk_norm, NULL};
    entries[n++] = (entry){"moe.num_experts", &w->n_experts, NULL};
    entries[n++] = (entry){"moe.top_k", &w->top_k, NULL};
    entries[n++] = (entry){"moe.moe_dim", &arch->moe_dim, NULL};
    entries[n++] = (entry){"moe.score_func", &w->score_func, NULL};
    entries[n++] = (entry){"moe.route_norm", &w->route_norm, NULL};
    entries[n++] = (entry){"moe.route_scale", NULL, &arch->route_scale};
    return n;
}

void xp_arch_values_fill(const xp_arch *arch, xp_arch_values *out) {
    xp_arch copy = *arch;
    wide w;
    entry entries[XP_ARCH_VALUES];
    spread(arch, &w);
    out->n = list_entries(&copy, &w, entries);
    for (int i = 0; i < out->n; i++) {
        const entry *e = &entries[i];
        out->keys[i] = e->key;
        if (e->integer)
            snprintf(out->values[i], sizeof out->values[i], "%lld", (long long)*e->integer);
        else
            snprintf(out->values[i], sizeof out->values[i], "%.17g", *e->real);
    }
}

xp_status xp_arch_values_read(const xp_ckpt *ckpt, xp_arch *arch) {
    xp_arch made;
    wide w;
    entry entries[XP_ARCH_VALUES];
    memset(&made, 0, sizeof made);
    int n = list_entries(&made, &w, entries);
    for (int i = 0; i < n; i++) {
        const entry *e = &entries[i];
        const char *text = xp_ckpt_value_get(ckpt, e->key);
        if (!text || !(e->integer ? xp_parse_i64(text, e->integer) : xp_parse_f64(text, e->real)))
            return xp_error(XP_EFORMAT, "%s: the manifest's %s is missing or no number",
                            xp_ckpt_path(ckpt), e->key);
    }
    gather(&w, &made);
    const char *flavor = xp_ckpt_value_get(ckpt, "model.flavor");
    snprintf(made.flavor, sizeof made.flavor, "%s", flavor ? flavor : "custom");
    *arch = made;
    return XP_OK;
}

xp_status xp_arch_values_check(const xp_arch *arch, const xp_ckpt *ckpt, const char *where) {
    xp_arch_values now;
    xp_arch_values_fill(arch, &now);
    for (int i = 0; i < now.n; i++) {
        const char *saved = xp_ckpt_value_get(ckpt, now.keys[i]);
        if (saved && strcmp(saved, now.values[i]) != 0)
            return xp_error(XP_ECONFIG,
                            "the checkpoint %s does not fit the configuration: it was made with "
                            "%s = %s, now it is %s; use the same model, or another job.dump_folder "
                            "to start afresh",
                            where, now.keys[i], saved, now.values[i]);
    }
    return XP_OK;
}
