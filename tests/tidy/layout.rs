//! Where modules and tests are, so that a reader guesses it: a module that has a folder is the
//! `mod.rs` in it, and the unit tests of a file are at its end. CONTRIBUTING has the table.

use super::{File, rust_files};
use crate::harness::repository;

/// Folders and files of tests, as parts of a path.
const TEST_PLACES: [&str; 3] = ["conformance", "sim", "tests"];

fn sources() -> impl Iterator<Item = File> {
    let folders = ["src", "tests", "benches"];
    folders.into_iter().flat_map(rust_files)
}

#[test]
fn a_module_with_a_folder_is_its_mod_rs() {
    for file in sources() {
        let stem = file.name.trim_end_matches(".rs");
        let is_beside = repository(stem).is_dir();
        assert!(!is_beside, "{}: move it to {stem}/mod.rs", file.name);
    }
}

#[test]
fn no_module_is_elsewhere_than_its_name_says() {
    for file in sources() {
        let mut lines = file.text.lines();
        let elsewhere = lines.any(|line| line.trim_start().starts_with("#[path"));
        assert!(!elsewhere, "{}: a module with #[path]", file.name);
    }
}

/// What is wrong with the place of the unit tests of a source.
fn misplaced(file: &File) -> Option<&'static str> {
    const HEAD: &str = "\n#[cfg(test)]\nmod tests";
    let path = file.name.trim_end_matches(".rs");
    if path.split('/').any(|part| TEST_PLACES.contains(&part)) {
        return None;
    }
    if path.ends_with("_tests") {
        return Some("call it tests.rs, in the folder that it tests");
    }
    let (code, tests) = match file.text.split_once(HEAD) {
        Some((code, tests)) => (code, Some(tests)),
        None => (&*file.text, None),
    };
    if code.lines().any(|line| line.trim() == "#[test]") {
        return Some("a test outside of `mod tests`");
    }
    match tests {
        Some(";\n") if !path.ends_with("/mod") => Some("tests.rs is for a folder: make it one"),
        None | Some(";\n") => None,
        Some(tests) => {
            let end = tests.find("\n}\n").map(|at| at + "\n}\n".len());
            let is_last = end == Some(tests.len());
            (!is_last).then_some("`mod tests` is not at the end")
        }
    }
}

#[test]
fn unit_tests_are_at_the_end_of_their_file_or_in_tests_rs_of_their_folder() {
    let wrong: Vec<String> = rust_files("src")
        .iter()
        .filter_map(|file| Some(format!("{}: {}", file.name, misplaced(file)?)))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn misplaced_unit_tests_are_found() {
    const INLINE: &str = "fn f() {}\n\n#[cfg(test)]\nmod tests {\n    #[test]\n    fn t() {}\n}\n";
    const BESIDE: &str = "fn f() {}\n\n#[cfg(test)]\nmod tests;\n";
    let is_wrong = |name: &str, text: &str| {
        let (name, text) = (name.into(), text.into());
        misplaced(&File { name, text }).is_some()
    };
    assert!(!is_wrong("src/a.rs", INLINE));
    assert!(!is_wrong("src/a/mod.rs", BESIDE));
    assert!(!is_wrong("src/a/tests.rs", "#[test]\nfn t() {}\n"));
    assert!(is_wrong("src/a.rs", BESIDE));
    assert!(is_wrong("src/a.rs", "#[test]\nfn t() {}\n"));
    assert!(is_wrong("src/a.rs", &[INLINE, "fn g() {}\n"].concat()));
    assert!(is_wrong("src/a/mod.rs", &[BESIDE, "fn g() {}\n"].concat()));
    assert!(is_wrong("src/a_tests.rs", "use super::*;\n"));
}
