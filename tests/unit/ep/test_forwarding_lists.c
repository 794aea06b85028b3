/*
 * The lists and exchange sizes of the hierarchical transport against brute force: random routings
 * over several nodes, local_ranks and rounds; all ranks in one process, exchanges by hand. Rows are
 * numbers. What must be true: every rank receives its rows, a row crosses to a node once a round,
 * and sums are made in ascending order of local_ranks, then of nodes and rounds.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "ep/hierarchical/forwarding_lists.h"

enum { MAX_RANKS = 12, MAX_TOKENS = 40, MAX_ROUNDS = 5, MAX_ROWS = MAX_RANKS * MAX_TOKENS };

typedef struct one_rank {
    xp_ep_node_grid grid;
    int rank_at[MAX_RANKS], inter_node_order[MAX_RANKS];
    int inter_node[MAX_RANKS]; /* ranks with its local rank, ascending */
    int64_t n_tokens;
    int32_t send_token[MAX_ROWS], send_round[(MAX_ROUNDS + 1) * MAX_RANKS];
    int32_t recv_row_base[MAX_RANKS + 1], round_row[MAX_ROUNDS + 1];
    xp_ep_forwarding_plan plan;
    xp_ep_forwarding_lists lists;
    int32_t ints[10][MAX_ROWS * 2];
    uint64_t mask[MAX_ROWS], in_mask[MAX_ROWS], token_mask[MAX_TOKENS];
    int32_t cursor[MAX_TOKENS], counts_out[MAX_RANKS * MAX_ROUNDS],
        counts_in[MAX_RANKS * MAX_ROUNDS];
    int64_t bytes[4][MAX_RANKS];
    xp_ep_exchange exchange;
    uint64_t send[MAX_ROWS], forward[MAX_ROWS], fan_out[MAX_ROWS], recv[MAX_ROWS];
} one_rank;

typedef struct world {
    int n_nodes, n_local_ranks, n_ranks, n_rounds;
    int node_of[MAX_RANKS], local_rank_of[MAX_RANKS];
    int round[MAX_RANKS][MAX_TOKENS][MAX_RANKS]; /* of the row (source, token, rank); -1: none */
    one_rank ranks[MAX_RANKS];
} world;

static uint64_t state_of_random;

static int below(int n) {
    state_of_random = state_of_random * 6364136223846793005U + 1442695040888963407U;
    return (int)((state_of_random >> 33) % (uint64_t)n);
}

/* ---- a world ------------------------------------------------------------------------------ */

static void place_ranks(world *w) {
    int local_ranks[MAX_RANKS] = {0}, n = 0;
    while (n < w->n_ranks) { /* nodes in any order */
        const int node = below(w->n_nodes);
        if (local_ranks[node] == w->n_local_ranks)
            continue;
        w->node_of[n] = node;
        w->local_rank_of[n++] = local_ranks[node]++;
    }
    for (int r = 0; r < w->n_ranks; r++) {
        one_rank *me = &w->ranks[r];
        int n_inter_node = 0;
        me->grid = (xp_ep_node_grid){w->n_nodes,          w->n_local_ranks, w->node_of[r],
                                     w->local_rank_of[r], me->rank_at,      me->inter_node_order};
        for (int q = 0; q < w->n_ranks; q++) {
            me->rank_at[w->node_of[q] * w->n_local_ranks + w->local_rank_of[q]] = q;
            if (w->local_rank_of[q] != w->local_rank_of[r])
                continue;
            me->inter_node[n_inter_node] = q;
            me->inter_node_order[n_inter_node++] = w->node_of[q];
        }
    }
}

/* Rounds ascend in the order in which a rank numbers its rows. */
static void route(world *w, int fill) {
    for (int s = 0; s < w->n_ranks; s++)
        w->ranks[s].n_tokens = below(8) == 0 ? 0 : below(MAX_TOKENS + 1);
    for (int d = 0; d < w->n_ranks; d++) {
        int round = 0;
        for (int s = 0; s < w->n_ranks; s++) {
            for (int t = 0; t < MAX_TOKENS; t++) {
                const bool sent = t < w->ranks[s].n_tokens && below(100) < fill;
                w->round[s][t][d] = sent ? round : -1;
                if (sent && below(w->n_ranks * MAX_TOKENS / 8) < w->n_rounds)
                    round = round + 1 < w->n_rounds ? round + 1 : round;
            }
        }
    }
}

