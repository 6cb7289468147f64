use super::*;
use crate::sys::pages::HUGE_PAGE;
use std::ffi::c_int;

fn create(folder: &tempfile::TempDir, name: &str) -> Result<Segment> {
    Segment::create("test", folder.path(), name, 2 * HUGE_PAGE)
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(FOLDER).unwrap()
}

fn byte(pages: &Pages) -> *mut u8 {
    (pages.address() + HUGE_PAGE) as *mut u8
}

#[test]
fn two_maps_show_the_same_bytes() {
    let folder = folder();
    let made = create(&folder, "/one").unwrap();
    let other = Segment::attach("test", folder.path(), "one", HUGE_PAGE * 2).unwrap();
    let (mine, theirs) = (made.map().unwrap(), other.map().unwrap());
    mine.populate().unwrap();
    // SAFETY: inside both mappings.
    unsafe { byte(&mine).write_volatile(7) };
    // SAFETY: as above.
    assert_eq!(unsafe { byte(&theirs).read_volatile() }, 7);
    assert!(made.is_called("one") && made.is_called("/one") && !made.is_called("two"));
    drop(other);
    assert!(folder.path().join("one").exists());
    drop(made);
    assert!(!folder.path().join("one").exists());
    let gone = Segment::attach("test", folder.path(), "one", 1).unwrap_err();
    assert_eq!(gone.status(), Status::InvalidArgument);
}

#[test]
fn a_name_has_one_maker() {
    let folder = folder();
    let first = create(&folder, "one").unwrap();
    let error = create(&folder, "one").unwrap_err();
    assert_eq!(error.status(), Status::Busy);
    drop(first);
    create(&folder, "one").unwrap();
}

#[test]
fn what_nobody_has_any_more_goes() {
    let folder = folder();
    let path = folder.path().join("one");
    std::fs::write(&path, "another program's").unwrap();
    assert_eq!(create(&folder, "one").unwrap_err().status(), Status::Busy);
    assert!(Segment::attach("test", folder.path(), "one", 1).is_err());
    std::fs::write(&path, "left").unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(MARKED)).unwrap();
    assert!(Segment::attach("test", folder.path(), "one", 1).is_err());
    let made = create(&folder, "one").unwrap();
    let found = std::fs::metadata(&path).unwrap();
    assert_eq!((found.len(), found.mode() & 0o777), (2 * HUGE_PAGE, 0o600));
    // Somebody else's, by now: it stays.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "new").unwrap();
    drop(made);
    assert!(path.exists());
}

#[test]
fn who_asks_is_not_taken_for_a_maker() {
    let folder = folder();
    let path = folder.path().join("one");
    std::fs::write(&path, "left").unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(MARKED)).unwrap();
    // Held for as long as this test runs: those that attach find nobody, and none of them stands in the way.
    let asking = open(&path).unwrap();
    assert!(!is_locked(&asking, LIFE).unwrap());
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let folder = folder.path().to_owned();
            std::thread::spawn(move || {
                for _ in 0..200 {
                    let _ = Segment::attach("test", &folder, "one", 1);
                }
            })
        })
        .collect();
    for _ in 0..100 {
        drop(create(&folder, "one").unwrap());
        std::fs::write(&path, "left").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(MARKED)).unwrap();
    }
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
}

