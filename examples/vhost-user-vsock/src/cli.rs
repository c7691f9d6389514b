//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ErrorKind};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;

use crate::config_file::{Config, Control};
use crate::ctl;
use crate::daemon::Job;
use crate::mistake::Mistake;
use crate::once::WrittenOnce;
use crate::sandbox::{Directory, Mode};
use crate::spec::{Origin, Settings, VmSpec, split_groups};
use crate::vm_option;

/// What QEMU's conventions for back-end programs call the capabilities.
const CAPABILITIES: &str = "{\n  \"type\": \"vsock\"\n}\n";

/// What the operator asks for.
#[derive(Debug)]
pub(crate) enum Request {
    /// To write this to standard output and end.
    Print(String),
    /// To serve VMs.
    Serve(Box<Job>),
    /// To find what is wrong with this file or directory.
    Check(PathBuf),
    /// To ask a running daemon.
    Ctl(Box<ctl::Options>),
}

/// Gives virtual machines AF_VSOCK over vhost-user: a guest's connections to the host go
/// to UNIX sockets, and host applications reach the guest through one.
///
/// Describe one VM by --guest-cid, --socket and --uds-path, several by repeating --vm, or
/// all of them in files given by --config; with --control they can come later. The program
/// stays in the foreground, logs to standard error what RUST_LOG asks for (by default
/// "info"), reads its configuration again on SIGHUP, and ends in order on SIGTERM and
/// SIGINT.
#[derive(Debug, Parser)]
#[command(name = "vhost-user-vsock", version)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
struct Options {
    #[command(subcommand)]
    command: Option<Command>,

    /// One VM, of several: guest-cid=CID,socket=PATH,uds-path=PATH, and as needed
    /// socket-mode=MODE, socket-owner=USER:GROUP, groups=NAME+NAME, host-cids=CID+CID,
    /// queue-size=N, tx-buffer-size=BYTES, max-connections=N, max-backlog=BYTES,
    /// max-buffered=BYTES, max-handshakes=N, max-bytes-per-second=BYTES,
    /// max-requests-per-second=N
    #[arg(long, value_name = "KEY=VALUE,...")]
    vm: Vec<String>,

    /// A TOML file that describes the VMs, or a directory of such files
    #[arg(long, value_name = "FILE|DIR")]
    config: Option<PathBuf>,

    /// The UNIX socket to create for requests that add, change and remove VMs
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,

    /// The mode of the control socket, in octal digits [default: 0600]
    #[arg(long, value_name = "MODE", allow_hyphen_values = true)]
    control_mode: Option<String>,

    /// Who owns the control socket, by names or numbers [default: the daemon's user]
    #[arg(long, value_name = "USER[:GROUP]")]
    control_owner: Option<String>,

    #[command(flatten)]
    access: AccessOptions,

    /// The VMs there may be at once, from 1 to 65536 [default: 1024]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    max_guests: Option<String>,

    /// How long a worker looks for more to do before it sleeps, in microseconds, where that
    /// has made it faster lately; from 0 to 1000 [default: 50]
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    busy_poll_us: Option<String>,

    /// A directory, with those in it, for the sockets of VMs that come later; may be
    /// repeated. Those of VMs at the start and of the control socket need not be named
    #[arg(long, value_name = "DIR")]
    directory: Vec<PathBuf>,

    /// Whether the daemon confines itself to its directories and system calls; off is for
    /// debugging
    #[arg(long, value_name = "on|off", value_enum, hide_possible_values = true)]
    #[arg(default_value = "on")]
    sandbox: Mode,

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

    /// The longest ring the VMM may ask for, a power of two up to 1024 [default: 1024]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    queue_size: Option<String>,

    #[command(flatten)]
    policy: PolicyOptions,

    /// Print what this back end is as JSON, and end
    #[arg(long)]
    print_capabilities: bool,
}

/// Who may connect to VMs' sockets.
#[derive(Debug, Args)]
pub(crate) struct AccessOptions {
    /// The mode of a VM's sockets, in octal digits [default: 0600]
    #[arg(long, value_name = "MODE", allow_hyphen_values = true)]
    pub(crate) socket_mode: Option<String>,

    /// Who owns a VM's sockets, by names or numbers [default: the daemon's user]
    #[arg(long, value_name = "USER[:GROUP]")]
    pub(crate) socket_owner: Option<String>,
}

/// What can be changed of a VM while it is served.
#[derive(Debug, Args)]
pub(crate) struct PolicyOptions {
    /// The groups the guest is in: it reaches the guests it shares one with, and with none
    /// it reaches the host only
    #[arg(long, value_name = "NAME+NAME")]
    pub(crate) groups: Option<String>,

