/** The rows of `expar bench ep`. */
#ifndef XP_CLI_BENCH_EP_H
#define XP_CLI_BENCH_EP_H

#include <stdbool.h>
#include "core/text.h"
#include "ep.h"

void bench_ep_print_head(bool backward);
/** @param rows  [c->n_transports], of which the i-th is printed */
void bench_ep_print_row(const xp_bench_ep_case *c, const xp_bench_ep_row *rows, int i);
void bench_ep_print_notes(void);
/** A JSON object, on one line. */
void bench_ep_add_row(xp_text *text, const xp_bench_ep_case *c, const xp_bench_ep_row *row, int i);

/** Names of xp_ep_transport; end with NULL. */
extern const char *const bench_ep_transport_names[];

#endif
