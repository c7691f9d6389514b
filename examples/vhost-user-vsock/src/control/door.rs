//! Who comes in: clients of the right user, so many at once, each with so much time.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::process::{geteuid, getpid};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::answer::{Answer, Body, Refusal};
use super::patience::Patient;
use super::perform::Performer;
use super::route::{self, Call};
use crate::manager::Manager;

/// Clients that are let in at once; further ones wait in the socket's backlog.
const MAX_CLIENTS: usize = 64;
/// The time for a request's head, and how long a client may be there without one.
const HEAD_PATIENCE: Duration = Duration::from_secs(5);
/// The time for a request's body.
const BODY_PATIENCE: Duration = Duration::from_secs(5);
/// The longest body of a request, in bytes.
const MAX_BODY: usize = 64 * 1024;
/// How long to wait when no client can be let in for want of descriptors.
const BACK_OFF: Duration = Duration::from_millis(100);
/// The time for clients to take their answers when the daemon ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// Lets clients in until the daemon ends; those of other users only if the socket is given
/// to them.
pub(super) async fn serve(
    listener: UnixListener,
    is_given: bool,
    manager: Arc<Manager>,
    mut stopping: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    let performer = Performer::new(manager, stopping.clone());
    let mut clients = JoinSet::new();
    loop {
        let next = async {
            // The semaphore is never closed.
            let place = Arc::clone(&places).acquire_owned().await.ok()?;
            Some((accept(&listener).await, place))
        };
        tokio::select! {
            Some((stream, place)) = next => {
                let is_allowed = is_allowed(&stream, is_given).unwrap_or(false);
                let attended = attend(stream, is_allowed, performer.clone());
                clients.spawn(async move {
                    attended.await;
                    drop(place);
                });
            }
            // Those that have left.
            Some(_) = clients.join_next(), if !clients.is_empty() => (),
            () = is_true(&mut stopping) => break,
        }
    }
    let all = async { while clients.join_next().await.is_some() {} };
    let _ = timeout(FAREWELL, all).await;
}

async fn accept(listener: &UnixListener) -> UnixStream {
    let mut is_told = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                if !std::mem::replace(&mut is_told, true) {
                    warn!(%error, "cannot let a client of the control socket in; trying again");
                }
                sleep(BACK_OFF).await;
            }
        }
    }
}

/// Serves one client until it leaves, or the daemon ends.
pub(super) async fn attend(stream: UnixStream, is_allowed: bool, performer: Performer) {
    let mut stopping = performer.stopping.clone();
    let service = service_fn(|request| answer(request, performer.clone(), is_allowed));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(MAX_BODY)
        .serve_connection(TokioIo::new(Patient::new(stream)), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = is_true(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        debug!(%error, "a client of the control socket is dismissed");
    }
}

/// Waits until it is.
async fn is_true(value: &mut watch::Receiver<bool>) {
    // It fails when it can change no more: the daemon has ended.
    let _ = value.wait_for(|value| *value).await;
}

/// The daemon's own user and root, or whoever can connect if that `is_given`; but no guest,
/// which would come as the daemon itself if a symbolic link led it here.
fn is_allowed(stream: &UnixStream, is_given: bool) -> io::Result<bool> {
    let client = stream.peer_cred()?;
    let is_guest = client.pid() == Some(getpid().as_raw_nonzero().get());
    let is_trusted = [0, geteuid().as_raw()].contains(&client.uid());
    Ok(!is_guest && (is_given || is_trusted))
}

async fn answer(
    request: Request<Incoming>,
    performer: Performer,
    is_allowed: bool,
) -> Result<Response<Body>, Infallible> {
    // By itself: who leaves after the request has not undone it.
    let answer = tokio::spawn(async move {
        match call(request, is_allowed).await {
            Ok(call) => performer.perform(call).await,
            Err(refusal) => Answer::refusal(&refusal),
        }
    });
    let answer = answer.await.unwrap_or_else(|error| Answer::failure(&error));
    Ok(answer.into_response())
}

async fn call(request: Request<Incoming>, is_allowed: bool) -> Result<Call, Refusal> {
    if !is_allowed {
        return Err(Refusal::new(
            403,
            "forbidden",
            "the control socket is for the daemon's own user and root",
            "connect as one of them",
        ));
    }
    let (head, body) = request.into_parts();
    let route = route::find(&head.method, &head.uri)?;
    // Also where it does not matter: while some of it is unread, nobody sees a client leave.
    let body = read(body).await?;
    route.call(&body)
}

async fn read(body: Incoming) -> Result<Bytes, Refusal> {
    let whole = timeout(BODY_PATIENCE, Limited::new(body, MAX_BODY).collect()).await;
    let Ok(whole) = whole else {
        return Err(Refusal::new(
            408,
            "too_slow",
            format!("no whole body came in {} s", BODY_PATIENCE.as_secs()),
            "send it at once",
        ));
    };
    whole
        .map(http_body_util::Collected::to_bytes)
        .map_err(|error| {
            if error.is::<LengthLimitError>() {
                Refusal::new(
                    413,
                    "too_large",
                    format!("the body is longer than {MAX_BODY} bytes"),
                    "send less",
                )
            } else {
                Refusal::bad_request(format!("no body could be read: {error}"), "send one")
            }
        })
}