    /// CIDs that mean the host to this guest, beside 2; a nitro enclave dials 3
    #[arg(long, value_name = "CID+CID", allow_hyphen_values = true)]
    pub(crate) host_cids: Option<String>,

    /// Bytes kept for each connection while the host application does not read
    /// [default: 262144]
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(crate) tx_buffer_size: Option<String>,

    /// The connections with the host that the guest may have at once, from 1 to 65536
    /// [default: 4096]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) max_connections: Option<String>,

    /// Bytes that may wait for the guest's siblings because of it, from 65536 to
    /// 1073741824 [default: 67108864]
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(crate) max_backlog: Option<String>,

    /// Bytes that may be kept for all host applications that do not read, from 262144 to
    /// 68719476736 [default: 268435456]
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(crate) max_buffered: Option<String>,

    /// Host applications that may be about to say which port they want, from 1 to 4096
    /// [default: 128]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) max_handshakes: Option<String>,

    /// Bytes the guest may send in a second, and the host may send to it, from 65536 to
    /// 1099511627776, or 0 for any amount [default: 0]
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(crate) max_bytes_per_second: Option<String>,

    /// Connections the guest may ask for in a second, from 1 to 1000000, or 0 for any
    /// number [default: 0]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) max_requests_per_second: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Find what is wrong with a configuration, without serving it
    Check {
        /// What --config would be given
        #[arg(value_name = "FILE|DIR")]
        path: PathBuf,
    },
    /// Ask a running daemon something, by its control socket
    Ctl(Box<ctl::Options>),
    /// Print what a shell needs to complete this command line
    Completions { shell: Shell },
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
        Ok(options) => match options.command {
            None => options.into_job().map(|job| Request::Serve(Box::new(job))),
            Some(Command::Check { path }) => Ok(Request::Check(path)),
            Some(Command::Ctl(options)) => Ok(Request::Ctl(options)),
            Some(Command::Completions { shell }) => Ok(Request::Print(completions(shell))),
        },
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                Ok(Request::Print(error.render().to_string()))
            }
            _ => Err(one_line(&error)),
        },
    }
}

fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    let mut command = Options::command();
    clap_complete::generate(shell, &mut command, env!("CARGO_PKG_NAME"), &mut script);
    String::from_utf8_lossy(&script).into_owned()
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
    Mistake::new(setting, problem, remedy)
}

impl Options {
    /// The VMs, from the one place of three that describes them, and the control socket.
    fn into_job(self) -> Result<Job, Mistake> {
        self.refuse_combinations()?;
        let control = self.control.clone().map(|path| Control {
            path,
            origin: Origin::Options,
        });
        let sandbox = self.sandbox;
        let once = self.once();
        let mut directories = self.directories();
        if let Some(path) = self.config {
            let config = Config::read(&path)?;
            directories.extend(config.directories);
            return Ok(Job {
                sandbox,
                directories,
                control: only_one(control, config.control)?,
                once: once.and(config.once)?,
                vms: config.vms,
                config: Some(path),
            });
        }
        let vms = if self.single_option().is_some() {
            vec![self.into_single()?]
        } else {
            let vms = self.vm.iter().map(|text| vm_option::parse(text));
            vms.collect::<Result<_, _>>()?
        };
        Ok(Job {
            vms,
            config: None,
            control,
            once,
            sandbox,
            directories,
        })
    }

    /// What is there once.
    fn once(&self) -> WrittenOnce {
        let settings = [
            ("socket-mode", &self.access.socket_mode),
            ("socket-owner", &self.access.socket_owner),
            ("control-mode", &self.control_mode),
            ("control-owner", &self.control_owner),
            ("max-guests", &self.max_guests),
            ("busy-poll-us", &self.busy_poll_us),
        ];
        let settings = settings.map(|(key, value)| (key, value.clone()));
        WrittenOnce::at(&Origin::Options, settings)
    }

    fn directories(&self) -> Vec<Directory> {
        let paths = self.directory.iter();
        paths
            .map(|path| Directory {
                path: path.clone(),
                setting: Origin::Options.setting("directory", path.display()),
            })
            .collect()
    }

    fn refuse_combinations(&self) -> Result<(), Mistake> {
        let config = self.config.as_ref();
        let config = config.map(|path| format!("--config {}", path.display()));
        let vm = self.vm.first().map(|text| format!("--vm {text}"));
        match (config, vm, self.single_option()) {
            (Some(config), Some(_), _) => Err(excluded(config, "--vm")),
            (Some(config), None, Some(option)) => Err(excluded(config, option)),
            (None, Some(vm), Some(option)) => Err(excluded(vm, option)),
            _ => Ok(()),
        }
    }

