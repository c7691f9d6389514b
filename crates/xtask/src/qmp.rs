//! QEMU's control connection: one JSON command, one JSON answer.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// QEMU answers within this time, or it hangs.
const DEADLINE: Duration = Duration::from_secs(10);

/// A control connection that is ready for commands.
#[derive(Debug)]
pub(crate) struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Takes the connection that QEMU has made, and agrees with it.
    pub(crate) fn new(stream: UnixStream) -> Result<Self> {
        stream
            .set_read_timeout(Some(DEADLINE))
            .context("set QMP's deadline")?;
        let mut qmp = Self {
            reader: BufReader::new(stream),
        };
        let _greeting = qmp.read().context("read QMP's greeting")?;
        qmp.execute("qmp_capabilities")?;
        Ok(qmp)
    }

    /// Has QEMU carry out a command without arguments, and returns its answer.
    pub(crate) fn execute(&mut self, command: &str) -> Result<Value> {
        let line = format!("{}\n", json!({ "execute": command }));
        self.reader
            .get_mut()
            .write_all(line.as_bytes())
            .with_context(|| format!("send {command} to QEMU"))?;
        loop {
            let answer = self
                .read()
                .with_context(|| format!("await QEMU's answer to {command}"))?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses {command}: {error}");
            }
            // Anything else is an event.
            if let Some(result) = answer.get("return") {
                return Ok(result.clone());
            }
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            bail!("QEMU has closed the connection");
        }
        Ok(serde_json::from_str(&line)?)
    }
}
