//! Doing what a client asks for.

use std::sync::Arc;

use hyper::StatusCode;
use serde::Serialize;
use tokio::sync::{Semaphore, watch};
use tokio::task::spawn_blocking;

use super::answer::{Answer, Refusal};
use super::route::Call;
use super::stream::{MAX_STREAMS, Stream};
use crate::manager::{Failure, Manager};
use crate::view::{ConnectionView, ConnectionsView, DifferenceView, VersionView, VmView, VmsView};

const OPENAPI: &str = include_str!("openapi.json");

/// What it takes to do it.
#[derive(Clone)]
pub(super) struct Performer {
    manager: Arc<Manager>,
    streams: Arc<Semaphore>,
    pub(super) stopping: watch::Receiver<bool>,
}

impl Performer {
    pub(super) fn new(manager: Arc<Manager>, stopping: watch::Receiver<bool>) -> Self {
        Self {
            manager,
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            stopping,
        }
    }

    /// Does what may wait on another thread. What was begun is finished, also if the
    /// client leaves meanwhile.
    pub(super) async fn perform(&self, call: Call) -> Answer {
        match call {
            Call::Version => Answer::json(StatusCode::OK, &VersionView::default()),
            Call::OpenApi => Answer::text(StatusCode::OK, "application/json", OPENAPI),
            Call::Events => self.events(true),
            Call::EventsHead => self.events(false),
            call => {
                let manager = Arc::clone(&self.manager);
                let job = spawn_blocking(move || perform(&manager, call));
                job.await.unwrap_or_else(|error| Answer::failure(&error))
            }
        }
    }

    fn events(&self, are_read: bool) -> Answer {
        match Arc::clone(&self.streams).try_acquire_owned() {
            Ok(place) if are_read => {
                let events = self.manager.events();
                Answer::stream(Stream::start(events, place, self.stopping.clone()))
            }
            Ok(_) => Answer::head_of_stream(),
            Err(_) => Answer::refusal(&Refusal::new(
                503,
                "too_many_streams",
                format!("{MAX_STREAMS} streams of events are open"),
                "close one",
            )),
        }
    }
}

fn perform(manager: &Manager, call: Call) -> Answer {
    let result = match call {
        Call::Vms => {
            let vms = manager.vms();
            let vms = vms.iter().map(VmView::of).collect();
            Ok(Answer::json(StatusCode::OK, &VmsView { vms }))
        }
        Call::Vm(cid) => json(StatusCode::OK, manager.vm(cid), VmView::of),
        Call::AddVm(spec) => json(StatusCode::CREATED, manager.add(*spec), VmView::of),
        Call::ChangeVm(cid, settings) => {
            json(StatusCode::OK, manager.change(cid, &settings), VmView::of)
        }
        Call::RemoveVm(cid) => empty(manager.remove(cid)),
        Call::Connections(cid) => json(StatusCode::OK, manager.connections(cid), |connections| {
            let connections = connections.iter().map(ConnectionView::of).collect();
            ConnectionsView { connections }
        }),
        Call::KillConnection(id) => empty(manager.kill(id)),
        Call::Reload => json(StatusCode::OK, manager.reload(), DifferenceView::of),
        // They are done where nothing waits.
        Call::Version | Call::OpenApi | Call::Events | Call::EventsHead => {
            Ok(Answer::empty(StatusCode::NOT_FOUND))
        }
    };
    result.unwrap_or_else(|failure| Answer::refusal(&failure.into()))
}

fn json<T, V: Serialize>(
    status: StatusCode,
    result: Result<T, Failure>,
    view: impl FnOnce(&T) -> V,
) -> Result<Answer, Failure> {
    result.map(|value| Answer::json(status, &view(&value)))
}

fn empty(result: Result<(), Failure>) -> Result<Answer, Failure> {
    result.map(|()| Answer::empty(StatusCode::NO_CONTENT))
}
