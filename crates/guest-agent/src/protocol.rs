//! What the host asks of a guest over the serial port, and what the guest answers.
//!
//! One JSON object a line. Every [`Order`] carries an id, and every [`Notice`] about it
//! carries the same; orders run side by side. Id 0 is the guest's own, for
//! [`Event::Ready`].

use serde::{Deserialize, Serialize};

use crate::script::{Report, Step};

/// The id of what a guest says unasked.
pub const UNASKED: u64 = 0;

/// A command to the guest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// What the notices about this order refer to.
    pub id: u64,
    /// What to do.
    pub command: Command,
}

/// What a guest can be told to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Run a script on each of some connections; ends with [`Event::Conversed`].
    Converse(Conversation),
    /// Run a program to its end; ends with [`Event::Ran`].
    Run {
        /// The program and its arguments.
        argv: Vec<String>,
        /// After so many milliseconds it is killed, if it has a deadline.
        deadline_ms: Option<u64>,
    },
    /// Write a file of the stream of `seed`; ends with [`Event::Done`].
    WriteFile(PatternFile),
    /// Hold a file against the stream of `seed`; ends with [`Event::Done`].
    VerifyFile(PatternFile),
}

/// The guest's half of a conversation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Conversation {
    /// How the connections come about.
    pub endpoint: Endpoint,
    /// How many there are, all at once.
    pub connections: usize,
    /// What the guest does on each.
    pub script: Vec<Step>,
}

/// A file in the guest that holds the beginning of a [pattern](crate::pattern).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PatternFile {
    /// Its path in the guest.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// The pattern's seed.
    pub seed: u64,
}

/// The guest's end of a connection.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    /// The guest connects.
    Connect {
        /// To this CID
        cid: u32,
        /// and this port.
        port: u32,
    },
    /// The guest connects again and again while it is refused: to a peer that may not have
    /// booted yet.
    Redial {
        /// To this CID
        cid: u32,
        /// and this port.
        port: u32,
    },
    /// The guest accepts; it says [`Event::Listening`] once it can.
    Listen {
        /// On this port.
        port: u32,
    },
}

/// An answer of the guest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Notice {
    /// The id of the order it is about, or [`UNASKED`].
    pub id: u64,
    /// What happened.
    pub event: Event,
}

/// What a guest tells.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The guest has booted and takes orders.
    Ready {
        /// The kernel's release.
        kernel: String,
    },
    /// Connections to the port of a [`Command::Converse`] are accepted from now on.
    Listening,
    /// All connections of a [`Command::Converse`] have ended, well or not.
    Conversed(Vec<Report>),
    /// The program of a [`Command::Run`] has ended.
    Ran {
        /// Its exit status, or none if a signal or the deadline ended it.
        status: Option<i32>,
        /// The end of what it wrote to its standard output and error.
        output: String,
    },
    /// The order was carried out.
    Done,
    /// The order failed, and why.
    Failed(String),
}