#[test]
fn one_of_many_gets_what_was_left() {
    let folder = folder();
    let path = folder.path().join("one");
    for _ in 0..20 {
        std::fs::write(&path, "left").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(MARKED)).unwrap();
        let made: Vec<_> = std::thread::scope(|scope| {
            let make = || scope.spawn(|| create(&folder, "one"));
            let threads: Vec<_> = (0..4).map(|_| make()).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        let (one, others): (Vec<_>, Vec<_>) = made.into_iter().partition(Result::is_ok);
        assert_eq!((one.len(), others.len()), (1, 3));
        for error in others.into_iter().map(Result::unwrap_err) {
            assert_eq!(error.status(), Status::Busy, "{error}");
        }
    }
}

#[test]
fn another_user_s_name_is_busy() {
    let folder = folder();
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o1777)).unwrap();
    let path = folder.path().join("one");
    // SAFETY: takes no pointers.
    if unsafe { libc::geteuid() } != 0 {
        println!("SKIP: only root can be another user");
        return;
    }
    std::fs::write(&path, "root's").unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(MARKED)).unwrap();
    let as_nobody = || {
        // SAFETY: takes no pointers, and changes this thread alone, which ends.
        unsafe { libc::setfsuid(65534) };
        let made = create(&folder, "one").unwrap_err();
        let attached = Segment::attach("test", folder.path(), "one", 1).unwrap_err();
        (made, attached)
    };
    let (made, attached) = std::thread::scope(|scope| scope.spawn(as_nobody).join().unwrap());
    for error in [made, attached] {
        assert_eq!(error.status(), Status::Busy);
        assert!(error.to_string().contains("belongs to user 0"), "{error}");
    }
    std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
    let error = create(&folder, "one").unwrap_err();
    assert!(error.to_string().contains("user 65534,"), "{error}");
}

#[test]
fn what_others_put_there_stays_at_exit() {
    let folder = folder();
    let (kept, gone) = (
        create(&folder, "kept").unwrap(),
        create(&folder, "gone").unwrap(),
    );
    std::fs::remove_file(kept.path()).unwrap();
    std::fs::write(kept.path(), "another's").unwrap();
    remove_all();
    assert!(kept.path().exists() && !gone.path().exists());
}

#[test]
fn room_is_taken_at_once() {
    let folder = folder();
    let made = create(&folder, "one").unwrap();
    made.reserve("test").unwrap();
    let blocks = std::fs::metadata(made.path()).unwrap().blocks();
    assert_eq!(blocks * 512, 2 * HUGE_PAGE);
    let there = Segment::attach("test", folder.path(), "one", HUGE_PAGE).unwrap();
    there.reserve("test").unwrap();
}

#[test]
fn links_and_odd_names_are_refused() {
    let folder = folder();
    std::os::unix::fs::symlink("/etc/passwd", folder.path().join("link")).unwrap();
    assert!(create(&folder, "link").is_err());
    assert!(Segment::attach("test", folder.path(), "link", 1).is_err());
    let long = "x".repeat(256);
    for name in ["", "/", "a/b", "../a", ".", "..", "//", &long] {
        let error = create(&folder, name).unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument, "{name}");
    }
    let much = Segment::create("test", folder.path(), "much", 1 << 50).unwrap_err();
    assert_eq!(much.status(), Status::OutOfMemory);
    let short = create(&folder, "short").unwrap();
    let error = Segment::attach("test", folder.path(), "short", 1 << 40).unwrap_err();
    assert!(error.to_string().contains("4194304 bytes"), "{error}");
    drop(short);
}

/// Opening what somebody leases takes it from him, and waits until he lets go.
#[test]
fn another_s_file_is_not_opened_for_writing() {
    let folder = folder();
    let path = folder.path().join("one");
    std::fs::write(&path, "another's").unwrap();
    let file = File::open(&path).unwrap();
    const F_SETSIG: c_int = 10; // of <fcntl.h>, not in libc
    // SAFETY: takes no pointers; the descriptor is the open file's.
    let lease =
        |command: c_int, kind: c_int| unsafe { libc::fcntl(file.as_raw_fd(), command, kind) };
    assert_eq!(lease(F_SETSIG, libc::SIGURG), 0);
    assert_eq!(lease(libc::F_SETLEASE, libc::F_RDLCK), 0);
    let error = create(&folder, "one").unwrap_err();
    assert_eq!(error.status(), Status::Busy, "{error}");
    assert!(Segment::attach("test", folder.path(), "one", 1).is_err());
    assert_eq!(lease(libc::F_GETLEASE, 0), libc::F_RDLCK);
}
