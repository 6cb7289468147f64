//! Where other allocators are installed, as the Python beside this command finds them, and what the
//! compiler must be told to use them.

use crate::python;
use std::path::PathBuf;
use std::process::Stdio;

const SCRIPT: &str = include_str!("../../../../benches/peers/places.py");

/// What a program calls besides the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Package {
    None,
    Torch,
    Rmm,
}

/// What the script told: of what, which kind of fact, the fact.
pub struct Places(Vec<[String; 3]>);

impl Places {
    pub fn find() -> Places {
        let program = python::program();
        let answer = python::command(&program)
            .args(["-c", SCRIPT])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .output();
        let name = program.to_string_lossy();
        match answer {
            Ok(answer) if answer.status.success() => {
                Places::parse(&String::from_utf8_lossy(&answer.stdout))
            }
            Ok(answer) => Places::none(&format!("{name} ended with {}", answer.status)),
            Err(error) => Places::none(&format!("{name} does not run: {error}")),
        }
    }

    fn parse(text: &str) -> Places {
        let facts = text.lines().filter_map(|line| {
            let mut parts = line.splitn(3, '\t').map(str::to_owned);
            Some([parts.next()?, parts.next()?, parts.next()?])
        });
        Places(facts.collect())
    }

    fn none(reason: &str) -> Places {
        let missing = |what: &&str| [what, "missing", reason].map(str::to_owned);
        Places(
            ["cuda", "cudart", "torch", "rmm"]
                .iter()
                .map(missing)
                .collect(),
        )
    }

    fn all<'a>(
        &'a self,
        what: &'static str,
        key: &'static str,
    ) -> impl Iterator<Item = &'a str> + 'a {
        let of = move |fact: &&[String; 3]| fact[0] == what && fact[1] == key;
        self.0.iter().filter(of).map(|fact| fact[2].as_str())
    }

    pub fn version(&self, what: &'static str) -> &str {
        self.all(what, "version").next().unwrap_or("")
    }

    /// Why something cannot be used.
    pub fn missing(&self, what: &'static str) -> Option<String> {
        self.all(what, "missing").next().map(str::to_owned)
    }

    /// The shared library of the CUDA runtime.
    pub fn runtime(&self) -> Result<PathBuf, String> {
        let file = self.all("cudart", "file").next().map(PathBuf::from);
        file.ok_or_else(|| self.missing("cudart").unwrap_or_default())
    }

    /// What the compiler is told besides the source, or what is not there.
    pub fn arguments(&self, package: Package) -> Result<Vec<String>, String> {
        let (what, libraries): (&'static str, &[&str]) = match package {
            Package::None => return Ok(vec!["-std=c++17".to_owned()]),
            Package::Torch => ("torch", &["-lc10_cuda", "-lc10"]),
            Package::Rmm => ("rmm", &["-lrmm", "-lrapids_logger"]),
        };
        if let Some(reason) = self.missing(what).or_else(|| self.missing("cuda")) {
            return Err(reason);
        }
        let mut arguments = vec!["-std=c++20".to_owned()];
        for include in self.all(what, "include").chain(self.all("cuda", "include")) {
            arguments.extend(["-isystem".to_owned(), include.to_owned()]);
        }
        // What those libraries need themselves, they find by their own paths.
        arguments
            .push("-Wl,--disable-new-dtags,--unresolved-symbols=ignore-in-shared-libs".to_owned());
        for library in self.all(what, "lib") {
            arguments.extend([format!("-L{library}"), format!("-Wl,-rpath,{library}")]);
        }
        arguments.extend(libraries.iter().map(|library| (*library).to_owned()));
        // RMM's headers call the runtime.
        let runtime = self.runtime()?;
        let folder = runtime.parent().unwrap_or(&runtime);
        arguments.push(format!("-Wl,-rpath,{}", folder.display()));
        arguments.push(runtime.display().to_string());
        Ok(arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_installed_becomes_arguments() {
        let places = Places::parse(
            "cuda\tinclude\t/cuda/include\ncudart\tfile\t/cuda/lib/libcudart.so.13\n\
             torch\tversion\t2.11.0\ntorch\tinclude\t/t orch/include\ntorch\tlib\t/t orch/lib\n\
             rmm\tmissing\tRMM is not installed\nnonsense\n",
        );
        assert_eq!(places.version("torch"), "2.11.0");
        let arguments = places.arguments(Package::Torch).unwrap();
        for expected in [
            "/t orch/include",
            "/cuda/include",
            "-L/t orch/lib",
            "-lc10_cuda",
        ] {
            assert!(
                arguments.iter().any(|argument| argument == expected),
                "{arguments:?}"
            );
        }
        let reason = places.arguments(Package::Rmm).unwrap_err();
        assert_eq!(reason, "RMM is not installed");
        assert_eq!(
            places.runtime().unwrap(),
            PathBuf::from("/cuda/lib/libcudart.so.13")
        );
    }

    #[test]
    fn without_python_everything_is_missing() {
        let places = Places::none("no python");
        for package in [Package::Torch, Package::Rmm] {
            assert_eq!(places.arguments(package).unwrap_err(), "no python");
        }
        assert_eq!(places.runtime().unwrap_err(), "no python");
        assert!(places.arguments(Package::None).is_ok());
    }
}
