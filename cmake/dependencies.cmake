# Libraries, found through pkg-config; scripts/setup.sh installs them.
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
pkg_check_modules(JANSSON REQUIRED IMPORTED_TARGET jansson)
pkg_check_modules(ZLIB REQUIRED IMPORTED_TARGET zlib)
pkg_check_modules(ZSTD REQUIRED IMPORTED_TARGET libzstd)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(OPENBLAS REQUIRED IMPORTED_TARGET openblas)
if(XP_TESTS)
    pkg_check_modules(CMOCKA REQUIRED IMPORTED_TARGET cmocka)
endif()
# A build folder that is carried to a machine without these libraries: they lie beside libexpar.so, where every program of
# the folder looks first. (Debian's archives are not position independent, so they cannot go into it.) OpenBLAS stays outside.
option(XP_BUNDLE_DEPS "copy PCRE2, utf8proc, Jansson, zlib, Zstandard, xxHash and cmocka beside libexpar.so" OFF)
if(XP_BUNDLE_DEPS)
    set(CMAKE_BUILD_RPATH "$ORIGIN/../lib")
    # The rest is copied by scripts/bundle_libraries.sh; cmocka is not a library of libexpar.so.
    if(XP_TESTS)
        list(GET CMOCKA_LINK_LIBRARIES 0 cmocka)
        file(GLOB cmocka_soname ${cmocka}.[0-9])
        get_filename_component(cmocka_name ${cmocka_soname} NAME)
        # the whole name: into a folder that is not there yet the file itself would be called lib
        configure_file(${cmocka_soname} ${CMAKE_BINARY_DIR}/lib/${cmocka_name} COPYONLY)
    endif()
endif()
