/*
 * Combine by bulk copies. Senders: the expert rows of a token come into shared memory, are added in fp32,
 * ascending expert, and the sum goes from shared memory into the window of the token's source. A unit is
 * one column piece of one or several chunks of recv rows of a source; warps take units in turns, of all
 * sources alike. Each warp has LOAD_STAGES stages for expert rows and one for the sum, and fills the
 * stages ahead of the additions, past the ends of rows and units. Nothing synchronises warps.
 *
 * Between processes on GPUs of their own, with one round, further blocks combine this rank's tokens on the
 * SMs that do not send, as the other ranks' sums arrive (tokens_bulk.cuh): a sender tells the source of
 * each unit once its stores are complete. Senders wait for nobody. Roles go by the order in which
 * blocks start, so blocks that wait never keep a sender of the same launch from its SM; with several
 * slots the host leaves SMs for the senders of the others. The order of stores, words and loads is
 * that of dispatch_bulk.cu.
 */
#include "ep/p2p/cuda/tokens_bulk.cuh"

enum {
    TELL_LAG = 3,      /* a unit is told of when so many later sums have been stored */
    MOST_SENDERS = 40, /* fill the link; with tokens to combine, further blocks do that */
    /* Few senders: longer units, because telling costs; many: every warp has several all the same. */
    FEW_SENDERS = 24,
    LONG_UNIT_ROWS = 4 * CHUNK_ROWS,
};

#if __CUDA_ARCH__ >= 900

/* What the low bits of a target address say about a load. */
enum { FIRST_OF_ROW = 1, LAST_OF_ROW = 2, LAST_PIECE = 4, LAST_OF_UNIT = 8, TARGET_BITS = 15 };

/* Whose tokens are summed here: recv row r goes to to[i] + r * row_bytes. */
struct sum_sources {
    int n, max_rows; /* of a source */
    int begin[XP_EP_CUDA_MAX_RANKS], n_rows[XP_EP_CUDA_MAX_RANKS];
    char *to[XP_EP_CUDA_MAX_RANKS];
    uint32_t *told[XP_EP_CUDA_MAX_RANKS]; /* NULL: nobody waits for the units */
};

/* One warp. The ranks behind this one first, this one last and only with several rounds: with one its
 * own rows are summed where they are wanted. */
static __device__ void find_sources(const xp_ep_cuda_plan &p, const xp_ep_cuda_peers &peers,
                                    const xp_ep_cuda_arrivals &arrivals, int64_t round,
                                    int64_t row_bytes, sum_sources *all) {
    const bool one_round = p.totals[TOTAL_ROUNDS] == 1;
    const int n = p.n_ranks - one_round, i = lane_id(), s = (p.rank + 1 + i) % p.n_ranks;
    int n_rows = 0;
    if (i < n) {
        const int low = p.recv_row_base[s], high = p.recv_row_base[s + 1];
        const int begin = min(max(p.round_row[round], low), high);
        all->begin[i] = begin;
        n_rows = min(max(p.round_row[round + 1], low), high) - begin;
        all->n_rows[i] = n_rows;
        all->to[i] = peers.combine_rows[s] + (p.source_row_base[s] - low) * row_bytes;
        all->told[i] = one_round ? arrivals.told[s] : nullptr;
    }
    n_rows = __reduce_max_sync(ALL_LANES, n_rows);
    if (i == 0)
        all->n = n, all->max_rows = n_rows;
}

struct sum_units {
    const sum_sources *sources;
    row_pieces pieces;
    int rows;         /* of a unit at most: chunks */
    int n, n_workers; /* units, some of them empty */
};

struct unit {
    int source, row, n_rows, piece, chunk; /* its first chunk */
};

static __device__ __forceinline__ unit unit_of(const sum_units &u, int i) {
    const int source = i % u.sources->n, at = i / u.sources->n;
    const int first = at / u.pieces.n * u.rows;
    return {source, u.sources->begin[source] + first,
            min(u.rows, u.sources->n_rows[source] - first), at % u.pieces.n, first / CHUNK_ROWS};
}

/* The loads of a warp in order: a batch of up to 32, one a lane, is being issued while the numbers of
 * the next are on their way. */
