#include "data/token_file.h"

#include <stdlib.h>
#include <string.h>

#include "core/text.h"
#include "data/data_files.h"

/* llm.c: 256 int32: magic, version, number of ids, zeros; then the ids. */
#define LLMC_HEADER_BYTES 1024
#define LLMC_GPT2         20240520 /* version 1: uint16 */
#define LLMC_LLAMA3       20240801 /* version 7: uint32 */
#define LLMC_EVAL         20240522
#define SAMPLE            8192 /* ids looked at from the front and from the back */
#define MIN_SAMPLE        16   /* fewer ids look like anything */

uint32_t xp_token_file_id(const xp_token_file *file, int64_t i) {
    const unsigned char *b = file->ids + i * file->id_bytes;
    uint32_t low = b[0] | (uint32_t)b[1] << 8;
    return file->id_bytes == 2 ? low : low | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

static uint32_t word_at(const unsigned char *b) {
    return b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

static xp_status mistaken(const char *path, const char *what) {
    return xp_error(XP_EFORMAT,
                    "%s holds %s; token files are raw little-endian uint32 or uint16 ids, or "
                    "llm.c's",
                    path, what);
}

/* Files that say themselves what they are. */
static const struct {
    const char *bytes;
    size_t n;
    const char *what;
} signatures[] = {
    {"\x93NUMPY", 6,
     "a NumPy array (.npy): numpy.load(FILE).astype('<u4').tofile('ids.bin') writes its ids"},
    {"PK\x03\x04", 4, "a zip archive (.npz or PyTorch)"},
    {"\x80\x04\x95", 3, "a Python pickle"},
    {"\x80\x05\x95", 3, "a Python pickle"},
    {"\x1f\x8b\x08", 3, "gzip: unpack it first"},
    {"\x28\xb5\x2f\xfd", 4, "Zstandard: unpack it first"},
    {"PAR1", 4, "Parquet"},
    {"ARROW1", 6, "Arrow"},
    {"\xff\xff\xff\xff\x10\x00\x00\x00", 8, "Arrow"},
    {"MMIDIDX", 7, "Megatron's index (.idx); the ids are in the .bin beside it"},
    {"version https://git-lfs", 23, "a Git LFS pointer, not the data: `git lfs pull` fetches it"},
    {"GGUF", 4, "a GGUF model"},
};

/* A first id that the vocabulary has is an id. */
static xp_status check_signature(const char *path, const xp_file_map *map, int64_t vocab_size) {
    if (map->n_bytes < 4 || (int64_t)word_at(map->data) < vocab_size)
        return XP_OK;
    for (size_t i = 0; i < sizeof signatures / sizeof signatures[0]; i++)
        if (map->n_bytes >= signatures[i].n &&
            memcmp(map->data, signatures[i].bytes, signatures[i].n) == 0)
            return mistaken(path, signatures[i].what);
    return XP_OK;
}

/* What was seen of the file's front and back, in units of 8 bytes. */
typedef struct look {
    int64_t n;           /* of 8 bytes */
    int64_t big32;       /* uint32 at or above the vocabulary */
    int64_t big16;       /* uint16 at or above it */
    int64_t zero_high32; /* second uint32 is zero: small 64-bit integers */
    int64_t swapped32; /* uint32 below the vocabulary when its bytes are turned round, and not 0 */
    int64_t floats;    /* float32 of a magnitude that data has, or a whole number */
    int64_t doubles;
    int64_t text;               /* eight printable bytes */
    uint32_t top_even, top_odd; /* the largest uint16 at even and at odd places */
} look;

static uint32_t swap32(uint32_t x) {
    return x >> 24 | (x >> 8 & 0xff00) | (x << 8 & 0xff0000) | x << 24;
}

static bool is_float(uint32_t bits) {
    uint32_t exponent = bits >> 23 & 0xff;
    return exponent >= 127 - 20 && exponent <= 127 + 20;
}

static void look_at(look *l, const unsigned char *b, int64_t vocab_size) {
    l->n++;
    for (int i = 0; i < 2; i++) {
        uint32_t word = word_at(b + 4 * i), low = word & 0xffff, high = word >> 16;
        uint32_t turned = swap32(word);
        l->big32 += (int64_t)word >= vocab_size;
        l->big16 += ((int64_t)low >= vocab_size) + ((int64_t)high >= vocab_size);
        l->swapped32 += (int64_t)turned < vocab_size && word != 0;
        l->floats += is_float(word);
        l->top_even = low > l->top_even ? low : l->top_even;
        l->top_odd = high > l->top_odd ? high : l->top_odd;
    }
    uint32_t second = word_at(b + 4), exponent = second >> 20 & 0x7ff;
    l->zero_high32 += second == 0;
    l->doubles += exponent >= 1023 - 30 && exponent <= 1023 + 30;
    bool printable = true;
    for (int i = 0; i < 8; i++)
        printable = printable && ((b[i] >= ' ' && b[i] < 0x7f) || b[i] == '\n' || b[i] == '\t');
    l->text += printable;
}

static look look_over(const xp_token_file *file, size_t n_bytes, int64_t vocab_size) {
    look l = {0};
    int64_t units = (int64_t)(n_bytes / 8), front = units < SAMPLE ? units : SAMPLE;
    for (int64_t i = 0; i < front; i++)
        look_at(&l, file->ids + 8 * i, vocab_size);
    for (int64_t i = units - SAMPLE > front ? units - SAMPLE : front; i < units; i++)
        look_at(&l, file->ids + 8 * i, vocab_size);
    return l;
}

/* The type that most ids speak for, when they do not read as uint32 (or, asked for, uint16). */
static const char *name_mistake(const look *l) {
    int64_t most = l->n - l->n / 16; /* of n; a few may be anything */
    if (l->text >= most)
        return "text (training.dataset = \"text\")";
    if (l->doubles >= most && l->floats < 2 * most)
        return "64-bit floating-point numbers";
    if (l->floats >= 2 * most)
        return "32-bit floating-point numbers";
    if (l->swapped32 >= 2 * most)
        return "big-endian 32-bit integers";
    return NULL;
}

/* Both halves of a uint32 are ids of one vocabulary: their largest values are alike. The high halves of real uint32 ids are
 * small. */
static bool looks_16_bit(const look *l) {
    return l->big16 == 0 && l->big32 > l->n / 4 && l->top_odd >= l->top_even / 4;
}

static xp_status set_raw(const char *path, int id_bytes, size_t n_bytes, xp_token_file *file) {
    if (n_bytes % (size_t)id_bytes != 0)
        return xp_error(XP_EFORMAT,
                        "%s has %zu bytes, no multiple of %d: token files are raw little-endian "
                        "uint%d",
                        path, file->map.n_bytes, id_bytes, 8 * id_bytes);
    file->id_bytes = id_bytes;
    file->n = (int64_t)(n_bytes / (size_t)id_bytes);
    file->kind = id_bytes == 2 ? "16-bit ids" : "32-bit ids";
    return XP_OK;
}

/* A header of llm.c that does not fit its file is damage, not luck: *found all the same. */
static xp_status read_llmc(const char *path, xp_token_file *file, bool *found) {
    const xp_file_map *map = &file->map;
    uint32_t magic = map->n_bytes >= 12 ? word_at(map->data) : 0;
    *found = false;
    if (magic != LLMC_GPT2 && magic != LLMC_LLAMA3 && magic != LLMC_EVAL)
        return XP_OK;
    uint32_t version = word_at(map->data + 4), n = word_at(map->data + 8);
    bool zeros = map->n_bytes >= LLMC_HEADER_BYTES;
    for (size_t i = 12; zeros && i < LLMC_HEADER_BYTES; i++)
        zeros = map->data[i] == 0;
    if (!zeros) /* ids that begin with such a number */
        return XP_OK;
    *found = true;
    if (magic == LLMC_EVAL)
        return mistaken(path, "llm.c's multiple-choice evaluation data, no running text");
    int id_bytes = magic == LLMC_GPT2 ? 2 : 4;
    if (version != (magic == LLMC_GPT2 ? 1U : 7U))
        return xp_error(XP_EFORMAT,
                        "%s: llm.c's token file of version %u; versions 1 (uint16) and "
                        "7 (uint32) are read",
                        path, version);
    if (map->n_bytes != LLMC_HEADER_BYTES + (size_t)n * (size_t)id_bytes)
        return xp_error(XP_EFORMAT,
                        "%s: llm.c's header says %u ids of %d bytes, the file has %zu bytes after "
                        "it: cut off or damaged",
                        path, n, id_bytes, map->n_bytes - LLMC_HEADER_BYTES);
    file->ids = map->data + LLMC_HEADER_BYTES;
    file->n = n;
    file->id_bytes = id_bytes;
    file->kind = id_bytes == 2 ? "llm.c, 16-bit ids" : "llm.c, 32-bit ids";
    return XP_OK;
}

/* Megatron keeps the type of FILE.bin in FILE.idx: magic of 9 bytes, version (8), type (1). */
static xp_status read_megatron(const char *path, xp_token_file *file, bool *found) {
    static const char *const names[] = {"?",     "uint8",   "int8",    "int16", "int32",
                                        "int64", "float64", "float32", "uint16"};
    *found = false;
    if (!xp_data_name_ends(path, ".bin"))
        return XP_OK;
    xp_text index = {0};
    xp_text_add(&index, path, strlen(path) - strlen(".bin"));
    xp_text_puts(&index, ".idx");
    xp_file_map map;
    xp_status status = index.failed ? xp_error(XP_ENOMEM, "%s: out of memory", path)
                                    : xp_file_map_open(index.data, &map);
    xp_text_free(&index);
    if (status == XP_ENOENT) {
        xp_error_clear();
        return XP_OK;
    }
    XP_TRY(status);
    *found = map.n_bytes >= 18 && memcmp(map.data, "MMIDIDX\0\0", 9) == 0;
    int type = *found ? map.data[17] : 0;
    xp_file_map_close(&map);
    if (!*found)
        return XP_OK;
    if (type != 4 && type != 8)
        return xp_error(XP_EFORMAT,
                        "%s holds %s ids (Megatron's .idx file says so); uint16 and "
                        "int32 are read",
                        path, type >= 1 && type <= 8 ? names[type] : "unknown");
    XP_TRY(set_raw(path, type == 8 ? 2 : 4, file->map.n_bytes, file));
    file->kind = type == 8 ? "Megatron, 16-bit ids" : "Megatron, 32-bit ids";
    return XP_OK;
}

/* No header: what the ids look like decides. */
static xp_status guess(const char *path, int64_t vocab_size, xp_token_file *file) {
    size_t n_bytes = file->map.n_bytes;
    look l = look_over(file, n_bytes, vocab_size);
    if (l.n >= MIN_SAMPLE / 2) {
        if (n_bytes % 8 == 0 && l.zero_high32 == l.n && l.top_even > 0)
            return mistaken(path, "64-bit integers: numpy.fromfile(FILE, '<i8').astype('<u4')"
                                  ".tofile('ids.bin') writes ids that are read");
        if (n_bytes % 2 == 0 && looks_16_bit(&l)) {
            XP_TRY(set_raw(path, 2, n_bytes, file));
            file->kind = "16-bit ids (as nanoGPT writes them)";
            return XP_OK;
        }
        const char *mistake = l.big32 > l.n / 4 ? name_mistake(&l) : NULL;
        if (mistake != NULL)
            return mistaken(path, mistake);
    }
    return set_raw(path, 4, n_bytes, file);
}

static xp_status recognise(const char *path, const char *type, int64_t vocab_size,
                           xp_token_file *file) {
    bool found;
    XP_TRY(read_llmc(path, file, &found));
    if (found)
        return XP_OK;
    XP_TRY(check_signature(path, &file->map, vocab_size));
    if (strcmp(type, "auto") != 0)
        return set_raw(path, strcmp(type, "uint16") == 0 ? 2 : 4, file->map.n_bytes, file);
    XP_TRY(read_megatron(path, file, &found));
    return found ? XP_OK : guess(path, vocab_size, file);
}

xp_status xp_token_file_open(const char *path, const char *type, int64_t vocab_size,
                             xp_token_file *file) {
    xp_token_file made = {0};
    XP_TRY(xp_file_map_open(path, &made.map));
    made.ids = made.map.data;
    xp_status status = recognise(path, type, vocab_size, &made);
    if (status != XP_OK) {
        xp_file_map_close(&made.map);
        return status;
    }
    *file = made;
    return XP_OK;
}

void xp_token_file_close(xp_token_file *file) {
    xp_file_map_close(&file->map);
    *file = (xp_token_file){0};
}
