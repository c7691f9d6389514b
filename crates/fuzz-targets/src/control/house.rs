//! The VMs behind the control socket, and what is known of them from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;

use serde_json::{Map, Value};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use vhost_user_vsock::{Trial, read_config, read_settings, read_vm_option};

use super::client::{self, Answer};
use super::text;
use crate::steps::trace;

/// What can be written back of a VM, to one that is there.
const POLICY: [&str; 9] = [
    "groups",
    "host_cids",
    "tx_buffer_size",
    "max_connections",
    "max_backlog",
    "max_buffered",
    "max_handshakes",
    "max_bytes_per_second",
    "max_requests_per_second",
];
/// And to a new one beside that.
const FIXED: [&str; 3] = ["socket", "uds_path", "queue_size"];

const CONFIG: &str = "vms.toml";

type Vms = BTreeMap<u64, Map<String, Value>>;

pub(super) struct House {
    runtime: Runtime,
    trial: Trial,
}

/// All that a request could change.
#[derive(PartialEq, Debug)]
struct State {
    vms: Vms,
    files: BTreeSet<OsString>,
}

impl House {
    pub(super) fn new() -> Self {
        let directory = text::directory();
        fs::create_dir_all(&directory).unwrap();
        let trial = Trial::new(&directory, &text::beside(CONFIG)).unwrap();
        let runtime = Builder::new_current_thread()
            .enable_all()
            // Whoever waits for time to pass has it passed.
            .start_paused(true)
            .build()
            .unwrap();
        Self { runtime, trial }
    }

    /// All that comes back for these bytes.
    fn exchange(&self, bytes: &[u8]) -> Vec<u8> {
        self.runtime.block_on(async {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let client = client::say(ours, bytes);
            tokio::join!(client, self.trial.attend(theirs)).0
        })
    }

    /// One request in good form, and its answer.
    fn ask(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let said = self.exchange(&[head.as_bytes(), body].concat());
        trace(|| format!("  {}", String::from_utf8_lossy(&said)));
        let mut answers = client::answers(&said, method == "HEAD");
        let answer = answers.pop().expect("every request is answered");
        assert!(answers.is_empty(), "one answer to one request");
        answer
    }

    fn state(&self) -> State {
        let answer = self.ask("GET", "/vms", &[]);
        let vms = answer.json()["vms"].take();
        let vms = vms.as_array().expect("a list of VMs").iter();
        let entries = fs::read_dir(text::directory()).unwrap();
        State {
            vms: vms.map(vm).collect(),
            files: entries.map(|entry| entry.unwrap().file_name()).collect(),
        }
    }

    /// Says anything: each answer to it has the right shape.
    pub(super) fn say(&self, bytes: &[u8]) {
        let before = self.state();
        let said = self.exchange(bytes);
        if bytes.windows(4).any(|word| word == b"HEAD") {
            // What is the answer to what cannot be told from outside.
            return;
        }
        let answers = client::answers(&said, false);
        if !answers.iter().any(Answer::is_success) {
            assert_eq!(self.state(), before, "refused: {answers:?}");
        }
        self.check();
    }

    pub(super) fn request(&self, method: &str, path: &str, body: &[u8]) {
        let before = self.state();
        let answer = self.ask(method, path, body);
        let after = self.state();
        let cid = path.strip_prefix("/vms/").and_then(|cid| cid.parse().ok());
        match (method, cid) {
            _ if !answer.is_success() => assert_eq!(after, before, "refused: {answer:?}"),
            ("PUT", Some(cid)) => {
                assert_eq!(vm(&answer.json()), (cid, after.vms[&cid].clone()));
                check_given(body, &after.vms[&cid]);
                assert_eq!(without(after.vms, cid), before.vms);
            }
            ("PATCH", Some(cid)) => {
                check_given(body, &after.vms[&cid]);
                assert_eq!(without(after.vms, cid), without(before.vms, cid));
            }
            ("DELETE", Some(cid)) => assert_eq!(after.vms, without(before.vms, cid)),
            ("POST", _) => self.check_loaded(),
            _ => assert_eq!(after, before, "{method} {path} changes nothing"),
        }
        self.check();
    }

    /// Writes the configuration, and has it loaded.
    pub(super) fn reload(&self, config: &str) {
        let path = text::beside(CONFIG);
        fs::write(&path, config).unwrap();
        match read_config(&path) {
            Ok(vms) => vms.iter().for_each(check_settings),
            Err(why) => check_line(&why),
        }
        self.request("POST", "/reload", &[]);
    }

