#!/bin/sh
# Every kind of request, with curl: health, models, stream, generate, the OpenAI face.
# Usage: examples/curl.sh    (GATEWAY_URL and MODEL choose another gateway and another model,
# GATEWAY_API_KEY is sent if it is set)
set -eu

url="${GATEWAY_URL:-http://127.0.0.1:8420}"
model="${MODEL:-huggingface/demo}"
chat='"model":"'$model'","messages":[{"role":"user","content":"What is a gateway?"}]'

ask() {
  curl --fail-with-body --silent --show-error \
    ${GATEWAY_API_KEY:+--header "authorization: Bearer $GATEWAY_API_KEY"} "$@"
  echo
}

echo '== Is it ready?'
ask "$url/health/ready"

echo '== Models that chat, and the providers that could not be listed'
ask "$url/api/v1/models?capability=chat"

echo '== A stream: -N shows each event as it comes'
ask -N "$url/api/v1/stream" --header 'content-type: application/json' \
  --data "{$chat,\"options\":{\"max_tokens\":20}}"

echo '== The same in one piece, under a request id of our own'
ask "$url/api/v1/generate" --header 'content-type: application/json' \
  --header 'x-request-id: example-1' --data "{$chat,\"options\":{\"max_tokens\":20}}"

echo '== The same as the OpenAI API has it'
ask "$url/v1/chat/completions" --header 'content-type: application/json' \
  --data "{$chat,\"max_tokens\":20}"

echo '== And as a stream, with the usage at the end'
ask -N "$url/v1/chat/completions" --header 'content-type: application/json' \
  --data "{$chat,\"max_tokens\":20,\"stream\":true,\"stream_options\":{\"include_usage\":true}}"
