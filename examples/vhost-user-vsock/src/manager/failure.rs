//! Why the manager did not do what it was asked for.

use thiserror::Error;
use vsock_packet::GuestCid;
use vsock_vhost_user::ConnectionId;

use crate::mistake::Mistake;

/// Why something was not done; nothing has changed, or it is said what has.
#[derive(Debug, Error)]
#[error("{}; {}", self.message(), self.remedy())]
pub(crate) enum Failure {
    /// The operator's.
    Mistake(#[from] Mistake),
    /// There is no such VM.
    NoSuchVm(GuestCid),
    /// There is no such connection.
    NoSuchConnection(ConnectionId),
    /// There is nothing to load again.
    NoConfig,
    /// The system's, or a guest's.
    System(String),
    /// The same half-way through a change, with what could not be made as it was.
    HalfWay {
        problem: String,
        remains: Vec<String>,
    },
}

impl Failure {
    /// This, after which all is as it was but for what `remains`.
    pub(super) fn with(self, remains: Vec<String>) -> Self {
        if remains.is_empty() {
            return self;
        }
        Self::HalfWay {
            problem: self.message(),
            remains,
        }
    }

    /// What is wrong.
    pub(crate) fn message(&self) -> String {
        match self {
            Self::Mistake(mistake) => mistake.message(),
            Self::NoSuchVm(cid) => format!("no VM has CID {cid}"),
            Self::NoSuchConnection(id) => format!("there is no connection {id}"),
            Self::NoConfig => "there is no configuration to load again".to_owned(),
            Self::System(problem) => problem.clone(),
            Self::HalfWay { problem, remains } => {
                let remains = remains.join(", ");
                format!("{problem}; all is as it was, but for this: {remains}")
            }
        }
    }

    /// What to do about it.
    pub(crate) fn remedy(&self) -> String {
        let remedy = match self {
            Self::Mistake(mistake) => return mistake.remedy(),
            Self::NoSuchVm(_) => "list the VMs to see those there are",
            Self::NoSuchConnection(_) => "list the connections to see those there are",
            Self::NoConfig => "start the daemon with --config",
            Self::System(_) => "nothing has changed: remove the cause and try again",
            Self::HalfWay { .. } => "remove the cause and load the configuration again",
        };
        remedy.to_owned()
    }
}
