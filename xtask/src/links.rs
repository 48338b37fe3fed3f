//! Links between documents, and from messages to documents, lead somewhere.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::reasons::anchor_of;

fn files(folder: &Path, ext: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, ext, found);
        } else if path.extension().is_some_and(|found| found == ext) {
            found.push(path);
        }
    }
}

fn anchors(text: &str) -> BTreeSet<String> {
    // Comments in shell examples are no headings, and do no harm here.
    text.lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| line.trim_start_matches('#'))
        .map(anchor_of)
        .collect()
}

fn leads_somewhere(folder: &Path, target: &str, from: &Path) -> Result<(), String> {
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = if file.is_empty() { from.to_owned() } else { folder.join(file) };
    let wrong = |what: &str| Err(format!("{}: {target}: {what}", from.display()));
    if path.is_dir() {
        return Ok(());
    }
    let Ok(text) = std::fs::read_to_string(&path) else { return wrong("there is no such file") };
    if !anchor.is_empty() && !anchors(&text).contains(anchor) {
        return wrong("there is no such heading");
    }
    Ok(())
}

#[test]
fn links_of_documents_lead_somewhere() {
    let root = crate::programs::root();
    let mut documents = vec![root.join("README.md"), root.join("CONTRIBUTING.md")];
    files(&root.join("docs"), "md", &mut documents);
    let mut wrong = Vec::new();
    for document in &documents {
        let text = std::fs::read_to_string(document).unwrap();
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let folder = document.parent().unwrap();
        let own = links.filter(|target| !target.contains("://"));
        wrong.extend(own.filter_map(|target| leads_somewhere(folder, target, document).err()));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn documents_that_messages_name_exist() {
    let root = crate::programs::root();
    let mut sources = Vec::new();
    files(&root.join("src"), "rs", &mut sources);
    files(&root.join("core/src"), "rs", &mut sources);
    let mut wrong = Vec::new();
    for source in &sources {
        let text = std::fs::read_to_string(source).unwrap();
        let is_path = |c: char| c.is_alphanumeric() || "/._-".contains(c);
        let words = text.split(|c| !is_path(c)).map(|word| word.trim_end_matches('.'));
        let named = words.filter_map(|word| word.strip_prefix("docs/")?.strip_suffix(".md"));
        let names = named.map(|name| format!("{name}.md"));
        wrong.extend(
            names.filter_map(|name| leads_somewhere(&root.join("docs"), &name, source).err()),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
