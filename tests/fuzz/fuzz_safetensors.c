/**
 * Mutated safetensors files: whatever the bytes, opening gives a clear refusal or tensors that lie
 * inside the file. fuzz_safetensors [SECONDS [SEED]]; the same seed tries the same files.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "checkpoint/safetensors.h"
#include "core/file.h"
#include "core/rng.h"
#include "core/text.h"

#define MAX_BYTES 4096

/* Words that a blind byte would rarely make; they replace or are inserted into the header. */
static const char *const words[] = {"\"F32\"",
                                    "\"BF16\"",
                                    "\"F4\"",
                                    "\"shape\"",
                                    "\"dtype\"",
                                    "\"data_offsets\"",
                                    "__metadata__",
                                    "[]",
                                    "{}",
                                    "[0,0]",
                                    "[0,4]",
                                    "-1",
                                    "0",
                                    "1e9",
                                    "1.5",
                                    "null",
                                    "true",
                                    ",",
                                    "\\u0000",
                                    "\\ud800",
                                    "\xc3\xbc",
                                    "\xed\xa0",
                                    "    ",
                                    "\"\"",
                                    ":",
                                    "4294967296",
                                    "9223372036854775807"};
#define N_WORDS (sizeof words / sizeof words[0])

typedef struct fuzz_run {
    uint64_t seed, n_draws;
    unsigned char bytes[MAX_BYTES];
    size_t n_bytes;
    const char *path;
    int64_t n_accepted, n_refused;
} fuzz_run;

static uint64_t draw(fuzz_run *run, uint64_t n) {
    return xp_rng_below(run->seed, 1, run->n_draws++, n);
}

static void set_length(fuzz_run *run, uint64_t length) {
    for (int i = 0; i < 8; i++)
        run->bytes[i] = (unsigned char)(length >> (8 * i));
}

/** A small valid file. */
static void make_seed_file(fuzz_run *run) {
    static const char *const headers[] = {
        "{}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}}   ",
        "{\"__metadata__\":{\"format\":\"pt\"},\"w\":{\"dtype\":\"BF16\",\"shape\":[4],"
        "\"data_offsets\":[0,8]},\"e\":{\"dtype\":\"I64\",\"shape\":[0],\"data_offsets\":[8,8]},"
        "\"s\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[8,16]}}",
    };
    static const size_t n_data[] = {0, 16, 16};
    size_t which = draw(run, 3), n = strlen(headers[which]);
    memset(run->bytes, 0, sizeof run->bytes);
    memcpy(run->bytes + 8, headers[which], n);
    run->n_bytes = 8 + n + n_data[which];
    set_length(run, n);
}

static void splice(fuzz_run *run, size_t at, size_t n_removed, const char *text, size_t n) {
    if (n_removed > run->n_bytes - at)
        n_removed = run->n_bytes - at;
    if (run->n_bytes - n_removed + n > MAX_BYTES)
        return;
    memmove(run->bytes + at + n, run->bytes + at + n_removed, run->n_bytes - at - n_removed);
    memcpy(run->bytes + at, text, n);
    run->n_bytes = run->n_bytes - n_removed + n;
}

static void mutate(fuzz_run *run) {
    size_t at = run->n_bytes == 0 ? 0 : draw(run, run->n_bytes);
    const char *word = words[draw(run, N_WORDS)];
    switch (draw(run, 8)) {
    case 0:
        if (run->n_bytes > 0)
            run->bytes[at] ^= (unsigned char)(1 << draw(run, 8));
        break;
    case 1:
        if (run->n_bytes > 0)
            run->bytes[at] = (unsigned char)draw(run, 256);
        break;
    case 2:
        splice(run, at, draw(run, 9), "", 0);
        break;
    case 3:
        splice(run, at, 0, word, strlen(word));
        break;
    case 4:
        splice(run, at, strlen(word), word, strlen(word));
        break;
    case 5: /* zeros */
        splice(run, at, 0, (const char[64]){0}, draw(run, 64));
        break;
    case 6: /* a length that fits again, so that the JSON behind it is reached */
        if (run->n_bytes >= 8)
            set_length(run, draw(run, run->n_bytes - 7));
        break;
    default:
        for (size_t i = 8; i < run->n_bytes; i++) { /* one digit becomes another */
            if (run->bytes[i] >= '0' && run->bytes[i] <= '9' && draw(run, 4) == 0) {
                run->bytes[i] = (unsigned char)('0' + draw(run, 10));
                break;
            }
        }
    }
}

/** Read every byte that an accepted file promises; the sanitizers watch. */
static bool check_accepted(const xp_st_file *file) {
    int64_t n_covered = 0;
    float values[64];
    for (int64_t i = 0; i < xp_st_n_tensors(file); i++) {
        const xp_st_tensor *tensor = xp_st_tensor_at(file, i);
        const unsigned char *data = tensor->data;
        unsigned sum = 0;
        for (int64_t b = 0; b < tensor->n_bytes; b++)
            sum += data[b];
        n_covered += tensor->n_bytes;
        int64_t n = tensor->n_elements < 64 ? tensor->n_elements : 64;
        xp_status status = xp_st_read_f32(tensor, 0, n, values);
        if ((status != XP_OK && status != XP_EFORMAT) || xp_st_find(file, tensor->name) != tensor ||
            sum > 255u * MAX_BYTES)
            return false;
    }
    return n_covered <= xp_st_n_bytes(file) - 8;
}

static bool try_file(fuzz_run *run) {
    FILE *out = fopen(run->path, "wb");
    if (out == NULL)
        return false;
    size_t n = fwrite(run->bytes, 1, run->n_bytes, out);
    if (fclose(out) != 0 || n != run->n_bytes)
        return false;
    xp_st_file *file;
    xp_error_clear();
    xp_status status = xp_st_open(run->path, &file);
    if (status != XP_OK) {
        run->n_refused++;
        return status == XP_EFORMAT && xp_last_error()[0] != '\0';
    }
    run->n_accepted++;
    bool good = check_accepted(file);
    xp_st_close(file);
    return good;
}

int main(int argc, char **argv) {
    double seconds = 3;
    int64_t seed = 1;
    if ((argc > 1 && !xp_parse_f64(argv[1], &seconds)) ||
        (argc > 2 && !xp_parse_i64(argv[2], &seed))) {
        fprintf(stderr, "usage: fuzz_safetensors [SECONDS [SEED]]\n");
        return 2;
    }
    char path[] = "/tmp/xp-fuzz-XXXXXX";
    int fd = mkstemp(path);
    if (fd < 0) {
        perror(path);
        return 1;
    }
    close(fd);
    fuzz_run run = {.seed = (uint64_t)seed, .path = path};
    bool good = true;
    for (double start = xp_time_s(); good && xp_time_s() - start < seconds;) {
        make_seed_file(&run);
        for (uint64_t i = draw(&run, 5); i > 0; i--)
            mutate(&run);
        good = try_file(&run);
    }
    if (good)
        remove(path);
    printf("%lld files accepted, %lld refused\n", (long long)run.n_accepted,
           (long long)run.n_refused);
    if (!good)
        fprintf(stderr, "this file was handled wrongly: %s (%s)\n", path, xp_last_error());
    return good && run.n_accepted > 0 && run.n_refused > 0 ? 0 : 1;
}
