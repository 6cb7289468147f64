//! What of the host may still be had: what the machine has left, what the process's control groups leave it, and
//! huge pages that were set aside. Read before memory is taken, since who takes more is killed rather than told.

use std::path::{Path, PathBuf};

/// Bytes that may still be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// How many; the most there can be where nobody tells.
    pub bytes: u64,
    /// Who has no more, as errors name it.
    pub whose: String,
}

/// Bytes that can be had without swapping, of the machine or of the process's control group or one above it,
/// whichever has the least. `root` is `/` but for tests.
pub fn memory(root: &Path) -> Left {
    let machine =
        read(&root.join("proc/meminfo")).and_then(|text| field_kib(&text, "MemAvailable:"));
    let machine = Left {
        bytes: machine.unwrap_or(u64::MAX),
        whose: "the host".to_owned(),
    };
    let groups = groups(root, "memory").into_iter();
    let left = groups.filter_map(|group| group.left(&MEMORY_FILES));
    left.chain([machine])
        .min_by_key(|left| left.bytes)
        .expect("the machine is one")
}

/// [`memory`] of this machine, in bytes.
pub fn available() -> u64 {
    memory(Path::new("/")).bytes
}

/// Pages of that length, set aside, that a mapping can still have; none where the system has no such pages.
pub fn huge_pages(root: &Path, page: u64) -> Option<u64> {
    let folder = root.join("sys/kernel/mm/hugepages").join(folder_of(page));
    let of = |name: &str| number(&folder.join(name));
    let here = of("free_hugepages")?.saturating_sub(of("resv_hugepages").unwrap_or(0));
    let more = of("nr_overcommit_hugepages").unwrap_or(0);
    let more = more.saturating_sub(of("surplus_hugepages").unwrap_or(0));
    Some(here.saturating_add(more))
}

/// The free ones of them on a node; none where the system does not tell, or makes more when they run out.
pub fn huge_pages_on(root: &Path, page: u64, node: u32) -> Option<u64> {
    let all = root.join("sys/kernel/mm/hugepages").join(folder_of(page));
    if number(&all.join("nr_overcommit_hugepages")).is_some_and(|more| more > 0) {
        return None;
    }
    let folder = format!("sys/devices/system/node/node{node}/hugepages");
    let path = root.join(folder).join(folder_of(page));
    number(&path.join("free_hugepages"))
}

/// What the process's control groups leave it of pages of that length; none where nothing limits them.
pub fn huge_pages_of_groups(root: &Path, page: u64) -> Option<Left> {
    let name = match page >= 1 << 30 {
        true => format!("{}GB", page >> 30),
        false => format!("{}MB", page >> 20),
    };
    let files = Files {
        two: [
            format!("hugetlb.{name}.max"),
            format!("hugetlb.{name}.current"),
        ],
        one: [
            format!("hugetlb.{name}.limit_in_bytes"),
            format!("hugetlb.{name}.usage_in_bytes"),
        ],
        reclaimable: None,
    };
    let left = groups(root, "hugetlb").into_iter();
    left.filter_map(|group| group.left(&files))
        .min_by_key(|left| left.bytes)
}

fn folder_of(page: u64) -> String {
    format!("hugepages-{}kB", page >> 10)
}

/// How much memory the process may lock (`ulimit -l`), and has, in words. Drivers that pin by their own means do not
/// ask for it, others do, so it stops nobody here.
pub fn lockable() -> String {
    let limit = match limit(libc::RLIMIT_MEMLOCK) {
        Some(u64::MAX) => "any number of bytes".to_owned(),
        Some(bytes) => format!("{bytes} bytes"),
        None => "an unknown number of bytes".to_owned(),
    };
    let status = read(Path::new("/proc/self/status")).unwrap_or_default();
    let locked = field_kib(&status, "VmLck:").unwrap_or(0);
    format!("{limit} (ulimit -l) and has locked {locked}")
}

/// How many bytes of addresses the process may have (`ulimit -v`); none where as many as it likes.
pub fn addresses() -> Option<u64> {
    limit(libc::RLIMIT_AS).filter(|bytes| *bytes != u64::MAX)
}

