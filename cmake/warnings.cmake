# Flags of every target. Warnings are errors; no global fast-math.
# Counts and sizes mix int64_t and size_t by design; messages that are cut are cut on purpose.
set(XP_C_FLAGS -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Wvla -Werror
    -Wno-sign-conversion -Wno-format-truncation -fno-math-errno -ffp-contract=off)
add_compile_options("$<$<COMPILE_LANGUAGE:C>:${XP_C_FLAGS}>")
add_compile_definitions($<$<COMPILE_LANGUAGE:C>:_GNU_SOURCE>)
if(XP_SANITIZE_ADDRESS OR XP_SANITIZE_THREAD)
    # Without the later passes of -O2, which the release build has, GCC sees sizes that cannot be.
    add_compile_options(-Wno-alloc-size-larger-than)
endif()
if(XP_SANITIZE_ADDRESS)
    add_compile_options(-fsanitize=address,undefined -fno-omit-frame-pointer -fno-sanitize-recover=undefined)
    add_link_options(-fsanitize=address,undefined)
elseif(XP_SANITIZE_THREAD)
    add_compile_options(-fsanitize=thread -fno-omit-frame-pointer)
    add_link_options(-fsanitize=thread)
endif()
