//! What the tests of `hbmalloc replay` share: folders with traces, and the command on the simulator.

use std::path::PathBuf;
use std::process::{Command, Output};

pub const MIB: u64 = 1 << 20;
pub const COLUMNS: &str = "op,id,size,stream,t_us\n";

/// Five MiB asked for at most, in blocks of virtual memory that take two, four and two.
pub const SMALL: &str =
    "a,1,1048576,0,0\na,2,3145728,1,5\nf,1,1048576,0,9\na,3,2097152,0,10\nf,2,3145728,1,11\n";

/// A folder of its own for one test, gone when it ends.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        let name = format!("replay-{name}-{}", std::process::id());
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        Folder(folder)
    }

    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hbmalloc"));
    command.arg("replay").args(arguments);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HBMALLOC_") {
            command.env_remove(name);
        }
    }
    command.env("HBMALLOC_DRIVER", "sim");
    command
}

pub fn replay(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The value behind `"name":` in one JSON object.
pub fn value<'a>(object: &'a str, name: &str) -> &'a str {
    let start = object.find(&format!("\"{name}\":")).expect(name) + name.len() + 3;
    object[start..].split([',', '}']).next().unwrap()
}

pub fn number(object: &str, name: &str) -> f64 {
    let text = value(object, name);
    text.parse().unwrap_or_else(|_| panic!("{name}: {text}"))
}
