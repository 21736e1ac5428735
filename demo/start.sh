#!/usr/bin/env bash
# Two test DataHUBs and the gateway with the demo app, or that in the folder $APP, until Ctrl-C. `make demo` calls it.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${CARGO_TARGET_DIR:-target}/debug
public_url=${GATEWAY__SERVER__PUBLIC_URL:-http://localhost:8000}  # that of a development server in front, if one is named

is_taken() { (: <"/dev/tcp/localhost/$1") 2>/dev/null; }
for port in 8000 8081 8082; do
    if is_taken "$port"; then
        echo "Port $port is taken, so the demo cannot start. See who has it: ss -ltnp 'sport = :$port'. End that, then try again." >&2
        exit 1
    fi
done

cargo build --locked -p arcmanager-gateway -p datahub

pids=()
end() {
    trap - EXIT
    ((${#pids[@]} == 0)) || kill "${pids[@]}" 2>/dev/null || true
    wait
}
trap end EXIT
trap 'echo; exit 0' INT TERM

datahub() { # ID PORT NAME SECRET
    DATAHUB_CLIENT_SECRET=$4 "$bin/datahub" --name "$3" --listen "127.0.0.1:$2" --client-id demo --token-lifetime 600 \
        --redirect-uri "$public_url/arcmanager/api/v1/auth/callback?datahub=$1" >/dev/null &
    pids+=($!)
}

# Secrets live as long as this demo and go by environment, because `ps` shows every argument. Hex digits, as GitLab's are.
new_secret() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
secret_tuebingen=$(new_secret)
secret_freiburg=$(new_secret)
datahub tuebingen 8081 "DataHUB Tübingen" "$secret_tuebingen"
datahub freiburg 8082 "DataHUB Freiburg" "$secret_freiburg"

export GATEWAY__DATAHUBS__TUEBINGEN__CLIENT_SECRET=$secret_tuebingen
export GATEWAY__DATAHUBS__FREIBURG__CLIENT_SECRET=$secret_freiburg
GATEWAY__SESSION__KEYS=$("$bin/arcmanager-gateway" key 2>/dev/null)
export GATEWAY__SESSION__KEYS
export GATEWAY__APP__DIR=${APP:-demo}
"$bin/arcmanager-gateway" --config config/demo.toml &
pids+=($!)

for try in {1..50}; do
    if said=$("$bin/arcmanager-gateway" check --config config/demo.toml 2>&1) && is_taken 8000; then break; fi
    if ((try == 50)) || ! kill -0 "${pids[@]}" 2>/dev/null; then
        printf '%s\nThe demo did not come up.\n' "$said" >&2
        exit 1
    fi
    sleep 0.2
done

cat <<READY

  Open  $public_url/arcmanager/app/

  Log in at DataHUB Tübingen, DataHUB Freiburg, or both: as Test or as Jörg 100% Müller, without a password.
  Access tokens live 10 minutes; the page counts down, and the gateway renews them on the way.
  The session key was made for this start and is kept nowhere: the next start logs everyone out.
  Ctrl-C ends it all.

READY
wait -n || true
echo "One of the demo's programs has ended by itself, so the others end too." >&2
exit 1
