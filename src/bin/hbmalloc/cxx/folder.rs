//! Where programs are compiled and run.

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
    /// The folder named; without a name a new one, that is gone when this is dropped.
    pub fn open(named: Option<&Path>) -> io::Result<Folder> {
        if let Some(path) = named {
            fs::create_dir_all(path)?;
            let (path, keep) = (fs::canonicalize(path)?, true);
            return Ok(Folder { path, keep });
        }
        let mut number = std::process::id();
        loop {
            let path = std::env::temp_dir().join(format!("hbmalloc-{number}"));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Folder { path, keep: false }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    number = number.wrapping_add(1);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes files of these names and contents into it.
    pub fn write(&self, files: &[(&str, &str)]) -> io::Result<()> {
        (files.iter()).try_for_each(|(name, text)| fs::write(self.path.join(name), text))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_dir_all(&self.path);
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
        drop(Folder::open(Some(second.path())).unwrap());
        assert!(second.path().exists());
    }
}
