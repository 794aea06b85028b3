/* Ids of many strings, for comparing engines: token_ids TOKENIZER STRINGS > IDS. Both files are
 * sequences of records: a little-endian uint32 count, then as many bytes (STRINGS) or uint32 ids
 * (IDS). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/file.h"
#include "data/tokenizer.h"

static int fail(void) {
    fprintf(stderr, "error: %s\n", xp_last_error());
    return 1;
}

static bool write_ids(const xp_token_list *list) {
    uint32_t n = (uint32_t)list->n;
    return fwrite(&n, sizeof(n), 1, stdout) == 1 &&
           fwrite(list->ids, sizeof(int32_t), n, stdout) == n;
}

static xp_status encode_all(const xp_tokenizer *tokenizer, bool special, const xp_file_map *map) {
    xp_token_list list = {0};
    xp_status status = XP_OK;
    size_t at = 0;
    while (status == XP_OK && at + 4 <= map->n_bytes) {
        const unsigned char *b = map->data + at;
        size_t n = b[0] | (size_t)b[1] << 8 | (size_t)b[2] << 16 | (size_t)b[3] << 24;
        at += 4;
        if (n > map->n_bytes - at) {
            status = xp_error(XP_EFORMAT, "a record past the end of the file");
            break;
        }
        list.n = 0;
        const char *text = (const char *)map->data + at;
        status = special ? xp_tokenizer_encode_special(tokenizer, text, n, &list)
                         : xp_tokenizer_encode(tokenizer, text, n, &list);
        if (status == XP_OK && !write_ids(&list))
            status = xp_error(XP_EIO, "cannot write");
        at += n;
    }
    xp_token_list_free(&list);
    return status;
}

static int train(const char *folder, const char *vocab, const char *text) {
    int64_t n_merges = 0;
    xp_tokenizer_train_args args = {
        .n_files = 1, .files = &text, .vocab_size = atoi(vocab), .out_folder = folder};
    return xp_tokenizer_train(&args, &n_merges) == XP_OK ? 0 : fail();
}

int main(int argc, char **argv) {
    if (argc == 5 && strcmp(argv[1], "--train") == 0)
        return train(argv[2], argv[3], argv[4]);
    bool special = argc == 4 && strcmp(argv[1], "--special") == 0;
    if (argc != 3 && !special) {
        fprintf(stderr, "usage: token_ids [--special] TOKENIZER STRINGS > IDS\n");
        return 2;
    }
    xp_tokenizer *tokenizer = NULL;
    xp_file_map map = {0};
    if (xp_tokenizer_load(argv[argc - 2], &tokenizer) != XP_OK)
        return fail();
    if (xp_file_map_open(argv[argc - 1], &map) != XP_OK) {
        xp_tokenizer_destroy(tokenizer);
        return fail();
    }
    xp_status status = encode_all(tokenizer, special, &map);
    xp_file_map_close(&map);
    xp_tokenizer_destroy(tokenizer);
    return status == XP_OK ? 0 : fail();
}
