/** One file of token ids, mapped: raw little-endian uint32 or uint16, or llm.c's file with a header. Every other type that
 * a .bin file is taken for by mistake is refused by its name. */
#ifndef XP_DATA_TOKEN_FILE_H
#define XP_DATA_TOKEN_FILE_H

#include "core/file.h"

typedef struct xp_token_file {
    xp_file_map map;
    const unsigned char *ids; /* of the map, past a header */
    int64_t n;
    int id_bytes; /* 2 or 4 */
    const char *
        kind; /* for people: "32-bit ids", "16-bit ids (nanoGPT)", "llm.c, 16-bit ids". Static storage */
} xp_token_file;

/**
 * @param type  "uint32", "uint16", or "auto": by llm.c's header, by Megatron's .idx file of the same name, else by what
 *              the ids look like
 * @param vocab_size  an id at or above it is none
 * @return XP_OK; XP_EIO, XP_ENOENT; XP_EFORMAT: another type, named, or not a whole number of ids
 */
XP_NODISCARD xp_status xp_token_file_open(const char *path, const char *type, int64_t vocab_size,
                                          xp_token_file *file);
void xp_token_file_close(xp_token_file *file);
/** The i-th id, 0 <= i < n. */
uint32_t xp_token_file_id(const xp_token_file *file, int64_t i);

#endif
