//! What the Debian package is made of, read as text: nothing that belongs into it was forgotten.
//!
//! That it works when it is installed is tested by `tests/systemd/package-promises`.

use std::fs;

use crate::harness::repository;

fn read(name: &str) -> String {
    fs::read_to_string(repository(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The names of the files in a folder of the repository.
fn names_in(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(repository(folder)).expect("a folder");
    let name = |entry: std::io::Result<fs::DirEntry>| {
        let name = entry.expect("an entry").file_name();
        name.into_string().expect("text")
    };
    entries.map(name).collect()
}

#[test]
fn the_version_of_the_package_is_that_of_the_program() {
    let changelog = read("packaging/debian/changelog");
    let head = format!("echod ({}-1) ", env!("CARGO_PKG_VERSION"));
    assert!(
        changelog.starts_with(&head),
        "packaging/debian/changelog: give {head}an entry at the top"
    );
}

#[test]
fn every_unit_is_in_the_package() {
    let manifest = read("Cargo.toml");
    for name in names_in("systemd") {
        // A drop-in is an option: an example.
        let place = if name.ends_with(".conf") {
            "share/doc/"
        } else {
            "lib/"
        };
        let asset = format!("[\"systemd/{name}\", \"usr/{place}");
        assert!(manifest.contains(&asset), "systemd/{name}");
    }
}

#[test]
fn every_program_that_has_a_manual_page_is_in_the_package_with_completions() {
    let manifest = read("Cargo.toml");
    let build = read("packaging/build");
    let loops = build
        .lines()
        .find(|line| line.starts_with("for program in"));
    let completed: Vec<&str> = loops.expect("a loop").split([' ', ';']).collect();
    let pages = names_in("docs/man");
    let mut count = 0;
    for program in names_in("src/bin") {
        let program = program.trim_end_matches(".rs");
        let has_page = ["1", "8"]
            .iter()
            .any(|section| pages.contains(&format!("{program}.{section}")));
        if !has_page {
            continue;
        }
        count += 1;
        let asset = format!("[\"target/release/{program}\", \"usr/");
        assert!(
            manifest.contains(&asset),
            "{program}: [package.metadata.deb]"
        );
        assert!(completed.contains(&program), "{program}: packaging/build");
    }
    assert!(count > 0, "programs have pages");
}

#[test]
fn the_maintainer_scripts_know_both_units() {
    for script in ["postinst", "prerm", "postrm"] {
        let text = read(&format!("packaging/debian/{script}"));
        for name in names_in("systemd") {
            let is_unit = name.ends_with(".service") || name.ends_with(".socket");
            assert!(!is_unit || text.contains(&name), "{script}: {name}");
        }
    }
}