    /// An option for a single VM that was given, if any.
    fn single_option(&self) -> Option<&'static str> {
        let given = [
            ("--guest-cid", self.guest_cid.is_some()),
            ("--socket", self.socket.is_some()),
            ("--fd", self.fd.is_some()),
            ("--uds-path", self.uds_path.is_some()),
            ("--groups", self.policy.groups.is_some()),
            ("--host-cids", self.policy.host_cids.is_some()),
            ("--queue-size", self.queue_size.is_some()),
            ("--tx-buffer-size", self.policy.tx_buffer_size.is_some()),
            ("--max-connections", self.policy.max_connections.is_some()),
            ("--max-backlog", self.policy.max_backlog.is_some()),
            ("--max-buffered", self.policy.max_buffered.is_some()),
            ("--max-handshakes", self.policy.max_handshakes.is_some()),
            (
                "--max-bytes-per-second",
                self.policy.max_bytes_per_second.is_some(),
            ),
            (
                "--max-requests-per-second",
                self.policy.max_requests_per_second.is_some(),
            ),
        ];
        given
            .iter()
            .find(|(_, given)| *given)
            .map(|(name, _)| *name)
    }

    fn into_single(self) -> Result<VmSpec, Mistake> {
        let origin = Origin::Options;
        let settings = Settings {
            cid: number("guest-cid", self.guest_cid.as_deref())?,
            socket: self.socket,
            fd: number("fd", self.fd.as_deref())?,
            uds_path: self.uds_path,
            queue_size: number("queue-size", self.queue_size.as_deref())?,
            ..self.policy.settings()?
        };
        if let (Some(socket), Some(fd)) = (&settings.socket, settings.fd) {
            return Err(excluded(
                format!("--socket {}", socket.display()),
                &format!("--fd {fd}"),
            ));
        }
        Ok(VmSpec::new(origin, settings))
    }
}

impl PolicyOptions {
    /// The settings that were given.
    ///
    /// # Errors
    ///
    /// One of the numbers is none.
    pub(crate) fn settings(&self) -> Result<Settings, Mistake> {
        let host_cids = self.host_cids.as_deref();
        let host_cids = host_cids.map(|text| Origin::Options.numbers("host-cids", text));
        Ok(Settings {
            groups: self.groups.as_deref().map(split_groups),
            host_cids: host_cids.transpose()?,
            tx_buffer_size: number("tx-buffer-size", self.tx_buffer_size.as_deref())?,
            max_connections: number("max-connections", self.max_connections.as_deref())?,
            max_backlog: number("max-backlog", self.max_backlog.as_deref())?,
            max_buffered: number("max-buffered", self.max_buffered.as_deref())?,
            max_handshakes: number("max-handshakes", self.max_handshakes.as_deref())?,
            max_bytes_per_second: number(
                "max-bytes-per-second",
                self.max_bytes_per_second.as_deref(),
            )?,
            max_requests_per_second: number(
                "max-requests-per-second",
                self.max_requests_per_second.as_deref(),
            )?,
            ..Settings::default()
        })
    }
}

/// The number that an option was given.
///
/// # Errors
///
/// It is none.
pub(crate) fn number(key: &str, text: Option<&str>) -> Result<Option<u64>, Mistake> {
    text.map(|text| Origin::Options.number(key, text))
        .transpose()
}

/// The control socket of the options or of the configuration.
fn only_one(option: Option<Control>, file: Option<Control>) -> Result<Option<Control>, Mistake> {
    match (option, file) {
        (Some(option), Some(file)) => Err(excluded(
            option.origin.setting("control", option.path.display()),
            &file.origin.setting("control", file.path.display()),
        )),
        (option, file) => Ok(option.or(file)),
    }
}

fn excluded(setting: String, other: &str) -> Mistake {
    Mistake::new(
        setting,
        format!("cannot be combined with {other}"),
        "keep one of them",
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
            "--max-backlog=1048576",
            "--max-buffered=2097152",
            "--max-handshakes=5",
            "--max-bytes-per-second=65536",
            "--max-requests-per-second=7",
        ]);
        let vm = vm_option::parse(
            "guest-cid=3,socket=/run/3.sock,uds-path=/run/3.vsock,groups=a+b,host-cids=4+5,\
             queue-size=256,tx-buffer-size=65536,max-connections=10,max-backlog=1048576,\
             max-buffered=2097152,max-handshakes=5,max-bytes-per-second=65536,\
             max-requests-per-second=7",
        );
        let Ok(Request::Serve(single)) = single else {
            panic!("{single:?}")
        };
        assert_eq!(single.vms.len(), 1);
        assert_eq!(single.vms[0].settings, vm.unwrap().settings);
    }

    #[test]
    fn capabilities_leave_all_other_options_aside() {
        let answer = request(&["--no-such-option", "--print-capabilities"]);
        assert!(matches!(answer, Ok(Request::Print(_))), "{answer:?}");
    }
}