static void number_rows(world *w, int r) {
    one_rank *me = &w->ranks[r];
    int row = 0;
    for (int round = 0; round <= w->n_rounds; round++)
        me->round_row[round] = 0;
    for (int s = 0; s < w->n_ranks; s++) {
        me->recv_row_base[s] = row;
        for (int t = 0; t < MAX_TOKENS; t++) {
            row += w->round[s][t][r] >= 0;
            for (int round = w->round[s][t][r] + 1; round <= w->n_rounds && round > 0; round++)
                me->round_row[round]++;
        }
    }
    me->recv_row_base[w->n_ranks] = row;
    row = 0;
    for (int d = 0; d < w->n_ranks; d++) {
        for (int round = 0; round <= w->n_rounds; round++)
            me->send_round[round * w->n_ranks + d] = row;
        for (int t = 0; t < MAX_TOKENS; t++) {
            if (w->round[r][t][d] < 0)
                continue;
            me->send_token[row++] = t;
            for (int round = w->round[r][t][d] + 1; round <= w->n_rounds; round++)
                me->send_round[round * w->n_ranks + d] = row;
        }
    }
}

static void set_memory(world *w, int r) {
    one_rank *me = &w->ranks[r];
    memset(me->ints, 0x7f, sizeof me->ints);
    memset(me->token_mask, 0, sizeof me->token_mask);
    me->plan = (xp_ep_forwarding_plan){me->n_tokens,   w->n_rounds,       me->send_token,
                                       me->send_round, me->recv_row_base, me->round_row};
    int32_t(*i)[MAX_ROWS * 2] = me->ints;
    me->lists = (xp_ep_forwarding_lists){.row_base = i[0],
                                         .round = i[1],
                                         .token = i[2],
                                         .token_first = i[3],
                                         .token_row = i[4],
                                         .in_round = i[5],
                                         .forward_at = i[6],
                                         .fan_out_at = i[6] + MAX_ROWS,
                                         .fan_out = i[7],
                                         .sum_first = i[8],
                                         .sum_row = i[9],
                                         .recv_at = i[9] + MAX_ROWS,
                                         .mask = me->mask,
                                         .in_mask = me->in_mask};
    me->exchange = (xp_ep_exchange){me->bytes[0], me->bytes[1], me->bytes[2], me->bytes[3]};
}

/* ---- exchanges by hand -------------------------------------------------------------------- */

/* What rank r, i-th of a communicator, receives from its j-th, rank q: both must say the same. */
static void copy_part(const world *w, int r, int i, int q, int j, const void *from, void *to) {
    const one_rank *theirs = &w->ranks[q], *mine = &w->ranks[r];
    assert_int_equal(theirs->bytes[0][i], mine->bytes[2][j]);
    memcpy((char *)to + mine->bytes[3][j], (const char *)from + theirs->bytes[1][i],
           (size_t)mine->bytes[2][j]);
}

static int inter_node_index(const world *w, int r) {
    int i = 0;
    while (w->ranks[r].inter_node[i] != r)
        i++;
    return i;
}

typedef enum buffers { MASKS, SEND_FORWARD, FORWARD_SEND, FAN_OUT_RECV, RECV_FAN_OUT } buffers;

static void exchange(world *w, buffers what) {
    const bool by_local_rank = what == FAN_OUT_RECV || what == RECV_FAN_OUT;
    const int size = by_local_rank ? w->n_local_ranks : w->n_nodes;
    for (int r = 0; r < w->n_ranks; r++) {
        one_rank *me = &w->ranks[r];
        for (int j = 0; j < size; j++) {
            const int q = by_local_rank ? me->rank_at[w->node_of[r] * w->n_local_ranks + j]
                                        : me->inter_node[j];
            one_rank *from = &w->ranks[q];
            const void *send[] = {from->mask, from->send, from->forward, from->fan_out, from->recv};
            void *recv[] = {me->in_mask, me->forward, me->send, me->recv, me->fan_out};
            copy_part(w, r, by_local_rank ? w->local_rank_of[r] : inter_node_index(w, r), q, j,
                      send[what], recv[what]);
        }
    }
}

static void build(world *w) {
    for (int r = 0; r < w->n_ranks; r++) {
        one_rank *me = &w->ranks[r];
        number_rows(w, r);
        set_memory(w, r);
        xp_ep_forwarding_list_sends(&me->grid, &me->plan, me->token_mask, me->cursor, &me->lists);
        xp_ep_forwarding_count_sends(&me->grid, &me->plan, &me->lists, me->counts_out);
        for (int t = 0; t < MAX_TOKENS; t++)
            assert_true(me->token_mask[t] == 0);
    }
    for (int r = 0; r < w->n_ranks; r++) {
        one_rank *me = &w->ranks[r];
        const int i = inter_node_index(w, r);
        for (int c = 0; c < w->n_nodes; c++)
            memcpy(me->counts_in + c * w->n_rounds,
                   w->ranks[me->inter_node[c]].counts_out + i * w->n_rounds,
                   (size_t)w->n_rounds * sizeof(int32_t));
        xp_ep_forwarding_count_arrivals(&me->grid, &me->plan, me->counts_in, &me->lists);
        xp_ep_forwarding_mask_exchange(&me->grid, &me->plan, &me->lists, &me->exchange);
    }
    exchange(w, MASKS);
    for (int r = 0; r < w->n_ranks; r++)
        xp_ep_forwarding_list_arrivals(&w->ranks[r].grid, &w->ranks[r].plan, &w->ranks[r].lists);
}

