//! From a method and a path to what is asked for.

use std::fmt::Display;

use hyper::{Method, Uri};
use vsock_packet::GuestCid;
use vsock_vhost_user::ConnectionId;

use super::answer::Refusal;
use crate::number::decimal;
use crate::spec::{Origin, Settings, VmSpec};

/// What a client asks for.
#[derive(Debug)]
pub(super) enum Call {
    Version,
    OpenApi,
    Vms,
    Vm(GuestCid),
    AddVm(Box<VmSpec>),
    ChangeVm(GuestCid, Box<Settings>),
    RemoveVm(GuestCid),
    Connections(Option<GuestCid>),
    KillConnection(ConnectionId),
    Events,
    /// What is said of the stream before its first line.
    EventsHead,
    Reload,
}

/// A call whose body has not been read.
#[derive(Debug)]
pub(super) enum Route {
    Whole(Call),
    AddVm(u64),
    ChangeVm(GuestCid),
}

/// Finds out what is asked for. Whoever asks for the HEAD of something is answered as by GET,
/// of which no body is sent (RFC 9110, section 9.3.2).
///
/// # Errors
///
/// There is nothing at this path, not this method, or the path or the query is wrong.
pub(super) fn find(method: &Method, uri: &Uri) -> Result<Route, Refusal> {
    let path: Vec<_> = uri.path().split('/').skip(1).collect();
    let query = uri.query();
    let mut is_query_read = false;
    let asked = match method {
        &Method::HEAD => "GET",
        method => method.as_str(),
    };
    let route = match (path.as_slice(), asked) {
        (["version"], "GET") => Route::Whole(Call::Version),
        (["openapi.json"], "GET") => Route::Whole(Call::OpenApi),
        (["vms"], "GET") => Route::Whole(Call::Vms),
        (["vms", cid], "GET") => Route::Whole(Call::Vm(guest_cid(cid)?)),
        (["vms", cid], "PUT") => Route::AddVm(number("CID", cid)?),
        (["vms", cid], "PATCH") => Route::ChangeVm(guest_cid(cid)?),
        (["vms", cid], "DELETE") => Route::Whole(Call::RemoveVm(guest_cid(cid)?)),
        (["connections"], "GET") => {
            is_query_read = true;
            Route::Whole(Call::Connections(query.map(cid_of_query).transpose()?))
        }
        (["connections", id], "DELETE") => {
            let id = number("connection", id)?.into();
            Route::Whole(Call::KillConnection(id))
        }
        // Nobody would read the stream.
        (["events"], "GET") if method == Method::HEAD => Route::Whole(Call::EventsHead),
        (["events"], "GET") => Route::Whole(Call::Events),
        (["reload"], "POST") => Route::Whole(Call::Reload),
        (path, _) => return Err(none_at(path, method, uri)),
    };
    match query {
        Some(query) if !is_query_read => Err(Refusal::bad_request(
            format!("{} takes no '?{query}'", uri.path()),
            "leave it out",
        )),
        _ => Ok(route),
    }
}

/// Whether it is the method that is wrong, or the path.
fn none_at(path: &[&str], method: &Method, uri: &Uri) -> Refusal {
    let allowed = match path {
        ["version" | "openapi.json" | "vms" | "connections" | "events"] => "GET, HEAD",
        ["vms", _] => "GET, HEAD, PUT, PATCH, DELETE",
        ["connections", _] => "DELETE",
        ["reload"] => "POST",
        _ => {
            return Refusal::new(
                404,
                "no_such_path",
                format!("there is nothing at {}", uri.path()),
                "GET /openapi.json lists what there is",
            );
        }
    };
    let message = format!("{} does not take {method}", uri.path());
    Refusal::method(message, allowed)
}

fn number(what: &str, text: &str) -> Result<u64, Refusal> {
    decimal(text).ok_or_else(|| {
        Refusal::bad_request(
            format!("'{text}' is no {what}"),
            "write its number in decimal digits",
        )
    })
}

fn guest_cid(text: &str) -> Result<GuestCid, Refusal> {
    let value = number("CID", text)?;
    GuestCid::new(value).map_err(|_| {
        Refusal::bad_request(
            format!("{value} is no guest's CID"),
            "choose a CID from 3 to 4294967294",
        )
    })
}

fn cid_of_query(query: &str) -> Result<GuestCid, Refusal> {
    match query.strip_prefix("cid=") {
        Some(cid) => guest_cid(cid),
        None => Err(Refusal::bad_request(
            format!("'?{query}' is not understood"),
            "write ?cid= and a VM's CID, or nothing",
        )),
    }
}

impl Route {
    /// The call with its body.
    ///
    /// # Errors
    ///
    /// The body is not what belongs there.
    pub(super) fn call(self, body: &[u8]) -> Result<Call, Refusal> {
        match self {
            Self::Whole(call) => Ok(call),
            Self::AddVm(cid) => {
                let mut settings = parse(body)?;
                if settings.cid.is_some_and(|written| written != cid) {
                    return Err(Refusal::bad_request(
                        format!("the body is about another CID than the path's {cid}"),
                        "leave \"cid\" out of the body",
                    ));
                }
                settings.cid = Some(cid);
                refuse_relative(&settings)?;
                let spec = VmSpec::new(Origin::Request(cid), settings);
                Ok(Call::AddVm(Box::new(spec)))
            }
            Self::ChangeVm(cid) => {
                let settings = parse(body)?;
                refuse_fixed(&settings)?;
                Ok(Call::ChangeVm(cid, Box::new(settings)))
            }
        }
    }
}

pub(super) fn parse(body: &[u8]) -> Result<Settings, Refusal> {
    let wrong = |what: &dyn Display| {
        Refusal::bad_request(
            format!("the body is not what belongs here: {what}"),
            "send a JSON object as GET /openapi.json describes it",
        )
    };
    // An array of the fields would do for serde.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(wrong(&"it is no object"));
    }
    serde_json::from_slice(body).map_err(|error| wrong(&error))
}

/// The daemon's working directory is not the client's.
fn refuse_relative(settings: &Settings) -> Result<(), Refusal> {
    let paths = [
        ("socket", &settings.socket),
        ("uds_path", &settings.uds_path),
    ];
    for (key, path) in paths {
        if let Some(path) = path
            && !path.is_absolute()
        {
            return Err(Refusal::new(
                400,
                "invalid_setting",
                format!("{key} {} is not absolute", path.display()),
                "write a path that begins with '/'",
            ));
        }
    }
    Ok(())
}

/// What a VM cannot change while it is served.
fn refuse_fixed(settings: &Settings) -> Result<(), Refusal> {
    let given = [
        ("cid", settings.cid.is_some()),
        ("socket", settings.socket.is_some()),
        ("uds_path", settings.uds_path.is_some()),
        ("socket_mode", settings.socket_mode.is_some()),
        ("socket_owner", settings.socket_owner.is_some()),
        ("queue_size", settings.queue_size.is_some()),
    ];
    match given.iter().find(|(_, is_given)| *is_given) {
        None => Ok(()),
        Some((key, _)) => Err(Refusal::new(
            400,
            "invalid_setting",
            format!("{key} cannot be changed while the VM is served"),
            "remove the VM and add it again",
        )),
    }
}
