//! Who may connect to the daemon's sockets: modes and owners, as operators write them.
//!
//! ```text
//!   --socket-mode, --socket-owner ─▶ all VMs' sockets, but for VMs that have their own
//!   --control-mode, --control-owner ─▶ the control socket
//! ```
//!
//! All that can be wrong with them is found before a socket is there: the system would say
//! no more than "not permitted", and in the middle of it.

mod names;
mod privilege;

use vsock_vhost_user::SocketAccess;

use self::names::Names;
use self::privilege::Privilege;
use crate::mistake::Mistake;
use crate::once::{Written, WrittenOnce};
use crate::spec::{Origin, Settings};

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
    pub(crate) fn new(written: &WrittenOnce) -> Result<Self, Mistake> {
        let rules = Self {
            privilege: Privilege::now(),
            names: Names::read(),
            ..Self::default()
        };
        let (mode, owner) = (written.get("socket-mode"), written.get("socket-owner"));
        let default = rules.access(rules.default, mode, owner)?;
        Ok(Self { default, ..rules })
    }

    /// Who may connect to the control socket. Nothing that is said of VMs holds for it.
    ///
    /// # Errors
    ///
    /// The mode or the owner is none, or cannot be given.
    pub(crate) fn of_control(&self, written: &WrittenOnce) -> Result<SocketAccess, Mistake> {
        let (mode, owner) = (written.get("control-mode"), written.get("control-owner"));
        self.access(SocketAccess::default(), mode, owner)
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
        let mode = written("socket-mode", &settings.socket_mode);
        let owner = written("socket-owner", &settings.socket_owner);
        self.access(self.default, mode.as_ref(), owner.as_ref())
    }

    /// Deprives itself of giving sockets to others.
    pub(crate) fn renounce(&mut self) {
        self.has_renounced = true;
    }

    /// The access where this is written, and `otherwise` where nothing is.
    fn access(
        &self,
        otherwise: SocketAccess,
        written_mode: Option<&Written>,
        owner: Option<&Written>,
    ) -> Result<SocketAccess, Mistake> {
        let mut access = otherwise;
        if let Some(written) = written_mode {
            access.mode = mode(written)?;
        }
        if let Some(written) = owner {
            (access.user, access.group) = self.owner(written)?;
        }
        Ok(access)
    }

    /// The numbers in `USER`, `USER:GROUP` or `:GROUP`.
    fn owner(&self, written: &Written) -> Result<(Option<u32>, Option<u32>), Mistake> {
        let mistake = |problem: &str, remedy| Mistake::new(written.setting(), problem, remedy);
        if self.has_renounced {
            return Err(mistake(
                "is not possible for a daemon that knew of no owner when it confined itself",
                "start it with a --socket-owner, or with --sandbox off",
            ));
        }
        let text = written.value.as_str();
        let (user, group) = text.split_once(':').unwrap_or((text, ""));
        if user.is_empty() && group.is_empty() {
            let remedy = "write USER, USER:GROUP or :GROUP, by names or numbers";
            return Err(mistake("names nobody", remedy));
        }
        let user = (!user.is_empty()).then(|| self.user(written, user));
        let group = (!group.is_empty()).then(|| self.group(written, group));
        Ok((user.transpose()?, group.transpose()?))
    }

    /// The user of this name or number, to whom the daemon may give sockets.
    fn user(&self, written: &Written, name: &str) -> Result<u32, Mistake> {
        let number = self.names.user(name);
        let user = number.ok_or_else(|| unknown(written, name, "user", "/etc/passwd"))?;
        if self.privilege.may_give_to(user) {
            return Ok(user);
        }
        Err(Mistake::new(
            written.setting(),
            format!("only a daemon with CAP_CHOWN may give sockets to user {user}"),
            "start it with that capability, or as that user, or name a group only",
        ))
    }

    /// The group of this name or number, to which the daemon may give sockets.
    fn group(&self, written: &Written, name: &str) -> Result<u32, Mistake> {
        let number = self.names.group(name);
        let group = number.ok_or_else(|| unknown(written, name, "group", "/etc/group"))?;
        if self.privilege.may_share_with(group) {
            return Ok(group);
        }
        Err(Mistake::new(
            written.setting(),
            format!("the daemon's user is not in group {group}, and has no CAP_CHOWN"),
            "add the user to the group, or start the daemon with that capability",
        ))
    }
}

fn unknown(written: &Written, name: &str, kind: &str, file: &str) -> Mistake {
    Mistake::new(
        written.setting(),
        format!("'{name}' is no {kind} in {file}"),
        format!("name another {kind}, or write its number"),
    )
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
            names: Names::of(
                "root:x:0:0:root:/root:/bin/sh\nvm:x:1000:1000::/:/bin/sh\nbroken\n",
                "root:x:0:\nvideo:x:44:vm\n:x:5:\n7:x:8:\n",
            ),
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
