#!/bin/sh
# Builds the TypeScript handler to a component: build.sh OUT.wasm. With --toolchain it only installs what that needs.
# build.sh OUT.wasm SOURCES WORLD builds the src/handler.ts of another folder with its tsconfig.json, for that world of
# the contract.
# Needs Node 18 or newer. Its toolchain is taken from $HAPAX_TOOLCHAINS/typescript/node_modules (by default in
# target/toolchains of this repository), and installed there, as package-lock.json pins it, if it is missing or other.
set -eu

out=${1:?usage: build.sh OUT.wasm [SOURCES [WORLD]], or build.sh --toolchain}
here=$(cd "$(dirname "$0")" && pwd)
sources=${2:-$here}
world=${3:-compensating-handler}
root=$(cd "$here/../../.." && pwd)
toolchain=${HAPAX_TOOLCHAINS:-$root/target/toolchains}/typescript
bin=$toolchain/node_modules/.bin

# componentize-qjs has no --version of its own; what is installed is what the lock file beside it says.
works() {
    cmp -s "$here/package-lock.json" "$toolchain/package-lock.json" &&
        "$bin/tsc" --version >/dev/null 2>&1 && "$bin/componentize-qjs" --help >/dev/null 2>&1
}
if ! works; then
    command -v npm >/dev/null || { echo "build.sh: npm is missing: install Node 18 or newer (https://nodejs.org)" >&2; exit 1; }
    echo "build.sh: installing componentize-qjs and tsc into $toolchain" >&2
    rm -rf "$toolchain"
    mkdir -p "$toolchain"
    cp "$here/package.json" "$here/package-lock.json" "$toolchain/"
    (cd "$toolchain" && npm ci --no-audit --no-fund --loglevel=error --ignore-scripts </dev/null >&2)
    works || { echo "build.sh: componentize-qjs and tsc were installed into $toolchain, but do not run" >&2; exit 1; }
fi
[ "$out" != --toolchain ] || exit 0

case $out in /*) ;; *) out=$PWD/$out ;; esac
mkdir -p "$(dirname "$out")"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$bin/tsc" --project "$sources/tsconfig.json" --outDir "$work"
# --sync: the contract's functions are synchronous, and hosts need no support for async components.
"$bin/componentize-qjs" --sync --minify \
    --wit "$root/wit" --world "$world" --js "$work/handler.js" --output "$work/handler.wasm" >&2
mv "$work/handler.wasm" "$out"
