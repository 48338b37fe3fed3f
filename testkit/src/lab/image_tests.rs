use std::path::Path;

use super::*;

fn example() -> Image {
    Image::new("localhost/example:1", &["/bin/x"], NON_ROOT).file("/bin/x", "content", 0o755)
}

#[test]
fn equal_content_gives_equal_files() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (one, two) = (example().write(one.path()).unwrap(), example().write(two.path()).unwrap());
    assert_eq!(one.file_name(), two.file_name());
    assert_eq!(std::fs::read(one).unwrap(), std::fs::read(two).unwrap());
}

#[test]
fn other_content_gives_another_name() {
    let folder = tempfile::tempdir().unwrap();
    let other = example().file("/bin/x", "other", 0o755);
    assert_ne!(example().write(folder.path()).unwrap(), other.write(folder.path()).unwrap());
}

#[test]
fn folders_come_before_what_is_in_them_and_tmp_is_open_to_all() {
    let layer = example().layer().unwrap();
    let mut archive = tar::Archive::new(layer.as_slice());
    let entries: Vec<(String, u32)> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            (path, entry.header().mode().unwrap())
        })
        .collect();
    let position = |path: &str| entries.iter().position(|(found, _)| found == path).unwrap();
    assert!(position("bin/") < position("bin/x"));
    assert_eq!(entries[position("tmp/")].1, 0o1777);
    assert!(entries.iter().any(|(path, _)| path == "etc/passwd"));
}

#[test]
fn libraries_are_read_from_ldd() {
    let listed = "\tlinux-vdso.so.1 (0x7ffc)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x7f)\n\t/lib64/ld.so.2 (0x7f)\n";
    let paths = parse_ldd(listed).unwrap();
    assert_eq!(paths, [Path::new("/lib/x/libc.so.6"), Path::new("/lib64/ld.so.2")]);
    assert!(parse_ldd("\tlibx.so => not found\n").is_err());
}
