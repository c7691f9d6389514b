//! Who may connect to the daemon's sockets: modes and owners, as operators write them.
//!
//! ```text
//!   --socket-mode, --socket-owner ─▶ all VMs' sockets, but for VMs that have their own
//!   --control-mode, --control-owner ─▶ the control socket
//! ```
//!
//! All that can be wrong with them is found before a socket is there: the system would say
//! no more than "not permitted", and in the middle of it.

use rustix::process::{getegid, geteuid, getgroups};
use rustix::thread::{CapabilitySet, capabilities};
use vsock_vhost_user::SocketAccess;

use crate::mistake::{Kind, Mistake};
use crate::number::decimal;
use crate::spec::{Origin, Settings};

/// One setting as it is written, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Written {
    pub(crate) key: &'static str,
    pub(crate) value: String,
    pub(crate) origin: Origin,
}

impl Written {
    pub(crate) fn new(key: &'static str, value: &str, origin: &Origin) -> Self {
        Self {
            key,
            value: value.to_owned(),
            origin: origin.clone(),
        }
    }

    /// As the operator wrote it.
    pub(crate) fn setting(&self) -> String {
        self.origin.setting(self.key, &self.value)
    }

    /// The setting that is there, if it is there once at most.
    ///
    /// # Errors
    ///
    /// It is there twice.
    pub(crate) fn only_one(
        one: Option<Self>,
        other: Option<Self>,
    ) -> Result<Option<Self>, Mistake> {
        match (one, other) {
            (Some(one), Some(other)) => Err(Mistake::new(
                other.setting(),
                format!("there is also {}", one.setting()),
                "keep one of them",
            )),
            (one, other) => Ok(one.or(other)),
        }
    }

    /// # Errors
    ///
    /// It is not what it was at the start.
    pub(crate) fn refuse_other(now: Option<&Self>, start: Option<&Self>) -> Result<(), Mistake> {
        match now {
            Some(now) if start.is_none_or(|start| start.value != now.value) => {
                Err(Mistake::of_kind(
                    Kind::Conflict,
                    now.setting(),
                    "cannot be changed while the daemon runs",
                    "restart it, or write the former value",
                ))
            }
            _ => Ok(()),
        }
    }
}

/// What is written of who may connect.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct WrittenAccess {
    pub(crate) mode: Option<Written>,
    pub(crate) owner: Option<Written>,
}

impl WrittenAccess {
    /// These settings and others, of which each is there once.
    ///
    /// # Errors
    ///
    /// One is there twice.
    pub(crate) fn and(self, other: Self) -> Result<Self, Mistake> {
        Ok(Self {
            mode: Written::only_one(self.mode, other.mode)?,
            owner: Written::only_one(self.owner, other.owner)?,
        })
    }

    /// Those that are written.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Written> {
        self.mode.iter().chain(&self.owner)
    }

    /// # Errors
    ///
    /// They are not what they were at the start.
    pub(crate) fn refuse_other(&self, start: &Self) -> Result<(), Mistake> {
        Written::refuse_other(self.mode.as_ref(), start.mode.as_ref())?;
        Written::refuse_other(self.owner.as_ref(), start.owner.as_ref())
    }
}

/// What modes and owners are possible, and which hold for VMs that say nothing of them.
#[derive(Clone, Default, Debug)]
pub(crate) struct AccessRules {
    default: SocketAccess,
    privilege: Privilege,
    names: Names,
    /// Whether the daemon has deprived itself of giving sockets to others.
    has_renounced: bool,
}

impl AccessRules {
    /// The rules where this is written of all VMs' sockets.
    ///
    /// # Errors
    ///
    /// The mode or the owner is none, or cannot be given.
    pub(crate) fn new(written: &WrittenAccess) -> Result<Self, Mistake> {
        let rules = Self {
            privilege: Privilege::now(),
            names: Names::read(),
            ..Self::default()
        };
        let default = rules.access(written)?;
        Ok(Self { default, ..rules })
    }

    /// Who may connect where this is written.
    ///
    /// # Errors
    ///
    /// The mode or the owner is none, or cannot be given.
    pub(crate) fn access(&self, written: &WrittenAccess) -> Result<SocketAccess, Mistake> {
        let mut access = self.default;
        if let Some(written) = &written.mode {
            access.mode = mode(written)?;
        }
        if let Some(written) = &written.owner {
            (access.user, access.group) = self.owner(written)?;
        }
        Ok(access)
    }

    /// Who may connect to the sockets of a VM with these settings.
    ///
    /// # Errors
    ///
    /// The mode or the owner is none, or cannot be given.
    pub(crate) fn of_vm(
        &self,
        origin: &Origin,
        settings: &Settings,
    ) -> Result<SocketAccess, Mistake> {
        let written =
            |key, value: &Option<String>| value.as_ref().map(|it| Written::new(key, it, origin));
        self.access(&WrittenAccess {
            mode: written("socket-mode", &settings.socket_mode),
            owner: written("socket-owner", &settings.socket_owner),
        })
    }

