//! One request over the control socket.

use std::io;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::handshake;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::Failure;
use super::query::{Format, Query};
use crate::view::ErrorView;

/// How long the daemon may take to begin its answer. Loading a configuration again with
/// many VMs takes a while.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks, and gives what comes to `print`: the whole answer, or each line of a stream.
///
/// # Errors
///
/// [`Failure`]; `json` is whether a refusal is to be kept as JSON.
pub(super) fn ask(
    control: &Path,
    query: &Query,
    json: bool,
    print: impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<(), Failure> {
    let unreachable = |problem: String| Failure::Unreachable {
        path: control.to_owned(),
        problem,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| unreachable(error.to_string()))?;
    runtime.block_on(async {
        let response = match timeout(PATIENCE, send(control, query)).await {
            Ok(response) => response.map_err(unreachable)?,
            Err(_) => return Err(unreachable("no answer comes".to_owned())),
        };
        let status = response.status();
        if !status.is_success() {
            let answer = response.into_body().collect().await;
            let answer = answer.map_err(|error| unreachable(error.to_string()))?;
            return Err(refused(status.as_u16(), &answer.to_bytes(), json));
        }
        let is_stream = query.format == Format::Events;
        receive(response.into_body(), is_stream, print, unreachable).await
    })
}

async fn send(control: &Path, query: &Query) -> Result<Response<Incoming>, String> {
    let stream = UnixStream::connect(control).await;
    let stream = stream.map_err(|error| error.to_string())?;
    let (mut sender, connection) = handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(query.method)
        .uri(&query.path)
        .header(HOST, "localhost")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(query.body.clone())))
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await;
    response.map_err(|error| error.to_string())
}

async fn receive(
    mut body: Incoming,
    is_stream: bool,
    mut print: impl FnMut(&[u8]) -> io::Result<()>,
    unreachable: impl Fn(String) -> Failure,
) -> Result<(), Failure> {
    let mut pending = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| unreachable(error.to_string()))?;
        pending.extend_from_slice(frame.data_ref().map_or(&[], |bytes| bytes));
        while is_stream && let Some(end) = pending.iter().position(|&byte| byte == b'\n') {
            let rest = pending.split_off(end + 1);
            print(&pending).map_err(Failure::Print)?;
            pending = rest;
        }
    }
    if is_stream {
        return Ok(());
    }
    print(&pending).map_err(Failure::Print)
}

fn refused(status: u16, answer: &[u8], json: bool) -> Failure {
    let text = String::from_utf8_lossy(answer).into_owned();
    let error = serde_json::from_str(&text).unwrap_or_else(|_| ErrorView {
        code: "unknown".to_owned(),
        message: format!("the daemon answered with status {status}"),
        remedy: "see its log".to_owned(),
    });
    Failure::Refused {
        status,
        error,
        json: (json && !text.is_empty()).then_some(text),
    }
}