struct load_list {
    const char *from; /* this lane's load of the batch */
    uint64_t target;  /* where the sum of its row goes, and the bits above */
    uint32_t *told;   /* first word of the batch's unit, and how many: one a chunk */
    int n_told;
    int n, next; /* of the batch */
    /* The batch behind it: */
    unit of;
    int starts;        /* first assignment of row of.row + lane */
    int first, n_more; /* its first assignment, how many */
    int rest_end;      /* end of the unit's assignments */
    int position;      /* expert row of assignment first + lane */
    /* The unit behind that: */
    int unit_index;
    unit next_unit;
    int next_starts;
};

/* Find the next unit that is not empty, and begin to look it up. */
static __device__ __forceinline__ void load_unit(const xp_ep_cuda_plan &p, const sum_units &u,
                                                 load_list &l) {
    for (; l.unit_index < u.n; l.unit_index += u.n_workers) {
        l.next_unit = unit_of(u, l.unit_index);
        if (l.next_unit.n_rows <= 0)
            continue;
        l.next_starts = p.recv_assignment[l.next_unit.row + min(lane_id(), l.next_unit.n_rows)];
        return;
    }
}

/* Look the next batch up; n_more = 0: there is none. */
static __device__ __forceinline__ void look_ahead(const xp_ep_cuda_plan &p, const sum_units &u,
                                                  load_list &l) {
    l.first += l.n_more;
    if (l.first >= l.rest_end) {
        l.n_more = 0;
        if (l.unit_index >= u.n)
            return;
        l.of = l.next_unit;
        l.starts = l.next_starts;
        l.unit_index += u.n_workers;
        load_unit(p, u, l);
        l.first = __shfl_sync(ALL_LANES, l.starts, 0);
        l.rest_end = __shfl_sync(ALL_LANES, l.starts, l.of.n_rows);
    }
    l.n_more = min(32, l.rest_end - l.first);
    if (lane_id() < l.n_more)
        l.position = p.assignment_pos[l.first + lane_id()];
}

/* The batch that was looked up becomes the one to issue. */
static __device__ __forceinline__ void next_batch(const xp_ep_cuda_plan &p, const sum_units &u,
                                                  const char *y, load_list &l) {
    const int assignment = l.first + lane_id();
    int row = l.of.row - 1;
    uint64_t bits = l.of.piece == u.pieces.n - 1 ? LAST_PIECE : 0;
    l.n = l.n_more;
    l.next = 0;
    if (l.n == 0)
        return;
    for (int i = 0; i <= l.of.n_rows; i++) {
        const int start = __shfl_sync(ALL_LANES, l.starts, i);
        if (i < l.of.n_rows && start <= assignment) {
            row++;
            bits |= start == assignment ? FIRST_OF_ROW : 0;
        }
        if (start == assignment + 1)
            bits |= LAST_OF_ROW;
    }
    bits |= assignment + 1 == l.rest_end ? LAST_OF_UNIT : 0;
    const int64_t column = (int64_t)l.of.piece * u.pieces.piece_bytes;
    uint32_t *told = u.sources->told[l.of.source];
    l.told = told == nullptr ? nullptr : told + l.of.chunk * u.pieces.n + l.of.piece;
    l.n_told = (l.of.n_rows + CHUNK_ROWS - 1) / CHUNK_ROWS;
    if (lane_id() < l.n) {
        l.from = y + l.position * u.pieces.row_bytes + column;
        l.target =
            (uint64_t)(u.sources->to[l.of.source] + row * u.pieces.row_bytes + column) | bits;
    }
    look_ahead(p, u, l);
}

/* A warp's stages. Lane i holds the target of the load in stage i. */
struct sum_ring {
    char *stages; /* LOAD_STAGES, then one for the sum */
    uint32_t bars;
    uint64_t target;
    uint32_t *target_told;
    int target_n_told;
    /* Sums stored, a bulk group each; the unit whose stores may be incomplete, and its last one. */
    uint32_t n_sums, told_end, epoch;
    uint32_t *told;
    int n_told;
};

static __device__ __forceinline__ uint32_t bytes_of(const sum_units &u, uint64_t target) {
    return (target & LAST_PIECE) != 0 ? u.pieces.last_bytes : u.pieces.piece_bytes;
}

