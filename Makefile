# `make help` lists what there is.

TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
# Where the tests look for the guests of other languages; cargo puts those in Rust beside it.
GUESTS := $(TARGET)/guests
# Where the compilers of other languages are put.
export HAPAX_TOOLCHAINS := $(TARGET)/toolchains

# SERVERS=1: the demo on RabbitMQ, Redis and a database server instead of embedded files.
# DATABASE=postgres: on that one instead of MariaDB.
DEMO_FLAGS := $(if $(SERVERS),--servers) $(if $(DATABASE),--database $(DATABASE))

.DEFAULT_GOAL := help
.PHONY: help demo test servers bench torture campaign torture-programs fuzz build guests rust-guests fmt lint doc clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  make demo SERVERS=1 [DATABASE=postgres]        the demo on servers, started for it"
	@echo "  make servers [DATABASE=mariadb|postgres|both]  which database server to start"
	@echo "  make bench QUICK=1                             with a tenth of the messages"
	@echo "  make torture SECONDS=600 SEED=7 DATABASE=mariadb|postgres|sqlite BROKER=amqp|cluster|embedded"

demo: ## Watch thousands of orders, many of them duplicates, each take effect once
	$(if $(filter-out sqlite,$(DATABASE)),$(if $(SERVERS),,$(error DATABASE=$(DATABASE) needs a server: make demo SERVERS=1 DATABASE=$(DATABASE))))
	@echo "Building hapax, the demo and its handler: some 10 minutes on 2 cores the first time, seconds later."
	@tests/setup.sh rust $(if $(SERVERS),servers)
	@cargo build --release --target wasm32-wasip2 -p reduce-stock
	@cargo build --release -p hapax -p hapax-demo
	@$(TARGET)/release/hapax-demo $(DEMO_FLAGS)

test: ## Install what is missing, build the guests, run every test
	@tests/setup.sh
	@$(MAKE) --no-print-directory guests
	cargo build --workspace --bins
	cargo test --workspace
	@echo "Every test passed. The lines \"tested against …\" above name the servers."

servers: ## Start private servers, print a config for them, stop them on Ctrl-C
	@tests/setup.sh rust servers
	@cargo build --quiet -p hapax-tests --bin servers
	@exec $(TARGET)/debug/servers

# The handler in Rust is built as projects of `hapax new` are: with LTO.
bench: $(GUESTS)/stock_python.wasm $(GUESTS)/stock_typescript.wasm ## Measure Hapax against what people write by hand: an hour and a half; with QUICK=1 minutes
	@tests/setup.sh rust servers
	@tests/bench/classic/setup.sh
	CARGO_PROFILE_RELEASE_LTO=true cargo build --release --target wasm32-wasip2 -p stock
	cargo build --release -p hapax -p hapax-bench
	$(TARGET)/release/hapax-bench $(if $(QUICK),--quick --json $(TARGET)/bench.json --page $(TARGET)/RESULTS.md,--json tests/bench/results.json --page tests/bench/RESULTS.md)

# SECONDS of raging (60), then mending and judging; SEED makes the same faults; BREACH=NAME breaks an invariant on purpose.
# Apart from the other binaries: the hosts here can be sabotaged.
SECONDS ?= 60
BROKER ?= amqp
torture: torture-programs ## Torture hosts and servers, and see whether every message takes effect once
	$(TARGET)/release/hapax-torture --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) --database $(or $(DATABASE),postgres) --broker $(BROKER) $(if $(BREACH),--breach $(BREACH))

# The record is of one state of the runtime: delete it to begin anew.
campaign: torture-programs ## Torture for hours, and write tests/torture/RESULTS.md; goes on where it was left
	$(TARGET)/release/hapax-torture campaign --record tests/torture/campaign.jsonl --page tests/torture/RESULTS.md

torture-programs:
	@tests/setup.sh rust servers
	cargo build --release --target wasm32-wasip2 -p chaos
	cargo build --release -p hapax-torture

# SECONDS for each test.
fuzz: ## Look for bytes that break what reads them, guided by coverage, and keep the inputs that reach new code
	@tests/setup.sh rust fuzz
	@tests/fuzz.sh $(SECONDS)

build: ## Build the hapax binary, optimised
	@tests/setup.sh rust
	cargo build --release -p hapax

guests: rust-guests $(GUESTS)/reduce_stock_python.wasm $(GUESTS)/reduce_stock_typescript.wasm ## Build the guest components in all languages

rust-guests:
	@tests/setup.sh rust
	cargo build --release --target wasm32-wasip2 -p reduce-stock -p chaos -p plain -p wrong-world

# One rule for both languages: their sources and the contract on one side, a component on the other.
CONTRACT := $(wildcard wit/*.wit)
.SECONDEXPANSION:
$(GUESTS)/reduce_stock_%.wasm: $(CONTRACT) $$(wildcard examples/reduce-stock/$$*/*)
	@tests/setup.sh $*
	@mkdir -p $(GUESTS)
	examples/reduce-stock/$*/build.sh $@

# The bench's handlers, with the same compilers.
$(GUESTS)/stock_%.wasm: $(CONTRACT) $$(wildcard tests/bench/handler/$$*/* tests/bench/handler/$$*/src/*)
	@tests/setup.sh $*
	@mkdir -p $(GUESTS)
	examples/reduce-stock/$*/build.sh $@ tests/bench/handler/$* message-handler

fmt: ## Format all Rust code
	cargo fmt --all

lint: ## Clippy over everything, warnings denied
	cargo clippy --workspace --all-targets -- -D warnings

doc: ## Build the documentation of the crates, warnings denied
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

clean: ## Remove all that was built, the guest compilers too
	cargo clean
	rm -rf $(GUESTS) $(HAPAX_TOOLCHAINS)
