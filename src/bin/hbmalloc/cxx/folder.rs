//! Where programs are compiled and run.

use crate::stopped;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// A folder that nobody else writes to, since programs are run from it.
pub struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    /// The folder named; without a name a new one, that is gone when this is dropped or the command
    /// is stopped. An error names the path.
    pub fn open(named: Option<&Path>) -> Result<Folder, String> {
        if let Some(path) = named {
            let made = fs::create_dir_all(path).and_then(|()| fs::canonicalize(path));
            let path = made.map_err(|error| format!("{}: {error}", path.display()))?;
            return Ok(Folder { path, keep: true });
        }
        let mut number = std::process::id();
        loop {
            let path = std::env::temp_dir().join(format!("hbmalloc-{number}"));
            let made =
                stopped::make_folder(&path, |path| DirBuilder::new().mode(0o700).create(path));
            match made {
                Ok(()) => return Ok(Folder { path, keep: false }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    number = number.wrapping_add(1);
                }
                Err(error) => return Err(format!("{}: {error}", path.display())),
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes files of these names and contents into it.
    pub fn write(&self, files: &[(&str, &str)]) -> Result<(), String> {
        files.iter().try_for_each(|(name, text)| {
            let path = self.path.join(name);
            fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
        })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep {
            stopped::remove_folder(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_folder_without_a_name_is_gone_afterwards() {
        let (first, second) = (Folder::open(None).unwrap(), Folder::open(None).unwrap());
        assert_ne!(first.path(), second.path());
        first.write(&[("a", "1")]).unwrap();
        let path = first.path().to_owned();
        assert!(path.join("a").is_file());
        drop(first);
        assert!(!path.exists());
        let under = second.path().join("file");
        fs::write(&under, "").unwrap();
        let error = Folder::open(Some(&under.join("in it"))).err().unwrap();
        assert!(
            error.starts_with(&format!("{}/in it: ", under.display())),
            "{error}"
        );
        drop(Folder::open(Some(second.path())).unwrap());
        assert!(second.path().exists());
    }
}
