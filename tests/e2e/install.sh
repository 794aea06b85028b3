#!/usr/bin/env bash
# What is installed is enough for others: headers, library, plug-ins, pkg-config file, CMake package, program. Programs in C
# and in C++ are built against it with the documented commands alone, and run without LD_LIBRARY_PATH.
set -eu
fail() {
    echo "FAILED: $*"
    exit 1
}
for tool in cmake pkg-config cc c++ readelf; do
    command -v $tool >/dev/null || {
        echo "SKIPPED: no $tool"
        exit 77
    }
done
work=$(mktemp -d "${TMPDIR:-/tmp}/expar_install.XXXXXX")
trap 'rm -rf "$work"' EXIT
prefix=$work/prefix
cmake --install "$BUILD" --prefix "$prefix" > "$work/log" || fail "cmake --install: $(tail -n 3 "$work/log")"

pc=$(find "$prefix" -name expar.pc)
[ -n "$pc" ] || fail "no expar.pc"
unset LD_LIBRARY_PATH
export PKG_CONFIG_PATH
PKG_CONFIG_PATH=$(dirname "$pc")
libdir=$(realpath "$(pkg-config --variable=libdir expar)")
version=$(pkg-config --modversion expar)
readelf -d "$libdir/libexpar.so" | grep -q 'SONAME.*\[libexpar.so.0\]' || fail "the soname is not libexpar.so.0"
for plugin in cuda mpi; do
    [ ! -e "$BUILD/lib/libexpar_$plugin.so" ] || [ -e "$libdir/libexpar_$plugin.so" ] ||
        fail "libexpar_$plugin.so was built and not installed"
