# One verb for each habit. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := bash
CARGO_DENY := 0.20.2

help: ## list these
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t14

demo: ## the gateway, two test DataHUBs and a small app; prints one address
	@demo/start.sh

test: build browser-tools deploy-tools ## everything that must hold
	cargo test --locked --workspace
	python3 -W ignore -m unittest discover -s tests/browser -v
	python3 -W ignore -m unittest discover -s tests/deploy -v

check: cargo-deny ## format, lints, documentation, dependencies
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items
	.tools/bin/cargo-deny --locked check bans licenses sources

long: build browser-tools deploy-tools image-tools ## what takes too long for every commit
	LONG=1 cargo test --locked --test api
	python3 -W ignore -m unittest discover -s tests/deploy -p 'long_*.py' -v

bench: bench-tools ## speed and memory, as ratios to a bare nginx in the same run
	cargo build --locked --release --workspace
	tests/bench/run.py

image: image-tools ## a container image, by Docker or else by buildah
	docker/build.sh

advisories: cargo-deny ## known weaknesses of dependencies; needs the advisory database, a git clone
	.tools/bin/cargo-deny --locked check advisories

build:
	cargo build --locked --workspace

# What tests need of the system. Nothing is installed that is there already.
browser-tools:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { $(APT) chromium chromium-driver; }

deploy-tools:
	@command -v nginx >/dev/null && command -v openssl >/dev/null && command -v systemd-socket-activate >/dev/null \
		|| { $(APT) nginx-light openssl systemd; }

image-tools:
	@docker info >/dev/null 2>&1 || command -v buildah >/dev/null || { $(APT) buildah; }

bench-tools:
	@command -v nginx >/dev/null && command -v wrk >/dev/null || { $(APT) nginx-light wrk; }

APT = apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends

cargo-deny:
	@.tools/bin/cargo-deny --version 2>/dev/null | grep -q ' $(CARGO_DENY)$$' \
		|| CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_TARGET_DIR=.tools/target \
		   cargo install --locked --quiet --root .tools --version $(CARGO_DENY) cargo-deny

.PHONY: help demo test check long bench image advisories build browser-tools deploy-tools bench-tools image-tools cargo-deny
