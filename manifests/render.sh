#!/bin/sh
# Writes install.yaml from the chart. HELM names the helm binary.
set -eu
cd "$(dirname "$0")/.."
new=$(mktemp)
trap 'rm -f "$new"' EXIT
{
  cat manifests/install.head.yaml
  # The oldest version the chart admits: the output must not depend on the helm that makes it.
  "${HELM:-helm}" template bsn-operator helm/bsn-operator --namespace bsn-system --kube-version 1.33.0
} > "$new"
cat "$new" > manifests/install.yaml