done
for header in "$SOURCE"/include/expar/*.h; do
    name=expar/$(basename "$header")
    grep -q "\"$name\"" "$SOURCE/include/expar/expar.h" || [ "$name" = expar/expar.h ] ||
        fail "expar/expar.h does not include $name"
    echo "#include <$name>" > "$work/one.c"
    cc -std=c17 -Wall -Wextra -Wpedantic -Werror $(pkg-config --cflags expar) -fsyntax-only "$work/one.c" ||
        fail "$name does not compile alone as C17"
    c++ -std=c++17 -Wall -Wextra -Wpedantic -Werror $(pkg-config --cflags expar) -fsyntax-only -x c++ "$work/one.c" ||
        fail "$name does not compile alone as C++17"
done

# The program finds the hardware descriptions that came with it.
"$prefix/bin/expar" plan --model.flavor tiny_moe --training.dtype bfloat16 --gpu b200 --json > "$work/plan" ||
    fail "the installed program does not plan"

# Interface functions have the interface's version, all others the private one.
nm -D --defined-only "$libdir/libexpar.so" > "$work/symbols"
for symbol in xp_version xp_ep_dispatch xp_moe_forward xp_comm_all_reduce xp_fused_silu_gate_prob; do
    grep -q " $symbol@@EXPAR_0\$" "$work/symbols" || fail "$symbol is not in the node EXPAR_0"
done
grep -q " xp_config_load@@EXPAR_PRIVATE_$version\$" "$work/symbols" || fail "xp_config_load is not private"
strangers=$(awk '$2 != "A" {print $3}' "$work/symbols" | grep -v '^xp_' || true)
[ -z "$strangers" ] || fail "symbols outside xp_: $strangers"

# Through pkg-config, as documented.
rpath=$(pkg-config --variable=rpath expar)
cc -std=c17 -Wall -Wextra -Werror $(pkg-config --cflags expar) "$SOURCE/examples/ep_roundtrip.c" \
    $(pkg-config --libs expar) $rpath -lpthread -lm -o "$work/roundtrip" || fail "the C program"
"$work/roundtrip" 2 || fail "the C program ends with an error"
c++ -std=c++17 -Wall -Wextra -Werror $(pkg-config --cflags expar) "$SOURCE/tests/e2e/install/layer.cpp" \
    $(pkg-config --libs expar) $rpath -o "$work/layer" || fail "the C++ program"
[ "$("$work/layer")" = "expar $version" ] || fail "the C++ program: $("$work/layer" 2>&1)"

# Through CMake, in C and C++, from a prefix that has been moved.
mkdir "$work/outside"
mv "$prefix" "$work/moved"
cat > "$work/outside/CMakeLists.txt" <<CMAKE
cmake_minimum_required(VERSION 3.22)
project(outside LANGUAGES C CXX)
find_package(expar ${version%.*} REQUIRED)
find_package(Threads REQUIRED)
add_executable(roundtrip "$SOURCE/examples/ep_roundtrip.c")
target_link_libraries(roundtrip PRIVATE expar::expar Threads::Threads m)
add_executable(layer "$SOURCE/tests/e2e/install/layer.cpp")
target_link_libraries(layer PRIVATE expar::expar)
message(STATUS "MPI \${expar_HAVE_MPI}")
CMAKE
cmake -S "$work/outside" -B "$work/outside/build" -DCMAKE_PREFIX_PATH="$work/moved" > "$work/log" 2>&1 ||
    fail "find_package(expar): $(tail -n 5 "$work/log")"
[ ! -e "$BUILD/lib/libexpar_mpi.so" ] || grep -q "MPI ON" "$work/log" || fail "expar_HAVE_MPI is off"
cmake --build "$work/outside/build" > "$work/log" 2>&1 || fail "expar::expar: $(tail -n 20 "$work/log")"
"$work/outside/build/roundtrip" 2 || fail "the C program of CMake"
[ "$("$work/outside/build/layer")" = "expar $version" ] || fail "the C++ program of CMake"
ldd "$work/outside/build/layer" | grep -q "$(realpath "$work/moved")" || fail "the program of CMake uses another library"
mv "$work/moved" "$prefix"

# The programs of docs/howto/use-from-c.md, as printed: alone, and two EP groups of two processes.
program() { # LANGUAGE FILE
    sed -n "/^\`\`\`$1\$/,/^\`\`\`\$/{/^\`\`\`/d;p}" "$SOURCE/docs/howto/use-from-c.md" > "$work/$2"
    [ -s "$work/$2" ] || fail "use-from-c.md has no program in $1"
}
program cpp trainer.cpp
program c guest.c
c++ -std=c++17 -Wall -Wextra -Werror "$work/trainer.cpp" $(pkg-config --cflags --libs expar) $rpath \
    -o "$work/trainer" || fail "the program of use-from-c.md does not compile"
[ "$("$work/trainer")" = "rank 0 of 1: 0 of 1536 values are wrong" ] || fail "the program of use-from-c.md: $("$work/trainer" 2>&1)"
cc -std=gnu17 -Wall -Wextra -Werror "$work/guest.c" $(pkg-config --cflags --libs expar) $rpath -o "$work/guest" ||
    fail "guest.c of use-from-c.md does not compile"
"$work/guest" > "$work/lines" || fail "guest.c of use-from-c.md"
[ "$(wc -l < "$work/lines")" -eq 2 ] && [ "$(cut -d: -f2 "$work/lines" | sort -u | wc -l)" -eq 1 ] ||
    fail "the two ranks of guest.c differ: $(cat "$work/lines")"
if [ -e "$libdir/libexpar_mpi.so" ] && command -v mpirun >/dev/null; then
    root=()
    [ "$(id -u)" -ne 0 ] || root=(--allow-run-as-root)
    mpirun "${root[@]}" --oversubscribe -n 4 "$work/trainer" 2 > "$work/ranks" || fail "use-from-c.md on 4 ranks"
    [ "$(grep -c ': 0 of 1536 values are wrong$' "$work/ranks")" -eq 4 ] || fail "use-from-c.md on 4 ranks: $(cat "$work/ranks")"
    # And a trainer with its own MPI, by the command at its top.
    c++ -std=c++17 "$SOURCE/examples/trainer.cpp" $(pkg-config --cflags --libs expar) $rpath \
        $(mpicxx --showme:compile) $(mpicxx --showme:link) -o "$work/own" || fail "examples/trainer.cpp does not compile"
    mpirun "${root[@]}" --oversubscribe -n 4 "$work/own" 2 > "$work/ranks" || fail "examples/trainer.cpp: $(cat "$work/ranks")"
    grep -q "^4 ranks, experts over 2: loss" "$work/ranks" || fail "examples/trainer.cpp: $(cat "$work/ranks")"
fi

cd "$work"
[ "$("$prefix"/bin/expar --version)" = "expar $version" ] || fail "expar --version"
"$prefix"/bin/expar config --training.steps 7 | grep -q '^steps = 7' || fail "expar config"
ldd "$prefix/bin/expar" | grep -q "$(realpath "$prefix")" || fail "the installed program does not use the installed library"
echo "installed, compiled in C and C++, ran"
