#!/bin/sh
# Makes the image arcmanager-gateway:VERSION and :latest by docker/Dockerfile, with Docker where it answers, else with buildah;
# and beside it, in target/image/, its bill of materials (CycloneDX).
#
#   docker/build.sh [ARGUMENT…]       arguments go on, such as --build-arg RUST_IMAGE=registry.example.org/rust:1.95
#
# BUILDER=docker|buildah  do not look, use this one
# BINARY=FILE   put this static binary into the image instead of building one: needs no base image (buildah only)
# SBOM=no       no bill of materials; it needs cargo-cyclonedx, which `make image` installs
set -eu
cd "$(dirname "$0")/.."

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
image=arcmanager-gateway
out=target/image
mkdir -p "$out"

if [ -z "${BUILDER:-}" ]; then
    if docker info >/dev/null 2>&1; then BUILDER=docker; else BUILDER=buildah; fi
fi
case $BUILDER in
    docker) build='docker build' ;;
    # Its chroot needs no privileges for namespaces. Docker's format: the other one has no health check. One time for
    # all files, so that two builds of one commit have the same layer.
    buildah)
        command -v buildah >/dev/null || { echo "docker/build.sh: neither a Docker engine nor buildah is here" >&2; exit 1; }
        export BUILDAH_ISOLATION="${BUILDAH_ISOLATION:-chroot}" BUILDAH_FORMAT="${BUILDAH_FORMAT:-docker}"
        build="buildah bud --timestamp $(git log -1 --format=%ct 2>/dev/null || echo 0)"
        ;;
    *) echo "docker/build.sh: BUILDER is docker or buildah, not $BUILDER" >&2; exit 1 ;;
esac

if [ -n "${BINARY:-}" ]; then
    mkdir -p "$out/builder/out"
    install -m 0755 "$BINARY" "$out/builder/out/arcmanager-gateway"
    # In the place of the stage of that name.
    set -- --build-context "builder=$PWD/$out/builder" "$@"
fi
$build --file docker/Dockerfile --target gateway --build-arg "GATEWAY_REVISION=$revision" \
    --tag "$image:$version" --tag "$image:latest" "$@" .

if [ "${SBOM:-yes}" != no ]; then
    # In a copy of what is built from: cargo-cyclonedx writes beside every manifest of a workspace.
    copy=$(mktemp -d)
    trap 'rm -rf "$copy"' EXIT
    # shellcheck disable=SC2046 # one name a line, without spaces
    tar -c $(sed -n 's/^!//p' .dockerignore) | tar -x -C "$copy"
    SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || echo 0) PATH="$PWD/.tools/bin:$PATH" cargo cyclonedx --quiet \
        --manifest-path "$copy/Cargo.toml" --format json --spec-version 1.5
    # The folder as in the Dockerfile, instead of one that is another each time.
    sed "s|$copy|/build|g" "$copy/arcmanager-gateway.cdx.json" > "$out/$image-$version.cdx.json"
    echo "$image:$version; what is in it: $out/$image-$version.cdx.json"
fi
