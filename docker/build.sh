#!/bin/sh
# Makes the image arcmanager-gateway:VERSION and :latest: by Docker where it answers, else by buildah.
#
# buildah needs no base image here: the binary is built by the local cargo, and the image is from scratch.
# BINARY=FILE  put this static binary into the image instead of building one (buildah only)
# STATIC_TARGET_DIR=DIR  build there, not in target/static (buildah only)
# BUILDER=docker|buildah  do not look, use this one
set -eu
cd "$(dirname "$0")/.."

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
image=arcmanager-gateway

if [ -z "${BUILDER:-}" ]; then
    if docker info >/dev/null 2>&1; then BUILDER=docker; else BUILDER=buildah; fi
fi

if [ "$BUILDER" = docker ]; then
    exec docker build --file docker/Dockerfile --target gateway --build-arg "GATEWAY_REVISION=$revision" \
        --label "org.opencontainers.image.version=$version" \
        --label "org.opencontainers.image.revision=$revision" \
        --tag "$image:$version" --tag "$image:latest" .
fi

command -v buildah >/dev/null || { echo "docker/build.sh: neither a Docker engine nor buildah is here" >&2; exit 1; }

# The same flags as in the Dockerfile, which says why.
if [ -z "${BINARY:-}" ]; then
    target=$(rustc -vV | sed -n 's/^host: //p')
    CARGO_TARGET_DIR=${STATIC_TARGET_DIR:-target/static}
    export CARGO_TARGET_DIR
    RUSTFLAGS='-C target-feature=+crt-static --cfg getrandom_backend="linux_getrandom"' CARGO_PROFILE_RELEASE_STRIP=symbols \
        GATEWAY_REVISION=$revision cargo build --release --locked --bin arcmanager-gateway --target "$target"
    BINARY=$CARGO_TARGET_DIR/$target/release/arcmanager-gateway
fi

# Without privileges for namespaces, as in a container: only change the root. Nothing is run inside it anyway.
export BUILDAH_ISOLATION="${BUILDAH_ISOLATION:-chroot}"
# Docker's format: the other one has no health check.
export BUILDAH_FORMAT="${BUILDAH_FORMAT:-docker}"
container=$(buildah from scratch)
trap 'buildah rm "$container" >/dev/null' EXIT
buildah copy --quiet --chmod 0755 "$container" "$BINARY" /arcmanager-gateway >/dev/null
buildah config \
    --user 65532:65532 \
    --env GATEWAY__SERVER__LISTEN=0.0.0.0:8000 \
    --port 8000 \
    --stop-signal SIGTERM \
    --healthcheck 'CMD /arcmanager-gateway health' \
    --healthcheck-interval 10s --healthcheck-timeout 5s --healthcheck-start-period 5s \
    --entrypoint '["/arcmanager-gateway"]' \
    --label org.opencontainers.image.title=arcmanager-gateway \
    --label 'org.opencontainers.image.description=A backend-for-frontend gateway for GitLab' \
    --label 'org.opencontainers.image.licenses=MIT OR Apache-2.0' \
    --label "org.opencontainers.image.version=$version" \
    --label "org.opencontainers.image.revision=$revision" \
    "$container"
buildah commit --quiet "$container" "$image:$version" >/dev/null
buildah tag "$image:$version" "$image:latest"
echo "$image:$version, and $image:latest: $(du -k "$BINARY" | cut -f 1) KiB, one file"
