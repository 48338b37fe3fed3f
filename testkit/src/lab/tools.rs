//! Programs built from pinned Go modules: Kubernetes, etcd, Helm, `CoreDNS`, the chain engine in two versions,
//! and an application for it in two that do not agree.
//!
//! `testkit/lab/go/<module>/` holds a `go.mod` and `go.sum` for each, so a build is reproducible and needs
//! only the Go module proxy; the application's code lies beside them, and so do tests that ask the libraries
//! of GitOps tools. A module whose inputs have not changed is not built again.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest as _, Sha256};

use super::{command, packages};

/// Flags of every build.
const FLAGS: [&str; 2] = ["-mod=readonly", "-trimpath"];

/// Discovery and Helm see `v0.0.0` unless the version is put in at link time.
const KUBERNETES_LDFLAGS: &str = "-s -w -X k8s.io/component-base/version.gitVersion=v1.34.3 \
     -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=34";
/// Without it Helm's charts see a `kubeVersion` of v1.20 when nothing is connected.
const HELM_LDFLAGS: &str = "-s -w -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1 \
     -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=34";

/// A Go module of tools, all built by one `go build`, which then compiles what they share once.
struct Module {
    /// Its folder.
    name: &'static str,
    ldflags: &'static str,
    /// Name of the program, and its package.
    tools: &'static [(&'static str, &'static str)],
}

const MODULES: [Module; 9] = [
    Module {
        name: "kubernetes",
        ldflags: KUBERNETES_LDFLAGS,
        tools: &[
            ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
            ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
            ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
            ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
            ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
            ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
        ],
    },
    Module { name: "etcd", ldflags: "-s -w", tools: &[("etcd", "go.etcd.io/etcd/server/v3")] },
    Module {
        name: "coredns",
        ldflags: "-s -w",
        tools: &[("coredns", "github.com/coredns/coredns")],
    },
    Module {
        name: "cometbft",
        ldflags: "-s -w",
        tools: &[
            ("cometbft", "github.com/cometbft/cometbft/cmd/cometbft"),
            ("abci-cli", "github.com/cometbft/cometbft/abci/cmd/abci-cli"),
        ],
    },
    // To move from. It shares all but four libraries with the newer one, so that it costs seconds.
    Module {
        name: "cometbft-0.38.19",
        ldflags: "-s -w",
        tools: &[("cometbft-0.38.19", "github.com/cometbft/cometbft/cmd/cometbft")],
    },
    Module {
        name: "ledgerapp",
        ldflags: "-s -w -X main.version=1",
        tools: &[("ledgerapp-v1", ".")],
    },
    Module {
        name: "ledgerapp",
        ldflags: "-s -w -X main.version=2",
        tools: &[("ledgerapp-v2", ".")],
    },
    Module { name: "netpol", ldflags: "-s -w", tools: &[("netpol", ".")] },
    Module { name: "helm", ldflags: HELM_LDFLAGS, tools: &[("helm", "helm.sh/helm/v3/cmd/helm")] },
];

/// Names of all tools.
pub fn names() -> impl Iterator<Item = &'static str> {
    MODULES.iter().flat_map(|module| module.tools.iter().map(|(name, _)| *name))
}

/// Builds what is not built yet into `bin`; returns what was built and the seconds it took.
pub fn build(bin: &Path) -> Result<Vec<(String, f64)>> {
    std::fs::create_dir_all(bin).with_context(|| format!("creating {}", bin.display()))?;
    let mut built = Vec::new();
    for module in &MODULES {
        let stamp = module.stamp()?;
        if module.is_current(bin, &stamp) {
            continue;
        }
        let names: Vec<_> = module.tools.iter().map(|(name, _)| *name).collect();
        let what = names.join(", ");
        let seconds = with_progress(&format!("building {what}"), || module.build(bin))?;
        for name in names {
            command::write(&stamp_file(bin, name), &stamp)?;
        }
        built.push((what, seconds));
    }
    Ok(built)
}

impl Module {
    fn folder(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("lab/go").join(self.name)
    }

    /// Hash of everything on which the programs depend.
    fn stamp(&self) -> Result<String> {
        let mut inputs = Vec::new();
        let sums = ["go.mod", "go.sum"].map(|name| self.folder().join(name));
        for path in sums.into_iter().chain(self.sources()?) {
            inputs
                .push(std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?);
        }
        inputs.extend(FLAGS.iter().map(|flag| flag.as_bytes().to_vec()));
        inputs.push(self.ldflags.as_bytes().to_vec());
        for (name, package) in self.tools {
            inputs.push(format!("{name}={package}").into_bytes());
        }
        Ok(hash(&inputs))
    }

    /// Code of our own, if the module has any.
    fn sources(&self) -> Result<Vec<PathBuf>> {
        let folder = self.folder();
        let listed = folder.read_dir().with_context(|| format!("listing {}", folder.display()))?;
        let mut files = Vec::new();
        for entry in listed {
            files.push(entry?.path());
        }
        files.retain(|path| path.extension().is_some_and(|end| end == "go"));
        files.sort();
        Ok(files)
    }

    fn is_current(&self, bin: &Path, stamp: &str) -> bool {
        self.tools.iter().all(|(name, _)| {
            bin.join(name).is_file()
                && std::fs::read_to_string(stamp_file(bin, name)).is_ok_and(|found| found == stamp)
        })
    }

    fn build(&self, bin: &Path) -> Result<()> {
        let mut build = go(&self.folder())?;
        build.arg("build").args(FLAGS).arg(format!("-ldflags={}", self.ldflags)).arg("-o");
        // Go names programs by their package, except where one package is built into one file. It also
        // leaves a program alone that is already what it would link.
        match self.tools {
            [(name, _)] => build.arg(bin.join(name)),
            _ => build.arg(format!("{}/", bin.display())),
        };
        build.args(self.tools.iter().map(|(_, package)| *package));
        command::run_command(&mut build).map(drop)
    }
}

/// The tests of a module of our own, below `testkit/lab/go/`. What they are built from stays in Go's own cache.
pub fn test(module: &str) -> Result<Command> {
    let mut test = go(&Path::new(env!("CARGO_MANIFEST_DIR")).join("lab/go").join(module))?;
    // Not from Go's memory of earlier results: it does not see files outside of the module. And without vet, which
    // would look through everything that is imported.
    test.arg("test").args(FLAGS).args(["-count=1", "-vet=off", "./..."]);
    Ok(test)
}

/// Go, in `folder`. With the same settings everywhere, so that what several modules share is compiled once.
fn go(folder: &Path) -> Result<Command> {
    let go = packages::find("go")
        .or_else(|| packages::find("/usr/local/go/bin/go"))
        .context("Go is missing: install it from https://go.dev/dl and put it into PATH")?;
    let mut command = Command::new(go);
    command.current_dir(folder).env("CGO_ENABLED", "0").env("GOWORK", "off");
    Ok(command)
}

fn stamp_file(bin: &Path, name: &str) -> PathBuf {
    bin.join(format!(".{name}.stamp"))
}

/// Hash of a list; each entry's length goes in, so that a boundary cannot move unseen.
pub(super) fn hash<T: AsRef<[u8]>>(inputs: &[T]) -> String {
    let mut hasher = Sha256::new();
    for input in inputs {
        let input = input.as_ref();
        hasher.update((input.len() as u64).to_be_bytes());
        hasher.update(input);
    }
    hex(&hasher.finalize())
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Runs a long step with a spinner on a terminal, or two plain lines elsewhere; returns its seconds.
pub(super) fn with_progress(what: &str, step: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    let bar = if std::io::stderr().is_terminal() {
        let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}")?;
        ProgressBar::new_spinner().with_style(style).with_message(what.to_owned())
    } else {
        eprintln!("  {what} …");
        ProgressBar::hidden()
    };
    bar.enable_steady_tick(Duration::from_millis(200));
    let result = step();
    bar.finish_and_clear();
    result.with_context(|| format!("while {what}"))?;
    let seconds = start.elapsed().as_secs_f64();
    eprintln!("  {what}: {seconds:.1} s");
    Ok(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamp_depends_on_where_one_input_ends() {
        assert_ne!(hash(&["ab", "c"]), hash(&["a", "bc"]));
        assert_eq!(hash(&["ab", "c"]), hash(&["ab", "c"]));
    }

    #[test]
    fn every_module_is_committed_with_its_checksums() {
        let stamps: Vec<_> = MODULES.iter().map(|module| module.stamp().unwrap()).collect();
        assert!(stamps.iter().all(|stamp| stamp.len() == 64));
    }

    #[test]
    fn code_of_our_own_is_built_again_when_it_changes() {
        let own: Vec<_> = MODULES.iter().filter(|module| module.name == "ledgerapp").collect();
        for module in &own {
            assert_eq!(module.sources().unwrap(), [module.folder().join("main.go")]);
        }
        // One folder, two programs.
        assert_ne!(own[0].stamp().unwrap(), own[1].stamp().unwrap());
        assert_eq!(MODULES[1].sources().unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn tool_is_current_only_with_binary_and_equal_stamp() {
        let bin = tempfile::tempdir().unwrap();
        let etcd = &MODULES[1];
        assert!(!etcd.is_current(bin.path(), "s"));
        std::fs::write(bin.path().join("etcd"), "").unwrap();
        std::fs::write(stamp_file(bin.path(), "etcd"), "s").unwrap();
        assert!(etcd.is_current(bin.path(), "s"));
        assert!(!etcd.is_current(bin.path(), "t"));
    }
}
