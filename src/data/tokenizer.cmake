xp_subsystem(tokenizer
    SOURCES tokenizer.c tokenizer_load.c tokenizer_names.c tokenizer_steps.c tokenizer_json.c token_list.c byte_level.c added_tokens.c bpe.c bpe_long.c nfc.c
            pattern.c pattern_parse.c charset.c unicode_tables.c unicode_nfc_tables.c libraries.c
    LIBS PkgConfig::PCRE2 PkgConfig::UTF8PROC PkgConfig::JANSSON PkgConfig::ZLIB PkgConfig::ZSTD PkgConfig::XXHASH
    DEPENDS core)
xp_subsystem(tokenizer_train
    SOURCES tokenizer_train.c word_counts.c bpe_train.c
    DEPENDS dataset tokenizer core)
