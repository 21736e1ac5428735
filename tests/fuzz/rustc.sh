#!/bin/sh
# rustc for the fuzz target: our own crates note which branches they take (LLVM's SanitizerCoverage), the others do not, and
# neither does a build script, which is no part of what is fuzzed.
case " $* " in *" --crate-name build_script_build "*) exec "$@" ;; esac
exec "$@" -Ccodegen-units=1 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares
