//! Container images without a registry: a tar file that containerd imports.
//!
//! An image is one layer, a configuration and a manifest. Times, owners and order are fixed, so equal
//! content gives an equal file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use super::{command, tools};

/// The program of a pod's sandbox.
pub const PAUSE: &str = "localhost/pause:1";
/// The clusters' DNS server.
pub const COREDNS: &str = "localhost/coredns:1.12.4";
/// The chain engine, under the name and with the paths of its published image.
pub const COMETBFT: &str = "cometbft/cometbft:v0.38.25";
/// The same in an older version, to move from.
pub const COMETBFT_OLD: &str = "cometbft/cometbft:v0.38.19";
/// An application of a user's own, and its successor, which does not agree with it on any block.
pub const LEDGERAPP: [&str; 2] = ["bsn-lab/ledgerapp:v1", "bsn-lab/ledgerapp:v2"];
/// The engine's example application.
pub const KVSTORE: &str = "localhost/abci-kvstore:0.38.25";
/// The user of unprivileged images, as distroless ones have it.
pub const NON_ROOT: u32 = 65532;
const PASSWD: &str =
    "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/tmp:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnonroot:x:65532:\n";

/// What an image consists of.
#[derive(Clone, Debug)]
pub struct Image {
    name: String,
    entrypoint: Vec<String>,
    user: u32,
    /// Path in the image without the leading slash, content, mode.
    files: BTreeMap<String, (Vec<u8>, u32)>,
}

impl Image {
    /// An image `name:tag` that starts `entrypoint` as `user`.
    pub fn new(name: &str, entrypoint: &[&str], user: u32) -> Self {
        let mut files = BTreeMap::new();
        for (path, text) in [("etc/passwd", PASSWD), ("etc/group", GROUP)] {
            files.insert(path.to_owned(), (text.as_bytes().to_vec(), 0o644));
        }
        let entrypoint = entrypoint.iter().map(|&word| word.to_owned()).collect();
        Self { name: name.to_owned(), entrypoint, user, files }
    }

    /// Name and tag.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Adds an executable file of this machine at `path` in the image.
    pub fn binary(mut self, source: &Path, path: &str) -> Result<Self> {
        let content = std::fs::read(source)
            .with_context(|| format!("reading {} for image {}", source.display(), self.name))?;
        self.files.insert(path.trim_start_matches('/').to_owned(), (content, 0o755));
        Ok(self)
    }

    /// Adds a text file.
    #[must_use]
    pub fn file(mut self, path: &str, content: &str, mode: u32) -> Self {
        let content = content.as_bytes().to_vec();
        self.files.insert(path.trim_start_matches('/').to_owned(), (content, mode));
        self
    }

    /// Adds a dynamically linked program together with its loader and libraries, at the paths that they
    /// have on this machine: the loader is named by its absolute path in the program.
    pub fn dynamic_binary(self, source: &Path, path: &str) -> Result<Self> {
        let listed = command::run("ldd", [source.as_os_str()])
            .with_context(|| format!("asking for the libraries of {}", source.display()))?;
        let mut image = self.binary(source, path)?;
        for library in parse_ldd(&listed)? {
            image = image.binary(&library, &library.to_string_lossy())?;
        }
        Ok(image)
    }

