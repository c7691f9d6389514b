//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser};

use crate::config_file;
use crate::mistake::Mistake;
use crate::spec::{Origin, Settings, VmSpec, split_groups};
use crate::vm_option;

/// What QEMU's conventions for back-end programs call the capabilities.
const CAPABILITIES: &str = "{\n  \"type\": \"vsock\"\n}\n";

/// What the operator asks for.
#[derive(Debug)]
pub(crate) enum Request {
    /// To write this to standard output and end.
    Print(String),
    /// To serve these VMs.
    Serve(Vec<VmSpec>),
}

/// Gives virtual machines AF_VSOCK over vhost-user: a guest's connections to the host go
/// to UNIX sockets, and host applications reach the guest through one.
///
/// Describe one VM by --guest-cid, --socket and --uds-path, several by repeating --vm, or
/// all of them in a file given by --config. The program stays in the foreground, logs to
/// standard error what RUST_LOG asks for (by default "info"), and ends in order on
/// SIGTERM and SIGINT.
#[derive(Debug, Parser)]
#[command(name = "vhost-user-vsock", version)]
struct Options {
    /// One VM, of several: guest-cid=CID,socket=PATH,uds-path=PATH, and as needed
    /// groups=NAME+NAME, host-cids=CID+CID, queue-size=N, tx-buffer-size=BYTES,
    /// max-connections=N
    #[arg(long, value_name = "KEY=VALUE,...")]
    vm: Vec<String>,

    /// A TOML file that describes the VMs
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The guest's CID, from 3 to 4294967294
    #[arg(long, value_name = "CID", allow_hyphen_values = true)]
    guest_cid: Option<String>,

    /// The vhost-user socket to create, for the VMM to connect to
    #[arg(long, value_name = "PATH", visible_alias = "socket-path")]
    socket: Option<PathBuf>,

    /// An inherited vhost-user socket's descriptor, listening or connected to the VMM,
    /// instead of --socket
    #[arg(long, value_name = "FD", allow_hyphen_values = true)]
    fd: Option<String>,

    /// The UNIX socket to create for host applications; the guest's connections to port P
    /// of the host go to the socket at this path with _P appended
    #[arg(long, value_name = "PATH")]
    uds_path: Option<PathBuf>,

    /// The groups the guest is in: it reaches the guests it shares one with, and with none
    /// it reaches the host only
    #[arg(long, value_name = "NAME+NAME")]
    groups: Option<String>,

    /// CIDs that mean the host to this guest, beside 2; a nitro enclave dials 3
    #[arg(long, value_name = "CID+CID", allow_hyphen_values = true)]
    host_cids: Option<String>,

    /// The longest ring the VMM may ask for, a power of two up to 1024 [default: 1024]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    queue_size: Option<String>,

    /// Bytes kept for each connection while the host application does not read
    /// [default: 262144]
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    tx_buffer_size: Option<String>,

    /// The connections with the host that the guest may have at once, from 1 to 65536
    /// [default: 4096]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    max_connections: Option<String>,

    /// Print what this back end is as JSON, and end
    #[arg(long)]
    print_capabilities: bool,
}

/// Reads the arguments, the program's name first.
///
/// # Errors
///
/// An unknown option, one without its value, options that exclude each other, no VM at
/// all, and whatever is wrong with the text of a `--vm` or a file.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Request, Mistake> {
    let args: Vec<_> = args.into_iter().collect();
    // By QEMU's conventions this option makes all others of no account, wrong ones too.
    if args.iter().skip(1).any(|arg| arg == "--print-capabilities") {
        return Ok(Request::Print(CAPABILITIES.to_owned()));
    }
    let matches = Options::command()
        .try_get_matches_from(args)
        .and_then(|matches| Options::from_arg_matches(&matches));
    match matches {
        Ok(options) => options.into_specs().map(Request::Serve),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                Ok(Request::Print(error.render().to_string()))
            }
            _ => Err(one_line(&error)),
        },
    }
}

/// clap's error without its usage, and with its hint as the remedy.
fn one_line(error: &clap::Error) -> Mistake {
    let text = error.render().to_string();
    let problem = text
        .lines()
        .next()
        .unwrap_or_default()
        .trim_start_matches("error: ");
    let remedy = match error.get(ContextKind::SuggestedArg) {
        Some(option) => format!("did you mean {option}?"),
        None => "--help lists the options".to_owned(),
    };
    let setting = match error.get(ContextKind::InvalidArg) {
        Some(argument) => argument.to_string(),
        None => "command line".to_owned(),
    };
    Mistake::new(setting, format!("{problem}; {remedy}"))
}

