//! The layers of `docs/design.md` hold: a layer uses only those above it in the table, unsafe code stays
//! where the design allows it, and each unsafe block says why it is sound. Read from the tokens of the
//! sources, so that paths inside macros and braces count too.
#![allow(missing_docs)]

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Lowest first.
const LAYERS: [&str; 12] = [
    "error",
    "config",
    "sys",
    "core",
    "gpu",
    "extent",
    "source",
    "pool",
    "residency",
    "object",
    "registry",
    "process",
];
const OBSERVE: &str = "observe";
/// Above everything, and used by nobody.
const FACES: [&str; 3] = ["capi", "torch", "selftest"];

const MAY_HOLD_UNSAFE: [&str; 7] = [
    "sys", "gpu", "extent", "source", "capi", "torch", "selftest",
];
const MUST_FORBID_UNSAFE: [&str; 5] = ["core", "pool", "residency", "object", "observe"];

const MOST_LINES: usize = 500;

fn may_use(layer: &str, other: &str) -> bool {
    let height = |name| LAYERS.iter().position(|layer| *layer == name);
    match (height(layer), height(other)) {
        // Algorithms stand apart from the operating system, and options are for those above.
        _ if layer == "core" => other == "error",
        (Some(layer), Some(other)) => other < layer,
        (None, Some(_)) => true,
        (_, None) => other == OBSERVE && FACES.contains(&layer),
    }
}