    /// What was loaded is not loaded twice.
    fn check_loaded(&self) {
        let again = self.ask("POST", "/reload", &[]);
        assert!(again.is_success(), "{again:?}");
        for kind in ["added", "removed", "changed"] {
            assert_eq!(again.json()[kind], Value::Array(Vec::new()), "{kind}");
        }
    }

    /// What holds at any time: each VM has its sockets, and can be told what it is.
    fn check(&self) {
        let before = self.state();
        for (cid, vm) in &before.vms {
            for key in ["socket", "uds_path"] {
                let path = vm[key].as_str().expect("a path");
                let path = fs::canonicalize(path).expect("a socket");
                assert!(path.starts_with(text::directory()), "{path:?} is outside");
            }
            let policy = some_of(vm, &POLICY);
            let answer = self.ask(
                "PATCH",
                &format!("/vms/{cid}"),
                policy.to_string().as_bytes(),
            );
            assert!(answer.is_success(), "{policy}: {answer:?}");
        }
        assert_eq!(self.state(), before, "written back");
    }

    /// Each VM is taken away and put back, and then all go.
    pub(super) fn end(self) {
        let before = self.state().vms;
        for (cid, vm) in &before {
            let path = format!("/vms/{cid}");
            assert!(self.ask("DELETE", &path, &[]).is_success());
            let settings = some_of(vm, &[&POLICY[..], &FIXED[..]].concat());
            check_settings(&settings);
            let answer = self.ask("PUT", &path, settings.to_string().as_bytes());
            assert!(answer.is_success(), "{settings}: {answer:?}");
            let mut again = vm_of(&answer);
            again.insert("source".to_owned(), vm["source"].clone());
            assert_eq!(again, *vm);
        }
        for cid in before.keys() {
            assert!(self.ask("DELETE", &format!("/vms/{cid}"), &[]).is_success());
        }
        let Self { runtime, trial } = self;
        drop(runtime);
        trial.shutdown();
        let left: Vec<_> = fs::read_dir(text::directory()).unwrap().collect();
        assert!(left.is_empty(), "{left:?} is left");
        // A static is never dropped: nothing of it stays but its name.
        fs::remove_dir_all(text::beside("")).unwrap();
    }
}

/// A VM by its CID, without what changes by itself.
fn vm(view: &Value) -> (u64, Map<String, Value>) {
    let mut vm = view.as_object().expect("a VM is an object").clone();
    vm.remove("counters");
    (vm["cid"].as_u64().expect("a VM has a CID"), vm)
}

fn vm_of(answer: &Answer) -> Map<String, Value> {
    vm(&answer.json()).1
}

fn without(mut vms: Vms, cid: u64) -> Vms {
    vms.remove(&cid);
    vms
}

fn some_of(vm: &Map<String, Value>, keys: &[&str]) -> Value {
    let some = keys.iter().map(|key| ((*key).to_owned(), vm[*key].clone()));
    Value::Object(some.collect())
}

/// A VM is as the request has said.
fn check_given(body: &[u8], vm: &Map<String, Value>) {
    let given = read_settings(body).expect("an accepted body can be read");
    for (key, value) in given.as_object().into_iter().flatten() {
        // Lists are sets to the daemon.
        let set = |value: &Value| -> Option<BTreeSet<String>> {
            let list = value.as_array()?;
            Some(list.iter().map(Value::to_string).collect())
        };
        let is_same = vm[key] == *value || (set(value).is_some() && set(value) == set(&vm[key]));
        assert!(is_same, "{key}: {value} was given, and is {}", vm[key]);
    }
}

/// Reads a `--vm`.
pub(super) fn check_option(text: &str) {
    match read_vm_option(text) {
        Ok(settings) => check_settings(&settings),
        Err(why) => check_line(&why),
    }
}

/// Settings that were read are the same as a request and as a configuration.
fn check_settings(settings: &Value) {
    let again = read_settings(settings.to_string().as_bytes());
    assert_eq!(again.as_ref(), Ok(settings));
    let path = text::beside("again.toml");
    fs::write(&path, text::table(settings)).unwrap();
    let read = read_config(&path);
    fs::remove_file(&path).unwrap();
    match read {
        Ok(vms) => assert_eq!(vms, std::slice::from_ref(settings)),
        // A number of TOML has a bit less.
        Err(why) => assert!(has_large_number(settings), "{settings}: {why}"),
    }
}

fn has_large_number(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.iter().any(has_large_number),
        Value::Object(map) => map.values().any(has_large_number),
        value => value
            .as_u64()
            .is_some_and(|number| i64::try_from(number).is_err()),
    }
}

fn check_line(why: &str) {
    let is_line = !why.is_empty() && !why.contains(char::is_control);
    assert!(is_line, "{why:?} is no line");
}