/* ---- what must be true -------------------------------------------------------------------- */

static uint64_t row_id(int source, int token) {
    return (uint64_t)source * 1000 + (uint64_t)token + 1;
}

static uint64_t value_of(int rank, int source, int token) {
    return ((uint64_t)rank + 1) * 2654435761U ^ row_id(source, token) * 40503U;
}

/* Order matters. */
static uint64_t add(uint64_t sum, uint64_t value) {
    return sum * 1099511628211U + value;
}

/* A token's rows of a round on the ranks of a node, ascending local rank; false: none. */
static bool node_sum(const world *w, int source, int token, int node, int round, uint64_t *sum) {
    bool any = false;
    *sum = 0;
    for (int local_rank = 0; local_rank < w->n_local_ranks; local_rank++) {
        const int d = w->ranks[0].rank_at[node * w->n_local_ranks + local_rank];
        if (w->round[source][token][d] != round)
            continue;
        *sum = add(*sum, value_of(d, source, token));
        any = true;
    }
    return any;
}

static void exchange_inter_node(world *w, int round, bool combine) {
    for (int r = 0; r < w->n_ranks; r++)
        xp_ep_forwarding_inter_node_exchange(&w->ranks[r].grid, &w->ranks[r].lists, round, combine,
                                             sizeof(uint64_t), &w->ranks[r].exchange);
    exchange(w, combine ? FORWARD_SEND : SEND_FORWARD);
}

static void exchange_intra_node(world *w, int round, bool combine) {
    for (int r = 0; r < w->n_ranks; r++)
        xp_ep_forwarding_intra_node_exchange(&w->ranks[r].grid, &w->ranks[r].lists, round, combine,
                                             sizeof(uint64_t), &w->ranks[r].exchange);
    exchange(w, combine ? RECV_FAN_OUT : FAN_OUT_RECV);
}

static void pack_out(one_rank *me, int rank, int round) {
    for (int node = 0; node < me->grid.n_nodes; node++) {
        const xp_ep_span out = xp_ep_forwarding_out(&me->grid, &me->lists, node, round);
        for (int i = out.first; i < out.first + out.n; i++)
            me->send[i] = row_id(rank, me->lists.token[i]);
    }
}

/* A row goes to each node once a round. */
static void check_inter_node(const world *w, int source, int round) {
    const one_rank *me = &w->ranks[source];
    for (int node = 0; node < w->n_nodes; node++) {
        int expected = 0;
        uint64_t sum;
        for (int t = 0; t < me->n_tokens; t++)
            expected += node_sum(w, source, t, node, round, &sum);
        assert_int_equal(xp_ep_forwarding_out(&me->grid, &me->lists, node, round).n, expected);
    }
}

/* `rows` hold what this rank gets in this round, by (local rank, node) of the source, then token. */
static void check_rows(const world *w, int rank, int round, bool replace) {
    one_rank *me = (one_rank *)&w->ranks[rank];
    int n = 0;
    for (int local_rank = 0; local_rank < w->n_local_ranks; local_rank++) {
        for (int node = 0; node < w->n_nodes; node++) {
            const int s = me->rank_at[node * w->n_local_ranks + local_rank];
            const int32_t *at = me->lists.recv_at + round * (w->n_ranks + 1);
            assert_int_equal(at[local_rank * w->n_nodes + node], n);
            for (int t = 0; t < MAX_TOKENS; t++) {
                if (w->round[s][t][rank] != round)
                    continue;
                assert_true(me->recv[n] == row_id(s, t));
                if (replace)
                    me->recv[n] = value_of(rank, s, t);
                n++;
            }
            assert_int_equal(at[local_rank * w->n_nodes + node + 1], n);
        }
    }
}

static void dispatch(world *w, int round) {
    for (int r = 0; r < w->n_ranks; r++) {
        check_inter_node(w, r, round);
        pack_out(&w->ranks[r], r, round);
    }
    exchange_inter_node(w, round, false);
    for (int r = 0; r < w->n_ranks; r++) {
        one_rank *me = &w->ranks[r];
        const int32_t *at = me->lists.fan_out_at + round * (w->n_local_ranks + 1);
        for (int i = 0; i < at[w->n_local_ranks] - at[0]; i++)
            me->fan_out[i] = me->forward[me->lists.fan_out[at[0] + i]];
    }
    exchange_intra_node(w, round, false);
}

