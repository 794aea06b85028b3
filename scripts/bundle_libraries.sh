#!/bin/sh
# Copy the small libraries that a shared object needs beside it: bundle_libraries.sh path/to/libexpar.so
set -eu
folder=$(dirname "$1")
ldd "$1" | awk '/=> \// {print $1, $3}' | while read -r name path; do
    case $name in
    libpcre2-8.so* | libutf8proc.so* | libjansson.so* | libz.so* | libzstd.so* | libxxhash.so*)
        [ "$(dirname "$path")" = "$folder" ] || cp -fL "$path" "$folder/$name" ;;
    esac
done
