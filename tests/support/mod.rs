//! What tests share that build C and C++ programs and run them on the simulated driver: a folder laid
//! out as after installation, compilers, and runs that are cut off when they hang.
#![allow(dead_code, missing_docs)]

#[cfg(feature = "cli")]
pub mod replay;

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Far beyond what any of the programs needs, so that only a hang is cut off.
const TIME_LIMIT: Duration = Duration::from_secs(120);

/// What a static link of libhbmalloc.a needs besides: C libraries only. `scripts/hbmalloc.pc.in`
/// says the same as `Libs.private`; a test compares the two.
pub const STATIC_LIBRARIES: [&str; 5] = ["-lgcc_s", "-lpthread", "-ldl", "-lm", "-lc"];

pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The folder that cargo builds this profile into.
pub fn profile_folder() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let deps = program.parent().unwrap();
    assert!(deps.ends_with("deps"), "{}", program.display());
    deps.parent().unwrap().to_owned()
}

/// The newest build of one of our libraries. `cargo test` builds them into `deps` only and leaves an
/// older copy where `cargo build` put it.
pub fn built(name: &str) -> PathBuf {
    let profile = profile_folder();
    [profile.join("deps").join(name), profile.join(name)]
        .into_iter()
        .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
        .max()
        .map(|(_, path)| path)
        .unwrap_or_else(|| {
            panic!(
                "{name} is not in {}: run `cargo build --workspace` first (with --release for a release build)",
                profile.display()
            )
        })
}

/// A folder of one test with the libraries as `make install` lays them out, and what it compiles.
pub struct Workbench {
    folder: PathBuf,
    libraries: PathBuf,
}

impl Workbench {
    /// `name` must be the test's own: tests run at the same time.
    pub fn new(name: &str) -> Workbench {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&folder);
        let libraries = folder.join("lib");
        fs::create_dir_all(&libraries).unwrap();
        place(
            &built("libhbmalloc.so"),
            &libraries.join("libhbmalloc.so.0"),
        );
        place(&built("libhbmalloc.a"), &libraries.join("libhbmalloc.a"));
        place(
            &built("libhbmalloc_sim.so"),
            &libraries.join("libhbmalloc_sim.so"),
        );
        std::os::unix::fs::symlink("libhbmalloc.so.0", libraries.join("libhbmalloc.so")).unwrap();
        Workbench { folder, libraries }
    }

    /// Where programs and further libraries of the test go.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Where the libraries are.
    pub fn libraries(&self) -> &Path {
        &self.libraries
    }

    /// A compiler run in the strict form that every program of the tests must pass.
    pub fn compiler(&self, language: Language) -> Compile {
        let (variable, default, standard) = match language {
            Language::C11 => ("CC", "cc", "-std=c11"),
            Language::Cpp17 => ("CXX", "c++", "-std=c++17"),
        };
        let compiler = std::env::var_os(variable).unwrap_or_else(|| default.into());
        let mut command = Command::new(&compiler);
        command
            .args([standard, "-Wall", "-Wextra", "-Werror", "-pedantic", "-g"])
            .current_dir(repository().join("tests"));
        Compile { compiler, command }
    }

    /// Compiles `source`, named from tests/, with the header and the shared library.
    pub fn program(&self, language: Language, source: &str) -> PathBuf {
        let name = Path::new(source).file_stem().unwrap();
        let program = self.folder.join(name);
        self.compiler(language)
            .args(["-I../include", source, "-o"])
            .arg(&program)
            .args(self.link_shared())
            .run();
        program
    }

    /// What links a program with the shared library.
    pub fn link_shared(&self) -> Vec<OsString> {
        let mut folder = OsString::from("-L");
        folder.push(&self.libraries);
        vec![
            folder,
            "-lhbmalloc".into(),
            "-lpthread".into(),
            "-ldl".into(),
        ]
    }

    /// Compiles `source`, named from tests/, into a shared library that the programs can link, after
    /// `others`.
    pub fn shared_library(&self, name: &str, source: &str, others: &[&str]) {
        let folder = self.libraries.to_str().unwrap();
        self.compiler(Language::Cpp17)
            .args(["-shared", "-fPIC", source, "-o"])
            .arg(self.libraries.join(name))
            .args([format!("-Wl,-soname,{name}"), format!("-L{folder}")])
            .args(others)
            .run();
    }

    /// A run of `program` on the simulated driver.
    pub fn run(&self, program: &Path) -> Run {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("HBMALLOC_") {
                command.env_remove(name);
            }
        }
        command
            .env("HBMALLOC_DRIVER", "sim")
            .env("LD_LIBRARY_PATH", &self.libraries)
            .current_dir(&self.folder);
        let log = program.with_extension("log");
        Run { command, log }
    }
}

