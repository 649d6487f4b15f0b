#!/bin/sh
# A first request and a stream with curl. POINTSMAN_URL and POINTSMAN_API_KEY as printed at the first start.
set -eu
url="${POINTSMAN_URL:-http://127.0.0.1:7080}"
model="${MODEL:-sandbox/echo}"

ask() {
  curl -sS --fail-with-body "$@" "$url/v1/chat/completions" \
    -H "Authorization: Bearer ${POINTSMAN_API_KEY:?}" -H 'Content-Type: application/json' -d @-
}

echo '# one answer'
ask -i <<JSON
{"model": "$model", "messages": [{"role": "user", "content": "Hello"}]}
JSON

printf '\n\n# a stream\n'
ask -N <<JSON
{"model": "$model", "stream": true, "messages": [{"role": "user", "content": "one two three"}]}
JSON

printf '\n# the models that this key may use\n'
curl -sS --fail-with-body "$url/v1/models" -H "Authorization: Bearer $POINTSMAN_API_KEY"
echo
