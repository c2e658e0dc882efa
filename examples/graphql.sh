#!/bin/sh
# Lists every model of every provider, and says why a provider's models are missing.
# Usage: examples/graphql.sh [URL]    (GATEWAY_URL chooses another gateway; GATEWAY_API_KEY is sent
# if it is set)
set -eu

url="${1:-${GATEWAY_URL:-http://127.0.0.1:8420}/graphql}"

query='{
  availableModels {
    totalCount
    models { id provider name state sizeBytes capabilities metadata { key value } }
    providerErrors { provider code message }
  }
}'

# A JSON string holds no line breaks; a GraphQL query does not need them.
body=$(printf '{"query":"%s"}' "$(printf '%s' "$query" | tr '\n' ' ')")

curl --fail-with-body --silent --show-error "$url" \
  ${GATEWAY_API_KEY:+--header "authorization: Bearer $GATEWAY_API_KEY"} \
  --header 'content-type: application/json' \
  --header 'accept: application/graphql-response+json' \
  --data "$body"
echo
