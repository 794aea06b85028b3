#!/bin/sh
# How long one reader is fuzzed: 5 s with sanitizers (CI's asan build), 1 s without, 60 s with XP_TEST_LONG.
seconds=1
[ "$XP_FUZZ_SANITIZED" = ON ] && seconds=5
[ -n "$XP_TEST_LONG" ] && seconds=60
exec "$1" "$2" --seconds "$seconds"
