//! The shape of the sources: how long a file and a function may be, where a comment is due, and that
//! the files of a folder depend on each other in one direction.
//!
//! Knows Rust as rustfmt prints it, by its indentation; never parses an expression. The rules apply to
//! [`ROOMS`], and there to what is compiled into the programs, not to tests.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{File, code, rust_files};

/// The folders that the rules apply to.
const ROOMS: &[&str] = &[
    "src/echo",
    "src/policy",
    "src/stats.rs",
    "src/sys",
    "src/driver",
    "src/worker",
    "src/config",
    "src/protocol",
    "src/daemon",
    "src/probe",
    "src/ctl",
    "src/cli",
];

/// Folders of tests.
const TEST_FOLDERS: [&str; 3] = ["conformance", "sim", "tests"];

/// A file that is longer has a second subject.
const FILE_LINES_MAX: usize = 500;

/// A function that is longer has a second task. A flat `match` may be longer.
const FUNCTION_LINES_MAX: usize = 60;

/// From this length on a function needs a comment that says why.
const COMMENT_LINES_MIN: usize = 30;

/// The sources of the rooms, each without its tests.
fn production() -> Vec<File> {
    let mut sources: Vec<File> = ROOMS.iter().flat_map(|room| rust_files(room)).collect();
    sources.retain(|file| {
        let mut folders = file.name.trim_end_matches(".rs").split('/');
        !folders.any(|folder| TEST_FOLDERS.contains(&folder))
    });
    for file in &mut sources {
        let end = file.text.find("\n#[cfg(test)]\nmod tests");
        file.text.truncate(end.unwrap_or(file.text.len()));
    }
    assert!(sources.len() > ROOMS.len(), "the rooms have sources");
    sources
}

/// A function of a source.
#[derive(Debug, PartialEq)]
struct Function<'a> {
    name: &'a str,
    /// The number of its first line, from 1.
    line: usize,
    indent: usize,
    /// From `fn` to its closing brace.
    lines: Vec<&'a str>,
    /// The index in `lines` at which the body begins.
    body: usize,
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// The name of the function that begins on this line, if one does.
fn function_name(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    if let Some(public) = rest.strip_prefix("pub") {
        rest = match public.strip_prefix('(') {
            Some(scope) => scope.split_once(')')?.1.trim_start(),
            None => public.strip_prefix(' ')?,
        };
    }
    for word in ["const ", "async ", "unsafe ", "extern \"C\" "] {
        rest = rest.strip_prefix(word).unwrap_or(rest);
    }
    let rest = rest.strip_prefix("fn ")?;
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    Some(&rest[..end])
}

/// The functions of a source that have a body of more than one line, nested functions too.
fn functions(text: &str) -> Vec<Function<'_>> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, first) in lines.iter().enumerate() {
        let Some(name) = function_name(first) else {
            continue;
        };
        let indent = indent(first);
        // The signature ends where the body opens, or without one in a trait. A body on the same
        // line ends with its brace.
        let ends = |line: &str| code(line).trim_end().ends_with(['{', ';', '}']);
        let Some(signature) = lines[start..].iter().position(|line| ends(line)) else {
            continue;
        };
        if !code(lines[start + signature]).trim_end().ends_with('{') {
            continue;
        }
        let closing = " ".repeat(indent) + "}";
        let length = lines[start..].iter().position(|line| *line == closing);
        let length = length.unwrap_or_else(|| panic!("{name} has no end, line {}", start + 1)) + 1;
        found.push(Function {
            name,
            line: start + 1,
            indent,
            lines: lines[start..start + length].to_vec(),
            body: signature + 1,
        });
    }
    found
}

impl Function<'_> {
    /// Whether the body is one `match`.
    fn is_flat_match(&self) -> bool {
        let body = &self.lines[self.body..self.lines.len() - 1];
        let inner = self.indent + 4;
        let mut outer = body
            .iter()
            .filter(|line| indent(line) == inner && !is_comment(line));
        let opens = outer
            .next()
            .is_some_and(|line| line.trim_start().starts_with("match "));
        // Only the last brace at this depth closes a statement.
        let closes = outer.position(|line| line.trim() == "}");
        opens && closes.is_some() && outer.next().is_none()
    }

    /// Whether a comment within says why, which a note on `SAFETY` does not: it says why a call is
    /// sound.
    fn says_why(&self) -> bool {
        let body = &self.lines[self.body - 1..];
        body.windows(2).any(|pair| {
            let begins = is_comment(pair[1]) && !is_comment(pair[0]);
            begins && !pair[1].trim_start().starts_with("// SAFETY")
        })
    }
}