static void sum_forward(one_rank *me, int round) {
    const int32_t *at = me->lists.forward_at + round;
    for (int i = at[0]; i < at[1]; i++) {
        uint64_t sum = 0;
        assert_true(me->lists.sum_first[i + 1] > me->lists.sum_first[i]);
        for (int j = me->lists.sum_first[i]; j < me->lists.sum_first[i + 1]; j++)
            sum = add(sum, me->fan_out[me->lists.sum_row[j]]);
        me->forward[i - at[0]] = sum;
    }
}

/* Every token's node rows are back, nodes ascending, in a node rounds ascending. */
static void check_combined(const world *w, int rank, int round) {
    const one_rank *me = &w->ranks[rank];
    for (int t = 0; t < me->n_tokens; t++) {
        int i = me->lists.token_first[t];
        for (int node = 0; node < w->n_nodes; node++) {
            for (int r = 0; r < w->n_rounds; r++) {
                uint64_t sum;
                if (!node_sum(w, rank, t, node, r, &sum))
                    continue;
                assert_true(i < me->lists.token_first[t + 1]);
                const int row = me->lists.token_row[i++];
                assert_int_equal(me->lists.token[row], t);
                assert_in_range(row, me->lists.row_base[node], me->lists.row_base[node + 1] - 1);
                if (r <= round)
                    assert_true(me->send[row] == sum);
            }
        }
        assert_int_equal(i, me->lists.token_first[t + 1]);
    }
}

static void check_world(world *w) {
    build(w);
    for (int round = 0; round < w->n_rounds; round++) {
        dispatch(w, round);
        for (int r = 0; r < w->n_ranks; r++)
            check_rows(w, r, round, true);
        exchange_intra_node(w, round, true);
        for (int r = 0; r < w->n_ranks; r++)
            sum_forward(&w->ranks[r], round);
        exchange_inter_node(w, round, true);
        for (int r = 0; r < w->n_ranks; r++)
            check_combined(w, r, round);
    }
}

static void test_random_routings(void **unused) {
    const int shapes[][2] = {{1, 1}, {1, 4}, {2, 1}, {2, 2}, {3, 1}, {3, 4}, {4, 3}, {6, 2}};
    const int fills[] = {0, 3, 30, 100};
    world *w = malloc(sizeof *w);
    (void)unused;
    assert_non_null(w);
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (int seed = 0; seed < 40; seed++) {
            state_of_random = i * 1000 + (uint64_t)seed;
            w->n_nodes = shapes[i][0];
            w->n_local_ranks = shapes[i][1];
            w->n_ranks = w->n_nodes * w->n_local_ranks;
            w->n_rounds = 1 + seed % MAX_ROUNDS;
            place_ranks(w);
            route(w, fills[seed / 10]);
            check_world(w);
        }
    }
    free(w);
}

/* With one round the counts say what else the host would have to fetch. */
static void test_one_round(void **unused) {
    const xp_ep_shape s = {.n_ranks = 6, .n_experts = 12, .counts_ints = 12 + 6 + 4};
    int32_t blocks[6 * 22], send_round[12], recv_row_base[7], round_row[2];
    world *w = malloc(sizeof *w);
    (void)unused;
    assert_non_null(w);
    state_of_random = 1;
    w->n_nodes = 3;
    w->n_local_ranks = 2;
    w->n_ranks = 6;
    w->n_rounds = 1;
    place_ranks(w);
    route(w, 30);
    memset(blocks, 0x55, sizeof blocks);
    for (int r = 0; r < 6; r++)
        for (int d = 0; d < 6; d++) {
            int32_t *n = &blocks[r * s.counts_ints + XP_EP_COUNTS_ROWS(&s) + d];
            *n = 0;
            for (int t = 0; t < MAX_TOKENS; t++)
                *n += w->round[r][t][d] >= 0;
        }
    for (int r = 0; r < 6; r++) {
        number_rows(w, r);
        xp_ep_forwarding_one_round(&s, r, blocks, send_round, recv_row_base, round_row);
        assert_memory_equal(send_round, w->ranks[r].send_round, sizeof send_round);
        assert_memory_equal(recv_row_base, w->ranks[r].recv_row_base, sizeof recv_row_base);
        assert_memory_equal(round_row, w->ranks[r].round_row, sizeof round_row);
        recv_row_base[3] = -1;
        xp_ep_forwarding_recv_base(&s, r, blocks, recv_row_base);
        assert_memory_equal(recv_row_base, w->ranks[r].recv_row_base, sizeof recv_row_base);
    }
    free(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_random_routings),
                                       cmocka_unit_test(test_one_round)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
