#!/usr/bin/env bash
# The release for this kind of machine: guided by a profile of forwarded calls where the toolchain can make use of one.
# Images do without, so that they can be built twice alike.
set -euo pipefail
cd "$(dirname "$0")/../.."
binary=arcmanager-gateway
host=$(rustc --version --verbose | sed -n 's/^host: //p')
profdata=$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata

if [ ! -x "$profdata" ]; then
    echo "no llvm-tools in this toolchain (rustup component add llvm-tools): the release is built without a profile" >&2
    exec cargo build --locked --release --bin "$binary"
fi

# A target of its own for each: flags of the compiler would have everything built anew, build scripts included.
guided_by() {
    RUSTFLAGS="$1" cargo build --locked --release --bin "$binary" --target "$host" --target-dir "target/$2"
}
profile=$PWD/target/profile
rm -rf "$profile"
guided_by "-Cprofile-generate=$profile" profiled
cargo build --locked --release -p datahub -p load
tests/bench/run.py --effort 0.3 --only calls --gateway "profiled=target/profiled/$host/release/$binary"
"$profdata" merge -o "$profile/merged.profdata" "$profile"
guided_by "-Cprofile-use=$profile/merged.profdata" guided
mkdir -p target/release
cp "target/guided/$host/release/$binary" "target/release/$binary"
