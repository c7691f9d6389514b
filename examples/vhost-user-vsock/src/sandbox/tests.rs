//! The test binary runs itself again, confines that process as the daemon does, and has it
//! try what a daemon that was taken over would try. Without the sandbox the same attempts
//! must fail otherwise or not at all, or else they would prove nothing.

#![allow(unsafe_code)] // Calls that have no safe form, because nobody should make them.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // A helper's way to fail and to answer.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::thread;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use super::{Directory, Territory, confine};

/// Has the helper know where to try, and whether it is to be confined.
const HOUSE: &str = "VSOCK_SANDBOX_HOUSE";
const CONFINED: &str = "VSOCK_SANDBOX_CONFINED";

const REFUSED_CALL: i32 = libc::ENOSYS;
const REFUSED_FILE: i32 = libc::EACCES;

/// What must not be done: its name, the error that refuses it, and the attempt.
type Attempt = (&'static str, i32, fn(&Path) -> io::Result<()>);

const ATTEMPTS: &[Attempt] = &[
    ("execve", REFUSED_CALL, |_| {
        Err(Command::new("/nonexistent").exec())
    }),
    ("fork", REFUSED_CALL, |_| {
        let pid = call(libc::SYS_clone, [libc::SIGCHLD as usize, 0, 0, 0, 0])?;
        match pid {
            0 => process::exit(0),
            _ => Ok(()),
        }
    }),
    ("clone3", REFUSED_CALL, |_| done(libc::SYS_clone3, [0; 5])),
    ("TCP", REFUSED_CALL, |_| {
        TcpListener::bind("127.0.0.1:0").map(|_| ())
    }),
    ("UDP", REFUSED_CALL, |_| {
        UdpSocket::bind("127.0.0.1:0").map(|_| ())
    }),
    ("vsock", REFUSED_CALL, |_| {
        let vsock = [libc::AF_VSOCK as usize, libc::SOCK_STREAM as usize, 0, 0, 0];
        done(libc::SYS_socket, vsock)
    }),
    // Of no process.
    ("ptrace", REFUSED_CALL, |_| {
        let attach = [libc::PTRACE_ATTACH as usize, 0, 0, 0, 0];
        done(libc::SYS_ptrace, attach)
    }),
    ("process_vm_readv", REFUSED_CALL, |_| {
        done(libc::SYS_process_vm_readv, [0; 5])
    }),
    // Of nothing to nowhere.
    ("mount", REFUSED_CALL, |_| done(libc::SYS_mount, [0; 5])),
    ("unshare", REFUSED_CALL, |_| done(libc::SYS_unshare, [0; 5])),
    ("bpf", REFUSED_CALL, |_| done(libc::SYS_bpf, [0; 5])),
    ("io_uring_setup", REFUSED_CALL, |_| {
        done(libc::SYS_io_uring_setup, [0; 5])
    }),
    ("setuid", REFUSED_CALL, |_| done(libc::SYS_setuid, [0; 5])),
    // No signal, only the question whether one could be sent.
    ("kill", REFUSED_CALL, |_| {
        done(libc::SYS_kill, [process::id() as usize, 0, 0, 0, 0])
    }),
    ("setrlimit", REFUSED_CALL, |_| {
        // From an address at which nothing is.
        let limit = [0, libc::RLIMIT_NOFILE as usize, 1, 0, 0];
        done(libc::SYS_prlimit64, limit)
    }),
    ("executable memory", REFUSED_CALL, |_| {
        let kind = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize;
        let pages = (libc::PROT_READ | libc::PROT_EXEC) as usize;
        let without_fd = usize::MAX;
        done(libc::SYS_mmap, [0, 4096, pages, kind, without_fd])
    }),
    ("memory made executable", REFUSED_CALL, |_| {
        // Of no length: nothing is made so where it is allowed.
        let pages = libc::PROT_EXEC as usize;
        done(libc::SYS_mprotect, [0, 0, pages, 0, 0])
    }),
    ("other ioctls", REFUSED_CALL, |_| {
        done(libc::SYS_ioctl, [0, libc::TIOCSTI as usize, 0, 0, 0])
    }),
    ("writing a file", REFUSED_CALL, |_| {
        OpenOptions::new()
            .write(true)
            .open("/etc/passwd")
            .map(|_| ())
    }),
    #[cfg(target_arch = "x86_64")]
    ("writing a file in the older way", REFUSED_CALL, |_| {
        let nowhere_to_write = [0, libc::O_WRONLY as usize, 0, 0, 0];
        done(libc::SYS_open, nowhere_to_write)
    }),
    ("creating a file", REFUSED_CALL, |house| {
        File::create(house.join("sockets/file")).map(|_| ())
    }),
    ("a directory", REFUSED_CALL, |house| {
        fs::create_dir(house.join("sockets/directory"))
    }),
    ("giving a file away", REFUSED_CALL, |_| {
        let nothing = [usize::MAX, 0, 0, 0, libc::AT_EMPTY_PATH as usize];
        done(libc::SYS_fchownat, nothing)
    }),
    ("renaming", REFUSED_CALL, |house| {
        fs::rename(house.join("secret"), house.join("sockets/secret"))
    }),
    ("reading a file outside", REFUSED_FILE, |house| {
        File::open(house.join("secret")).map(|_| ())
    }),
    ("reading a file where sockets are", REFUSED_FILE, |house| {
        File::open(house.join("sockets/secret")).map(|_| ())
    }),
    ("listing a directory outside", REFUSED_FILE, |house| {
        fs::read_dir(house).map(|_| ())
    }),
    ("a socket outside", REFUSED_FILE, |house| {
        UnixListener::bind(house.join("socket")).map(|_| ())
    }),
    ("a socket beside the configuration", REFUSED_FILE, |house| {
        UnixListener::bind(house.join("config/socket")).map(|_| ())
    }),
    ("removing outside", REFUSED_FILE, |house| {
        fs::remove_file(house.join("removable"))
    }),
    ("an abstract socket of others", libc::EPERM, |house| {
        UnixDatagram::unbound()?.connect_addr(&abstract_name(house))
    }),
];

fn abstract_name(house: &Path) -> SocketAddr {
    SocketAddr::from_abstract_name(house.as_os_str().as_encoded_bytes()).unwrap()
}

fn done(number: libc::c_long, args: [usize; 5]) -> io::Result<()> {
    call(number, args).map(|_| ())
}

fn call(number: libc::c_long, [a, b, c, d, e]: [usize; 5]) -> io::Result<libc::c_long> {
    // SAFETY: the attempts above pass numbers, and addresses at which nothing is; what
    // they map or start is touched by nobody.
    match unsafe { libc::syscall(number, a, b, c, d, e, 0) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

/// What the daemon does, all of which must go on.
fn live(house: &Path) -> io::Result<()> {
    let path = house.join("sockets/below/socket");
    let listener = UnixListener::bind(&path)?;
    let client = thread::spawn({
        let path = path.clone();
        move || UnixStream::connect(path)
    });
    let (mut accepted, _) = listener.accept()?;
    let mut client = client.join().map_err(|_| ErrorKind::Other)??;
    client.set_nonblocking(true)?;
    client.set_nonblocking(false)?;
    client.write_all(b"x")?;
    accepted.set_read_timeout(Some(Duration::from_secs(30)))?;
    accepted.read_exact(&mut [0])?;
    fs::remove_file(&path)?;
    UnixStream::connect(house.join("outside.sock"))?;
    fs::read_dir(house.join("config"))?.count();
    let config = house.join("config/vms.toml");
    fs::read_to_string(&config)?;
    rustix::fs::open(&config, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?;
    // More than the heap gives without a call.
    let memory = vec![1_u8; 8 << 20];
    assert_eq!(
        memory.iter().map(|&byte| usize::from(byte)).sum::<usize>(),
        memory.len()
    );
    Ok(())
}

/// Not a test: what [`attempts`] runs in a process of its own.
#[test]
fn helper() {
    let Some(house) = std::env::var_os(HOUSE).map(PathBuf::from) else {
        return;
    };
    if std::env::var_os(CONFINED).is_some() {
        let directory = Directory {
            path: house.join("sockets"),
            setting: String::new(),
        };
        let mut territory = Territory::new(&[directory]).unwrap();
        territory.set_config(&house.join("config/vms.toml"));
        confine(&territory).unwrap();
        let status = format!("{:?}", live(&house).map_err(|error| error.to_string()));
        println!("\n@live: {status}");
    }
    for (name, _, attempt) in ATTEMPTS {
        let error = attempt(&house).err().and_then(|error| error.raw_os_error());
        println!("\n@{name}: {}", error.unwrap_or(0));
    }
    process::exit(0);
}

/// What came of each attempt: the error's number, 0 if there was none.
fn attempts(confined: bool) -> Vec<(String, String)> {
    let house = tempfile::tempdir().unwrap();
    let at = |name: &str| house.path().join(name);
    fs::create_dir_all(at("sockets/below")).unwrap();
    fs::create_dir(at("config")).unwrap();
    for file in ["secret", "sockets/secret", "removable", "config/vms.toml"] {
        fs::write(at(file), "").unwrap();
    }
    let _outside = UnixListener::bind(at("outside.sock")).unwrap();
    let _abstract = UnixDatagram::bind_addr(&abstract_name(house.path())).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "sandbox::tests::helper", "--nocapture"])
        .env(HOUSE, house.path());
    if confined {
        command.env(CONFINED, "1");
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    let lines = said
        .lines()
        .filter_map(|line| line.strip_prefix('@')?.split_once(": "));
    lines
        .map(|(name, error)| (name.to_owned(), error.to_owned()))
        .collect()
}

fn refusals() -> Vec<(String, String)> {
    let attempts = ATTEMPTS.iter();
    attempts
        .map(|(name, error, _)| ((*name).to_owned(), error.to_string()))
        .collect()
}

/// It fails when the filter is missing, when it is too wide, and when it is too narrow.
#[test]
fn leaves_the_daemon_what_it_needs_and_nothing_else() {
    let mut expected = vec![("live".to_owned(), "Ok(())".to_owned())];
    expected.extend(refusals());
    assert_eq!(attempts(true), expected);
}

#[test]
fn nothing_else_refuses_the_attempts() {
    let free = attempts(false);
    assert_eq!(free.len(), ATTEMPTS.len(), "{free:?}");
    for (free, refused) in free.iter().zip(refusals()) {
        assert_ne!(*free, refused);
    }
}
