#!/usr/bin/env bash
# Fuzzes what reads foreign bytes, guided by coverage, SECONDS for each test. Of the inputs that it finds (all of them
# stay in target/fuzz/corpus) one for each place in the code is kept in `__fuzz__` beside the test, where `cargo test`
# finds it; so is one that makes the test fail. Usage:
#
#   tests/fuzz.sh SECONDS [TEXT]      (only tests in whose names TEXT is)
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=$1
only=${2:-}

target=${CARGO_TARGET_DIR:-$PWD/target}
bolero=${HAPAX_TOOLCHAINS:-$target/toolchains}/bolero/bin/cargo-bolero
# Coverage is an option of the compiler that a stable one has to be talked into. No sanitizer: there is no `unsafe` here.
build=(--sanitizer NONE --rustc-bootstrap --target-dir "$target/fuzz")
longest=4096

tests="
hapax broker::amqp::fuzz::properties_keep_their_image
hapax broker::amqp::fuzz::any_frames_pass_in_full
hapax config::tests::fuzz::any_text_is_read_or_refused
hapax guest::fuzz::any_file_is_loaded_or_refused
hapax-guard-suite fuzz::any_text_is_refused_or_moves_nothing
"
# `cargo bolero list` would say the same, and build everything once more for that.
if [ "$(grep -r --include '*.rs' -h 'bolero::check!' runtime tests | wc -l)" != "$(grep -c :: <<<"$tests")" ]; then
    echo "fuzz: the list of tests in $0 is not that of the calls of bolero::check!" >&2
    exit 1
fi

# Where a fuzzer begins that would not come upon the language by itself.
begin_with() {
    local test=$1 folder=$2 guard=runtime/src/guest/sql_guard/corpus
    mkdir -p "$folder"
    case $test in
    *::any_text_is_refused_or_moves_nothing)
        split -l 1 -a 4 $guard/accepted.sql "$folder/accepted-"
        split -l 1 -a 4 $guard/refused.sql "$folder/refused-"
        ;;
    *::any_text_is_read_or_refused) cp runtime/reference.toml examples/reduce-stock/*.toml "$folder" ;;
    esac
}

grep -F "$only" <<<"$tests" | grep :: | while read -r package test; do
    echo "fuzz: $package $test" >&2
    found=$target/fuzz/corpus/$package-${test//::/-}
    begin_with "$test" "$found"
    kept=$(find runtime tests -path "*/__fuzz__/${test//::/__}/corpus" -printf " --engine-args=$PWD/%p")
    # shellcheck disable=SC2086 # none, or one word
    "$bolero" bolero test -p "$package" "${build[@]}" -T "${seconds}s" -l $longest --corpus-dir "$found" $kept "$test"
    # Places, not how often they are passed or what was compared there: those make thousands of files.
    "$bolero" bolero test -p "$package" "${build[@]}" -l $longest \
        --engine-args=-set_cover_merge=1 --engine-args=-use_counters=0 --engine-args=-use_cmp=0 \
        --engine-args="$found" "$test"
done