#[derive(Clone, Copy)]
pub enum Language {
    C11,
    Cpp17,
}

pub struct Compile {
    compiler: OsString,
    command: Command,
}

impl Compile {
    pub fn arg(mut self, argument: impl Into<OsString>) -> Compile {
        self.command.arg(argument.into());
        self
    }

    pub fn args(mut self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Compile {
        self.command.args(arguments.into_iter().map(Into::into));
        self
    }

    pub fn run(mut self) {
        let output = self.command.output().unwrap_or_else(|error| {
            panic!(
                "{}: {error}; the tests need a C and a C++ compiler (or CC and CXX)",
                self.compiler.to_string_lossy()
            )
        });
        assert!(
            output.status.success(),
            "{:?}\n{}",
            self.command,
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

pub struct Run {
    command: Command,
    log: PathBuf,
}

impl Run {
    pub fn arg(mut self, argument: impl Into<OsString>) -> Run {
        self.command.arg(argument.into());
        self
    }

    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Run {
        self.command.env(name, value.into());
        self
    }

    /// Runs to the end; what it wrote to both streams, together with how it ended.
    pub fn outcome(mut self) -> (ExitStatus, String) {
        let out = File::create(&self.log).unwrap();
        let mut child = self
            .command
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap_or_else(|error| panic!("{:?}: {error}", self.command));
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if begin.elapsed() > TIME_LIMIT {
                let _ = child.kill();
                let _ = child.wait();
                panic!("{:?} hangs; it wrote:\n{}", self.command, read(&self.log));
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        (status, read(&self.log))
    }

    /// Runs to the end, which must be exit status 0; what it wrote.
    pub fn succeeds(self) -> String {
        let described = format!("{:?}", self.command);
        let (status, text) = self.outcome();
        assert!(status.success(), "{described}: {status}\n{text}");
        text
    }
}

/// Starts `command` with a compiler that never ends, stops it by `signal` once that runs, and checks that
/// neither the compiler nor the folder that it was to compile in is left.
pub fn stopped_while_compiling(name: &str, mut command: Command, signal: i32) {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::ExitStatusExt;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    let (temporary, compiler) = (folder.join("tmp"), folder.join("compiler"));
    fs::create_dir_all(&temporary).unwrap();
    let number = folder.join("number");
    let script = format!(
        "#!/bin/sh\necho $$ > {0}.new && mv {0}.new {0}\nexec sleep 1000\n",
        number.display()
    );
    fs::write(&compiler, script).unwrap();
    fs::set_permissions(&compiler, fs::Permissions::from_mode(0o755)).unwrap();
    let mut child = command
        .env("CXX", &compiler)
        .env("TMPDIR", &temporary)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while !number.exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        assert!(begin.elapsed() < TIME_LIMIT, "nothing is compiled");
        std::thread::sleep(Duration::from_millis(5));
    }
    let entries = || fs::read_dir(&temporary).unwrap().count();
    assert_eq!(entries(), 1, "folders of programs");
    // SAFETY: the process is a child of this one and has not been waited for.
    unsafe { libc::kill(child.id() as i32, signal) };
    assert_eq!(child.wait().unwrap().signal(), Some(signal));
    assert_eq!(entries(), 0, "folders left behind");
    let stat = Path::new("/proc").join(read(&number).trim()).join("stat");
    // Whoever inherits children may leave them unburied.
    let runs = || fs::read_to_string(&stat).is_ok_and(|text| !text.contains(") Z "));
    let stopped = Instant::now();
    while runs() {
        assert!(
            stopped.elapsed() < Duration::from_secs(5),
            "the compiler runs on"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    fs::remove_dir_all(&folder).unwrap();
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// A hard link where it can be, since debug libraries are large. Not a symbolic one: the library
/// looks for the simulator beside its real place.
pub fn place(from: &Path, to: &Path) {
    // Copying onto an older link would write into the original.
    let _ = fs::remove_file(to);
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).unwrap();
    }
}
