//! The tutorial, run as it is printed.

use std::path::Path;
use std::process::Command;

use bsn_testkit::lab::Lab;

use crate::plugin::plugin_program;
use crate::support::{World, hub};

const PAGE: &str = include_str!("../../../docs/tutorial.md");

/// Its commands, one script: what a reader types into one shell.
fn script() -> String {
    let blocks = PAGE.split("\n```sh\n").skip(1);
    let blocks = blocks.map(|block| block.split_once("\n```").unwrap().0);
    // As in a shell that stops at the first command that fails, and says which.
    let blocks: Vec<_> = blocks.collect();
    assert!(blocks.len() > 8, "{} blocks are found", blocks.len());
    // What it started ends with it, also after a failure.
    let end = "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT";
    format!("set -eu; set -x\n{end}\n{}\n", blocks.join("\n"))
}

/// A clone of the repository, as far as the commands use it.
fn clone(folder: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let samples = folder.join("manifests/samples");
    std::fs::create_dir_all(&samples).unwrap();
    let sample = "city-ledger.yaml";
    std::fs::copy(root.join("manifests/samples").join(sample), samples.join(sample)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_the_tutorial_does_what_it_says() {
    let lab = Lab::load().unwrap();
    let client = lab.client(hub()).await.unwrap();
    let (namespace, network) = ("ledger".to_owned(), "city-ledger".to_owned());
    let (hub, members) = (hub(), Vec::new());
    let world = World { lab: lab.clone(), hub, client, members, namespace, network };
    // What a run that failed left.
    world.remove();
    let folder = tempfile::tempdir().unwrap();
    clone(folder.path());
    // The tools by the names that readers have them under.
    let bin = folder.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(lab.tool("kubectl"), bin.join("kubectl")).unwrap();
    std::os::unix::fs::symlink(plugin_program(), bin.join("kubectl-bsn")).unwrap();
    let path = std::env::var("PATH").unwrap();
    let done = Command::new("timeout")
        .args(["1200", "bash", "-c", &script()])
        .current_dir(folder.path())
        .env("PATH", format!("{}:{path}", bin.display()))
        .env("KUBECONFIG", lab.kubeconfig(hub))
        .status()
        .unwrap();
    assert!(done.success(), "the last command shown above failed: {done}");
}
