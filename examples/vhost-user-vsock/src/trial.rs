//! An operator's input without a daemon around it, for those who try out many: requests of
//! the control socket's clients, `--vm` options and configurations.
//!
//! What was read is told as JSON, so that it can be written back and read again.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tokio::net::UnixStream;

use crate::config_file::Config;
use crate::control::{self, Attendant};
use crate::manager::{Manager, Sources};
use crate::mistake::Mistake;
use crate::sandbox::{Directory, Territory};
use crate::spec::Settings;
use crate::vm_option;
use crate::vms::Vms;

/// What answers at a control socket, and the VMs behind it.
pub struct Trial {
    attendant: Attendant,
    manager: Arc<Manager>,
}

impl Trial {
    /// No VM yet. Sockets may be in `directory` alone; `POST /reload` reads `config`.
    ///
    /// # Errors
    ///
    /// The directory cannot be used.
    pub fn new(directory: &Path, config: &Path) -> Result<Self, String> {
        let directory = Directory {
            path: directory.to_owned(),
            setting: directory.display().to_string(),
        };
        let territory = Territory::new(&[directory]).map_err(|mistake| mistake.to_string())?;
        let sources = Sources {
            config: Some(config.to_owned()),
            territory: Some(territory),
            ..Sources::default()
        };
        let manager = Arc::new(Manager::new(Vms::default(), sources));
        Ok(Self {
            attendant: Attendant::new(Arc::clone(&manager)),
            manager,
        })
    }

    /// Serves one client until it leaves. To be awaited in a Tokio runtime that may run
    /// blocking jobs and knows the time.
    pub async fn attend(&self, client: UnixStream) {
        self.attendant.attend(client).await;
    }

    /// Ends all VMs. To be called when the runtime is gone.
    pub fn shutdown(self) {
        drop(self.attendant);
        if let Some(manager) = Arc::into_inner(self.manager) {
            manager.shutdown();
        }
    }
}

/// Reads the value of a `--vm`: its settings.
///
/// # Errors
///
/// What is told to the operator.
pub fn read_vm_option(text: &str) -> Result<Value, String> {
    let spec = vm_option::parse(text).map_err(|mistake| mistake.to_string())?;
    Ok(told(&spec.settings))
}

/// Reads settings as the body of a request: the same settings.
///
/// # Errors
///
/// What is told to the client.
pub fn read_settings(body: &[u8]) -> Result<Value, String> {
    control::read_settings(body).map(|settings| told(&settings))
}

/// Reads a configuration: the settings of each VM.
///
/// # Errors
///
/// What is told to the operator.
pub fn read_config(path: &Path) -> Result<Vec<Value>, String> {
    let config = Config::read_again(path).map_err(|mistake: Mistake| mistake.to_string())?;
    Ok(config.vms.iter().map(|vm| told(&vm.settings)).collect())
}

fn told(settings: &Settings) -> Value {
    // It fails for a path that is not UTF-8, and all of these were read from UTF-8.
    serde_json::to_value(settings).unwrap_or_default()
}
