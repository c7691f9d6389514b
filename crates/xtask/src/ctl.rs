//! The daemon's control client, as an operator runs it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::daemon::Vm;
use crate::process;

/// The client of one daemon.
#[derive(Clone, Debug)]
pub(crate) struct Ctl {
    program: PathBuf,
    control: PathBuf,
}

impl Ctl {
    /// The client that comes with the daemon `program`, for the one that listens at
    /// `control`.
    pub(crate) fn new(program: &Path, control: &Path) -> Self {
        Self {
            program: program.to_owned(),
            control: control.to_owned(),
        }
    }

    /// What adds a VM.
    pub(crate) fn adding(vm: &Vm) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec![
            "add".into(),
            vm.cid.to_string().into(),
            "--socket".into(),
            vm.socket.clone().into(),
            "--uds-path".into(),
            vm.uds.clone().into(),
        ];
        if !vm.groups.is_empty() {
            arguments.extend(["--groups".into(), vm.groups.into()]);
        }
        arguments
    }

    /// What removes a VM.
    pub(crate) fn removing(cid: u32) -> Vec<OsString> {
        vec!["remove".into(), cid.to_string().into()]
    }

    /// What puts a VM into other groups.
    pub(crate) fn regrouping(cid: u32, groups: &str) -> Vec<OsString> {
        vec![
            "set".into(),
            cid.to_string().into(),
            "--groups".into(),
            groups.into(),
        ]
    }

    /// Runs the client, and returns what it printed.
    pub(crate) fn run(&self, arguments: &[OsString]) -> Result<String> {
        let mut command = Command::new(&self.program);
        command.arg("ctl").args(arguments);
        command.arg("--control").arg(&self.control);
        let output = process::output(&mut command).context("the daemon's control client")?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    /// How an operator would write it.
    pub(crate) fn line(&self, arguments: &[OsString]) -> String {
        let arguments: Vec<_> = arguments
            .iter()
            .map(|text| text.to_string_lossy())
            .collect();
        format!(
            "vhost-user-vsock ctl {} --control {}",
            arguments.join(" "),
            self.control.display()
        )
    }
}
