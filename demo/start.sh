#!/usr/bin/env bash
# Starts two test DataHUBs and the gateway, says where the app is, and ends them all on Ctrl-C.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo build --locked --package arcmanager-gateway --package datahub
bin=${CARGO_TARGET_DIR:-target}/debug
children=()

finish() {
    trap - EXIT INT TERM
    for child in "${children[@]}"; do kill "$child" 2>/dev/null || true; done
    wait
}
trap finish EXIT
trap 'exit 0' INT TERM

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# What is started must answer on its port, or have said on the terminal why it ended.
start() {
    local name=$1 port=$2
    shift 2
    if answers "$port"; then
        echo "Port $port, which $name needs, is taken. End what listens there (ss -ltnp 'sport = :$port' names it) and try again." >&2
        exit 1
    fi
    "$@" &
    children+=($!)
    until answers "$port"; do
        kill -0 $! 2>/dev/null || { echo "$name did not start." >&2; exit 1; }
        sleep 0.1
    done
}

key=$("$bin/arcmanager-gateway" key)
secret=$("$bin/arcmanager-gateway" key)
datahub() {
    DATAHUB_CLIENT_SECRET=$secret start "$1" "$2" "$bin/datahub" --name "$1" --listen "127.0.0.1:$2" \
        --client-id arcmanager-gateway-demo --token-lifetime 600
}
datahub "DataHUB Tübingen" 8081
datahub "DataHUB Freiburg" 8082
GATEWAY__SESSION__KEYS=$key \
    GATEWAY__DATAHUBS__TUEBINGEN__CLIENT_SECRET=$secret GATEWAY__DATAHUBS__FREIBURG__CLIENT_SECRET=$secret \
    start "The gateway" 8000 "$bin/arcmanager-gateway" --config config/demo.toml

cat <<TEXT

  Open  http://localhost:8000/arcmanager/app/

  Log in as either person, at either DataHUB or at both. The session key was made for this run: with the next one
  everybody is logged out. Access tokens live for ten minutes, so that you can watch one being renewed.
  Ctrl-C ends everything.

TEXT
wait
