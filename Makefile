# Thin on purpose: what takes more than a line is in scripts/.

.DEFAULT_GOAL := help
.PHONY: help demo test bench soak fmt lint sqlx sqlx-check openapi openapi-check deps

# Queries are checked against the committed .sqlx; only `make sqlx` and `make sqlx-check` ask a database.
export SQLX_OFFLINE := true

ARGS ?=
stage = @printf '\n==> %s\n' "$(1)"

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: ## install what is missing, build, and run a cluster on this machine (ARGS='--exit')
	$(call stage,Servers: redis-server and PostgreSQL)
	@scripts/install-deps.sh
	$(call stage,Build)
	cargo build --release --bin reeve
	$(call stage,Demo)
	./target/release/reeve demo $(ARGS)

test: ## run all that CI runs
	$(call stage,1/7 Servers and test tools)
	@scripts/install-deps.sh --test
	$(call stage,2/7 Format)
	cargo fmt --check
	$(call stage,3/7 Clippy)
	cargo clippy --all-targets -- -D warnings
	$(call stage,4/7 Queries agree with .sqlx)
	@scripts/sqlx.sh check
	$(call stage,5/7 Build)
	cargo build
	$(call stage,6/7 The code agrees with openapi/reeve.json)
	@$(MAKE) --no-print-directory openapi-check
	$(call stage,7/7 Tests)
	TMPDIR=$$(scripts/tmp-dir.sh) cargo nextest run $(ARGS)

bench: ## compare with redis-cli on this machine
	$(call stage,Servers: redis-server and PostgreSQL)
	@scripts/install-deps.sh
	$(call stage,Build and measure)
	cargo build --release --bins
	./target/release/reeve-bench $(ARGS)

soak: ## run the tests, those that take a number of repeats 20 times
	$(call stage,Servers and test tools)
	@scripts/install-deps.sh --test
	$(call stage,Tests with 20 repeats)
	TMPDIR=$$(scripts/tmp-dir.sh) REEVE_TEST_REPEATS=20 cargo nextest run $(ARGS)

fmt: ## format the code
	cargo fmt

lint: ## check format and lints
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings

sqlx: ## write .sqlx anew from the queries in the code
	@scripts/sqlx.sh prepare

sqlx-check: ## fail if .sqlx is not what the queries in the code give
	@scripts/sqlx.sh check

openapi: ## write openapi/reeve.json anew from the code
	@mkdir -p openapi target
	cargo run -q --bin reeve -- openapi > target/openapi.json
	cp target/openapi.json openapi/reeve.json

openapi-check: ## fail if openapi/reeve.json is not what the code gives
	@mkdir -p target
	cargo run -q --bin reeve -- openapi > target/openapi.json
	@diff -u openapi/reeve.json target/openapi.json || { echo 'openapi/reeve.json is out of date: run `make openapi`' >&2; exit 1; }

deps: ## install redis-server and PostgreSQL where they are missing
	@scripts/install-deps.sh
