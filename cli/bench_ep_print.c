#include "bench_ep.h"

#include <stdio.h>
#include <string.h>

#define MIB (1024.0 * 1024.0)

const char *const bench_ep_transport_names[] = {"auto", "p2p", "a2a", "hierarchical", NULL};

static const struct {
    const char *title, *json;
} ops[XP_BENCH_EP_N_OPS] = {{"dispatch us", "dispatch"},
                            {"combine us", "combine"},
                            {"comb.bwd us", "combine_backward"},
                            {"disp.bwd us", "dispatch_backward"}};

static double seconds_of(const xp_bench_ep_row *row) {
    return row->op_s[XP_BENCH_EP_DISPATCH] + row->op_s[XP_BENCH_EP_COMBINE];
}

static double share_of_memcpy(const xp_bench_ep_row *row) {
    return (row->dispatch_bytes + row->combine_bytes) / seconds_of(row) / row->memcpy_bytes_per_s;
}

/* 0: there is no link */
static double share_of_link(const xp_bench_ep_row *row, int op) {
    return row->link_both_bytes_per_s > 0 && row->op_s[op] > 0
               ? row->link_bytes / row->op_s[op] / row->link_both_bytes_per_s
               : 0;
}

static const char *transport_name(const xp_bench_ep_case *c, int i) {
    return c->n_ranks == 1 ? "none" : bench_ep_transport_names[c->transports[i]];
}

/* ---- text -------------------------------------------------------------------------------- */

void bench_ep_print_head(bool backward) {
    printf("%2s %6s %5s %2s %4s %4s %-7s %-12s %8s", "R", "T", "D", "K", "E", "SMs", "routing",
           "transport", "link MiB");
    printf(" %9s", "plan us");
    for (int op = 0; op < (backward ? XP_BENCH_EP_N_OPS : 2); op++)
        printf(" %11s %6s", ops[op].title, "link");
    printf(" %9s %9s %9s %7s\n", "link GB/s", "one way", "memcpy", "share");
}

/* The other transport's row of this case, to compare with; NULL when it was not asked for. */
static const xp_bench_ep_row *find(const xp_bench_ep_case *c, const xp_bench_ep_row *rows,
                                   xp_ep_transport transport) {
    for (int i = 0; i < c->n_transports; i++)
        if (c->transports[i] == transport && !rows[i].failed)
            return &rows[i];
    return NULL;
}

static void print_ops(const xp_bench_ep_case *c, const xp_bench_ep_row *row) {
    for (int op = 0; op < (c->backward ? XP_BENCH_EP_N_OPS : 2); op++) {
        printf(" %11.1f", row->op_s[op] * 1e6);
        if (row->link_both_bytes_per_s > 0)
            printf(" %5.1f%%", 100 * share_of_link(row, op));
        else
            printf(" %6s", "-");
    }
    if (row->link_both_bytes_per_s > 0)
        printf(" %9.1f %9.1f", row->link_both_bytes_per_s * 1e-9, row->link_one_bytes_per_s * 1e-9);
    else
        printf(" %9s %9s", "-", "-");
}

void bench_ep_print_row(const xp_bench_ep_case *c, const xp_bench_ep_row *rows, int i) {
    const xp_bench_ep_row *row = &rows[i];
    printf("%2d %6lld %5lld %2d %4d %4d %-7s %-12s ", c->n_ranks, (long long)c->n_tokens,
           (long long)c->dim, c->top_k, c->n_experts, c->num_sms, xp_bench_routing_name(c->routing),
           transport_name(c, i));
    if (row->failed) {
        printf("failed: %s\n", row->error);
        return;
    }
    printf("%8.1f %9.1f", row->link_bytes / MIB, row->plan_s * 1e6);
    print_ops(c, row);
    printf(" %9.1f %6.1f%%", row->memcpy_bytes_per_s * 1e-9, 100 * share_of_memcpy(row));
    const xp_bench_ep_row *a2a = find(c, rows, XP_EP_A2A);
    if (c->transports[i] == XP_EP_P2P && a2a)
        printf("  %.2fx of a2a's speed", seconds_of(a2a) / seconds_of(row));
    if (row->n_rounds > 1)
        printf("  %lld rounds", (long long)row->n_rounds);
    printf("\n");
}

void bench_ep_print_notes(void) {
    printf("\nplan us: from routing in device memory to a plan.\n"
           "link MiB: what the busiest rank sends to other ranks, or receives from them, in one "
           "op. link GB/s: what a rank sends\n"
           "while every rank copies into the next one's memory, in the same run; one way: while "
           "its receiver sends nothing.\n"
           "link after a time: link MiB over the time, of link GB/s. Between ranks of one GPU or "
           "CPU the link is its memory.\n"
           "memcpy: bytes read plus bytes written by a copy of all ranks at once (on a GPU: of its "
           "own copy, alone); share: those\n"
           "that dispatch and combine must read and write, on all ranks, over the time of both, of "
           "memcpy.\n"
           "Times: of the slowest rank, medians; on GPUs the device's, with the L2 cache "
           "overwritten before every call.\n");
}

/* ---- JSON -------------------------------------------------------------------------------- */

static void add_number(xp_text *t, const char *name, const char *unit, double value) {
    xp_text_printf(t, ", \"%s%s\": ", name, unit);
    xp_text_add_json_double(t, value);
}

static void add_figures(xp_text *t, const xp_bench_ep_case *c, const xp_bench_ep_row *row) {
    xp_text_printf(t, ", \"rounds\": %lld, \"samples\": %d", (long long)row->n_rounds,
                   row->n_samples);
    add_number(t, "moved_bytes", "", row->moved_bytes);
    add_number(t, "plan", "_s", row->plan_s);
    for (int op = 0; op < (c->backward ? XP_BENCH_EP_N_OPS : 2); op++)
        add_number(t, ops[op].json, "_s", row->op_s[op]);
    add_number(t, "dispatch_bytes", "", row->dispatch_bytes);
    add_number(t, "combine_bytes", "", row->combine_bytes);
    add_number(t, "memcpy_bytes_per_s", "", row->memcpy_bytes_per_s);
    add_number(t, "share_of_memcpy", "", share_of_memcpy(row));
    if (row->link_both_bytes_per_s <= 0)
        return;
    add_number(t, "link_bytes", "", row->link_bytes);
    add_number(t, "link_bytes_per_s", "", row->link_both_bytes_per_s);
    add_number(t, "link_one_way_bytes_per_s", "", row->link_one_bytes_per_s);
    for (int op = 0; op < (c->backward ? XP_BENCH_EP_N_OPS : 2); op++)
        add_number(t, ops[op].json, "_share_of_link", share_of_link(row, op));
}

void bench_ep_add_row(xp_text *t, const xp_bench_ep_case *c, const xp_bench_ep_row *row, int i) {
    xp_text_printf(
        t,
        "{\"ranks\": %d, \"tokens\": %lld, \"dim\": %lld, \"top_k\": %d, \"experts\": %d, \"sms\": "
        "%d, "
        "\"dtype\": \"%s\", \"device\": \"%s\", \"routing\": \"%s\", \"transport\": \"%s\"",
        c->n_ranks, (long long)c->n_tokens, (long long)c->dim, c->top_k, c->n_experts, c->num_sms,
        xp_dtype_name(c->dtype), c->cuda ? "cuda" : "cpu", xp_bench_routing_name(c->routing),
        transport_name(c, i));
    if (row->failed) {
        xp_text_puts(t, ", \"error\": ");
        xp_text_add_json(t, row->error, strlen(row->error));
    } else {
        add_figures(t, c, row);
    }
    xp_text_puts(t, "}");
}
