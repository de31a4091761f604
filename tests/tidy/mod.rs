//! The rules of the house as tests, reading the repository as text.
//!
//! Those of the configuration (every key in `etc/echod.toml` and the manual page with its default
//! and effect) are in `src/config/tests/shipped.rs`, beside the table of keys; those of the interface
//! text in `src/protocol/schema/tests.rs`. How long files and functions may be, and which files of a
//! folder may know each other, is in `shape`; where modules and tests are, in `layout`.

mod layout;
mod shape;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::repository;

/// Which modules may know which. If you add a module, say here what it may know, and in
/// `docs/architecture.md` why.
const DIRECTIONS: &[(&str, &[&str])] = &[
    ("echo", &[]),
    ("policy", &[]),
    ("stats", &[]),
    ("protocol", &[]),
    ("sys", &[]),
    ("cli", &[]),
    ("config", &["policy", "echo", "cli", "protocol"]),
    ("driver", &["sys"]),
    ("worker", &["driver", "echo", "policy", "stats"]),
    ("ctl", &["protocol", "cli", "config"]),
    ("probe", &["stats", "sys", "driver", "cli"]),
    (
        "daemon",
        &[
            "echo", "policy", "stats", "protocol", "sys", "cli", "config", "driver", "worker",
        ],
    ),
];

/// Where `unsafe` may be.
const UNSAFE_ROOMS: [&str; 2] = ["sys", "driver"];

/// A file that is longer, its tests included, has a second subject. For the data plane `shape` has a
/// stricter rule.
const LINES_MAX: usize = 900;

/// A file of the repository and what is in it.
struct File {
    /// Its path, from the top of the repository.
    name: String,
    text: String,
}

/// All text files below a folder of the repository, or one file; none where there is none.
fn files(place: &str) -> Vec<File> {
    let mut found = Vec::new();
    collect(&repository(place), &mut found);
    found.sort();
    let top = repository("");
    let read = |path: &PathBuf| {
        let name = path
            .strip_prefix(&top)
            .unwrap_or(path)
            .display()
            .to_string();
        // Images and other binary files have no lines to check.
        let text = fs::read_to_string(path).ok()?;
        Some(File { name, text })
    };
    found.iter().filter_map(read).collect()
}

fn collect(path: &Path, found: &mut Vec<PathBuf>) {
    // Made by tools, not by us.
    const MADE: [&str; 3] = ["target", "corpus", "artifacts"];
    if path.is_file() {
        found.push(path.into());
    } else if let Ok(entries) = fs::read_dir(path) {
        let made = |path: &Path| {
            path.file_name()
                .is_some_and(|name| MADE.iter().any(|made| *made == name))
        };
        for entry in entries {
            let path = entry.expect("an entry").path();
            if !made(&path) {
                collect(&path, found);
            }
        }
    }
}

fn rust_files(place: &str) -> Vec<File> {
    let mut files = files(place);
    files.retain(|file| file.name.ends_with(".rs"));
    files
}

/// The module at the top that a file of `src` belongs to; none for `lib.rs` and the programs.
fn module_of(name: &str) -> Option<&str> {
    let path = name.strip_prefix("src/")?;
    let first = path.split('/').next()?;
    let module = first.strip_suffix(".rs").unwrap_or(first);
    (module != "lib" && module != "bin").then_some(module)
}

/// A line without its comment and its strings.
fn code(line: &str) -> String {
    let mut code = String::new();
    let mut pieces = line.split('"');
    // What stands at an odd place is within quotation marks; good enough for what is looked for.
    while let Some(outside) = pieces.next() {
        if let Some((before, _)) = outside.split_once("//") {
            code += before;
            break;
        }
        code += outside;
        pieces.next();
    }
    code
}

/// The modules at the top that a source names: `crate::a::…`, `use crate::{a::…, b}`.
fn named_modules(text: &str) -> BTreeSet<String> {
    let code: String = text.lines().map(|line| code(line) + "\n").collect();
    let mut named = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        // `$crate::` and such is not a path of ours.
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut name = String::new();
            let mut is_head = true;
            for character in group.chars() {
                match character {
                    '}' if depth == 0 => break,
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        named.insert(std::mem::take(&mut name));
                        is_head = true;
                    }
                    ':' if depth == 0 => is_head = false,
                    _ if is_head && (character.is_alphanumeric() || character == '_') => {
                        name.push(character);
                    }
                    _ => {}
                }
            }
            named.insert(name);
        } else {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
            named.insert(rest[..end.unwrap_or(rest.len())].into());
        }
    }
    named.retain(|name| !name.is_empty());
    named
}

