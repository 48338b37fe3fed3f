#!/bin/sh
# Writes install.yaml, rbac-namespaces.yaml and monitoring.yaml from the chart. HELM names the helm binary.
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
{
  echo "# Alert rules, a dashboard and a ServiceMonitor, for the Prometheus operator and Grafana's sidecar: rendered from the"
  echo "# chart with all of them switched on. See docs/metrics.md."
  render --set metrics.serviceMonitor.create=true --set alerts.enabled=true --set dashboard.enabled=true \
    --show-only templates/servicemonitor.yaml --show-only templates/prometheusrule.yaml \
    --show-only templates/dashboard.yaml
} > "$new"
cat "$new" > manifests/monitoring.yaml
