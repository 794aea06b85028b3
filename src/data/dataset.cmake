xp_subsystem(dataset
    SOURCES data_files.c byte_source.c json_line.c documents.c token_file.c chunk_hash.c token_cache.c token_cache_map.c
            mixture.c source.c dataset.c loader.c
    LIBS PkgConfig::ZLIB PkgConfig::ZSTD PkgConfig::XXHASH
    DEPENDS tokenizer core)
