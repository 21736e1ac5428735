#!/bin/sh
# Makes what docker/compose.yaml takes from files, if it is not there yet: a key for the cookies and the demo's client secret.
#
# The files are readable by nobody else, and the containers run as whoever owns them: compose hands over a secret's file
# with its owner and mode.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets

[ -s secrets/keys ] || head -c 32 /dev/urandom | base64 > secrets/keys
[ -s secrets/demo.secret ] || head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > secrets/demo.secret
[ -s secrets/datahub.env ] || printf 'DATAHUB_CLIENT_SECRET=%s\n' "$(cat secrets/demo.secret)" > secrets/datahub.env

uid=$(id -u) gid=$(id -g)
if [ "$uid" = 0 ]; then
    uid=65532 gid=65532
    chown -R "$uid:$gid" secrets
fi
others=$(grep -v '^GATEWAY_[UG]ID=' .env 2>/dev/null || true)
printf '%sGATEWAY_UID=%s\nGATEWAY_GID=%s\n' "${others:+$others
}" "$uid" "$gid" > .env

cat <<NEXT
Next:  docker compose -f docker/compose.yaml --profile demo up --build
Then:  http://localhost:8000/arcmanager/app/
NEXT
