#!/bin/sh
# kernel.c to WebAssembly, byte for byte the same on every machine with this compiler.
set -eu
cd "$(dirname "$0")"
wasm=../../src/tutti/adapters/browser/kernel.wasm
"${CLANG:-clang-14}" --target=wasm32 -O3 -msimd128 -mbulk-memory -ffp-contract=off \
    -nostdlib -Wall -Wextra -Wno-unused-function -Iinclude -I../../src/tutti/sim/engines \
    -Wl,--no-entry -Wl,--strip-all -Wl,--initial-memory=1048576 -Wl,-z,stack-size=262144 \
    -o "$wasm" kernel.c libc.c shuffle.c blake3.c
chmod 644 "$wasm"