fn limit(which: libc::__rlimit_resource_t) -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is valid for the call.
    (unsafe { libc::getrlimit(which, &mut limit) } == 0).then_some(match limit.rlim_cur {
        libc::RLIM_INFINITY => u64::MAX,
        bytes => bytes,
    })
}

/// The files of a group that tell its limit and its use, in version 2 and in version 1, and the fields of
/// `memory.stat` that tell what it would give up.
struct Files {
    two: [String; 2],
    one: [String; 2],
    reclaimable: Option<[&'static str; 2]>,
}

static MEMORY_FILES: std::sync::LazyLock<Files> = std::sync::LazyLock::new(|| Files {
    two: ["memory.max", "memory.current"].map(str::to_owned),
    one: ["memory.limit_in_bytes", "memory.usage_in_bytes"].map(str::to_owned),
    reclaimable: Some(["inactive_file", "total_inactive_file"]),
});

/// A control group, by its folder.
struct Group {
    folder: PathBuf,
    name: String,
    is_two: bool,
}

impl Group {
    /// Its page cache can be reclaimed.
    fn left(&self, files: &Files) -> Option<Left> {
        let names = if self.is_two { &files.two } else { &files.one };
        // Without a limit it says `max`.
        let limit = number(&self.folder.join(&names[0]))?;
        let used = number(&self.folder.join(&names[1]))?;
        let reclaimable = files.reclaimable.and_then(|fields| {
            let text = read(&self.folder.join("memory.stat"))?;
            entry(&text, fields[usize::from(!self.is_two)])
        });
        Some(Left {
            bytes: limit.saturating_sub(used.saturating_sub(reclaimable.unwrap_or(0))),
            whose: format!("control group {} (limit {limit} bytes)", self.name),
        })
    }
}

/// The process's own group of a controller and all above it, as far as they are to be seen: a container sees its own
/// as the topmost, under whatever name.
fn groups(root: &Path, controller: &str) -> Vec<Group> {
    let text = read(&root.join("proc/self/cgroup")).unwrap_or_default();
    let mut found = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let is_two = controllers.is_empty();
        if !is_two && !controllers.split(',').any(|name| name == controller) {
            continue;
        }
        let mounts: &[&str] = match is_two {
            true => &["sys/fs/cgroup", "sys/fs/cgroup/unified"],
            false => &[&format!("sys/fs/cgroup/{controller}")],
        };
        for mount in mounts {
            above(&root.join(mount), path, is_two, &mut found);
        }
    }
    found
}