/* The list's next load into a stage that all lanes have read. */
static __device__ __forceinline__ void issue_load(const xp_ep_cuda_plan &p, const sum_units &u,
                                                  const char *y, load_list &l, int stage,
                                                  sum_ring &ring) {
    const uint64_t from = __shfl_sync(ALL_LANES, (unsigned long long)l.from, l.next),
                   target = __shfl_sync(ALL_LANES, (unsigned long long)l.target, l.next);
    if (lane_id() == stage)
        ring.target = target, ring.target_told = l.told, ring.target_n_told = l.n_told;
    if (lane_id() == 0)
        bulk_load(hopper_shared(ring.stages + stage * STAGE_BYTES), (const void *)from,
                  bytes_of(u, target), ring.bars + (uint32_t)stage * 8);
    if (++l.next == l.n)
        next_batch(p, u, y, l);
}

/* All but the last N sums are complete, the unit among them: tell. All lanes; lane 0 stores. */
template <int N> static __device__ __forceinline__ void tell(const sum_units &u, sum_ring &ring) {
    if (lane_id() == 0) {
        bulk_wait<N>();
        __threadfence_system();
        for (int i = 0; i < ring.n_told; i++)
            store_relaxed(ring.told + i * u.pieces.n, ring.epoch);
    }
    ring.told = nullptr;
}

/* A sum has been stored; `told` is not NULL when its unit ends with it and somebody waits for that. */
static __device__ __forceinline__ void count_sum(const sum_units &u, sum_ring &ring, uint32_t *told,
                                                 int n_told) {
    ring.n_sums++;
    if (ring.told != nullptr && ring.n_sums >= ring.told_end + TELL_LAG)
        tell<TELL_LAG>(u, ring);
    if (told == nullptr)
        return;
    if (ring.told != nullptr) /* a short unit: the one before ended before this sum */
        tell<1>(u, ring);
    ring.told = told;
    ring.n_told = n_told;
    ring.told_end = ring.n_sums;
}

template <typename T>
static __device__ __forceinline__ void send_sums(const xp_ep_cuda_plan &p, const sum_units &u,
                                                 const char *y, int worker, sum_ring &ring) {
    constexpr int N = xp_wide<T>();
    load_list l = {};
    l.unit_index = worker;
    load_unit(p, u, l);
    look_ahead(p, u, l);
    next_batch(p, u, y, l);
    int n_full = 0;
    for (; n_full < LOAD_STAGES && l.next < l.n; n_full++)
        issue_load(p, u, y, l, n_full, ring);
    float sum[VECTORS][N];
    for (uint32_t stage = 0, parity = 0; n_full > 0; n_full--) {
        const uint64_t target = __shfl_sync(ALL_LANES, (unsigned long long)ring.target, (int)stage);
        const uint32_t n_bytes = bytes_of(u, target);
        mbarrier_wait(ring.bars + stage * 8, parity);
        add_stage<T, N>(sum, ring.stages + stage * STAGE_BYTES, n_bytes,
                        (target & FIRST_OF_ROW) != 0);
        uint32_t *told = nullptr;
        int n_told = 0;
        if ((target & LAST_OF_UNIT) != 0) {
            told = (uint32_t *)__shfl_sync(ALL_LANES, (unsigned long long)ring.target_told,
                                           (int)stage);
            n_told = __shfl_sync(ALL_LANES, ring.target_n_told, (int)stage);
        }
        __syncwarp(); /* all lanes have read the stage */
        if (l.next < l.n) {
            issue_load(p, u, y, l, (int)stage, ring);
            n_full++;
        }
        if ((target & LAST_OF_ROW) != 0) {
            store_stage<T, N>(sum, ring.stages + LOAD_STAGES * STAGE_BYTES,
                              (char *)(target & ~(uint64_t)TARGET_BITS), n_bytes);
            count_sum(u, ring, told, n_told);
        }
        stage = stage + 1 < LOAD_STAGES ? stage + 1 : 0;
        parity ^= stage == 0;
    }
    if (ring.told != nullptr)
        tell<0>(u, ring);
    if (lane_id() == 0) {
        bulk_wait<0>();
        __threadfence_system();
    }
}

/* The block's number in the order in which blocks start; barriers set the counter to 0. */
static __device__ int start_order(const xp_ep_cuda_arrivals &arrivals) {
    __shared__ int order;
    if (threadIdx.x == 0)
        order = arrivals.abort == nullptr ? (int)blockIdx.x
                                          : (int)atomicAdd(&arrivals.abort->n_started, 1u);
    __syncthreads();
    return order;
}

