#!/bin/sh
# Builds the Python handler to a component: build.sh OUT.wasm. With --toolchain it only installs what that needs.
# build.sh OUT.wasm SOURCES WORLD builds the app.py of another folder, for that world of the contract.
# Needs Python 3.10 or newer with venv. Its toolchain is taken from $HAPAX_TOOLCHAINS/python (by default in
# target/toolchains of this repository), and installed there, as requirements.txt pins it, if it is missing or other.
set -eu

out=${1:?usage: build.sh OUT.wasm [SOURCES [WORLD]], or build.sh --toolchain}
here=$(cd "$(dirname "$0")" && pwd)
sources=${2:-$here}
world=${3:-compensating-handler}
root=$(cd "$here/../../.." && pwd)
toolchain=${HAPAX_TOOLCHAINS:-$root/target/toolchains}/python

version=$(sed -n 's/^componentize-py==//p' "$here/requirements.txt")
works() { [ "$("$toolchain/bin/componentize-py" --version 2>/dev/null)" = "componentize-py $version" ]; }
if ! works; then
    echo "build.sh: installing componentize-py $version into $toolchain" >&2
    rm -rf "$toolchain"
    mkdir -p "$(dirname "$toolchain")"
    python3 -m venv "$toolchain" || {
        echo "build.sh: Python 3.10 or newer with venv is missing: on Debian, apt-get install python3-venv" >&2
        exit 1
    }
    "$toolchain/bin/pip" install --quiet --no-input --disable-pip-version-check --requirement "$here/requirements.txt" \
        </dev/null >&2
    works || { echo "build.sh: componentize-py $version was installed into $toolchain, but does not run" >&2; exit 1; }
fi
[ "$out" != --toolchain ] || exit 0

case $out in /*) ;; *) out=$PWD/$out ;; esac
mkdir -p "$(dirname "$out")"

# The world's bindings are made by componentize-py itself. Only the one source file may end up in the component.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/app"
cp "$sources/app.py" "$work/app/"
env -u VIRTUAL_ENV "$toolchain/bin/componentize-py" --quiet --wit-path "$root/wit" --world "$world" \
    componentize --python-path "$work/app" --output "$work/handler.wasm" app >&2
mv "$work/handler.wasm" "$out"
