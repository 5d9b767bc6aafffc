#!/usr/bin/env bash
# Installs what building and testing need and this machine lacks. Quick when nothing is missing, asks no questions,
# starts no service. Usage:
#
#   tests/setup.sh [rust] [servers] [python] [typescript] [fuzz]      (all but the last when none is named)
#
#   rust        a C compiler, make, and the target that guests are compiled for
#   servers     RabbitMQ, Redis, MariaDB and Postgres, which the tests start themselves, on ports of their own;
#               not those for which HAPAX_TEST_AMQP_URL, HAPAX_TEST_REDIS_URL, HAPAX_TEST_MYSQL_URL or
#               HAPAX_TEST_POSTGRES_URL names a server of yours
#   python      componentize-py, in target/toolchains/python
#   typescript  componentize-qjs and tsc, in target/toolchains/typescript
#   fuzz        cargo-bolero, in target/toolchains/bolero
#
# HAPAX_TOOLCHAINS names another folder than target/toolchains.
set -euo pipefail
cd "$(dirname "$0")/.."

GUEST_TARGET=wasm32-wasip2
# The command has the version of the crate.
BOLERO=$(sed -n 's/^bolero = "\([^"]*\)".*/\1/p' Cargo.toml)
export HAPAX_TOOLCHAINS=${HAPAX_TOOLCHAINS:-$PWD/target/toolchains}

# Debian packages still to be installed, and for other systems what to do instead, one line each.
packages=
instead=

say() { echo "setup: $*" >&2; }

stop() {
    say "$@"
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# want PROGRAM-IS-THERE PACKAGES WHAT-TO-DO-ELSEWHERE
want() {
    if ! $1 >/dev/null 2>&1; then
        packages="$packages $2"
        instead="$instead
  $3"
    fi
}

# The servers' programs are not on everyone's PATH.
have_rabbitmq() { [ -n "${HAPAX_TEST_AMQP_URL:-}" ] || { have_server rabbitmq-server /usr/lib/rabbitmq/bin && have epmd; }; }
have_redis() { [ -n "${HAPAX_TEST_REDIS_URL:-}" ] || have_server redis-server; }
have_mariadb() { [ -n "${HAPAX_TEST_MYSQL_URL:-}" ] || { have_server mariadbd && have mariadb-install-db; }; }
have_postgres() { [ -n "${HAPAX_TEST_POSTGRES_URL:-}" ] || have_server initdb /usr/lib/postgresql/*/bin; }
have_server() {
    local program=$1 folder
    shift
    have "$program" && return
    for folder in /usr/sbin /usr/local/sbin "$@"; do
        [ -x "$folder/$program" ] && return
    done
    return 1
}
have_venv() { python3 -c 'import venv, ensurepip'; }
have_guest_target() { [ -d "$(rustc --print sysroot)/lib/rustlib/$GUEST_TARGET" ]; }

want_rust() {
    have rustc || stop "there is no Rust toolchain: install one from https://rustup.rs, then run this again"
    want "have cc" build-essential "a C compiler, \`cc\`"
    want "have make" build-essential "make"
}
want_servers() {
    want have_rabbitmq rabbitmq-server "export HAPAX_TEST_AMQP_URL=amqp://guest:guest@localhost/%2f   (with the management plugin)"
    want have_redis redis-server "export HAPAX_TEST_REDIS_URL=redis://localhost"
    want have_mariadb mariadb-server "export HAPAX_TEST_MYSQL_URL=mysql://root@localhost   (a user who may create databases)"
    want have_postgres postgresql "export HAPAX_TEST_POSTGRES_URL=postgres://postgres@localhost/postgres   (likewise)"
}
want_python() { want have_venv "python3 python3-venv" "Python 3.10 or later, with venv and pip"; }
want_typescript() { want "have npm" "nodejs npm" "Node.js 18 or later, with npm"; }
want_fuzz() { want "have c++" build-essential "a C++ compiler, \`c++\`"; }

# Runs as root. A policy-rc.d that says 101 keeps packages from starting their services; one that is there comes back.
INSTALL='
set -eu
policy=/usr/sbin/policy-rc.d
saved=$policy.before-hapax
if [ -e $policy ] && [ ! -e $saved ]; then mv $policy $saved; fi
restore() { rm -f $policy; if [ -e $saved ]; then mv $saved $policy; fi; }
trap restore EXIT
trap "exit 130" HUP INT TERM
printf "#!/bin/sh\nexit 101\n" >$policy
chmod 755 $policy
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends "$@"
'

install_packages() {
    [ -n "$packages" ] || return 0
    if ! have apt-get; then
        stop "this machine lacks, and without apt-get it cannot be installed from here:$instead"
    fi
    local root=
    if [ "$(id -u)" != 0 ]; then
        if have sudo && sudo -n true 2>/dev/null; then
            root="sudo -n"
        else
            stop "packages are missing and this user cannot install them. Please run, and then this again:
  sudo apt-get install --no-install-recommends$packages
or instead of the servers among them set:$instead"
        fi
    fi
    say "installing Debian packages:$packages (their services are not started)"
    # shellcheck disable=SC2086 # both are lists of words
    $root sh -c "$INSTALL" install $packages </dev/null >&2
}

setup_rust_guest() {
    have_guest_target && return
    have rustup || stop "the Rust toolchain lacks the target $GUEST_TARGET, and there is no rustup to add it with"
    say "adding the Rust target $GUEST_TARGET"
    rustup target add "$GUEST_TARGET" </dev/null
    have_guest_target || stop "rustup did not add $GUEST_TARGET to $(rustc --print sysroot)"
}

# What these two compilers are, and which version, their examples say.
setup_python_guest() { examples/reduce-stock/python/build.sh --toolchain; }
setup_typescript_guest() { examples/reduce-stock/typescript/build.sh --toolchain; }

setup_fuzz() {
    local place=$HAPAX_TOOLCHAINS/bolero
    [ "$("$place/bin/cargo-bolero" bolero --version 2>/dev/null)" = "cargo-bolero $BOLERO" ] && return
    say "building cargo-bolero $BOLERO"
    cargo install cargo-bolero --version "$BOLERO" --locked --no-default-features --root "$place" --force
}

[ $# -gt 0 ] || set -- rust servers python typescript
for part in "$@"; do
    case $part in
    rust | servers | python | typescript | fuzz) "want_$part" ;;
    *) stop "\"$part\": expected rust, servers, python, typescript or fuzz" ;;
    esac
done
install_packages
for part in "$@"; do
    case $part in
    rust) setup_rust_guest ;;
    python) setup_python_guest ;;
    typescript) setup_typescript_guest ;;
    fuzz) setup_fuzz ;;
    servers) ;; # the tests start them
    esac
done