fn sources(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn tokens(path: &Path) -> TokenStream {
    let text = fs::read_to_string(path).unwrap();
    text.parse()
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names of the modules that a file lies in, from below the crate's root: `gpu`, `stream`.
fn module_of(path: &Path) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let inside = path.strip_prefix(root).unwrap().with_extension("");
    let mut names: Vec<String> = inside
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    if matches!(names.last().map(String::as_str), Some("mod" | "lib")) {
        names.pop();
    }
    names
}

/// The first names of all paths that begin at the crate's root, written `crate::` or with enough
/// `super::`, with their lines. `depth` is how many modules enclose the tokens.
fn uses(tokens: TokenStream, depth: usize, found: &mut Vec<(String, usize)>) {
    let trees: Vec<TokenTree> = tokens.into_iter().collect();
    let word = |index: usize| match trees.get(index) {
        Some(TokenTree::Ident(ident)) => ident.to_string(),
        _ => String::new(),
    };
    let colons = |index: usize| {
        (index..index + 2)
            .all(|i| matches!(trees.get(i), Some(TokenTree::Punct(p)) if p.as_char() == ':'))
    };
    let mut index = 0;
    while index < trees.len() {
        let mut next = index;
        let mut supers = 0;
        while word(next) == "super" && colons(next + 1) {
            supers += 1;
            next += 3;
        }
        if word(next) == "crate" && colons(next + 1) {
            next += 3;
        } else if supers == 0 || supers < depth {
            if let TokenTree::Group(group) = &trees[index] {
                let is_module = index >= 2 && word(index - 2) == "mod";
                uses(group.stream(), depth + usize::from(is_module), found);
            }
            index = next.max(index + 1);
            continue;
        }
        match trees.get(next) {
            Some(TokenTree::Ident(ident)) => {
                found.push((ident.to_string(), ident.span().start().line));
            }
            Some(TokenTree::Group(group)) => first_names(group.stream(), found),
            _ => {}
        }
        index = next.max(index + 1);
    }
}

/// Of `{gpu::Stream, error::{Error, Result}}`: `gpu`, `error`.
fn first_names(group: TokenStream, found: &mut Vec<(String, usize)>) {
    let mut at_start = true;
    for tree in group {
        match tree {
            TokenTree::Ident(ident) if at_start => {
                found.push((ident.to_string(), ident.span().start().line));
                at_start = false;
            }
            TokenTree::Punct(punct) => at_start = punct.as_char() == ',',
            _ => {}
        }
    }
}

#[test]
fn a_layer_uses_only_those_above_it_in_the_table() {
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for path in sources("src") {
        let module = module_of(&path);
        let Some(layer) = module.first().filter(|first| *first != "bin") else {
            continue;
        };
        assert!(
            LAYERS.contains(&&**layer) || layer == OBSERVE || FACES.contains(&&**layer),
            "{}: no layer of the table",
            path.display()
        );
        let mut found = Vec::new();
        uses(tokens(&path), module.len(), &mut found);
        for (other, line) in found {
            if other != *layer && !may_use(layer, &other) {
                wrong.push(format!("{}:{line}: {layer} uses {other}", path.display()));
            }
            seen.insert((layer.clone(), other));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    // The reading itself works: these are there.
    for (layer, other) in [
        ("source", "extent"),
        ("process", "gpu"),
        ("torch", "observe"),
    ] {
        assert!(
            seen.contains(&(layer.to_owned(), other.to_owned())),
            "{seen:?}"
        );
    }
}

#[test]
fn the_reading_of_paths_sees_through_groups_macros_and_super() {
    let read = |text: &str, depth| {
        let mut found = Vec::new();
        uses(text.parse().unwrap(), depth, &mut found);
        found.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
    };
    assert_eq!(
        read("use crate::{gpu::Stream, error::{Error, Result}, pool};", 1),
        ["gpu", "error", "pool"]
    );
    assert_eq!(
        read("macro_rules! m { () => { crate::torch::f() } }", 1),
        ["torch"]
    );
    assert_eq!(read("use super::device::Device;", 2), [""; 0]);
    assert_eq!(read("use super::super::pool::Pool;", 2), ["pool"]);
    assert_eq!(
        read("mod tests { use super::super::pool::Pool; }", 1),
        ["pool"]
    );
    assert_eq!(
        read("mod tests { use super::super::pool::Pool; }", 2),
        [""; 0]
    );
    assert_eq!(
        read("// crate::torch\n/// crate::capi\nfn f() {}", 1),
        [""; 0]
    );
}

/// The lines of `unsafe` blocks and implementations, and whether the word stands anywhere as code.
fn unsafe_lines(tokens: TokenStream, lines: &mut Vec<usize>) -> bool {
    let trees: Vec<TokenTree> = tokens.into_iter().collect();
    let mut any = false;
    for (index, tree) in trees.iter().enumerate() {
        match tree {
            TokenTree::Group(group) => any |= unsafe_lines(group.stream(), lines),
            TokenTree::Ident(word) if word == "unsafe" => match trees.get(index + 1) {
                // An attribute such as #[unsafe(no_mangle)].
                Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Parenthesis => {}
                Some(TokenTree::Group(_)) => {
                    lines.push(word.span().start().line);
                    any = true;
                }
                Some(TokenTree::Ident(next)) => {
                    if next == "impl" {
                        lines.push(word.span().start().line);
                    }
                    any = true;
                }
                _ => any = true,
            },
            _ => {}
        }
    }
    any
}

/// The comment that ends just above the statement in which the line stands.
fn comment_above(lines: &[&str], line: usize) -> String {
    let mut index = line - 1;
    // A statement reaches up to the end of the one before, or to what opens its block.
    while index > 0 && !lines[index - 1].trim_start().starts_with("//") {
        let above = lines[index - 1].trim_end();
        let ends = [";", "}", "{", ","].iter().any(|end| above.ends_with(end));
        if above.is_empty() || (ends && !above.ends_with("unsafe {")) {
            return String::new();
        }
        index -= 1;
    }
    let begin = (0..index)
        .rev()
        .take_while(|above| lines[*above].trim_start().starts_with("//"))
        .last()
        .unwrap_or(index);
    lines[begin..index].join("\n")
}

#[test]
fn every_unsafe_block_says_why_it_is_sound() {
    let mut wrong = Vec::new();
    for path in ["src", "sim/src", "python/cumem/src"]
        .into_iter()
        .flat_map(sources)
    {
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let mut found = Vec::new();
        unsafe_lines(tokens(&path), &mut found);
        for line in found {
            if !comment_above(&lines, line).contains("SAFETY:") {
                wrong.push(format!("{}:{line}", path.display()));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "no SAFETY comment above these:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn unsafe_code_stays_where_it_is_allowed() {
    let mut holders = BTreeSet::new();
    for path in sources("src") {
        if unsafe_lines(tokens(&path), &mut Vec::new()) {
            let module = module_of(&path);
            // The command is a crate of its own.
            holders.extend(module.first().filter(|first| *first != "bin").cloned());
        }
    }
    for holder in &holders {
        assert!(
            MAY_HOLD_UNSAFE.contains(&&**holder),
            "unsafe code in {holder}"
        );
    }
    let root =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    assert!(root.contains("#![deny(unsafe_code)]"));
    let lines: Vec<&str> = root.lines().map(str::trim).collect();
    let allowed: BTreeSet<String> = lines
        .iter()
        .zip(&lines[1..])
        .filter(|(line, _)| **line == "#[allow(unsafe_code)]")
        .map(|(_, module)| {
            let name = module.trim_start_matches("pub ").trim_start_matches("mod ");
            name.trim_end_matches(';').to_owned()
        })
        .collect();
    assert_eq!(
        allowed, holders,
        "src/lib.rs allows unsafe code where there is none"
    );
}

#[test]
fn layers_of_plain_algorithms_forbid_unsafe_code() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for layer in MUST_FORBID_UNSAFE {
        let Ok(text) = fs::read_to_string(src.join(layer).join("mod.rs")) else {
            continue;
        };
        assert!(
            text.contains("#![forbid(unsafe_code)]"),
            "src/{layer}/mod.rs"
        );
    }
}

#[test]
fn files_stay_below_500_lines() {
    let long: Vec<String> = ["src", "sim/src", "python/cumem/src", "tests", "sim/tests"]
        .into_iter()
        .flat_map(sources)
        .map(|path| (fs::read_to_string(&path).unwrap().lines().count(), path))
        .filter(|(lines, _)| *lines >= MOST_LINES)
        .map(|(lines, path)| format!("{}: {lines}", path.display()))
        .collect();
    assert!(long.is_empty(), "a concept wants out:\n{}", long.join("\n"));
}