    /// Who may connect to the sockets of a VM that says nothing of it.
    pub(crate) fn default_access(&self) -> SocketAccess {
        self.default
    }

    /// Deprives itself of giving sockets to others.
    pub(crate) fn renounce(&mut self) {
        self.has_renounced = true;
    }

    /// The numbers in `USER`, `USER:GROUP` or `:GROUP`.
    fn owner(&self, written: &Written) -> Result<(Option<u32>, Option<u32>), Mistake> {
        let mistake = |problem, remedy| Mistake::new(written.setting(), problem, remedy);
        let text = written.value.as_str();
        if self.has_renounced {
            return Err(mistake(
                "is not possible for a daemon that knew of no owner when it confined itself"
                    .to_owned(),
                "start it with a --socket-owner, or with --sandbox off".to_owned(),
            ));
        }
        let (user, group) = text.split_once(':').unwrap_or((text, ""));
        if user.is_empty() && group.is_empty() {
            let remedy = "write USER, USER:GROUP or :GROUP, by names or numbers".to_owned();
            return Err(mistake("names nobody".to_owned(), remedy));
        }
        let find = |name: &str, kind, file, names: &[(String, u32)]| {
            if name.is_empty() {
                return Ok(None);
            }
            number(name, names).map(Some).ok_or_else(|| {
                mistake(
                    format!("'{name}' is no {kind} in {file}"),
                    format!("name another {kind}, or write its number"),
                )
            })
        };
        let user = find(user, "user", "/etc/passwd", &self.names.users)?;
        let group = find(group, "group", "/etc/group", &self.names.groups)?;
        if let Some(user) = user.filter(|&user| !self.privilege.may_give_to(user)) {
            return Err(mistake(
                format!("only a daemon with CAP_CHOWN may give sockets to user {user}"),
                "start it with that capability, or as that user, or name a group only".to_owned(),
            ));
        }
        if let Some(group) = group.filter(|&group| !self.privilege.may_share_with(group)) {
            return Err(mistake(
                format!("the daemon's user is not in group {group}, and has no CAP_CHOWN"),
                "add the user to the group, or start the daemon with that capability".to_owned(),
            ));
        }
        Ok((user, group))
    }
}

/// The permission bits in octal text.
fn mode(written: &Written) -> Result<u32, Mistake> {
    let mistake = |problem, remedy| Err(Mistake::new(written.setting(), problem, remedy));
    let is_octal = written.value.bytes().all(|byte| byte.is_ascii_digit());
    match u32::from_str_radix(&written.value, 8) {
        Ok(mode) if is_octal && mode <= 0o777 && mode & 0o222 != 0 => Ok(mode),
        Ok(mode) if is_octal && mode <= 0o777 => mistake(
            "lets nobody connect, which takes the permission to write",
            "choose one with a 2, 3, 6 or 7 in it, such as 0660",
        ),
        _ => mistake(
            "is no mode of a socket",
            "write octal digits from 0002 to 0777, such as 0660",
        ),
    }
}

/// The number of a name, or written as a number. The greatest one means nobody.
fn number(name: &str, names: &[(String, u32)]) -> Option<u32> {
    let known = names.iter().find(|(known, _)| known == name);
    let number = known.map(|(_, number)| *number).or_else(|| decimal(name));
    number.filter(|&number| number != u32::MAX)
}

/// Whether anybody on the host may connect.
pub(crate) fn is_open_to_all(access: SocketAccess) -> bool {
    access.mode & 0o002 != 0
}

/// An owner as an operator may write it; `None` for the daemon's own user and group.
pub(crate) fn owner_text(access: SocketAccess) -> Option<String> {
    let text = |id: u32| id.to_string();
    match (access.user.map(text), access.group.map(text)) {
        (None, None) => None,
        (user, None) => user,
        (user, Some(group)) => Some(format!("{}:{group}", user.unwrap_or_default())),
    }
}

/// Whom the daemon may give a file of its own.
#[derive(Clone, Default, Debug)]
struct Privilege {
    user: u32,
    groups: Vec<u32>,
    may_chown: bool,
}

impl Privilege {
    fn now() -> Self {
        let mut groups = vec![getegid().as_raw()];
        let further = getgroups().unwrap_or_default();
        groups.extend(further.into_iter().map(rustix::process::Gid::as_raw));
        let may_chown = capabilities(None)
            .is_ok_and(|capabilities| capabilities.effective.contains(CapabilitySet::CHOWN));
        Self {
            user: geteuid().as_raw(),
            groups,
            may_chown,
        }
    }

