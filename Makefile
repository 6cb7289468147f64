# What one does with this project. `make demo` is the way in; `make test` is what CI runs.
# Everything is made under target/, dist/ and .venv/, which `make clean` removes.

SHELL := /bin/bash
PREFIX ?= /usr/local
ARCH ?= $(shell uname -m)
PYTHON ?= python3
TARGET := $(or $(CARGO_TARGET_DIR),target)
VENV := .venv
STRESS_SECONDS ?= 600
FUZZ_SECONDS ?= 60
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
SOVERSION := 0
# Of PREFIX: lib64 or lib/x86_64-linux-gnu, say.
LIBDIR ?= lib
# A folder that holds a build already, such as target/release: nothing is built then, so root needs no cargo.
BUILT ?=
# Those that are installed beside libhbmalloc.so and libhbmalloc.a, under their own names.
LIBRARIES := libhbmalloc_sim.so libhbmalloc_preload.so

# Cargo would look for the jobs of this make, which only its own recipes may take.
unexport MAKEFLAGS MFLAGS

# The children find what this build made, not what a wheel installed.
FROM_SOURCE = PYTHONPATH="$(CURDIR)/python$${PYTHONPATH:+:$$PYTHONPATH}" HBMALLOC_PYTHON=$(PYTHON)

.PHONY: demo test build rust-tests python-tests lint stress fuzz miri bench bench-pool wheel test-aarch64 setup-aarch64 \
	release install uninstall clean setup help

help:
	@echo 'make demo            build, and show the library at work (with a GPU and PyTorch, or without)'
	@echo 'make test            build, all tests, lint'
	@echo 'make lint            clippy, formatting, documentation'
	@echo 'make stress          the long form of the stress tests'
	@echo 'make fuzz            sequences on the pool, by coverage, on the simulated driver'
	@echo 'make miri            the core under Miri, where it is installed'
	@echo 'make bench           benchmarks, beside the other allocators that are installed'
	@echo 'make bench-pool      host time of our own pairs, on the simulated driver'
	@echo 'make wheel [ARCH=aarch64]   a wheel in dist/'
	@echo 'make setup-aarch64   tools to cross-build and to run the result (root, Debian)'
	@echo 'make test-aarch64    C tests and the command for AArch64, emulated'
	@echo 'make install | uninstall [PREFIX=/usr/local] [LIBDIR=lib] [DESTDIR=] [BUILT=target/release]'

setup:
	@scripts/setup tools

$(VENV)/.ready: scripts/setup
	@scripts/setup venv $(VENV)

demo: setup release
	$(FROM_SOURCE) $(TARGET)/release/hbmalloc demo

test: setup build rust-tests python-tests lint

# With the tests, since what they depend on gives the dependencies other features: built apart, the library is built twice.
build: setup
	@echo '== build'
	cargo build --workspace --all-features --lib --bins --tests --examples

rust-tests: build
	@echo '== Rust tests'
	@if cargo nextest --version >/dev/null 2>&1; then \
		echo cargo nextest run --workspace --all-features; \
		cargo nextest run --workspace --all-features --no-fail-fast && cargo test --workspace --all-features --doc; \
	else \
		echo 'cargo-nextest is not installed: using cargo test'; \
		cargo test --workspace --all-features --no-fail-fast; \
	fi

python-tests: build $(VENV)/.ready
	@echo '== Python tests'
	HBMALLOC_LIBRARY=$(abspath $(TARGET))/debug/libhbmalloc.so $(VENV)/bin/python -m pytest tests/python

# Of several jobs the tests are to begin first: cargo does one build at a time.
ifneq ($(filter test,$(MAKECMDGOALS)),)
lint: | build
endif

lint: setup
	@echo '== lint'
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --all-features --no-deps

stress: setup
	HBMALLOC_STRESS_SECONDS=$(STRESS_SECONDS) cargo test --workspace --all-features --release stress -- --include-ignored --nocapture

fuzz: setup
	FUZZ_SECONDS=$(FUZZ_SECONDS) scripts/fuzz

miri: setup
	@scripts/miri

bench: setup release
	$(FROM_SOURCE) $(TARGET)/release/hbmalloc bench

# Most of a pair is host time, which needs no GPU.
bench-pool: setup release
	HBMALLOC_DRIVER=sim HBMALLOC_LIBRARY=$(abspath $(TARGET))/release/libhbmalloc.so \
		$(TARGET)/release/hbmalloc bench --ours --only steady,holes,random,remote,threads,cold \
		--build $(TARGET)/bench $(BENCH)

wheel: setup
	scripts/build-wheel $(ARCH)

setup-aarch64:
	scripts/aarch64 setup

test-aarch64: setup
	scripts/aarch64 test

release: setup
	@echo '== release build'
	cargo build --release --workspace --exclude hbmalloc-loom --lib
	cargo build --release --features cli --bin hbmalloc

# A path may hold spaces and quotes. Not by export: what is built first would see it too.
quoted = '$(subst ','\'',$(1))'
INSTALLER = DESTDIR=$(call quoted,$(DESTDIR)) PREFIX=$(call quoted,$(PREFIX)) LIBDIR=$(call quoted,$(LIBDIR)) \
	BUILT=$(call quoted,$(or $(BUILT),$(TARGET)/release)) LIBRARIES='$(LIBRARIES)' \
	VERSION=$(VERSION) SOVERSION=$(SOVERSION) scripts/install

install: $(if $(BUILT),,release)
	@$(INSTALLER) files

uninstall:
	@$(INSTALLER) remove

clean:
	cargo clean
	rm -rf dist $(VENV)
