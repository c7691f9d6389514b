//! Events as a body: a line of JSON for each, sent as soon as it happens.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use hyper::body::{Body, Bytes, Frame};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::spawn_blocking;
use vsock_vhost_user::{Event, Events, NoEvent};

use crate::view::EventView;

/// Streams that are open at once.
pub(super) const MAX_STREAMS: usize = 16;
/// Lines that wait for a client; then events wait in their subscription, which counts
/// those that it has no room for.
const MAX_LINES: usize = 64;
/// How often to see whether the client has left or the daemon ends.
const GLANCE: Duration = Duration::from_millis(250);

/// The lines of one stream. It ends when the daemon does.
pub(super) struct Stream {
    lines: Receiver<Bytes>,
}

impl Stream {
    /// Lines for these events, made on a thread of their own until nobody reads them.
    pub(super) fn start(
        events: Events,
        place: OwnedSemaphorePermit,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let (sender, lines) = channel(MAX_LINES);
        spawn_blocking(move || {
            forward(&events, &sender, &stopping);
            drop(place);
        });
        Self { lines }
    }
}

fn forward(events: &Events, lines: &Sender<Bytes>, stopping: &watch::Receiver<bool>) {
    loop {
        match events.recv_timeout(GLANCE) {
            Ok(event) => {
                if let Some(line) = line(&event)
                    && lines.blocking_send(line).is_err()
                {
                    return;
                }
            }
            Err(NoEvent::Yet) => (),
            Err(NoEvent::Ever) => return,
        }
        if *stopping.borrow() || lines.is_closed() {
            return;
        }
    }
}

fn line(event: &Event) -> Option<Bytes> {
    let view = EventView::of(event, SystemTime::now())?;
    let mut line = serde_json::to_vec(&view).ok()?;
    line.push(b'\n');
    Some(line.into())
}

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let line = self.lines.poll_recv(context);
        line.map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}
