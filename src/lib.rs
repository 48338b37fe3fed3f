//! bsn-operator: permissioned blockchain networks on Kubernetes.
