{{/* What the operator needs in each namespace with networks: in all by a ClusterRole, or in those listed by Roles. */}}
{{- define "bsn-operator.networkRules" -}}
# What users describe. The operator never writes a network's spec; it puts a finalizer on a network whose
# deletionPolicy names something, and takes it away (patch).
- apiGroups: ["bsn-operator.io"]
  resources: ["bsnnetworks"]
  verbs: ["get", "list", "watch", "patch"]
# Conditions, on transitions only.
- apiGroups: ["bsn-operator.io"]
  resources: ["bsnnetworks/status"]
  verbs: ["patch"]
# Stamped from the node sets (create), put back when edited (patch), removed with a full node that is
# no longer wanted (delete).
- apiGroups: ["bsn-operator.io"]
  resources: ["bsnnodes"]
  verbs: ["get", "list", "watch", "create", "patch", "delete"]
# Conditions, on transitions only.
- apiGroups: ["bsn-operator.io"]
  resources: ["bsnnodes/status"]
  verbs: ["patch"]
# The anchor (get, create, and update: the compare-and-swap); genesis, configuration, certificates and
# lists of peers (create, patch); templates and configurations no longer in force (delete).
- apiGroups: [""]
  resources: ["configmaps"]
  verbs: ["get", "list", "watch", "create", "patch", "update", "delete"]
# The name under which a node is reached; of one in another cluster it is deleted with the node (delete).
- apiGroups: [""]
  resources: ["services"]
  verbs: ["get", "list", "watch", "create", "patch", "delete"]
# Where such a name leads, for nodes in other clusters. Only those the operator made itself are read or changed.
- apiGroups: ["discovery.k8s.io"]
  resources: ["endpointslices"]
  verbs: ["get", "list", "watch", "create", "patch", "delete"]
# Disks are made once. They are patched only to grow, to take the finalizer from a released one and to put back marks
# that were taken away, and deleted only where the network's deletionPolicy names them.
- apiGroups: [""]
  resources: ["persistentvolumeclaims"]
  verbs: ["get", "list", "watch", "create", "patch", "delete"]
# The workload of each node: put back when edited, changed in the node's own restart (patch), and deleted with the
# node (delete).
- apiGroups: ["apps"]
  resources: ["statefulsets"]
  verbs: ["get", "list", "watch", "create", "patch", "delete"]
# To say why a node is not ready; read live before a step (get); deleted as a step of the node's own restart.
- apiGroups: [""]
  resources: ["pods"]
  verbs: ["get", "list", "watch", "delete"]
# Keys of nodes and of the network's authority (get, create; patch: their marks), the certificate for clients (patch),
# first-start tokens (delete, once used). No list and no watch: the operator reads only Secrets whose names
# it knows. It deletes nothing but tokens, and keys where the network's deletionPolicy names them.
- apiGroups: [""]
  resources: ["secrets"]
  verbs: ["get", "create", "patch", "delete"]
# Keeps drains from taking more validators than the chain can miss; deleted with the network.
- apiGroups: ["policy"]
  resources: ["poddisruptionbudgets"]
  verbs: ["get", "list", "watch", "create", "patch", "delete"]
# Says who may connect to the nodes of a network: put back when edited (patch), deleted when switched off (delete).
- apiGroups: ["networking.k8s.io"]
  resources: ["networkpolicies"]
  verbs: ["get", "list", "watch", "create", "patch", "delete"]
# Events for people; a repeated one is patched.
- apiGroups: ["events.k8s.io"]
  resources: ["events"]
  verbs: ["create", "patch"]
{{- end -}}
