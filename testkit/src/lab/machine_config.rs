//! Configuration files of a machine's container runtime, network plug-ins and kubelet. Pure.

use std::path::Path;

use serde_json::{Value, json};

use super::image::PAUSE;
use super::layout::{self, MachineId};
use super::packages::CNI_PLUGINS;

/// containerd's configuration. `folder` is the machine's.
pub fn containerd(folder: &Path, socket: &Path) -> String {
    let (folder, socket) = (folder.display(), socket.display());
    format!(
        r#"version = 2
root = "{folder}/containerd/root"
state = "{folder}/containerd/state"
# No image needs them, and their start-up checks cost time.
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  # Without CAP_SYS_RESOURCE runc cannot lower a score, and ends with
  # "can't get final child's PID from pipe: EOF".
  restrict_oom_score_adj = true
  # Below the machine's folder, where its end finds and unmounts them.
  netns_mounts_under_state_dir = true
  # CoreDNS listens on port 53 as an ordinary user.
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      # Else in /run, where a power cut would leave it.
      Root = "{folder}/containerd/state/runc"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PLUGINS}"
    conf_dir = "{folder}/cni"
"#
    )
}

/// The pods' network: a bridge with this machine's range of addresses, and host ports.
pub fn cni(folder: &Path, id: MachineId) -> Value {
    json!({
        "cniVersion": "1.0.0",
        // The plug-ins' results are kept in one folder of the host under this name.
        "name": id.namespace(),
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                // Only what leaves the cluster's pods is masqueraded, by the machine's own rule: the
                // plug-in would also hide a pod from pods of other machines.
                "ipMasq": false,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    // Gone with a power cut, as the pods are.
                    "dataDir": folder.join("containerd/state/cni"),
                    "ranges": [[{"subnet": id.pods().to_string()}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

/// The kubelet's configuration.
pub fn kubelet(folder: &Path, id: MachineId, ca: &str, socket: &Path) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": ca},
        },
        "authorization": {"mode": "Webhook"},
        "address": id.ip().to_string(),
        "clusterDNS": [layout::dns_ip(id.cluster).to_string()],
        "clusterDomain": "cluster.local",
        "resolvConf": folder.join("resolv.conf"),
        "containerRuntimeEndpoint": format!("unix://{}", socket.display()),
        "registerNode": true,
        "nodeStatusUpdateFrequency": "4s",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", id.namespace()),
        "cgroupsPerQOS": true,
        // Machines share this one's processors and memory: nothing is reserved or enforced between them.
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        // A full disk must stop the lab's pods only when it would stop everything else too.
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
        },
        // Images cannot be pulled again: never collect them.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "containerLogMaxSize": "5Mi",
        "containerLogMaxFiles": 2,
        "shutdownGracePeriod": "0s",
        "volumePluginDir": folder.join("kubelet/plugins-exec"),
        "podLogsDir": folder.join("kubelet/pod-logs"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: MachineId = MachineId { cluster: 1, machine: 2 };

    #[test]
    fn pods_get_addresses_of_their_machine_without_masquerade() {
        let config = cni(Path::new("/lab/c1/m2"), ID);
        let bridge = &config["plugins"][0];
        assert_eq!(bridge["ipam"]["ranges"][0][0]["subnet"], "10.244.18.0/24");
        assert_eq!(bridge["ipMasq"], false);
    }

    #[test]
    fn everything_a_machine_writes_is_below_its_folder() {
        let folder = Path::new("/lab/c1/m2");
        let socket = folder.join("containerd.sock");
        let kubelet = kubelet(folder, ID, "/lab/c1/pki/ca.crt", &socket).to_string();
        let text = containerd(folder, &socket) + &kubelet;
        assert!(!text.contains("/var/") && !text.contains("/run/"), "{text}");
    }
}
