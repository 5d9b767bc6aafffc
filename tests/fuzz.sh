#!/usr/bin/env bash
# Fuzzes what reads foreign bytes, guided by coverage, SECONDS for each test. Inputs that reach new code are kept in
# `__fuzz__` beside the test, reduced to as few as reach the same: `cargo test` tries them again. Usage:
#
#   tests/fuzz.sh SECONDS [TEXT]      (only tests in whose names TEXT is)
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=$1
only=${2:-}

bolero=${HAPAX_TOOLCHAINS:-$PWD/target/toolchains}/bolero/bin/cargo-bolero
# Coverage is an option of the compiler that a stable one has to be talked into. No sanitizer: there is no `unsafe` here.
build=(--sanitizer NONE --rustc-bootstrap --target-dir "${CARGO_TARGET_DIR:-target}/fuzz")

for package in hapax hapax-tests; do
    # {"package":"hapax","test":"config::tests::fuzz::any_text_is_read_or_refused"}
    for test in $("$bolero" bolero list -p $package "${build[@]}" | sed -n 's/.*"test":"\([^"]*\)".*/\1/p'); do
        case $test in *"$only"*) ;; *) continue ;; esac
        echo "fuzz: $package $test" >&2
        "$bolero" bolero test -p $package "${build[@]}" -T "${seconds}s" -l 4096 "$test"
        "$bolero" bolero reduce -p $package "${build[@]}" "$test"
    done
done