    fn may_give_to(&self, user: u32) -> bool {
        self.may_chown || user == self.user
    }

    fn may_share_with(&self, group: u32) -> bool {
        self.may_chown || self.groups.contains(&group)
    }
}

/// The users and groups of this machine, as they were when the daemon started: later it
/// cannot read of them.
#[derive(Clone, Default, Debug)]
struct Names {
    users: Vec<(String, u32)>,
    groups: Vec<(String, u32)>,
}

impl Names {
    /// Those of the files; who is known to a directory service only has a number.
    fn read() -> Self {
        let of = |path| {
            let text = std::fs::read(path).unwrap_or_default();
            names(&String::from_utf8_lossy(&text))
        };
        Self {
            users: of("/etc/passwd"),
            groups: of("/etc/group"),
        }
    }
}

/// The names and numbers in `name:x:number:...`, a line each.
fn names(text: &str) -> Vec<(String, u32)> {
    let name = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        Some((name.to_owned(), decimal(fields.nth(1)?)?))
    };
    text.lines().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(may_chown: bool) -> AccessRules {
        AccessRules {
            privilege: Privilege {
                user: 1000,
                groups: vec![1000, 44],
                may_chown,
            },
            names: Names {
                users: names("root:x:0:0:root:/root:/bin/sh\nvm:x:1000:1000::/:/bin/sh\nbroken\n"),
                groups: names("root:x:0:\nvideo:x:44:vm\n:x:5:\n7:x:8:\n"),
            },
            ..AccessRules::default()
        }
    }

    fn access(rules: &AccessRules, mode: &str, owner: &str) -> Result<SocketAccess, String> {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let settings = Settings {
            socket_mode: text(mode),
            socket_owner: text(owner),
            ..Settings::default()
        };
        let access = rules.of_vm(&Origin::Options, &settings);
        access.map_err(|mistake| mistake.to_string())
    }

    #[test]
    fn reads_modes_in_octal() {
        let mode = |text| access(&rules(false), text, "").map(|access| access.mode);
        assert_eq!(mode("0660"), Ok(0o660));
        assert_eq!(mode("777"), Ok(0o777));
        assert_eq!(mode(""), Ok(0o600));
        for wrong in ["9999", "1777", "0o660", "+660", "rw", "-1", "4294967296660"] {
            let told = mode(wrong).unwrap_err();
            let expected = format!("--socket-mode {wrong}: is no mode of a socket; write octal");
            assert!(told.starts_with(&expected), "{told}");
        }
        assert!(mode("0555").unwrap_err().contains("lets nobody connect"));
    }

    #[test]
    fn reads_owners_by_name_and_number() {
        let owner = |text| access(&rules(true), "", text).map(|access| (access.user, access.group));
        assert_eq!(owner("vm"), Ok((Some(1000), None)));
        assert_eq!(owner("vm:video"), Ok((Some(1000), Some(44))));
        assert_eq!(owner(":video"), Ok((None, Some(44))));
        assert_eq!(owner("0:0"), Ok((Some(0), Some(0))));
        assert_eq!(
            owner(":7"),
            Ok((None, Some(8))),
            "a name may look like a number"
        );
        assert!(
            owner("nobody-here")
                .unwrap_err()
                .contains("'nobody-here' is no user")
        );
        assert!(
            owner("vm:nowhere")
                .unwrap_err()
                .contains("'nowhere' is no group")
        );
        for wrong in ["4294967295", "+0", ":+44", "1000:-1", "0x0"] {
            let told = owner(wrong).unwrap_err();
            assert!(told.contains("or write its number"), "{told}");
        }
        assert!(owner(":").unwrap_err().contains("names nobody"));
    }

    #[test]
    fn knows_whom_it_may_give_sockets() {
        let owner = |text| access(&rules(false), "", text);
        assert!(owner("vm:video").is_ok() && owner("1000").is_ok());
        let told = owner("root").unwrap_err();
        assert!(
            told.contains("CAP_CHOWN may give sockets to user 0; start it"),
            "{told}"
        );
        let told = owner("vm:root").unwrap_err();
        assert!(
            told.contains("not in group 0, and has no CAP_CHOWN; add"),
            "{told}"
        );
    }

    #[test]
    fn gives_nothing_away_once_it_has_renounced() {
        let mut rules = rules(true);
        rules.renounce();
        assert!(access(&rules, "0666", "").is_ok());
        let told = access(&rules, "", ":44").unwrap_err();
        assert!(told.contains("start it with a --socket-owner"), "{told}");
    }

    #[test]
    fn an_owner_is_written_as_it_is_read() {
        for text in ["1000", "1000:44", ":44"] {
            let access = access(&rules(true), "", text).unwrap();
            assert_eq!(owner_text(access).as_deref(), Some(text));
        }
        assert_eq!(owner_text(SocketAccess::default()), None);
    }
}
