#!/bin/sh
# Installs what the classic recipe in Node and in Python needs, each as its lock file pins it: setup.sh [node] [python]
# (both when none is named). Quick when nothing is missing, asks no questions.
# Needs Node 18 or newer, and Python 3.11 or newer with venv. Goes into $HAPAX_TOOLCHAINS/classic-node and
# $HAPAX_TOOLCHAINS/classic-python (by default in target/toolchains of this repository).
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
toolchains=${HAPAX_TOOLCHAINS:-$root/target/toolchains}

say() { echo "setup.sh: $*" >&2; }
stop() {
    say "$@"
    exit 1
}

# What is installed is what the lock file beside it says; the file is put there last.
setup_node() {
    toolchain=$toolchains/classic-node
    works() {
        cmp -s "$here/node/package-lock.json" "$toolchain/package-lock.json" &&
            NODE_PATH=$toolchain/node_modules node -e 'for (const name of ["amqplib", "ioredis", "pg"]) require(name)'
    }
    ! works || return 0
    command -v npm >/dev/null || stop "npm is missing: install Node 18 or newer (https://nodejs.org)"
    say "installing amqplib, ioredis and pg into $toolchain"
    rm -rf "$toolchain"
    mkdir -p "$toolchain"
    cp "$here/node/package.json" "$here/node/package-lock.json" "$toolchain/"
    (cd "$toolchain" && npm ci --no-audit --no-fund --loglevel=error --ignore-scripts </dev/null >&2)
    works || stop "amqplib, ioredis and pg were installed into $toolchain, but do not load"
}

setup_python() {
    toolchain=$toolchains/classic-python
    works() {
        cmp -s "$here/python/requirements.txt" "$toolchain/requirements.txt" &&
            "$toolchain/bin/python" -c 'import aio_pika, hiredis, psycopg, psycopg_binary, redis, uvloop'
    }
    ! works || return 0
    say "installing aio-pika, psycopg, redis and uvloop into $toolchain"
    rm -rf "$toolchain"
    mkdir -p "$toolchains"
    python3 -m venv "$toolchain" ||
        stop "Python 3.11 or newer with venv is missing: on Debian, apt-get install python3-venv"
    "$toolchain/bin/pip" install --quiet --no-input --disable-pip-version-check \
        --requirement "$here/python/requirements.txt" </dev/null >&2
    cp "$here/python/requirements.txt" "$toolchain/"
    works || stop "aio-pika, psycopg, redis and uvloop were installed into $toolchain, but do not load"
}

[ $# -gt 0 ] || set -- node python
for language; do
    case $language in
        node | python) "setup_$language" ;;
        *) stop "$language is unknown; there are node and python" ;;
    esac
done
