xp_subsystem(dataset
    SOURCES documents.c token_cache.c dataset.c loader.c
    LIBS PkgConfig::JANSSON PkgConfig::ZLIB
    DEPENDS tokenizer core)