fn above(mount: &Path, path: &str, is_two: bool, found: &mut Vec<Group>) {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    // Of another's groups nothing is to be seen here.
    let parts = if parts.contains(&"..") {
        &[][..]
    } else {
        &parts
    };
    for count in (0..=parts.len()).rev() {
        let name = parts[..count].join("/");
        found.push(Group {
            folder: mount.join(&name),
            name: format!("/{name}"),
            is_two,
        });
    }
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn number(path: &Path) -> Option<u64> {
    read(path)?.trim().parse().ok()
}

/// A figure of `memory.stat`.
fn entry(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().map(str::split_whitespace);
    lines.find_map(|mut words| (words.next() == Some(name)).then(|| words.next()?.parse().ok())?)
}

fn field_kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    let number = line.split_whitespace().nth(1)?.parse::<u64>().ok()?;
    number.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::super::faked::root;
    use super::*;

    const MIB: u64 = 1 << 20;

    const MACHINE: (&str, &str) = ("proc/meminfo", "MemTotal: 9 kB\nMemAvailable: 65536 kB\n");

    #[test]
    fn the_machine_alone() {
        let left = memory(root(&[MACHINE]).path());
        assert_eq!((left.bytes, left.whose.as_str()), (64 * MIB, "the host"));
        assert_eq!(memory(root(&[]).path()).bytes, u64::MAX);
        assert!(available() > 0);
    }

    #[test]
    fn the_least_of_the_own_group_and_those_above() {
        let own = [
            MACHINE,
            ("proc/self/cgroup", "0::/user/job/step\n"),
            ("sys/fs/cgroup/user/job/step/memory.max", "max\n"),
            ("sys/fs/cgroup/user/job/step/memory.current", "1048576\n"),
            ("sys/fs/cgroup/user/job/memory.max", "20971520\n"),
            ("sys/fs/cgroup/user/job/memory.current", "12582912\n"),
            (
                "sys/fs/cgroup/user/job/memory.stat",
                "anon 1\ninactive_file 2097152\n",
            ),
            ("sys/fs/cgroup/user/memory.max", "41943040\n"),
            ("sys/fs/cgroup/user/memory.current", "12582912\n"),
        ];
        let left = memory(root(&own).path());
        assert_eq!(left.bytes, 10 * MIB);
        assert!(left.whose.contains("/user/job (limit 20971520"), "{left:?}");
    }

    #[test]
    fn containers_of_version_1_and_2() {
        // Its own group is the topmost that it sees, whatever the host calls it.
        let one = [
            MACHINE,
            (
                "proc/self/cgroup",
                "3:cpu:/x\n4:memory,other:/docker/abc\n0::/\n",
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "8388608\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "7340032\n"),
            (
                "sys/fs/cgroup/memory/memory.stat",
                "inactive_file 1\ntotal_inactive_file 1048576\n",
            ),
        ];
        assert_eq!(memory(root(&one).path()).bytes, 2 * MIB);
        let two = [
            MACHINE,
            ("proc/self/cgroup", "0::/../../elsewhere\n"),
            ("sys/fs/cgroup/memory.max", "4194304\n"),
            ("sys/fs/cgroup/memory.current", "5242880\n"),
        ];
        let left = memory(root(&two).path());
        assert_eq!(left.bytes, 0);
        assert!(left.whose.starts_with("control group / "), "{left:?}");
    }

    #[test]
    fn a_limit_beyond_the_machine_is_none() {
        let one = [
            MACHINE,
            ("proc/self/cgroup", "4:memory:/\nodd\n5\n"),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "7340032\n"),
        ];
        assert_eq!(memory(root(&one).path()).whose, "the host");
    }

    #[test]
    fn huge_pages_are_counted() {
        let files = [
            (
                "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
                "10\n",
            ),
            (
                "sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages",
                "3\n",
            ),
            (
                "sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages",
                "5\n",
            ),
            (
                "sys/kernel/mm/hugepages/hugepages-2048kB/surplus_hugepages",
                "1\n",
            ),
            (
                "sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages",
                "2\n",
            ),
            (
                "sys/devices/system/node/node1/hugepages/hugepages-2048kB/free_hugepages",
                "4\n",
            ),
            (
                "sys/devices/system/node/node1/hugepages/hugepages-1048576kB/free_hugepages",
                "4\n",
            ),
            ("proc/self/cgroup", "0::/job\n"),
            ("sys/fs/cgroup/job/hugetlb.2MB.max", "8388608\n"),
            ("sys/fs/cgroup/job/hugetlb.2MB.current", "2097152\n"),
            ("sys/fs/cgroup/job/hugetlb.1GB.max", "max\n"),
        ];
        let root = root(&files);
        assert_eq!(huge_pages(root.path(), 2 * MIB), Some(11));
        assert_eq!(huge_pages(root.path(), 1024 * MIB), Some(2));
        assert_eq!(huge_pages(root.path(), 64 * MIB), None);
        assert_eq!(huge_pages_on(root.path(), 2 * MIB, 1), None);
        assert_eq!(huge_pages_on(root.path(), 1024 * MIB, 1), Some(4));
        assert_eq!(huge_pages_on(root.path(), 1024 * MIB, 0), None);
        let left = huge_pages_of_groups(root.path(), 2 * MIB).unwrap();
        assert_eq!(left.bytes, 6 * MIB);
        assert_eq!(huge_pages_of_groups(root.path(), 1024 * MIB), None);
    }

    #[test]
    fn what_may_be_locked_is_told() {
        assert!(lockable().contains("(ulimit -l) and has locked"));
    }
}
