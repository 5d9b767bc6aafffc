#!/bin/sh
# Builds the TypeScript handler to a component: build.sh OUT.wasm
# Needs Node 18 or newer. Its toolchain is taken from $HAPAX_TOOLCHAINS/typescript/node_modules (by default in
# target/toolchains of this repository), and installed there, as package-lock.json pins it, if it is missing or other.
set -eu

out=${1:?usage: build.sh OUT.wasm}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
toolchain=${HAPAX_TOOLCHAINS:-$root/target/toolchains}/typescript

case $out in /*) ;; *) out=$PWD/$out ;; esac
mkdir -p "$(dirname "$out")" "$toolchain"

if [ ! -x "$toolchain/node_modules/.bin/componentize-qjs" ] || [ ! -x "$toolchain/node_modules/.bin/tsc" ] ||
    ! cmp -s "$here/package-lock.json" "$toolchain/package-lock.json"; then
    command -v npm >/dev/null || { echo "build.sh: npm is missing: install Node 18 or newer (https://nodejs.org)" >&2; exit 1; }
    cp "$here/package.json" "$here/package-lock.json" "$toolchain/"
    (cd "$toolchain" && npm ci --no-audit --no-fund --loglevel=error >&2)
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$toolchain/node_modules/.bin/tsc" --project "$here/tsconfig.json" --outDir "$work"
# --sync: the contract's functions are synchronous, and hosts need no support for async components.
"$toolchain/node_modules/.bin/componentize-qjs" --sync --minify \
    --wit "$root/wit" --world compensating-handler --js "$work/handler.js" --output "$work/handler.wasm" >&2
mv "$work/handler.wasm" "$out"
