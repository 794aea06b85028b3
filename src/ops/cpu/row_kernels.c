#include "ops/cpu/row_kernels.h"
#include "ops/cpu/vector.h"

/** Elements summed in fp32 lanes before the sum goes to fp64: a long row loses no more than a short
 * one. */
enum { SUM_BLOCK = 64 * V_LANES };

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static float row_max(const float *x, int64_t n) {
    /* v_max() keeps its second operand against NaN, so the running maximum stands there. */
    vf max = v_set(-INFINITY);
    int64_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES)
        max = v_max(v_load(x + i), max);
    if (i < n)
        max = v_max(v_load_part(x + i, n - i, -INFINITY), max);
    return v_max_lanes(max);
}

static double row_exp_sum(const float *x, int64_t n, float shift, float *out) {
    double sum = 0;
    for (int64_t first = 0; first < n; first += SUM_BLOCK) {
        int64_t end = smaller(first + SUM_BLOCK, n);
        vf lanes = v_set(0);
        int64_t i = first;
        for (; i + V_LANES <= end; i += V_LANES) {
            vf e = v_exp(v_load(x + i) - shift);
            lanes += e;
            if (out)
                v_store(out + i, e);
        }
        if (i < end) {
            vf e = v_exp(v_load_part(x + i, end - i, -INFINITY) - shift);
            lanes += e;
            if (out)
                v_store_part(out + i, end - i, e);
        }
        sum += (double)v_sum_lanes(lanes);
    }
    return sum;
}

static void row_scale(float *x, int64_t n, float factor) {
    for (int64_t i = 0; i < n; i++)
        x[i] *= factor;
}

static void row_sigmoid(const float *x, int64_t n, float *out) {
    int64_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES)
        v_store(out + i, v_sigmoid(v_load(x + i)));
    if (i < n)
        v_store_part(out + i, n - i, v_sigmoid(v_load_part(x + i, n - i, 0)));
}

/* ---- assignments ----------------------------------------------------------------------------- */

/** An integer that orders as the float does, NaN first. */
static int32_t float_order(float x) {
    float normal = x + 0.0F; /* -0 is equal to 0 */
    int32_t bits;
    memcpy(&bits, &normal, sizeof bits);
    int32_t order = bits ^ ((bits >> 31) & INT32_MAX);
    return normal == normal ? order : INT32_MIN + 1;
}

static void row_topk_keys(const float *scores, const float *bias, int n, int64_t *keys) {
    for (int i = 0; i < n; i++) {
        float biased = bias ? scores[i] + bias[i] : scores[i];
        keys[i] = (int64_t)float_order(biased) * (INT64_C(1) << 32) + (INT32_MAX - i);
    }
}

static int32_t row_select(int64_t *keys, int n) {
    int64_t largest = INT64_MIN;
    for (int i = 0; i < n; i++)
        largest = keys[i] > largest ? keys[i] : largest;
    int32_t i = INT32_MAX - (int32_t)(largest & INT64_C(0xffffffff));
    keys[i] = INT64_MIN;
    return i;
}

/* ---- silu * gate * prob ---------------------------------------------------------------------- */

static void row_silu(const float *a, const float *b, float p, int64_t n, float *h) {
    int64_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES) {
        vf x = v_load(a + i);
        v_store(h + i, x * v_sigmoid(x) * v_load(b + i) * p);
    }
    if (i < n) {
        vf x = v_load_part(a + i, n - i, 0);
        v_store_part(h + i, n - i, x * v_sigmoid(x) * v_load_part(b + i, n - i, 0) * p);
    }
}

/** One vector of the gradient, in registers. */
typedef struct silu_vector {
    vf h, da, db, dp;
} silu_vector;

V_INLINE silu_vector silu_gradient(vf a, vf b, vf dh, float p) {
    vf s = v_sigmoid(a);
    vf silu = a * s;
    vf dh_p = dh * p;
    return (silu_vector){
        .h = silu * b * p,
        .da = dh_p * b * (s * (1.0F + a * (1.0F - s))),
        .db = dh_p * silu,
        .dp = dh * (silu * b),
    };
}

