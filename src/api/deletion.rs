use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What goes with a node that was removed, or with the network. Nothing, if left out: applied again, a network goes on
/// with its chain. What goes does not come back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.keys) || self.keys != 'Delete' || (has(self.data) && self.data == 'Delete')")
        .message("deletionPolicy.keys: Delete needs data: Delete, too: a disk without its keys serves no node"),
)]
pub struct DeletionPolicy {
    /// Disks: blocks, signing state and the application's state. Once they are deleted, no node starts again without a
    /// consent of yours.
    #[serde(default)]
    pub data: Retention,

    /// Private keys; and with the network all that is kept of it: the certificate authority, the genesis, the anchor.
    /// Applied again, it is a new chain.
    #[serde(default)]
    pub keys: Retention,
}

/// Whether something outlives what it was made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Retention {
    /// It stays, until a person releases and deletes it.
    #[default]
    Retain,
    /// It is deleted.
    Delete,
}

impl DeletionPolicy {
    /// Whether it names anything.
    pub fn names_something(self) -> bool {
        self.data == Retention::Delete
    }

    /// Whether private keys go, too. Only with the disks.
    pub fn deletes_keys(self) -> bool {
        self.names_something() && self.keys == Retention::Delete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_never_go_before_the_disks() {
        let policy = |data, keys| DeletionPolicy { data, keys };
        let all = [Retention::Retain, Retention::Delete];
        let deletes = |data, keys| {
            let policy = policy(data, keys);
            (policy.names_something(), policy.deletes_keys())
        };
        let found = all.map(|data| all.map(|keys| deletes(data, keys)));
        assert_eq!(found, [[(false, false); 2], [(true, false), (true, true)]]);
        assert_eq!(DeletionPolicy::default(), policy(Retention::Retain, Retention::Retain));
    }
}
