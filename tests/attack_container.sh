#!/usr/bin/env bash
# The container under attack: what its process may do, hostile bodies, the memory limit, kill -9, restarts, SIGTERM.
#
#   tests/attack_container.sh [IMAGE]      IMAGE defaults to vae-service:cpu (make docker builds it)
#   DOCKER="docker --context other" tests/attack_container.sh
#
# Starts a container of its own on a free port of 127.0.0.1, with the safeguards of docker-compose.yml, and removes it.
set -euo pipefail
cd "$(dirname "$0")/.."
DOCKER=${DOCKER:-docker}
IMAGE=${1:-vae-service:cpu}
PYTHON=${PYTHON:-.venv/bin/python}
MEMORY=${MEMORY:-700m}
NAME=vae-attack-$$
PORT=$($PYTHON -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
FOLDER=$(mktemp -d)

d() { $DOCKER "$@"; }
say() { printf '[%4ss] %s\n' "$SECONDS" "$*"; }
fail() { say "FAILED: $*"; d logs --tail 30 "$NAME" >&2 || true; exit 1; }
inspect() { d inspect --format "$1" "$NAME"; }
tidy() { d rm -f "$NAME" >/dev/null 2>&1 || true; rm -rf "$FOLDER"; }
trap tidy EXIT

ready() {
  for _ in $(seq 600); do
    curl -fs -m 5 -o "$FOLDER/ready" "http://127.0.0.1:$PORT/readyz" && return 0
    sleep 0.2
  done
  fail "not ready after two minutes"
}

golden() {
  curl -fs -m 30 "http://127.0.0.1:$PORT/sample?seed=7&format=png" -o "$FOLDER/digit.png"
  curl -fs -m 30 --data-binary @"$FOLDER/digit.png" -H 'content-type: image/png' \
    "http://127.0.0.1:$PORT/encode?format=npy" -o "$FOLDER/$1.npy"
  cmp -s "$FOLDER/$1.npy" "$FOLDER/first.npy" || fail "another answer than at first ($1)"
}

restarted() {  # how often the engine has started it again
  inspect '{{.RestartCount}}'
}

until_restarted() {
  for _ in $(seq 300); do
    [ "$(restarted)" -gt "$1" ] && return 0
    sleep 0.2
  done
  fail "it was not started again"
}

say "starting $IMAGE with $MEMORY of memory"
d run --detach --name "$NAME" --publish "127.0.0.1:$PORT:8000" --restart unless-stopped --init \
  --read-only --tmpfs /tmp:size=64m,mode=1777 --cap-drop ALL --security-opt no-new-privileges:true \
  --memory "$MEMORY" --memory-swap "$MEMORY" --pids-limit 1024 --user 10001:10001 "$IMAGE" >/dev/null
ready
curl -fs "http://127.0.0.1:$PORT/sample?seed=7&format=png" -o "$FOLDER/digit.png"
curl -fs --data-binary @"$FOLDER/digit.png" -H 'content-type: image/png' \
  "http://127.0.0.1:$PORT/encode?format=npy" -o "$FOLDER/first.npy"

say "what the process may do"
status=$(d exec "$NAME" cat /proc/self/status)
grep -qP '^CapEff:\t0+$' <<<"$status" || fail "it has capabilities"
grep -qP '^NoNewPrivs:\t1$' <<<"$status" || fail "it may get new privileges"
grep -qP '^Uid:\t10001\t' <<<"$status" || fail "it is another user"
grep -qP '^Seccomp:\t2$' <<<"$status" || fail "system calls are not filtered"
for place in / /venv /etc /venv/lib/python3.11/site-packages/model/weights; do
  if d exec "$NAME" python -c "open('$place/x', 'w')" 2>/dev/null; then fail "$place can be written to"; fi
done
d exec "$NAME" python -c "open('/tmp/x', 'w')" || fail "/tmp cannot be written to"
if d exec "$NAME" python -m pip --version 2>/dev/null; then fail "there is a pip"; fi

say "hostile bodies"
$PYTHON tests/hostile_load.py "$PORT" 5000 || fail "hostile bodies"
golden bodies
[ "$(restarted)" = 0 ] || fail "it was started again"

say "more memory than there is"
before=$(restarted)
$PYTHON tests/hostile_load.py "$PORT" memory || true
if [ "$(restarted)" -gt "$before" ] || [ "$(inspect '{{.State.OOMKilled}}')" = true ]; then
  say "the kernel killed it, as it should; it comes back"
else
  say "it stayed within its limit"
fi
ready
golden memory

say "kill -9"
before=$(restarted)
d kill --signal KILL "$NAME" >/dev/null
d start "$NAME" >/dev/null  # what is killed through the engine stays down, as it was asked for
ready
golden kill

say "a reload, then kill -9 again: the engine still starts it anew"
loaded() { d logs "$NAME" 2>&1 | grep -c 'ready:'; }
before=$(loaded)
d exec "$NAME" sh -c 'kill -HUP 1'
for _ in $(seq 300); do [ "$(loaded)" -gt "$before" ] && break; sleep 0.2; done
[ "$(loaded)" -gt "$before" ] || fail "nothing was loaded anew"
golden reload
served=$(d exec "$NAME" python -c 'import os
for p in filter(str.isdigit, os.listdir("/proc")):
    if open(f"/proc/{p}/cmdline", "rb").read().endswith(b"vae\0serve\0") and p != "1": print(p)')
before=$(restarted)
d exec "$NAME" python -c "import os; os.kill($served, 9)" || true
until_restarted "$before"
ready
golden kill

say "SIGTERM with requests in flight"
for i in $(seq 20); do
  curl -s -m 60 -o "$FOLDER/flight$i" -w '%{http_code}\n' --data-binary @"$FOLDER/digit.png" \
    -H 'content-type: image/png' "http://127.0.0.1:$PORT/score?samples=256" >>"$FOLDER/flights" &
done
sleep 3
d stop --time 35 "$NAME" >/dev/null
wait
answers=$(sort "$FOLDER/flights" | uniq -c | tr -s ' \n' ' ')
say "answers:$answers"
[ "$(grep -c 200 "$FOLDER/flights")" -gt 0 ] || fail "none of those in flight was answered"
# 503: it came when the service had begun to stop
if grep -qvE '^(200|503)$' "$FOLDER/flights"; then fail "an answer was lost"; fi
[ "$(inspect '{{.State.ExitCode}}')" = 0 ] || fail "exit status $(inspect '{{.State.ExitCode}}')"
if d logs "$NAME" 2>&1 | grep -q Traceback; then fail "a traceback is in the log"; fi
say "passed"