#endif

template <typename T>
static __global__ void __launch_bounds__(WARPS * 32, 1)
    sums_bulk_kernel(const xp_ep_cuda_plan p, const xp_ep_cuda_peers peers,
                     const xp_ep_cuda_arrivals arrivals, int64_t round, int64_t row_bytes,
                     const char *y, int n_senders, char *out) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(128) char shared[];
    __shared__ sum_sources sources;
    __shared__ uint64_t bars[WARPS][LOAD_STAGES];
    const int warp = (int)threadIdx.x / 32;
    if (is_aborted(p) || round >= p.totals[TOTAL_ROUNDS])
        return;
    const int block = start_order(arrivals);
    const bool sends = block < n_senders;
    if (!sends && p.totals[TOTAL_ROUNDS] > 1)
        return;
    if (warp == 0 && sends)
        find_sources(p, peers, arrivals, round, row_bytes, &sources);
    if (lane_id() == 0) {
        for (int i = 0; i < LOAD_STAGES; i++)
            mbarrier_init(hopper_shared(&bars[warp][i]), 1);
        mbarrier_init_fence();
    }
    __syncthreads();
    const row_pieces pieces = pieces_of(row_bytes);
    char *stages = shared + warp * XP_EP_BULK_STAGES * STAGE_BYTES;
    const int worker = (sends ? block : block - n_senders) * WARPS + warp;
    if (sends) {
        const int rows = n_senders <= FEW_SENDERS ? (int)LONG_UNIT_ROWS : (int)CHUNK_ROWS;
        const sum_units units = {&sources, pieces, rows,
                                 sources.n * ((sources.max_rows + rows - 1) / rows) * pieces.n,
                                 n_senders * WARPS};
        sum_ring ring = {};
        ring.stages = stages, ring.bars = hopper_shared(bars[warp]), ring.epoch = arrivals.epoch;
        send_sums<T>(p, units, y, worker, ring);
    } else {
        const token_work work = {y, peers.combine_rows[p.rank], out, pieces,
                                 lanes_a_token(p.top_k)};
        token_ring ring = {stages, hopper_shared(bars[warp]), 0, 0};
        combine_tokens<T>(p, arrivals, work, worker, ((int)gridDim.x - n_senders) * WARPS, ring);
    }
    if (block == 0 && threadIdx.x == 0)
        count_combined(p, p.round_row[round], p.round_row[round + 1]);
#endif
}

template <typename T>
static void launch(cudaStream_t stream, const xp_ep_cuda_plan *p, const xp_ep_cuda_rows *rows,
                   const xp_ep_cuda_peers *peers, const xp_ep_cuda_arrivals *arrivals,
                   const void *y, void *out) {
    const xp_ep_cuda_arrivals none = {};
    unsigned n_senders = bulk_blocks(rows, p->recv_capacity), n_others = 0;
    if (out != NULL) {
        const unsigned n_all = n_senders + (unsigned)rows->n_waiting_blocks;
        n_senders = n_senders < (unsigned)MOST_SENDERS ? n_senders : (unsigned)MOST_SENDERS;
        n_others = n_all - n_senders;
    }
    sums_bulk_kernel<T><<<n_senders + n_others, WARPS * 32, XP_EP_BULK_SHARED_BYTES, stream>>>(
        *p, *peers, arrivals != NULL ? *arrivals : none, rows->round, (int64_t)rows->row_bytes,
        (const char *)y, (int)n_senders, (char *)out);
}

xp_status xp_ep_cuda_push_sums_bulk(cudaStream_t stream, const xp_ep_cuda_plan *p,
                                    const xp_ep_cuda_rows *rows, const xp_ep_cuda_peers *peers,
                                    const xp_ep_cuda_arrivals *arrivals, const void *y, void *out) {
    if (rows->bf16)
        launch<bf16>(stream, p, rows, peers, arrivals, y, out);
    else
        launch<float>(stream, p, rows, peers, arrivals, y, out);
    return xp_cuda_check(cudaGetLastError(), "expert parallel combine");
}

xp_status xp_ep_cuda_load_sums_bulk(bool *usable) {
    XP_TRY(load_bulk_kernel((const void *)sums_bulk_kernel<bf16>, usable));
    return load_bulk_kernel((const void *)sums_bulk_kernel<float>, usable);
}
