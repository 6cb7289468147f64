//! `docs/options.md` is generated from the table of options, so that it can neither lack an option
//! nor tell an old default.
#![allow(missing_docs)]

use hbmalloc::config::table::{FOREIGN_VARIABLES, TABLE};
use std::path::Path;

const BEGINNING: &str = "\
<!-- Generated from src/config/table.rs: HBMALLOC_UPDATE_DOCS=1 cargo test --test options_page -->
# Options

Every option can be set by an environment variable, by a call, or left at its default; a call beats the environment, which beats the default. `hbmalloc doctor` prints each value in force and where it came from.

| from | how |
| --- | --- |
| environment | `HBMALLOC_BACKEND=vmm program` |
| Python | `hbmalloc.set_option(\"backend\", \"vmm\")`, or as arguments: `hbmalloc.torch.install(\"vmm\", prefetch_threshold=\"64MiB\")` |
| C | `hbm_option_set(\"backend\", \"vmm\")` |

A bad value is an error that names the variable, the value and what is accepted; it comes with the first allocation, and `hbmalloc doctor` exits with 2. An unknown variable that begins with `HBMALLOC_` is a warning that names the nearest option. Options of what is already in use, such as the driver after the first allocation, can no longer change.

Sizes are written `2GiB`, `512MiB`, `64KiB`, `1.5GiB`, as plain bytes, or with decimal units (`2GB`); where a percentage is accepted, as `80%`.

";

fn generate() -> String {
    let mut page = BEGINNING.to_owned();
    page += "| option | variable | default | accepted | |\n| --- | --- | --- | --- | --- |\n";
    for spec in &TABLE {
        let default = match spec.default {
            "" => "(empty)".to_owned(),
            text => format!("`{text}`"),
        };
        let cells = [
            format!("`{}`", spec.name),
            format!("`{}`", spec.variable()),
            default,
            spec.accepted.replace('|', "\\|"),
            spec.help.replace('|', "\\|"),
        ];
        page += &format!("| {} |\n", cells.join(" | "));
    }
    page += "\nThe keys of `sim` are in [sim/README.md](../sim/README.md).\n";
    page += "\nOther variables, which are no options: ";
    let names: Vec<String> = FOREIGN_VARIABLES
        .iter()
        .map(|name| format!("`{name}`"))
        .collect();
    page += &names.join(", ");
    page += " (which library file and which Python are used, and whether [vLLM](vllm.md) uses hbmalloc; the others are for tests).\n";
    page
}

#[test]
fn the_checked_in_page_is_what_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/options.md");
    let generated = generate();
    if std::env::var_os("HBMALLOC_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &generated).unwrap();
    }
    let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        checked_in == generated,
        "docs/options.md differs from the table: run `HBMALLOC_UPDATE_DOCS=1 cargo test --test options_page` and look at the difference"
    );
}