    /// Writes the image into `folder` unless it is there; the name holds the hash of the content.
    pub fn write(&self, folder: &Path) -> Result<PathBuf> {
        let layer = self.layer()?;
        let diff = sha256(&layer);
        let config = serde_json::to_vec(&json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
                "User": format!("{0}:{0}", self.user),
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff}")]},
        }))?;
        let digest = sha256(&config);
        let base: String =
            self.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let key = tools::hash(&[&self.name, &digest]);
        let target = folder.join(format!("{base}-{}.tar", &key[..16]));
        if target.exists() {
            return Ok(target);
        }
        let manifest = serde_json::to_vec(&json!([{
            "Config": format!("{digest}.json"),
            "RepoTags": [self.name],
            "Layers": [format!("{diff}/layer.tar")],
        }]))?;
        let mut tar = Builder::new(Vec::new());
        append(&mut tar, &format!("{digest}.json"), &config, 0o644)?;
        append(&mut tar, &format!("{diff}/layer.tar"), &layer, 0o644)?;
        append(&mut tar, "manifest.json", &manifest, 0o644)?;
        // Renamed when complete, so that an interrupted write is never taken for an image.
        let part = target.with_extension("part");
        command::write(&part, tar.into_inner()?)?;
        std::fs::rename(&part, &target)?;
        Ok(target)
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut tar = Builder::new(Vec::new());
        let mut folders = BTreeSet::from(["tmp".to_owned()]);
        for path in self.files.keys() {
            let above = Path::new(path).ancestors().skip(1).filter(|p| !p.as_os_str().is_empty());
            folders.extend(above.map(|folder| folder.to_string_lossy().into_owned()));
        }
        for folder in &folders {
            let mode = if folder == "tmp" { 0o1777 } else { 0o755 };
            let mut header = header(EntryType::Directory, 0, mode);
            tar.append_data(&mut header, format!("{folder}/"), std::io::empty())?;
        }
        for (path, (content, mode)) in &self.files {
            append(&mut tar, path, content, *mode)?;
        }
        Ok(tar.into_inner()?)
    }
}

/// Makes the lab's own images and returns their files: the sandbox's first, which every pod needs.
pub fn ensure_own(bin: &Path, folder: &Path) -> Result<Vec<PathBuf>> {
    let pause = bin.join("pause");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("lab/pause.c");
    if !pause.exists() || modified(&pause)? < modified(&source)? {
        let (out, source) = (pause.as_os_str(), source.as_os_str());
        let flags = ["-static", "-Os", "-s", "-o"].map(std::ffi::OsStr::new);
        command::run("gcc", flags.iter().copied().chain([out, source]))?;
    }
    let ours = |name: &str, tool: &str, path: &str| {
        Image::new(name, &[path], NON_ROOT).binary(&bin.join(tool), path)
    };
    let engine = |name: &str, tool: &str| {
        Image::new(name, &["cometbft"], NON_ROOT).binary(&bin.join(tool), "/usr/bin/cometbft")
    };
    let images = [
        ours(PAUSE, "pause", "/pause")?,
        ours(COREDNS, "coredns", "/coredns")?,
        engine(COMETBFT, "cometbft")?,
        engine(COMETBFT_OLD, "cometbft-0.38.19")?,
        ours(KVSTORE, "abci-cli", "/usr/bin/abci-cli")?,
        ours(LEDGERAPP[0], "ledgerapp-v1", "/usr/bin/ledgerapp")?,
        ours(LEDGERAPP[1], "ledgerapp-v2", "/usr/bin/ledgerapp")?,
    ];
    images.iter().map(|image| image.write(folder)).collect()
}

fn modified(path: &Path) -> Result<std::time::SystemTime> {
    Ok(std::fs::metadata(path)
        .with_context(|| format!("reading {}", path.display()))?
        .modified()?)
}

fn append(tar: &mut Builder<Vec<u8>>, path: &str, content: &[u8], mode: u32) -> Result<()> {
    let mut header = header(EntryType::Regular, content.len() as u64, mode);
    tar.append_data(&mut header, path, content).with_context(|| format!("adding {path}"))
}

fn header(kind: EntryType, size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn sha256(content: &[u8]) -> String {
    tools::hex(&Sha256::digest(content))
}

/// The name that images use for this machine's processor.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Absolute paths out of ldd's lines: `libm.so.6 => /lib/…/libm.so.6 (0x…)` or `/lib64/ld-… (0x…)`.
fn parse_ldd(listed: &str) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for line in listed.lines() {
        if line.contains("not found") {
            bail!("a library is missing on this machine: {}", line.trim());
        }
        if let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) {
            paths.push(PathBuf::from(path));
        }
    }
    Ok(paths)
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
