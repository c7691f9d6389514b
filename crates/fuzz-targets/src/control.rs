//! What an operator may write: requests at the control socket, well formed or not, `--vm`
//! options, configurations. They meet the daemon's own parsers and its VMs, whose sockets are
//! in a directory of this process.
//!
//! Every request gets an answer as documented. A refused one has changed nothing. What was
//! accepted can be written back, to a VM that is there and as a new one, and is the same.

mod client;
mod house;
mod text;

use arbitrary::Arbitrary;

use self::house::House;
use self::text::{AnyVm, Text};
use crate::steps::Steps;

/// Steps of one input: each may start threads.
const MAX_STEPS: usize = 16;

#[derive(Arbitrary, Debug)]
enum Step<'a> {
    /// Bytes that are HTTP, perhaps.
    Bytes(&'a [u8]),
    Request {
        method: Method,
        path: Path,
        body: Body<'a>,
    },
    /// The configuration is written and loaded.
    Reload(Text),
    /// The configuration has these VMs, and is loaded.
    ReloadVms(Vec<AnyVm>),
    VmOption(Text),
}

#[derive(Arbitrary, Debug)]
enum Method {
    Get,
    Put,
    Patch,
    Delete,
    Post,
    Head,
    Any(Text),
}

#[derive(Arbitrary, Debug)]
enum Path {
    Vm(u8),
    Vms,
    Connections,
    Connection(u64),
    Events,
    Reload,
    Version,
    OpenApi,
    Any(Text),
}

#[derive(Arbitrary, Debug)]
enum Body<'a> {
    None,
    Vm(AnyVm),
    Text(Text),
    Bytes(&'a [u8]),
    Long(u16),
}

/// Runs an input.
pub(crate) fn run(data: &[u8]) {
    let _alone = crate::alone();
    let mut steps = Steps::new(data);
    let house = House::new();
    for _ in 0..MAX_STEPS {
        let Some(step) = steps.next::<Step<'_>>() else {
            break;
        };
        match step {
            Step::Bytes(bytes) => house.say(&text::settled(bytes)),
            Step::Request { method, path, body } => {
                house.request(&method.word(), &path.word(), &body.bytes());
            }
            Step::Reload(config) => house.reload(&config.settled()),
            Step::ReloadVms(vms) => {
                let tables = vms.iter().take(4).map(AnyVm::table);
                house.reload(&tables.collect::<String>());
            }
            Step::VmOption(option) => house::check_option(&option.settled()),
        }
    }
    house.end();
}

impl Method {
    fn word(&self) -> String {
        match self {
            Self::Get => "GET".to_owned(),
            Self::Put => "PUT".to_owned(),
            Self::Patch => "PATCH".to_owned(),
            Self::Delete => "DELETE".to_owned(),
            Self::Post => "POST".to_owned(),
            Self::Head => "HEAD".to_owned(),
            Self::Any(text) => text.word(),
        }
    }
}

impl Path {
    fn word(&self) -> String {
        match self {
            Self::Vm(cid) => format!("/vms/{}", text::cid(*cid)),
            Self::Vms => "/vms".to_owned(),
            Self::Connections => "/connections".to_owned(),
            Self::Connection(id) => format!("/connections/{id}"),
            Self::Events => "/events".to_owned(),
            Self::Reload => "/reload".to_owned(),
            Self::Version => "/version".to_owned(),
            Self::OpenApi => "/openapi.json".to_owned(),
            Self::Any(text) => format!("/{}", text.word()),
        }
    }
}

impl Body<'_> {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::None => Vec::new(),
            Self::Vm(vm) => vm.json().to_string().into_bytes(),
            Self::Text(text) => text.settled().into_bytes(),
            Self::Bytes(bytes) => text::settled(bytes),
            Self::Long(len) => vec![b' '; usize::from(*len) + (1 << 15)],
        }
    }
}
