//! Requests at the daemon's control socket, one after the other, on a thread.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use vsock_packet::VsockAddr;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is to be done.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    /// A request, with the statuses that are in order.
    Ask {
        method: &'static str,
        path: String,
        body: Value,
        allowed: &'static [u16],
    },
    /// The connection between these ends is to be reset, if it is still there. One that is
    /// younger than the order has the ports of another guest, or of another life of it.
    Kill {
        from: VsockAddr,
        to: VsockAddr,
        ordered: Instant,
    },
}

/// Whoever asks at the control socket.
pub(crate) struct Operator {
    control: PathBuf,
    orders: Sender<(usize, Order)>,
    answers: Receiver<(usize, Result<Value>)>,
}

impl Operator {
    pub(crate) fn new(control: &Path) -> Self {
        let (orders, queue) = channel::<(usize, Order)>();
        let (results, answers) = channel();
        let path = control.to_owned();
        thread::spawn(move || {
            for (tag, order) in queue {
                if results.send((tag, perform(&path, &order))).is_err() {
                    break;
                }
            }
        });
        Self {
            control: control.to_owned(),
            orders,
            answers,
        }
    }

    /// Has something done; its result comes under `tag`.
    pub(crate) fn order(&self, tag: usize, order: Order) {
        // The thread ends after this end of the queue.
        let _ = self.orders.send((tag, order));
    }

    /// A result that has come.
    pub(crate) fn result(&self) -> Option<(usize, Result<Value>)> {
        self.answers.try_recv().ok()
    }

    /// Asks for something, and waits for it.
    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        ask(&self.control, "GET", path, &Value::Null, &[200])
    }
}

fn perform(control: &Path, order: &Order) -> Result<Value> {
    match order {
        Order::Ask {
            method,
            path,
            body,
            allowed,
        } => ask(control, method, path, body, allowed),
        Order::Kill { from, to, ordered } => {
            let is_meant = |one: &Value| {
                let age = one["age_seconds"].as_f64().unwrap_or_default();
                age >= ordered.elapsed().as_secs_f64()
            };
            let list = ask(control, "GET", "/connections", &Value::Null, &[200])?;
            let end =
                |end: &VsockAddr| json!({"cid": u64::from(end.cid), "port": end.port.value()});
            let found = list["connections"].as_array().into_iter().flatten();
            let mut found = found
                .filter(|one| one["from"] == end(from) && one["to"] == end(to) && is_meant(one));
            match found
                .next()
                .and_then(|connection| connection["id"].as_u64())
            {
                Some(id) => {
                    let path = format!("/connections/{id}");
                    ask(control, "DELETE", &path, &Value::Null, &[204, 404])
                }
                None => Ok(Value::Null),
            }
        }
    }
}

fn ask(control: &Path, method: &str, path: &str, body: &Value, allowed: &[u16]) -> Result<Value> {
    let attempt = || -> Result<(u16, Value)> {
        let mut stream = UnixStream::connect(control)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-length: {length}\r\n\r\n{body}"
        )?;
        read_answer(&mut BufReader::new(stream))
    };
    let (status, answer) = attempt().with_context(|| format!("ask for {method} {path}"))?;
    anyhow::ensure!(
        allowed.contains(&status),
        "the daemon answers {status} to {method} {path} {body}: {answer}"
    );
    Ok(answer)
}

fn read_answer(reader: &mut impl BufRead) -> Result<(u16, Value)> {
    let (mut status, mut length, mut line) = (None, 0, String::new());
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let text = line.trim_end();
        if status.is_none() {
            status = text
                .split(' ')
                .nth(1)
                .and_then(|status| status.parse().ok());
        } else if let Some(value) = text.to_ascii_lowercase().strip_prefix("content-length: ") {
            length = value.parse()?;
        }
        if text.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body = match body.as_slice() {
        [] => Value::Null,
        body => serde_json::from_slice(body)?,
    };
    Ok((status.context("no answer")?, body))
}
