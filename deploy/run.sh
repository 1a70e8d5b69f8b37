#!/usr/bin/env bash
# A coordinator and PEERS (default 3) peers on this machine, for uploaded tables; ends with ctrl-C.
# Options for `tutti up`, such as --broker or --blobs, may follow; with --broker the peers come by way of it.
set -euo pipefail
cd "$(dirname "$0")/.."
tutti=.venv/bin/tutti
data=${TUTTI_DATA_DIR:-tutti-data}
mkdir -p "$data"
ready=$(mktemp)
trap 'kill $(jobs -p) 2> /dev/null; rm -f "$ready"; wait' EXIT
"$tutti" up --port "${PORT:-8000}" --data-dir "$data" --json "$@" > "$ready" &
until [ -s "$ready" ]; do
    kill -0 $! 2> /dev/null || exit 1
    sleep 0.2
done
url=$(.venv/bin/python -c 'import json, sys; print(json.load(open(sys.argv[1]))["url"])' "$ready")
peers=${PEERS:-3}
link=$("$tutti" invite --url "$url" --uses "$peers" $([ -f "$data/operator-token" ] && echo --token-file "$data/operator-token"))
previous=
for argument in "$@"; do
    case $previous in --broker) link="$argument#${link##*#}" ;; esac
    case $argument in --broker=*) link="${argument#*=}#${link##*#}" ;; esac
    previous=$argument
done
for number in $(seq "$peers"); do
    "$tutti" join "$link" --data sessions --name "peer-$number" --state-dir "$data/peers/peer-$number" &
done
echo "coordinator  $url  (API: $url/docs)"
echo "train        curl -F file=@table.csv -F peers=$peers $url/sessions/start"
wait -n -p ended && code=0 || code=$?
echo "process $ended has ended with exit code $code, so all of them end" >&2
exit "$code"
