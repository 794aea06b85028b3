#include "checkpoint/xxh64.h"

#include <string.h>

#define PRIME_1 0x9E3779B185EBCA87ULL
#define PRIME_2 0xC2B2AE3D27D4EB4FULL
#define PRIME_3 0x165667B19E3779F9ULL
#define PRIME_4 0x85EBCA77C2B2AE63ULL
#define PRIME_5 0x27D4EB2F165667C5ULL

#define STRIPE 32

static uint64_t rotate(uint64_t value, int bits) {
    return (value << bits) | (value >> (64 - bits));
}

static uint64_t load_u64(const unsigned char *p) {
    uint64_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

static uint64_t mix_lane(uint64_t lane, uint64_t input) {
    return rotate(lane + input * PRIME_2, 31) * PRIME_1;
}

static void take_stripes(uint64_t lanes[4], const unsigned char *p, size_t n_stripes) {
    uint64_t a = lanes[0], b = lanes[1], c = lanes[2], d = lanes[3];
    for (size_t i = 0; i < n_stripes; i++, p += STRIPE) {
        a = mix_lane(a, load_u64(p));
        b = mix_lane(b, load_u64(p + 8));
        c = mix_lane(c, load_u64(p + 16));
        d = mix_lane(d, load_u64(p + 24));
    }
    lanes[0] = a;
    lanes[1] = b;
    lanes[2] = c;
    lanes[3] = d;
}

void xp_xxh64_init(xp_xxh64 *state) {
    *state = (xp_xxh64){.lanes = {PRIME_1 + PRIME_2, PRIME_2, 0, 0 - PRIME_1}};
}

void xp_xxh64_update(xp_xxh64 *state, const void *data, size_t n_bytes) {
    if (n_bytes == 0)
        return;
    const unsigned char *p = data;
    size_t held = state->n_bytes % STRIPE;
    state->n_bytes += n_bytes;
    if (held > 0) {
        size_t wanted = STRIPE - held;
        if (n_bytes < wanted) {
            memcpy(state->tail + held, p, n_bytes);
            return;
        }
        memcpy(state->tail + held, p, wanted);
        take_stripes(state->lanes, state->tail, 1);
        p += wanted;
        n_bytes -= wanted;
    }
    take_stripes(state->lanes, p, n_bytes / STRIPE);
    memcpy(state->tail, p + n_bytes / STRIPE * STRIPE, n_bytes % STRIPE);
}

static uint64_t merge_lanes(const uint64_t lanes[4]) {
    uint64_t hash =
        rotate(lanes[0], 1) + rotate(lanes[1], 7) + rotate(lanes[2], 12) + rotate(lanes[3], 18);
    for (int i = 0; i < 4; i++)
        hash = (hash ^ mix_lane(0, lanes[i])) * PRIME_1 + PRIME_4;
    return hash;
}

uint64_t xp_xxh64_digest(const xp_xxh64 *state) {
    uint64_t hash = state->n_bytes >= STRIPE ? merge_lanes(state->lanes) : PRIME_5;
    hash += state->n_bytes;
    const unsigned char *p = state->tail;
    size_t left = state->n_bytes % STRIPE;
    for (; left >= 8; left -= 8, p += 8)
        hash = rotate(hash ^ mix_lane(0, load_u64(p)), 27) * PRIME_1 + PRIME_4;
    if (left >= 4) {
        uint32_t word;
        memcpy(&word, p, sizeof word);
        hash = rotate(hash ^ word * PRIME_1, 23) * PRIME_2 + PRIME_3;
        left -= 4;
        p += 4;
    }
    for (; left > 0; left--, p++)
        hash = rotate(hash ^ *p * PRIME_5, 11) * PRIME_1;
    hash = (hash ^ (hash >> 33)) * PRIME_2;
    hash = (hash ^ (hash >> 29)) * PRIME_3;
    return hash ^ (hash >> 32);
}

uint64_t xp_xxh64_hash(const void *data, size_t n_bytes) {
    xp_xxh64 state;
    xp_xxh64_init(&state);
    xp_xxh64_update(&state, data, n_bytes);
    return xp_xxh64_digest(&state);
}
