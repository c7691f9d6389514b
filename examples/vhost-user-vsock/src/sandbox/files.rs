//! Landlock: sockets in the directories that are served, the configuration to read, and
//! nothing else of the file system; no TCP; no abstract sockets and no processes of others.
//!
//! To connect to a socket at a path takes no right that Landlock withholds here, so guests
//! reach the sockets of their `uds-path` wherever symbolic links lead them.

use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, Scope,
};

use super::{SandboxError, Territory};

/// Confines this thread; returns what the kernel does not confine, in words.
pub(super) fn confine(territory: &Territory) -> Result<Vec<&'static str>, SandboxError> {
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))?
        .handle_access(AccessNet::from_all(ABI::V4))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?;
    for directory in &territory.sockets {
        let may = AccessFs::MakeSock | AccessFs::RemoveFile;
        ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new(directory)?, may))?;
    }
    if let Some(config) = &territory.readable {
        let may = AccessFs::ReadFile | AccessFs::ReadDir;
        ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new(config)?, may))?;
    }
    Ok(missing(ruleset.restrict_self()?.landlock))
}

fn missing(status: LandlockStatus) -> Vec<&'static str> {
    let abi = match status {
        LandlockStatus::Available { effective_abi, .. } => effective_abi,
        _ => ABI::Unsupported,
    };
    // What the filter of system calls refuses anyway is not missed: files to be written
    // or truncated, devices, TCP, signals.
    let since = [
        (ABI::V1, "what files it reads and where it creates sockets"),
        (ABI::V6, "connections to abstract sockets"),
    ];
    let missing = since.into_iter().filter(|(since, _)| abi < *since);
    missing.map(|(_, what)| what).collect()
}
