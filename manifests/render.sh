#!/bin/sh
# Writes install.yaml and rbac-namespaces.yaml from the chart. HELM names the helm binary.
set -eu
cd "$(dirname "$0")/.."
new=$(mktemp)
trap 'rm -f "$new"' EXIT
# The oldest version the chart admits: the output must not depend on the helm that makes it.
render() {
  "${HELM:-helm}" template bsn-operator helm/bsn-operator --namespace bsn-system --kube-version 1.33.0 "$@"
}
{
  cat manifests/install.head.yaml
  render
} > "$new"
cat "$new" > manifests/install.yaml
{
  echo "# The operator's rights where it is for the namespaces ledger and trade alone: rendered from the chart with"
  echo "# watchNamespaces: [ledger, trade]. See docs/installation.md."
  render --set 'watchNamespaces={ledger,trade}' --show-only templates/rbac.yaml
} > "$new"
cat "$new" > manifests/rbac-namespaces.yaml