/// Whether a line is a comment within code, not documentation.
fn is_comment(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("//") && !line.starts_with("///")
}

#[test]
fn no_source_has_a_second_subject() {
    let mut wrong = Vec::new();
    for file in production() {
        let lines = file.text.lines().count();
        if lines > FILE_LINES_MAX {
            wrong.push(format!(
                "{}: {lines} lines without its tests, at most {FILE_LINES_MAX}: move one of its \
                 subjects to a file of its own",
                file.name
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_function_has_a_second_task() {
    let mut wrong = Vec::new();
    for file in production() {
        for function in functions(&file.text) {
            let lines = function.lines.len();
            if lines > FUNCTION_LINES_MAX && !function.is_flat_match() {
                wrong.push(format!(
                    "{}:{}: {} has {lines} lines, at most {FUNCTION_LINES_MAX}: move a step of it \
                     to a function with a name, or let it be one match",
                    file.name, function.line, function.name
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_long_function_says_why() {
    let mut wrong = Vec::new();
    for file in production() {
        for function in functions(&file.text) {
            let lines = function.lines.len();
            if lines >= COMMENT_LINES_MIN && !function.says_why() {
                wrong.push(format!(
                    "{}:{}: {} has {lines} lines and no comment within: say which case this is, why \
                     in this order, or what an error means",
                    file.name, function.line, function.name
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The path of the module in a file of `src`: of `src/driver/uring/ring.rs` driver, uring, ring.
fn module_path(name: &str) -> Vec<&str> {
    let path = name.trim_start_matches("src/").trim_end_matches(".rs");
    let path = path.strip_suffix("/mod").unwrap_or(path);
    path.split('/').collect()
}

/// The paths that begin with `crate`, `self` or `super` in a source, those of a group one by one.
fn paths(text: &str) -> Vec<Vec<String>> {
    let code: String = text.lines().map(|line| code(line) + "\n").collect();
    let mut found = Vec::new();
    for root in ["crate::", "self::", "super::"] {
        for (at, _) in code.match_indices(root) {
            // The end of a longer word, or `super` after another `super`.
            let is_inside = |c: char| c.is_alphanumeric() || "_:$".contains(c);
            if !code[..at].ends_with(is_inside) {
                let head = vec![root.trim_end_matches(':').into()];
                branch(head, &code[at + root.len()..], &mut found);
            }
        }
    }
    found
}

/// Adds the paths that continue `head` with what stands at the beginning of `rest`; returns how many
/// bytes of it belong to them.
fn branch(mut head: Vec<String>, rest: &str, found: &mut Vec<Vec<String>>) -> usize {
    let mut at = 0;
    loop {
        if rest[at..].starts_with('{') {
            at += 1;
            while !rest[at..].starts_with('}') {
                let separators = rest[at..].find(|c: char| c.is_alphabetic() || "_{}*".contains(c));
                at += separators.expect("a group has an end");
                if !rest[at..].starts_with('}') {
                    at += branch(head.clone(), &rest[at..], found);
                }
            }
            return at + 1;
        }
        let end = rest[at..].find(|c: char| !c.is_alphanumeric() && c != '_' && c != '*');
        let end = at + end.unwrap_or(rest.len() - at);
        head.push(rest[at..end].into());
        at = end;
        if !rest[at..].starts_with("::") {
            found.push(head);
            // `name as other` names nothing further.
            let alias = rest[at..].strip_prefix(" as ").map(|alias| {
                let end = alias.find(|c: char| !c.is_alphanumeric() && c != '_');
                " as ".len() + end.unwrap_or(alias.len())
            });
            return at + alias.unwrap_or(0);
        }
        at += "::".len();
    }
}

/// What a path names, from the top, as seen from a module; none if it leaves the top.
fn resolve(module: &[&str], path: &[String]) -> Option<Vec<String>> {
    let mut resolved: Vec<String> = module.iter().map(|&name| name.into()).collect();
    for (index, name) in path.iter().enumerate() {
        match name.as_str() {
            "crate" => resolved.clear(),
            "self" if index == 0 => {}
            "super" => {
                resolved.pop()?;
            }
            name => resolved.push(name.into()),
        }
    }
    Some(resolved)
}

/// Which files of a folder each of its files knows. A folder within counts as one file. What the
/// folder's own module has is not counted: it is the parent of all.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// The graph of each folder.
fn graphs(sources: &[File]) -> BTreeMap<String, Graph> {
    let mut graphs: BTreeMap<String, Graph> = BTreeMap::new();
    // First all files, since `super::name` may also be a function of the parent.
    for file in sources {
        let module = module_path(&file.name);
        for depth in 1..module.len() {
            let graph = graphs.entry(module[..depth].join("/")).or_default();
            graph.entry(module[depth].into()).or_default();
        }
    }
    for file in sources {
        let module = module_path(&file.name);
        for target in paths(&file.text)
            .iter()
            .filter_map(|path| resolve(&module, path))
        {
            // The folder in which both are is the one where their paths part.
            let same = module.iter().zip(&target).take_while(|(a, b)| a == b);
            let depth = same.count();
            let (Some(from), Some(to)) = (module.get(depth), target.get(depth)) else {
                continue;
            };
            if let Some(graph) = graphs.get_mut(&module[..depth].join("/"))
                && graph.contains_key(to)
            {
                graph.entry((*from).into()).or_default().insert(to.clone());
            }
        }
    }
    graphs
}

/// The shortest circle through a file, beginning and ending with it.
fn circle(graph: &Graph, start: &String) -> Option<Vec<String>> {
    let mut queue = VecDeque::from([vec![start.clone()]]);
    let mut seen = BTreeSet::new();
    while let Some(path) = queue.pop_front() {
        for next in &graph[path.last().expect("a path has a beginning")] {
            let longer = [path.as_slice(), std::slice::from_ref(next)].concat();
            if next == start {
                return Some(longer);
            }
            if seen.insert(next.clone()) {
                queue.push_back(longer);
            }
        }
    }
    None
}

#[test]
fn the_files_of_a_folder_know_each_other_in_one_direction() {
    let mut wrong = BTreeMap::new();
    for (folder, graph) in graphs(&production()) {
        for start in graph.keys() {
            if let Some(circle) = circle(&graph, start) {
                // One circle is found from each of its files.
                let members: BTreeSet<String> = circle.iter().cloned().collect();
                wrong.entry((folder.clone(), members)).or_insert(circle);
            }
        }
    }
    let wrong: Vec<String> = wrong
        .iter()
        .map(|((folder, _), circle)| {
            format!(
                "src/{folder}: {} is a circle: move what both ends need to a file that knows \
                 neither",
                circle.join(" -> ")
            )
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn source(name: &str, text: &str) -> File {
    File {
        name: name.into(),
        text: text.into(),
    }
}

#[test]
fn a_circle_through_a_group_or_a_folder_within_is_found() {
    let sources = [
        source("src/a/mod.rs", "use self::one::One;\n"),
        source(
            "src/a/one.rs",
            "use super::{\n    Parent, two::{self, Two as Other},\n};\n",
        ),
        source("src/a/two/mod.rs", "// super::one\n"),
        source("src/a/two/deep.rs", "fn f(one: &crate::a::three::X) {}\n"),
        source("src/a/three.rs", "use super::one;\nuse super::parent;\n"),
    ];
    let graphs = graphs(&sources);
    let circle = circle(&graphs["a"], &"one".into());
    let circle = circle.map(|circle| circle.join(" "));
    assert_eq!(circle.as_deref(), Some("one two three one"));
}

#[test]
fn functions_are_found_with_their_length_and_their_shape() {
    let text = "\
fn flat(
    x: u8,
) -> u8 {
    // Why.
    match x {
        0 => 1,
        _ => {
            2
        }
    }
}
impl A {
    pub(super) const fn two(&self) {
        match self {
            _ => {}
        }
        match self {
            _ => {}
        }
    }
    fn one_line(&self) {}
}
trait B {
    fn none(&self) -> u8;
}
";
    let found: Vec<_> = functions(text)
        .iter()
        .map(|function| {
            let lines = function.lines.len();
            let (is_flat, says_why) = (function.is_flat_match(), function.says_why());
            (function.name, function.line, lines, is_flat, says_why)
        })
        .collect();
    assert_eq!(
        found,
        [("flat", 1, 11, true, true), ("two", 13, 8, false, false)]
    );
}