impl Options {
    /// The VMs, from the one place of three that describes them.
    fn into_specs(self) -> Result<Vec<VmSpec>, Mistake> {
        let single = self.single_option();
        match (&self.config, self.vm.first(), &single) {
            (Some(file), Some(_), _) => {
                Err(excluded(format!("--config {}", file.display()), "--vm"))
            }
            (Some(file), None, Some(option)) => {
                Err(excluded(format!("--config {}", file.display()), option))
            }
            (None, Some(vm), Some(option)) => Err(excluded(format!("--vm {vm}"), option)),
            (Some(file), None, None) => config_file::read(file),
            (None, Some(_), None) => self.vm.iter().map(|text| vm_option::parse(text)).collect(),
            (None, None, Some(_)) => self.into_single().map(|spec| vec![spec]),
            (None, None, None) => Err(Mistake::new(
                "command line",
                "no VM; give --guest-cid, --socket and --uds-path, or --vm, or --config (see --help)",
            )),
        }
    }

    /// An option for a single VM that was given, if any.
    fn single_option(&self) -> Option<&'static str> {
        let given = [
            ("--guest-cid", self.guest_cid.is_some()),
            ("--socket", self.socket.is_some()),
            ("--fd", self.fd.is_some()),
            ("--uds-path", self.uds_path.is_some()),
            ("--groups", self.groups.is_some()),
            ("--host-cids", self.host_cids.is_some()),
            ("--queue-size", self.queue_size.is_some()),
            ("--tx-buffer-size", self.tx_buffer_size.is_some()),
            ("--max-connections", self.max_connections.is_some()),
        ];
        given
            .iter()
            .find(|(_, given)| *given)
            .map(|(name, _)| *name)
    }

    fn into_single(self) -> Result<VmSpec, Mistake> {
        let origin = Origin::Options;
        let number =
            |key, text: Option<String>| text.map(|text| origin.number(key, &text)).transpose();
        let host_cids = self
            .host_cids
            .map(|text| origin.numbers("host-cids", &text));
        let settings = Settings {
            guest_cid: number("guest-cid", self.guest_cid)?,
            socket: self.socket,
            fd: number("fd", self.fd)?,
            uds_path: self.uds_path,
            groups: self.groups.as_deref().map(split_groups),
            host_cids: host_cids.transpose()?,
            queue_size: number("queue-size", self.queue_size)?,
            tx_buffer_size: number("tx-buffer-size", self.tx_buffer_size)?,
            max_connections: number("max-connections", self.max_connections)?,
        };
        if let (Some(socket), Some(fd)) = (&settings.socket, settings.fd) {
            return Err(excluded(
                format!("--socket {}", socket.display()),
                &format!("--fd {fd}"),
            ));
        }
        Ok(VmSpec { origin, settings })
    }
}

fn excluded(setting: String, other: &str) -> Mistake {
    Mistake::new(
        setting,
        format!("cannot be combined with {other}; keep one of them"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(args: &[&str]) -> Result<Request, Mistake> {
        parse(["vhost-user-vsock"].iter().chain(args).map(OsString::from))
    }

    #[test]
    fn clap_finds_nothing_wrong_with_the_options() {
        Options::command().debug_assert();
    }

    #[test]
    fn single_options_say_the_same_as_a_vm_option() {
        let single = request(&[
            "--guest-cid=3",
            "--socket-path=/run/3.sock",
            "--uds-path=/run/3.vsock",
            "--groups=a+b",
            "--host-cids=4+5",
            "--queue-size=256",
            "--tx-buffer-size=65536",
            "--max-connections=10",
        ]);
        let vm = vm_option::parse(
            "guest-cid=3,socket=/run/3.sock,uds-path=/run/3.vsock,\
             groups=a+b,host-cids=4+5,queue-size=256,tx-buffer-size=65536,max-connections=10",
        );
        let Ok(Request::Serve(single)) = single else {
            panic!("{single:?}")
        };
        assert_eq!(single.len(), 1);
        assert_eq!(single[0].settings, vm.unwrap().settings);
    }

    #[test]
    fn capabilities_leave_all_other_options_aside() {
        let answer = request(&["--no-such-option", "--print-capabilities"]);
        assert!(matches!(answer, Ok(Request::Print(_))), "{answer:?}");
    }
}