#[test]
fn modules_know_each_other_in_the_allowed_directions_only() {
    let directions: BTreeMap<&str, &[&str]> = DIRECTIONS.iter().copied().collect();
    let mut wrong = Vec::new();
    for file in rust_files("src") {
        let Some(module) = module_of(&file.name) else {
            continue;
        };
        let Some(allowed) = directions.get(module) else {
            wrong.push(format!(
                "{}: what may {module} know? see DIRECTIONS",
                file.name
            ));
            continue;
        };
        for named in named_modules(&file.text) {
            if named != module && !allowed.contains(&named.as_str()) {
                wrong.push(format!("{}: {module} may not know {named}", file.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_module_leaves_itself_with_super() {
    let mut wrong = Vec::new();
    for file in rust_files("src") {
        if module_of(&file.name).is_none() {
            continue;
        }
        // From `src/worker/gate.rs` it takes two to the top, from its `mod tests` three.
        let path = file.name.trim_end_matches("/mod.rs");
        let mut depth = path.matches('/').count();
        for (number, line) in file.text.lines().enumerate() {
            if line.starts_with("mod ") && line.ends_with('{') {
                depth += 1;
            }
            let line = code(line);
            let longest = (1..=depth + 1)
                .rev()
                .find(|count| line.contains(&"super::".repeat(*count)));
            if longest.is_some_and(|count| count >= depth) {
                wrong.push(format!(
                    "{}:{}: write crate:: instead",
                    file.name,
                    number + 1
                ));
            }
            if line.starts_with('}') && depth > path.matches('/').count() {
                depth -= 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_of_directions_is_that_of_the_sources_and_has_no_circle() {
    let modules: BTreeSet<String> = rust_files("src")
        .iter()
        .filter_map(|file| module_of(&file.name).map(Into::into))
        .collect();
    let table: BTreeSet<String> = DIRECTIONS.iter().map(|(name, _)| (*name).into()).collect();
    assert_eq!(modules, table);
    // It stands in an order in which each knows only those before it.
    for (index, (module, allowed)) in DIRECTIONS.iter().enumerate() {
        for known in *allowed {
            let before = DIRECTIONS[..index].iter().any(|(name, _)| name == known);
            assert!(before, "{module} knows {known}, which comes after it");
        }
    }
}

#[test]
fn unsafe_is_in_two_modules_and_forbidden_in_all_others() {
    let mut wrong = Vec::new();
    for file in rust_files("src").into_iter().chain(rust_files("tests")) {
        let module = module_of(&file.name);
        if module.is_some_and(|module| UNSAFE_ROOMS.contains(&module)) {
            continue;
        }
        for (number, line) in file.text.lines().enumerate() {
            let line = code(line);
            let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            if words.any(|word| word == "unsafe") {
                wrong.push(format!("{}:{}: unsafe", file.name, number + 1));
            }
        }
        let opens_module = module.is_some_and(|module| {
            [format!("src/{module}.rs"), format!("src/{module}/mod.rs")].contains(&file.name)
        });
        let forbids = file
            .text
            .lines()
            .any(|line| line == "#![forbid(unsafe_code)]");
        if opens_module && !forbids {
            wrong.push(format!("{}: #![forbid(unsafe_code)] is missing", file.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_source_opens_with_what_it_knows() {
    for folder in ["src", "tests", "benches"] {
        for file in rust_files(folder) {
            assert!(file.text.starts_with("//! "), "{}", file.name);
        }
    }
}

#[test]
fn no_source_is_longer_than_one_thing() {
    for file in rust_files("src") {
        let lines = file.text.lines().count();
        assert!(lines <= LINES_MAX, "{}: {lines} lines", file.name);
    }
}

/// A standard stream that is closed would make them panic.
#[test]
fn everything_that_the_programs_print_passes_through_one_module() {
    // What is compiled into tests may print as it likes.
    let is_test = |name: &str| {
        let mut parts = name.trim_end_matches(".rs").split('/');
        parts.any(|part| ["conformance", "sim"].contains(&part) || part.ends_with("tests"))
    };
    let mut wrong = Vec::new();
    for file in rust_files("src") {
        let end = file.text.find("\n#[cfg(test)]\nmod tests");
        let text = &file.text[..end.unwrap_or(file.text.len())];
        for (number, line) in text.lines().enumerate() {
            let prints = ["print!(", "println!(", "dbg!("]
                .iter()
                .any(|name| code(line).contains(name));
            if prints && !is_test(&file.name) {
                let number = number + 1;
                wrong.push(format!("{}:{number}: print with cli::terminal", file.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_control_method_is_documented() {
    let page = fs::read_to_string(repository("docs/control.md")).expect("a page");
    for method in echod::internals::METHODS {
        let name = method.name.trim_start_matches("io.echod.Control.");
        let row = format!("\n| `{name}` | ");
        assert!(page.contains(&row), "{name} is missing in docs/control.md");
    }
}

#[test]
fn the_manual_of_echoctl_has_every_command_and_every_method() {
    let manual = fs::read_to_string(repository("docs/man/echoctl.1")).expect("a page");
    let (commands, json) = manual.split_once("\n.Sh JSON\n").expect("two sections");
    let help = Command::new(crate::harness::ECHOCTL)
        .arg("--help")
        .output()
        .expect("echoctl runs");
    let help = String::from_utf8(help.stdout).expect("text");
    let (_, listed) = help.split_once("\nCommands:\n").expect("a list");
    let listed = listed.lines().take_while(|line| !line.is_empty());
    let names = listed.filter_map(|line| line.split_whitespace().next());
    let names: Vec<&str> = names.filter(|name| *name != "help").collect();
    assert!(names.contains(&"status"), "{names:?}");
    for name in names {
        let is_item = |line: &str| {
            let words = line.strip_prefix(".It ").unwrap_or(line);
            let name_of_item = words.strip_prefix(".Cm ").or(words.strip_prefix("Cm "));
            name_of_item.and_then(|rest| rest.split(' ').next()) == Some(name)
        };
        // An item of one line, or of several, of which the name is the first.
        let lines: Vec<&str> = commands.lines().collect();
        let has_item = lines.windows(2).any(|pair| {
            (pair[0].starts_with(".It ") && is_item(pair[0]))
                || (pair[0] == ".It Xo" && is_item(pair[1]))
        });
        assert!(has_item, "{name} is missing in echoctl.1");
    }
    for method in echod::internals::METHODS {
        // Those of Varlink itself describe the service.
        if let Some(name) = method.name.strip_prefix("io.echod.Control.") {
            let has_line = json.lines().any(|line| {
                line.strip_prefix(".Li ")
                    .map(|line| line.trim_end_matches(" ;"))
                    == Some(name)
            });
            assert!(has_line, "the list below JSON does not name {name}");
        }
    }
}

#[test]
fn where_a_change_goes_names_files_that_exist() {
    let page = fs::read_to_string(repository("CONTRIBUTING.md")).expect("a page");
    let section = page
        .split("\n## ")
        .find(|part| part.starts_with("Where a change goes"));
    let rows = section
        .expect("a section")
        .lines()
        .filter(|line| line.starts_with("| "));
    let mut count = 0;
    for row in rows {
        let quoted: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
        let is_path = |text: &&str| text.contains('/') && !text.contains(' ');
        let paths = quoted.iter().copied().filter(is_path);
        let paths: Vec<PathBuf> = paths.map(repository).collect();
        for path in &paths {
            assert!(path.exists(), "{} is missing: {row}", path.display());
        }
        // A file without its folder is in one that the row names.
        let is_name = |text: &&str| !text.contains('/') && text.ends_with(".rs");
        for name in quoted.iter().copied().filter(is_name) {
            let mut folders = paths.iter().map(|path| match path.is_dir() {
                true => path.as_path(),
                false => path.parent().expect("a folder"),
            });
            let is_there = folders.any(|folder| folder.join(name).is_file());
            assert!(is_there, "{name} is missing: {row}");
        }
        count += paths.len();
    }
    assert!(count > 40, "the table has paths");
}

#[test]
fn every_reason_of_closing_is_documented() {
    let page = fs::read_to_string(repository("docs/control.md")).expect("a page");
    let manual = fs::read_to_string(repository("docs/man/echoctl.1")).expect("a page");
    for reason in echod::internals::CloseReason::ALL {
        let name = reason.name();
        let row = format!("\n| `{name}` | ");
        assert!(page.contains(&row), "{name} is missing in docs/control.md");
        let item = format!("\n.It Cm {name}\n");
        assert!(manual.contains(&item), "{name} is missing in echoctl.1");
    }
}

#[test]
fn every_configuration_that_is_shipped_loads_without_a_warning() {
    let mut count = 0;
    for file in files("etc") {
        if !file.name.ends_with(".toml") {
            continue;
        }
        count += 1;
        let source = echod::internals::ConfigSource {
            name: file.name.clone(),
            text: file.text,
        };
        let loaded = echod::internals::load_config(&[source]);
        let loaded = loaded.unwrap_or_else(|errors| panic!("{}", errors[0]));
        assert!(loaded.warnings.is_empty(), "{}", file.name);
    }
    assert!(count > 1, "etc/ has configurations");
}

#[test]
fn every_program_has_a_manual_page() {
    let cargo = fs::read_to_string(repository("Cargo.toml")).expect("a manifest");
    let pages: Vec<String> = files("docs/man")
        .into_iter()
        .map(|file| file.name)
        .collect();
    let programs = cargo.split("[[bin]]").skip(1).map(|table| {
        let name = table.lines().find_map(|line| line.strip_prefix("name = "));
        name.expect("a name").trim_matches('"')
    });
    let programs: Vec<&str> = programs.collect();
    assert!(programs.contains(&"echod"), "{programs:?}");
    for program in programs {
        let has_page = ["1", "8"]
            .iter()
            .any(|section| pages.contains(&format!("docs/man/{program}.{section}")));
        assert!(has_page, "{program} has no page in docs/man");
    }
}

/// The rows of the first table under a heading: cells without their code marks.
fn table_under(heading: &str, text: &str) -> Vec<Vec<String>> {
    let section = text.split("\n## ").find(|part| part.starts_with(heading));
    let lines = section.expect("the section is there").lines();
    let rows = lines
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .filter(|line| !line.starts_with("| --"));
    let cells = |line: &str| {
        let cells = line.trim_matches('|').split('|');
        cells
            .map(|cell| cell.trim().trim_matches('`').to_string())
            .collect()
    };
    rows.map(cells).collect()
}

#[test]
fn what_the_readme_claims_of_speed_was_measured() {
    let read = |name| fs::read_to_string(repository(name)).expect("it is there");
    let (readme, page) = (read("README.md"), read("docs/performance.md"));
    let claims = table_under("How fast", &readme);
    let measured = [
        table_under("Messages per CPU second", &page),
        table_under("Memory", &page),
    ];
    let lookup = |scenario: &str, server: &str| {
        measured.iter().find_map(|table| {
            let column = table[0].iter().position(|head| head == server)?;
            let row = table.iter().find(|row| row[0] == scenario)?;
            Some(row[column].clone())
        })
    };
    assert!(claims.len() > 3, "a few lines of the table");
    for row in &claims[1..] {
        for (server, claim) in claims[0].iter().zip(row).skip(1) {
            let figure = lookup(&row[0], server);
            assert_eq!(figure.as_ref(), Some(claim), "{} of {server}", row[0]);
        }
    }
}

#[test]
fn no_file_names_a_path_of_a_developers_machine() {
    // In two halves, or this file would be the first to be found.
    let paths = [
        ("/wo", "rk/"),
        ("/ro", "ot/"),
        ("/ho", "me/"),
        ("/tm", "p/wt-"),
        ("/tm", "p/target"),
    ];
    // What is tracked. A working folder may have other files, which no rule applies to.
    let places = [
        "src",
        "tests",
        "docs",
        "etc",
        "systemd",
        "packaging",
        "benches",
        "bench",
        "fuzz",
        ".ci",
        "Cargo.toml",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
    ];
    let mut wrong = Vec::new();
    for file in places.into_iter().flat_map(files) {
        for (number, line) in file.text.lines().enumerate() {
            for (head, tail) in paths {
                let path = format!("{head}{tail}");
                // At the beginning of a path, not in its middle.
                let starts = line.match_indices(&path).any(|(at, _)| {
                    !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-})".contains(c))
                });
                if starts {
                    wrong.push(format!("{}:{}: {path}", file.name, number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
