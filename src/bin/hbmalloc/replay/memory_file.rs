//! A file that is nowhere but in memory, for processes started from here to read.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::FromRawFd;

/// A file that `write` fills, at its beginning again. Processes started from here inherit it.
pub fn filled(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<File> {
    // SAFETY: the name has a terminator; the answer is a descriptor of our own or an error. Without
    // flags it stays open over exec.
    let descriptor = unsafe { libc::syscall(libc::SYS_memfd_create, c"hbmalloc".as_ptr(), 0) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and nobody else has it.
    let file = unsafe { File::from_raw_fd(descriptor as i32) };
    let mut out = io::BufWriter::new(file);
    write(&mut out)?;
    let mut file = out.into_inner()?;
    file.rewind()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_reads_it_as_its_input_and_by_its_number() {
        use std::os::fd::AsRawFd;
        let file = filled(|out| out.write_all(b"some text")).unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let output = Command::new("cat").args([&path, "-"]).stdin(file).output();
        assert_eq!(output.unwrap().stdout, b"some textsome text");
    }
}
