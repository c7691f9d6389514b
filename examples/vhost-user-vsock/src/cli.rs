//! The command line.

mod single_vm;
mod vm_options;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;

pub(crate) use self::vm_options::{AccessOptions, PolicyOptions, number};

use self::single_vm::SingleVm;
use crate::config_file::{Config, Control};
use crate::ctl;
use crate::daemon::Job;
use crate::mistake::Mistake;
use crate::once::WrittenOnce;
use crate::sandbox::{Directory, Mode};
use crate::spec::Origin;
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

    #[command(flatten)]
    single: SingleVm,

    /// Print what this back end is as JSON, and end
    #[arg(long)]
    print_capabilities: bool,
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
        let vms = if self.single.first_given().is_some() {
            vec![self.single.into_spec()?]
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
        let single = self.single.first_given().map(|key| format!("--{key}"));
        match (config, vm, single) {
            (Some(config), Some(_), _) => Err(excluded(config, "--vm")),
            (Some(config), None, Some(option)) => Err(excluded(config, &option)),
            (None, Some(vm), Some(option)) => Err(excluded(vm, &option)),
            _ => Ok(()),
        }
    }
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
