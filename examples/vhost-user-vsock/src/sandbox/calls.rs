//! seccomp: the system calls the daemon makes, and no others.
//!
//! What is not listed, or not with these arguments, fails with ENOSYS, as on a kernel that
//! has no such call: libraries go on with what there was before it, so a newer one does
//! not end the daemon, and `clone3`, whose flags a filter cannot see, becomes `clone`.

use std::collections::BTreeMap;
use std::process;

use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule,
};

use super::{SandboxError, Territory};

/// Calls that may have any arguments.
const ANY: &[libc::c_long] = &[
    // Memory and threads.
    libc::SYS_brk,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getcpu,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    // Time.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    // Descriptors.
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_lseek,
    libc::SYS_ppoll,
    libc::SYS_preadv2,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    // Sockets.
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // Files: those that can be reached are Landlock's matter.
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fchmod,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_newfstatat,
    libc::SYS_readlinkat,
    libc::SYS_statx,
];

/// The older forms, which only older machines have.
#[cfg(target_arch = "x86_64")]
const OLDER: &[libc::c_long] = &[
    libc::SYS_access,
    libc::SYS_epoll_wait,
    libc::SYS_lstat,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_stat,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[libc::c_long] = &[];

/// Has all other calls of this thread, and of those it starts, fail.
pub(super) fn confine(territory: &Territory) -> Result<(), SandboxError> {
    Ok(seccompiler::apply_filter(&program(territory)?)?)
}

fn program(territory: &Territory) -> Result<BpfProgram, BackendError> {
    let any = ANY.iter().chain(OLDER).map(|&call| (call, Vec::new()));
    let rules: BTreeMap<_, _> = any.chain(restricted()?).chain(giving(territory)?).collect();
    let refused = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, refused, SeccompAction::Allow, arch)?.try_into()
}

type Rules = Vec<(libc::c_long, Vec<SeccompRule>)>;

/// Calls that may have some arguments only.
fn restricted() -> Result<Rules, BackendError> {
    let unix = || one_of(0, &[libc::AF_UNIX]);
    let pages = || all(&[(2, Dword, MaskedEq(libc::PROT_EXEC as u64), 0)]);
    let commands = [
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_SETFL,
    ];
    let of_sockets = [libc::FIONBIO, libc::FIONREAD, libc::TIOCOUTQ, libc::TCGETS];
    let ioctls = of_sockets.map(|request| (1, Dword, Eq, request));
    // Threads of this process, in its own namespaces.
    let thread = (libc::CLONE_THREAD | libc::CLONE_VM) as u64;
    let spaces = (libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET) as u64;
    let own_limits = [(0, Dword, Eq, 0), (2, Qword, Eq, 0)];
    let me = process::id().into();
    Ok(vec![
        (libc::SYS_socket, unix()?),
        (libc::SYS_socketpair, unix()?),
        (libc::SYS_mmap, pages()?),
        (libc::SYS_mprotect, pages()?),
        (libc::SYS_fcntl, one_of(1, &commands)?),
        (libc::SYS_ioctl, any_of(&ioctls)?),
        (libc::SYS_prctl, one_of(0, &[libc::PR_SET_NAME])?),
        (libc::SYS_openat, to_read(2)?),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_open, to_read(1)?),
        (libc::SYS_unlinkat, all(&[(2, Dword, Eq, 0)])?),
        (
            libc::SYS_clone,
            all(&[(0, Qword, MaskedEq(thread | spaces), thread)])?,
        ),
        (libc::SYS_prlimit64, all(&own_limits)?),
        (libc::SYS_tgkill, all(&[(0, Dword, Eq, me)])?),
    ])
}

/// Giving what is open to another owner, if sockets are given to any.
fn giving(territory: &Territory) -> Result<Rules, BackendError> {
    if !territory.gives {
        return Ok(Vec::new());
    }
    let of_what_is_open = all(&[(4, Dword, Eq, libc::AT_EMPTY_PATH as u64)])?;
    Ok(vec![(libc::SYS_fchownat, of_what_is_open)])
}

/// With flags, in the argument of this number, that neither write nor create.
fn to_read(flags: u8) -> Result<Vec<SeccompRule>, BackendError> {
    let others = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC) as u64;
    all(&[(flags, Dword, MaskedEq(others), 0)])
}

/// An argument's number and length, and what it is compared with how.
type Condition = (u8, SeccompCmpArgLen, SeccompCmpOp, u64);

fn all(conditions: &[Condition]) -> Result<Vec<SeccompRule>, BackendError> {
    let conditions = conditions.iter().cloned();
    let conditions = conditions
        .map(|(index, length, how, value)| SeccompCondition::new(index, length, how, value));
    let rule = SeccompRule::new(conditions.collect::<Result<_, _>>()?)?;
    Ok(vec![rule])
}

fn any_of(conditions: &[Condition]) -> Result<Vec<SeccompRule>, BackendError> {
    let rules = conditions.iter().map(|one| all(std::slice::from_ref(one)));
    Ok(rules.collect::<Result<Vec<_>, _>>()?.concat())
}

fn one_of(index: u8, values: &[libc::c_int]) -> Result<Vec<SeccompRule>, BackendError> {
    let conditions = values.iter().map(|&value| (index, Dword, Eq, value as u64));
    any_of(&conditions.collect::<Vec<_>>())
}
