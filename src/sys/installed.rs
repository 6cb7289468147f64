//! Finding what was installed together, by where one file of it lies.

use std::env::consts::ARCH;
use std::path::{Path, PathBuf};

/// A library of ours that belongs to the program or library in the file `from`. It lies beside others
/// in a wheel and after installation; cargo puts test programs one folder below it. The command, and a
/// program that a library is linked into, have it in the `lib` next to their `bin`, which distributions
/// call `lib64` or divide by machine, and a wheel's command in the package.
pub fn find(name: &str, from: &Path) -> Option<PathBuf> {
    let folder = from.parent()?;
    let lib = folder.join("../lib");
    let mut divided: Vec<PathBuf> = std::fs::read_dir(&lib)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    // That of the program's own machine first: others may be installed next to it.
    let is_other = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default();
        !name.to_string_lossy().starts_with(ARCH)
    };
    divided.sort_by_cached_key(|path| (is_other(path), path.clone()));
    let mut places = vec![
        folder.to_owned(),
        folder.join(".."),
        lib,
        folder.join("../lib64"),
    ];
    places.extend_from_slice(&divided);
    places.push(folder.join("../hbmalloc/lib"));
    places.extend(
        divided
            .iter()
            .map(|python| python.join("site-packages/hbmalloc/lib")),
    );
    places
        .into_iter()
        .map(|place| place.join(name))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_layout_is_known_and_a_wheel_comes_last() {
        let prefix = tempfile::tempdir().unwrap();
        let folder = prefix.path().canonicalize().unwrap();
        let program = folder.join("bin/program");
        std::fs::create_dir(folder.join("bin")).unwrap();
        assert_eq!(find("library", &program), None);
        let own_machine = format!("lib/{ARCH}-linux-gnu");
        for place in [
            "lib/python3.12/site-packages/hbmalloc/lib",
            "hbmalloc/lib",
            "lib/a-machine-linux-gnu",
            &own_machine,
            "lib64",
            "lib",
            "bin",
        ] {
            let path = folder.join(place).join("library");
            std::fs::create_dir_all(folder.join(place)).unwrap();
            std::fs::write(&path, "").unwrap();
            let found = find("library", &program).unwrap();
            assert_eq!(found.canonicalize().unwrap(), path);
            assert_eq!(find("library", &path).unwrap(), path);
        }
    }
}
