//! Answers for people.

use serde::de::DeserializeOwned;

use super::query::Format;
use crate::policy::list;
use crate::view::{
    ConnectionsView, DifferenceView, EndView, EventView, VersionView, VmView, VmsView, What,
};

/// The answer in this format. What is not understood, because the daemon is another
/// version, is shown as it came.
pub(super) fn render(format: Format, answer: &[u8]) -> String {
    let rendered = match format {
        Format::Json => None,
        Format::Nothing => Some(String::new()),
        Format::Vms => parse(answer).map(vms),
        Format::Vm => parse(answer).map(vm),
        Format::Connections => parse(answer).map(connections),
        Format::Difference => parse(answer).map(difference),
        Format::Version => {
            parse(answer).map(|VersionView { name, version }| format!("{name} {version}\n"))
        }
        Format::Events => parse(answer).map(event),
    };
    rendered.unwrap_or_else(|| String::from_utf8_lossy(answer).into_owned())
}

fn parse<T: DeserializeOwned>(answer: &[u8]) -> Option<T> {
    serde_json::from_slice(answer).ok()
}

fn vms(VmsView { vms }: VmsView) -> String {
    let head = [
        "CID",
        "STATE",
        "CONNECTIONS",
        "GROUPS",
        "SOCKET",
        "UDS-PATH",
    ];
    let rows = vms.into_iter().map(|vm| {
        [
            vm.cid.to_string(),
            vm.state,
            vm.connections.to_string(),
            list(&vm.groups),
            vm.socket.unwrap_or_else(|| "inherited".to_owned()),
            vm.uds_path,
        ]
    });
    table(head, rows)
}

fn vm(vm: VmView) -> String {
    let settings = [
        ("cid", vm.cid.to_string()),
        ("state", vm.state),
        ("source", vm.source),
        ("connections", vm.connections.to_string()),
        (
            "socket",
            vm.socket.unwrap_or_else(|| "inherited".to_owned()),
        ),
        ("uds-path", vm.uds_path),
        ("socket-mode", vm.socket_mode),
        (
            "socket-owner",
            vm.socket_owner.unwrap_or_else(|| "none".to_owned()),
        ),
        ("groups", list(&vm.groups)),
        ("host-cids", list(&vm.host_cids)),
        ("queue-size", vm.queue_size.to_string()),
        ("tx-buffer-size", vm.tx_buffer_size.to_string()),
        ("max-connections", vm.max_connections.to_string()),
        ("max-backlog", vm.max_backlog.to_string()),
        ("max-buffered", vm.max_buffered.to_string()),
        ("max-handshakes", vm.max_handshakes.to_string()),
        ("max-bytes-per-second", vm.max_bytes_per_second.to_string()),
        (
            "max-requests-per-second",
            vm.max_requests_per_second.to_string(),
        ),
    ];
    let settings = settings.map(|(name, value)| (name.to_owned(), value));
    let counters = vm.counters.into_iter();
    let counters = counters.map(|(name, value)| (name.replace('_', "-"), value.to_string()));
    let lines = settings.into_iter().chain(counters);
    lines
        .map(|(name, value)| format!("{name:<24} {value}\n"))
        .collect()
}

fn connections(ConnectionsView { connections }: ConnectionsView) -> String {
    let head = [
        "ID", "FROM", "TO", "KIND", "TYPE", "STATE", "SENT", "RECEIVED", "AGE",
    ];
    let rows = connections.into_iter().map(|connection| {
        [
            connection.id.to_string(),
            end(&connection.from),
            end(&connection.to),
            connection.kind.replace('_', "-"),
            connection.socket_type,
            connection.state,
            connection.sent_bytes.to_string(),
            connection.received_bytes.to_string(),
            format!("{:.1}s", connection.age_seconds),
        ]
    });
    table(head, rows)
}

fn difference(difference: DifferenceView) -> String {
    let DifferenceView {
        added,
        removed,
        changed,
    } = difference;
    format!(
        "added {}, removed {}, changed {}\n",
        list(&added),
        list(&removed),
        list(&changed)
    )
}

fn end(end: &EndView) -> String {
    format!("{}:{}", end.cid, end.port)
}

fn event(EventView { time, what }: EventView) -> String {
    format!("{} {}\n", time_of_day(time), describe(&what))
}

/// In UTC, of seconds since 1970.
fn time_of_day(time: f64) -> String {
    let seconds = time % 86_400.0;
    let (hours, minutes) = (seconds / 3600.0, seconds % 3600.0 / 60.0);
    let whole = |value: f64| value.floor();
    format!(
        "{:02}:{:02}:{:06.3}Z",
        whole(hours),
        whole(minutes),
        seconds % 60.0
    )
}

fn describe(what: &What) -> String {
    match what {
        What::VmAdded { cid } => format!("VM {cid} added"),
        What::VmChanged { cid } => format!("VM {cid} changed"),
        What::VmRemoved { cid } => format!("VM {cid} removed"),
        What::VmUp { cid } => format!("VM {cid} up"),
        What::VmPaused { cid } => format!("VM {cid} paused"),
        What::VmDown { cid } => format!("VM {cid} down"),
        What::ConnectionOpened {
            id,
            from,
            to,
            socket_type,
            ..
        } => format!(
            "connection {id} opened: {socket_type}, {} to {}",
            end(from),
            end(to)
        ),
        What::ConnectionClosed {
            id,
            from,
            to,
            sent_bytes,
            received_bytes,
            age_seconds,
            ..
        } => format!(
            "connection {id} closed: {} to {}, sent {sent_bytes}, received {received_bytes}, \
             after {age_seconds:.3} s",
            end(from),
            end(to)
        ),
        What::ConnectionRefused {
            from, to, message, ..
        } => format!("{} to {} refused: {message}", end(from), end(to)),
        What::ClientRefused {
            cid, port, message, ..
        } => {
            let port = port.map_or_else(|| "?".to_owned(), |port| port.to_string());
            format!("a host application to {cid}:{port} refused: {message}")
        }
        What::Missed { count } => format!("{count} events missed"),
    }
}

/// Columns as wide as their widest cell, but for the last.
fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let mut lines = vec![head.map(str::to_owned)];
    lines.extend(rows);
    let width = |column: usize| {
        let widths = lines.iter().map(|line| line[column].chars().count());
        widths.max().unwrap_or_default()
    };
    let widths: Vec<_> = (0..N).map(width).collect();
    let render = |line: &[String; N]| {
        let cells = line.iter().zip(&widths);
        let cells: Vec<_> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    lines.iter().map(render).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_up_columns() {
        let rows = [["3", "running"], ["1000", "up"]];
        let rows = rows.map(|row| row.map(str::to_owned)).into_iter();
        let text = table(["CID", "STATE"], rows);
        assert_eq!(text, "CID   STATE\n3     running\n1000  up\n");
    }

    #[test]
    fn shows_what_it_does_not_understand_as_it_came() {
        assert_eq!(render(Format::Vms, b"{\"new\": 1}\n"), "{\"new\": 1}\n");
    }

    #[test]
    fn tells_events_with_their_time() {
        let line = br#"{"time": 1763786761.5, "event": "connection_refused",
            "from": {"cid": 3, "port": 1}, "to": {"cid": 4, "port": 80},
            "reason": "not_up", "message": "the sibling is not up"}"#;
        let text = render(Format::Events, line);
        assert_eq!(
            text,
            "04:46:01.500Z 3:1 to 4:80 refused: the sibling is not up\n"
        );
    }
}