static double row_silu_backward(const xp_silu_row *row) {
    double dp = 0;
    for (int64_t first = 0; first < row->n; first += SUM_BLOCK) {
        int64_t end = smaller(first + SUM_BLOCK, row->n);
        vf lanes = v_set(0);
        int64_t i = first;
        for (; i + V_LANES <= end; i += V_LANES) {
            silu_vector g =
                silu_gradient(v_load(row->a + i), v_load(row->b + i), v_load(row->dh + i), row->p);
            if (row->h)
                v_store(row->h + i, g.h);
            v_store(row->da + i, g.da);
            v_store(row->db + i, g.db);
            lanes += g.dp;
        }
        if (i < end) {
            int64_t n = end - i;
            silu_vector g =
                silu_gradient(v_load_part(row->a + i, n, 0), v_load_part(row->b + i, n, 0),
                              v_load_part(row->dh + i, n, 0), row->p);
            if (row->h)
                v_store_part(row->h + i, n, g.h);
            v_store_part(row->da + i, n, g.da);
            v_store_part(row->db + i, n, g.db);
            lanes += g.dp;
        }
        dp += (double)v_sum_lanes(lanes);
    }
    return dp;
}

/* ---- reductions and the optimizer ------------------------------------------------------------ */

/** Half a vector as fp64: a whole one does not fit a register. */
typedef float vf_half __attribute__((vector_size(V_LANES * 2)));

V_INLINE vd load_f64(const float *x) {
    vf_half half;
    memcpy(&half, x, sizeof half);
    return __builtin_convertvector(half, vd);
}

enum { LANES_F64 = V_LANES / 2, SUM_CHAINS = 4 };

/** Sum over x, or over its squares; four running sums hide the latency of an addition. */
V_INLINE double sum_f64(const float *x, int64_t n, bool squares) {
    vd sums[SUM_CHAINS] = {{0}};
    int64_t i = 0;
    for (; i + SUM_CHAINS * LANES_F64 <= n; i += SUM_CHAINS * LANES_F64) {
        for (int chain = 0; chain < SUM_CHAINS; chain++) {
            vd v = load_f64(x + i + chain * LANES_F64);
            sums[chain] += squares ? v * v : v;
        }
    }
    vd lanes = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    double total = 0;
    for (int lane = 0; lane < LANES_F64; lane++)
        total += lanes[lane];
    for (; i < n; i++)
        total += squares ? (double)x[i] * (double)x[i] : (double)x[i];
    return total;
}

static double row_sum(const float *x, int64_t n) {
    return sum_f64(x, n, false);
}

static double row_sum_squares(const float *x, int64_t n) {
    return sum_f64(x, n, true);
}

static void row_axpy(int64_t n, float alpha, const float *x, float *y, bool acc) {
    if (acc)
        for (int64_t i = 0; i < n; i++)
            y[i] += alpha * x[i];
    else
        for (int64_t i = 0; i < n; i++)
            y[i] = alpha * x[i];
}

static void row_adamw(const xp_adamw_constants *c, int64_t n, const float *restrict grad,
                      float *restrict m, float *restrict v, float *restrict master) {
    const xp_adamw_constants k = *c;
    for (int64_t i = 0; i < n; i++) {
        float g = grad[i] * k.grad_scale;
        m[i] += (g - m[i]) * k.one_minus_beta1;
        v[i] = v[i] * k.beta2 + k.one_minus_beta2 * (g * g);
        float denominator = __builtin_sqrtf(v[i]) * k.inverse_correction2 + k.eps;
        master[i] = master[i] * k.decay - k.step_size * (m[i] / denominator);
    }
}

/* ---- bf16 ------------------------------------------------------------------------------------ */

static void row_widen(const uint16_t *bits, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t word = (uint32_t)bits[i] << 16;
        memcpy(out + i, &word, sizeof word);
    }
}

static void row_narrow(const float *x, int64_t n, uint16_t *bits) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t word;
        memcpy(&word, x + i, sizeof word);
        uint32_t rounded = (word + 0x7fffU + ((word >> 16) & 1U)) >> 16;
        uint32_t nan = (word >> 16) | 0x40U; /* quiet */
        bits[i] = (uint16_t)((word & 0x7fffffffU) > 0x7f800000U ? nan : rounded);
    }
}

#if defined(XP_KERNELS_AVX512)
const xp_row_kernels xp_row_kernels_avx512 = {
#else
const xp_row_kernels xp_row_kernels_avx2 = {
#endif
    .max = row_max,
    .exp_sum = row_exp_sum,
    .scale = row_scale,
    .sigmoid = row_sigmoid,
    .topk_keys = row_topk_keys,
    .select = row_select,
    .silu = row_silu,
    .silu_backward = row_silu_backward,
    .sum = row_sum,
    .sum_squares = row_sum_squares,
    .axpy = row_axpy,
    .adamw = row_adamw,
    .widen = row_widen,
    .narrow = row_narrow,
};
